"""Wrong use of every public entry point: which error, and what it says."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import control_variates, diagnostics, estimators
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical

DIST = Bernoulli(tf.zeros([4, 3]))
NORMAL = Normal(tf.zeros([4, 3]), tf.ones([4, 3]))
ONE_HOT = OneHotCategorical(tf.zeros([4, 3]))


def total(b):
    return tf.reduce_sum(b, -1)


def estimate(identifier="relax", dist=DIST, cost=total, **arguments):
    return estimators.get(identifier).estimate(dist, cost, **arguments)


def numpy_cost(b):
    return tf.ensure_shape(tf.numpy_function(lambda b: b.sum(-1), [b], tf.float32), [4])


def partly_numpy_cost(b):
    return numpy_cost(b) + total(b)


def fit(*layers, loss="mse", **compile_arguments):
    inputs = keras.Input([3])
    x = inputs
    for layer in layers:
        x = layer(x)
    model = relax_tf.RelaxModel(inputs, x)
    model.compile("sgd", loss=loss, **compile_arguments)
    model.fit(np.zeros([8, 3], "f"), np.zeros([8, *x.shape[1:]], "f"), verbose=0)


def layer(**arguments):
    return relax_tf.StochasticBinaryLayer(**{"units": 2, **arguments})


def categorical(**arguments):
    return relax_tf.StochasticCategoricalLayer(
        **{"num_variables": 2, "num_classes": 3, **arguments}
    )


def normal(**arguments):
    return relax_tf.StochasticNormalLayer(**{"units": 2, **arguments})


def shared_estimator():
    estimator = estimators.get("relax")
    fit(layer(estimator=estimator), layer(estimator=estimator))


def without_its_context(name):
    estimator = estimators.get(name)
    estimate(estimator, context=tf.ones([4, 2]))
    estimate(estimator)


def weighted_vimco():
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, layer(estimator="vimco")(inputs))
    model.compile("sgd", loss="mse")
    model.fit(np.zeros([8, 3], "f"), np.zeros([8, 2], "f"), sample_weight=np.ones(8), verbose=0)


class Sequence(relax_tf.RelaxModel):
    """Layers one after the other, as a subclassed model; the cost is the sum of the output."""

    def __init__(self, *stack):
        super().__init__()
        self.stack = list(stack)

    def call(self, x):
        for a_layer in self.stack:
            x = a_layer(x)
        return x

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return total(y_pred)


class Restless(Sequence):
    """Calls its layers in another order every time."""

    def call(self, x):
        self.stack.reverse()
        return super().call(x)


class ScalarCost(Sequence):
    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.reduce_mean(y_pred)


def train(model, y=None, **arguments):
    model.compile("sgd", run_eagerly=True, **arguments)
    return model.train_on_batch(np.zeros([4, 3], "f"), y)


def functional(*stack, **arguments):
    inputs = keras.Input([3])
    x = inputs
    for a_layer in stack or [layer(**arguments)]:
        x = a_layer(x)
    return relax_tf.RelaxModel(inputs, x)


def masked_prior():
    tokens = keras.Input([4])
    x = keras.layers.Embedding(5, 3, mask_zero=True)(tokens)
    b = layer(prior="uniform", estimator="reinforce")(x)
    keras.Model(tokens, b)(tf.zeros([2, 4]))


def built_for_three_units():
    estimator = estimators.get("relax")
    estimate(estimator)
    return estimator


def compare(build=lambda name: functional(estimator=name), names=("relax",), **arguments):
    return diagnostics.compare(build, names, np.zeros([4, 3], "f"), **arguments)


def check(estimator="relax", dist=DIST, **arguments):
    return diagnostics.check_unbiased(estimator, dist, total, **{"num_draws": 10, **arguments})


def unused_output(network_output):
    return keras.layers.Lambda(lambda x: network_output(x[:, :1]))


ADAM = keras.optimizers.Adam()

WRONG = [
    # Estimators.
    (lambda: estimators.get("rebarr"), ValueError, "unknown.*'rebarr'.*mean 'rebar'.*rloo"),
    (lambda: estimators.get("??"), ValueError, r"unknown estimator '\?\?'. Known .*relaxed_rebar"),
    (lambda: estimators.get(estimators.Relax), TypeError, "id, its config or.*Relax.*of type type"),
    (lambda: estimators.get(None), TypeError, "id, its config or an Estimator.*None"),
    (lambda: estimators.get({"class_name": "rebarr"}), ValueError, "unknown estimator 'rebarr'"),
    (
        lambda: estimators.get({"class_name": "rebar", "config": {"temprature": 1.0}}),
        TypeError,
        "'Rebar'.*temprature",
    ),
    (
        lambda: estimators.get({"class_name": "rebar", "config": 3}),
        TypeError,
        "must be a dict.*'config': 3",
    ),
    (lambda: estimators.deserialize("relax"), TypeError, "must be a dict.*'relax'"),
    (
        lambda: estimators.deserialize(keras.saving.serialize_keras_object(keras.layers.Dense(1))),
        TypeError,
        "does not describe an Estimator.*Dense",
    ),
    (lambda: estimators.serialize("relax"), TypeError, "`estimator`.*Estimator.*'relax'"),
    (lambda: estimators.Rebar(temprature=0.1), ValueError, "Rebar.*'temprature': 0.1"),
    (lambda: estimators.Relax(dtype="float16"), ValueError, "`dtype`.*float32.*'float16'"),
    (lambda: estimators.Relax(dtype="int32"), ValueError, "`dtype`.*float32.*'int32'"),
    (lambda: estimators.StraightThrough(temperature=0), ValueError, "`temperature`.*positive.*0"),
    (
        lambda: setattr(estimators.Concrete(), "temperature", 0),
        ValueError,
        "`temperature`.*positive.*0",
    ),
    (
        lambda: setattr(estimators.Concrete(), "temperature", "hot"),
        TypeError,
        "`temperature`.*number.*'hot'",
    ),
    (lambda: estimators.RelaxedRebar(scale="big"), TypeError, "`scale`.*number.*'big'"),
    (lambda: estimators.RelaxedRebar(control_variate=3), TypeError, "`control_variate`.*3"),
    (lambda: estimators.Relax(coupled="no"), TypeError, "`coupled`.*True or False.*'no'"),
    (lambda: estimators.Lax(coupled=True), ValueError, "Lax.*'coupled': True"),
    (lambda: estimators.Vimco(num_samples=1), ValueError, "`num_samples`.*at least 2.*1"),
    (lambda: estimators.Disarm(num_samples=4), TypeError, "num_samples"),
    (lambda: estimators.Muprop(temperature=1.0), ValueError, "Muprop.*'temperature': 1.0"),
    (lambda: control_variates.MLP(3), TypeError, "`hidden_units`.*sequence of integers.*3"),
    (lambda: control_variates.MLP("33"), TypeError, "`hidden_units`.*sequence of integers.*'33'"),
    (lambda: control_variates.MLP([3], activation="rleu"), ValueError, "activation.*rleu"),
    (lambda: control_variates.MLP([3], dtype="flaot32"), ValueError, "flaot32"),
    (lambda: estimators.get(3), TypeError, "id, its config or an Estimator.*3"),
    (lambda: estimators.deserialize({}), ValueError, "class_name"),
    (lambda: estimators.Rebar(temperature=0.0), ValueError, "`temperature`.*positive.*0.0"),
    (lambda: estimators.Rebar(temperature="hot"), TypeError, "`temperature`.*number.*'hot'"),
    (lambda: estimators.Rebar(scale=float("nan")), ValueError, "`scale`.*finite.*nan"),
    (lambda: estimators.Rebar(coupled=1), TypeError, "`coupled`.*True or False.*1"),
    (lambda: estimators.Concrete(temperature=-1), ValueError, "`temperature`.*positive.*-1"),
    (lambda: estimators.Relax(control_variate="mlp"), TypeError, "`control_variate`.*'mlp'"),
    (lambda: control_variates.MLP([0]), ValueError, "`hidden_units`.*positive.*0"),
    (lambda: control_variates.MLP([1.5]), TypeError, "`hidden_units`.*integer.*1.5"),
    (
        lambda: estimators.Reinforce(baseline_decay=1.0),
        ValueError,
        r"`baseline_decay`.*\[0, 1\).*1",
    ),
    (lambda: estimators.Reinforce(baseline_decay="slow"), TypeError, "`baseline_decay`.*'slow'"),
    (lambda: estimators.Nvil(decay=-0.1), ValueError, r"`decay`.*\[0, 1\).*-0.1"),
    (lambda: estimators.Nvil(baseline="mlp"), TypeError, "`baseline`.*Keras layer.*'mlp'"),
    (lambda: estimators.Relax(baseline="mlp"), TypeError, "`baseline`.*Keras layer.*'mlp'"),
    (lambda: estimators.Muprop(decay=2), ValueError, r"`decay`.*\[0, 1\).*2"),
    (lambda: estimators.Muprop("mlp"), TypeError, "`baseline`.*'mlp'"),
    (lambda: estimators.Lax(decay=1.0), ValueError, r"`decay`.*\[0, 1\).*1.0"),
    (lambda: estimators.Nvil(normalize_variance=1), TypeError, "`normalize_variance`.*True or"),
    (lambda: estimators.Rloo(num_samples=1), ValueError, "`num_samples`.*at least 2.*1"),
    (lambda: estimators.Vimco(num_samples=2.5), TypeError, "`num_samples`.*integer.*2.5"),
    (lambda: estimators.Arm(num_samples=2), TypeError, "num_samples"),
    # estimate().
    (lambda: estimate(dist=tf.zeros([4, 3])), TypeError, "`dist`.*relax_tf.distributions"),
    (lambda: estimate(cost=3.0), TypeError, "`cost`.*callable.*3.0"),
    (lambda: estimate(cost=lambda b: b), ValueError, r"one value per example.*\(4,\).*\(4, 3\)"),
    (lambda: estimate(cost=tf.reduce_sum), ValueError, r"one value per example.*\(4,\).*\(\)"),
    (lambda: estimate(cost=lambda b: "high"), TypeError, "real numbers.*string"),
    (lambda: estimate(cost=lambda b: None), TypeError, "must return a tensor.*None"),
    (lambda: estimate(context="x"), TypeError, "`context`.*real numbers.*x"),
    (lambda: estimate(context=tf.ones([3, 2])), ValueError, r"`context`.*batch.*4.*\(3, 2\)"),
    (lambda: estimate(context=tf.ones([])), ValueError, r"`context`.*\[batch, ...\].*\(\)"),
    (lambda: estimate(seed=tf.zeros([3], tf.int32)), TypeError, r"`seed`.*shape \[2\].*shape=\(3,"),
    (
        lambda: estimate(built_for_three_units(), dist=Bernoulli(tf.zeros([4, 5]))),
        ValueError,
        r"built for a `z` of 3 numbers.*Received: 5",
    ),
    (
        lambda: estimate(built_for_three_units(), context=tf.ones([4, 2])),
        ValueError,
        "built for a `context` of None numbers.*Received: 2",
    ),
    (lambda: estimate("reinforce", cots=3), TypeError, "cots"),
    (
        lambda: estimators.score_function_gradient(DIST, DIST.draw(0).b, tf.ones([4, 1])),
        ValueError,
        r"`credit`.*per sample.*\(4,\).*\(4, 1\)",
    ),
    (
        lambda: estimators.score_function_gradient(DIST, tf.ones([4, 2]), tf.ones([4])),
        ValueError,
        r"`b`.*\(4, 3\).*\(4, 2\)",
    ),
    (
        lambda: estimators.rloo_gradient(DIST, DIST.draw(0, (1,)).b, tf.ones([1, 4])),
        ValueError,
        r"`f_b`.*at least 2 samples.*\(1, 4\)",
    ),
    (lambda: estimators.vimco_credits(tf.ones([1, 4])), ValueError, r"`log_w`.*2.*\(1, 4\)"),
    (
        lambda: estimators.arm_gradient(DIST, tf.zeros([4, 3]), tf.ones([3, 4])),
        ValueError,
        r"`f_b`.*size 2.*\(3, 4\)",
    ),
    (
        lambda: estimators.disarm_gradient(DIST, tf.zeros([3, 4, 3]), tf.ones([2, 4])),
        ValueError,
        r"`b`.*size 2.*\(3, 4, 3\)",
    ),
    (lambda: estimate(seed="one"), TypeError, "`seed`.*'one'"),
    (lambda: estimate(seed=1.5), TypeError, "`seed`.*1.5"),
    (lambda: estimate(draw=3), TypeError, "`draw`.*pair.*3"),
    (
        lambda: estimate(draw=Bernoulli(tf.zeros([4, 2])).draw()),
        ValueError,
        r"`draw.b`.*\(4, 3\).*\(4, 2\)",
    ),
    (lambda: estimate("rebar", cost=numpy_cost), ValueError, "no gradient.*'relax'"),
    (lambda: estimate("relaxed_rebar", cost=numpy_cost), ValueError, "no gradient.*'relax'"),
    (lambda: estimate("rebar", cost=partly_numpy_cost), ValueError, "no gradient.*'relax'"),
    (
        lambda: tf.function(lambda: estimate("rebar", cost=partly_numpy_cost))(),
        ValueError,
        "no gradient.*'relax'",
    ),
    (
        lambda: tf.function(lambda: estimate("rebar", cost=tf.function(partly_numpy_cost)))(),
        ValueError,
        "no gradient.*'relax'",
    ),
    (
        lambda: tf.function(lambda: estimate("concrete", cost=partly_numpy_cost))(),
        ValueError,
        "no gradient.*'relax'",
    ),
    (lambda: estimate("concrete", cost=numpy_cost), ValueError, "no gradient.*'relax'"),
    (lambda: estimate("muprop", cost=numpy_cost), ValueError, "no gradient.*'relax'"),
    (lambda: estimate("muprop", cost=partly_numpy_cost), ValueError, "no gradient.*'relax'"),
    (
        lambda: tf.function(lambda: estimate("muprop", cost=partly_numpy_cost))(),
        ValueError,
        "no gradient.*'relax'",
    ),
    (lambda: estimate("rloo", draw=DIST.draw()), ValueError, r"4 samples, \(4, 4, 3\)"),
    (lambda: estimate("rloo", cost=lambda b: total(b)[0]), ValueError, r"\(4, 4\).*\(4,\)"),
    (lambda: estimate("arm", dist=ONE_HOT), ValueError, "Bernoulli.*OneHotCategorical.*'rloo'"),
    (lambda: estimate("disarm", dist=NORMAL), ValueError, "Bernoulli variables only.*Normal"),
    (
        lambda: estimate(estimators.Nvil(keras.layers.Dense(2)), context=tf.ones([4, 2])),
        ValueError,
        r"\[batch, 1\].*\(4, 2\)",
    ),
    (lambda: without_its_context("nvil"), ValueError, "context=None"),
    (lambda: without_its_context("muprop"), ValueError, "context=None"),
    (
        lambda: estimate(estimators.Muprop(keras.layers.Dense(2)), context=tf.ones([4, 2])),
        ValueError,
        r"\[batch, 1\].*\(4, 2\)",
    ),
    (
        lambda: estimate(estimators.Relax(control_variate=keras.layers.Dense(2))),
        ValueError,
        r"\[batch, 1\].*\(4, 2\)",
    ),
    (
        lambda: estimate(estimators.Relax(control_variate=unused_output(tf.stop_gradient))),
        ValueError,
        "no gradient with respect to its input",
    ),
    *(
        (
            lambda name=name: estimate(name, dist=NORMAL),
            ValueError,
            f"'{name}' is.*discrete distributions only.*Normal.*continuous.*'lax'",
        )
        for name in ("concrete", "straight_through", "rebar", "relax", "relaxed_rebar")
    ),
    *(
        (
            lambda name=name, dist=dist: estimate(name, dist=dist),
            ValueError,
            f"'{name}' is.*continuous distributions only.*{type(dist).__name__}.*'relax'",
        )
        for name in ("lax", "reparameterization")
        for dist in (DIST, ONE_HOT)
    ),
    (
        lambda: estimate("reparameterization", dist=NORMAL, cost=numpy_cost),
        ValueError,
        "no gradient.*'lax'",
    ),
    (
        lambda: estimate(dist=ONE_HOT, draw=OneHotCategorical(tf.zeros([4, 2])).draw()),
        ValueError,
        r"`draw.b`.*\(4, 3\).*\(4, 2\)",
    ),
    # Distributions.
    (lambda: Bernoulli(tf.zeros([2], tf.int32)), TypeError, "`logits`.*floating.*int32"),
    (lambda: Bernoulli("logits"), TypeError, "`logits`.*string"),
    (lambda: Bernoulli(tf.zeros([])), ValueError, r"batch axis.*\(\)"),
    (lambda: Bernoulli(tf.zeros([2]), support=(0, 1, 2)), ValueError, r"`support`.*\(0, 1, 2\)"),
    (lambda: Bernoulli(tf.zeros([2]), support=(1, 0)), ValueError, r"`support`.*\(1, 0\)"),
    (lambda: OneHotCategorical(tf.zeros([2, 2], tf.int32)), TypeError, "`logits`.*int32"),
    (lambda: OneHotCategorical(tf.zeros([2])), ValueError, r"class axis.*\(2,\)"),
    (lambda: OneHotCategorical(tf.zeros([])), ValueError, r"batch axis.*\(\)"),
    (lambda: Normal(tf.zeros([2], tf.int32), tf.ones([2])), TypeError, "`loc`.*int32"),
    (lambda: Normal(tf.zeros([2]), "wide"), TypeError, "`scale`.*string"),
    (lambda: Normal(0.0, 1.0), ValueError, r"batch axis.*\(\)"),
    (lambda: Normal(tf.zeros([2, 3]), tf.ones([2])), ValueError, r"same shape.*\(2, 3\).*\(2,\)"),
    (
        lambda: Normal(tf.zeros([2]), tf.ones([2], tf.float64)),
        ValueError,
        "same dtype.*float32 and float64",
    ),
    (lambda: Normal(tf.zeros([2]), tf.constant([1.0, 0.0])), ValueError, "positive.*0.0 to 1.0"),
    (lambda: Bernoulli(None), TypeError, "`logits`.*None"),
    (lambda: Bernoulli(tf.zeros([2]), support="ab"), ValueError, "`support`.*pair.*'ab'"),
    (lambda: Normal(mean=0.0), TypeError, "mean"),
    (lambda: DIST.draw(seed="a"), TypeError, "`seed`.*integer.*'a'"),
    (lambda: DIST.draw(sample_shape=(-1,)), ValueError, "-1"),
    (lambda: DIST.relax(tf.zeros([4, 3]), 0.0), ValueError, "`temperature`.*positive.*0.0"),
    (lambda: ONE_HOT.relax(tf.zeros([4, 3]), -1), ValueError, "`temperature`.*positive.*-1"),
    (lambda: DIST.kl_divergence(NORMAL), TypeError, "`other`.*a Bernoulli.*of type Normal"),
    (lambda: NORMAL.kl_divergence(DIST), TypeError, "`other`.*a Normal.*of type Bernoulli"),
    (lambda: ONE_HOT.kl_divergence(3), TypeError, "`other`.*a OneHotCategorical.*3"),
    (lambda: Bernoulli(tf.zeros([1, 20])).enumerate(), ValueError, r"2 \*\* 16.*\(20,\)"),
    (NORMAL.enumerate, ValueError, "Normal cannot be enumerated"),
    # Layers.
    (lambda: layer(prio="uniform"), ValueError, "StochasticBinaryLayer.*'prio': 'uniform'"),
    (lambda: layer(units="3"), TypeError, "`units`.*integer.*'3'"),
    (lambda: layer(support=(1, 0)), ValueError, r"`support`.*low < high.*\(1, 0\)"),
    (lambda: layer(seed=1.5), ValueError, "`seed` must be an integer.*1.5"),
    (lambda: layer(use_bias="no"), TypeError, "`use_bias`.*True or False.*'no'"),
    (lambda: layer(kernel_initializer="xavier"), ValueError, "initializer.*xavier"),
    (lambda: layer(estimator=3), TypeError, "an estimator is named by.*3"),
    (lambda: layer(estimator="reinforce")(tf.zeros([3])), ValueError, r"min_ndim=2.*\(3,\)"),
    (masked_prior, ValueError, "received a mask.*KL"),
    (lambda: categorical(num_variables=1.5), TypeError, "`num_variables`.*integer.*1.5"),
    (lambda: categorical(support=(0, 1)), ValueError, "StochasticCategoricalLayer.*'support'"),
    (lambda: normal(kl="exact"), ValueError, "`kl`.*analytic.*'exact'"),
    (lambda: layer(units=0), ValueError, "`units`.*positive.*0"),
    (lambda: layer(units=2.5), TypeError, "`units`.*integer.*2.5"),
    (lambda: layer(support=1), ValueError, "`support`.*pair.*1"),
    (lambda: layer(support=(0, float("inf"))), ValueError, "`support`.*inf"),
    (lambda: layer(estimator="arm?"), ValueError, "unknown estimator"),
    (lambda: layer(prior="flat"), ValueError, "`prior`.*uniform.*'flat'"),
    (lambda: layer(kl="exact"), ValueError, "`kl`.*analytic.*'exact'"),
    (lambda: layer(inference="median"), ValueError, "`inference`.*mean.*'median'"),
    (lambda: layer(seed="s"), ValueError, "`seed` must be an integer.*s"),
    (lambda: layer()(tf.zeros([2, 3]), training=True), ValueError, "training=True.*RelaxModel"),
    (
        lambda: layer().build((None, None, 4)),
        ValueError,
        "fixed size.*theta of shape",
    ),
    (lambda: layer(estimator="lax"), ValueError, "lax.*continuous.*Bernoulli"),
    (lambda: categorical(num_variables=0), ValueError, "`num_variables`.*positive.*0"),
    (lambda: categorical(num_classes=1), ValueError, "`num_classes`.*at least 2.*1"),
    (lambda: categorical(num_classes=2.5), TypeError, "`num_classes`.*integer.*2.5"),
    (lambda: categorical(prior="standard"), ValueError, "`prior`.*uniform.*'standard'"),
    (
        lambda: categorical(estimator="reparameterization"),
        ValueError,
        "reparameterization.*continuous.*OneHotCategorical",
    ),
    (lambda: normal(units=0), ValueError, "`units`.*positive.*0"),
    (lambda: normal(prior="uniform"), ValueError, "`prior`.*standard.*'uniform'"),
    (lambda: normal(estimator="rebar"), ValueError, "rebar.*discrete.*Normal.*continuous"),
    (lambda: normal()(tf.zeros([2, 3]), training=True), ValueError, "'reparameterization'"),
    (shared_estimator, ValueError, "estimator instance of layer"),
    # Models.
    (
        lambda: functional().fit(np.zeros([4, 3]), np.zeros([4, 2]), verbose=0),
        ValueError,
        r"must call `compile\(\)`",
    ),
    (lambda: functional().estimate(np.zeros([4, 3], "f")), ValueError, "no cost.*`loss`"),
    (lambda: functional().estimate(None), ValueError, "not optional, but None was passed"),
    (lambda: functional().compile(3), ValueError, "optimizer identifier: 3"),
    (lambda: train(functional(), loss="mse"), ValueError, "needs targets.*y=None"),
    (lambda: train(functional(), np.zeros([4, 2]), loss="msee"), ValueError, "loss.*: msee"),
    (lambda: train(ScalarCost(layer())), ValueError, r"one value per example.*\(4,\).*\(\)"),
    (lambda: train(Sequence(layer(name="a"), layer(name="a"))), ValueError, "both named 'a'"),
    (
        lambda: train(
            Restless(layer(units=3, estimator="rebar"), layer(units=3, estimator="rebar"))
        ),
        ValueError,
        "same order in every pass",
    ),
    (
        lambda: train(
            functional(),
            np.zeros([4, 5], "f"),
            loss=relax_tf.losses.BernoulliNegativeLogLikelihood(),
        ),
        ValueError,
        r"same shape.*\(4, 5\) and \(4, 2\)",
    ),
    (lambda: fit(keras.layers.Dense(2)), ValueError, "no stochastic layer.*StochasticBinaryLayer"),
    (lambda: fit(layer(), loss=None), ValueError, "no cost.*compute_cost"),
    (
        lambda: fit(layer(), loss=lambda y, p: keras.ops.mean((y - p) ** 2)),
        ValueError,
        "returns a scalar.*one value per example",
    ),
    (
        lambda: fit(layer(), keras.layers.BatchNormalization()),
        ValueError,
        "couples the examples.*batch normalisation.*certify = False",
    ),
    (lambda: fit(layer(estimator="rebar"), loss=lambda y, p: y[:, 0]), ValueError, "'relax'"),
    (lambda: fit(layer(estimator="muprop"), loss=lambda y, p: y[:, 0]), ValueError, "'relax'"),
    (
        lambda: fit(layer(estimator="vimco"), layer(estimator="relax")),
        ValueError,
        "share K joint particles.*Vimco.*Relax",
    ),
    (
        lambda: fit(layer(estimator="vimco"), layer(estimator=estimators.Vimco(num_samples=3))),
        ValueError,
        "same `num_samples`.*=5.*=3",
    ),
    (
        lambda: fit(layer(estimator="vimco", prior="uniform")),
        ValueError,
        "kl='analytic'.*kl='sampled'",
    ),
    (lambda: normal(estimator="arm"), ValueError, "arm.*Bernoulli variables only.*Normal"),
    (lambda: categorical(estimator="disarm"), ValueError, "disarm.*Bernoulli variables only"),
    (weighted_vimco, ValueError, "`sample_weight`.*'vimco'"),
    # Diagnostics.
    (lambda: diagnostics.exact_gradient(3, total), TypeError, "`dist`.*3"),
    (lambda: diagnostics.exact_gradient(DIST, 3), TypeError, "`cost`.*callable.*3"),
    (lambda: diagnostics.exact_gradient(NORMAL, total), ValueError, "cannot be enumerated"),
    (
        lambda: diagnostics.exact_gradient(DIST, lambda b: b),
        ValueError,
        r"one value per example.*\(8, 4\).*\(8, 4, 3\)",
    ),
    (lambda: check(estimator=3), TypeError, "an estimator is named by.*3"),
    (lambda: check(num_draws=0), ValueError, "`num_draws`.*positive.*0"),
    (lambda: check(threshold=0), ValueError, "`threshold`.*positive.*0"),
    (lambda: check(exact=tf.zeros([3, 2])), ValueError, r"`exact`.*\(4, 3\).*\(3, 2\)"),
    (lambda: check("lax", NORMAL), ValueError, "cannot be enumerated"),
    (lambda: diagnostics.gradient_variance(3, 0), TypeError, "`model`.*RelaxModel.*3"),
    (
        lambda: diagnostics.gradient_variance(functional(), np.zeros([4, 3]), num_draws=1),
        ValueError,
        "`num_draws`.*at least 2.*1",
    ),
    (lambda: diagnostics.GradientVariance(0, every=0), ValueError, "`every`.*positive.*0"),
    (lambda: diagnostics.GradientVariance(0, num_draws=1), ValueError, "`num_draws`.*least 2.*1"),
    (lambda: diagnostics.GradientVariance(0, num_draws="a"), TypeError, "`num_draws`.*'a'"),
    (lambda: compare(build=3), TypeError, "`build_model`.*callable.*3"),
    (lambda: compare(build=lambda name: 3), TypeError, "build_model.*RelaxModel.*3"),
    (lambda: compare(names="relax"), TypeError, "`estimators`.*several.*'relax'"),
    (lambda: compare(names=[]), ValueError, "`estimators`.*at least one"),
    (lambda: compare(like=3), TypeError, "`like`.*RelaxModel.*3"),
    (lambda: compare(adapt_steps=-1), ValueError, "`adapt_steps`.*positive.*-1"),
    # Optimizer and loss.
    (lambda: relax_tf.RelaxOptimizer("adamm"), ValueError, "optimizer identifier: adamm"),
    (lambda: relax_tf.RelaxOptimizer(None), TypeError, "`optimizer`.*Keras optimizer.*None"),
    (
        lambda: relax_tf.RelaxOptimizer(keras.optimizers.Adam),
        TypeError,
        "`optimizer`.*Keras optimizer.*of type type",
    ),
    (
        lambda: relax_tf.RelaxOptimizer("adam", 3),
        TypeError,
        "`control_variate_optimizer`.*Keras optimizer.*3",
    ),
    (
        lambda: relax_tf.RelaxOptimizer(keras.optimizers.LossScaleOptimizer(ADAM)),
        ValueError,
        "`optimizer`.*plain.*LossScaleOptimizer",
    ),
    (
        lambda: relax_tf.RelaxOptimizer("adam", loss_scale_factor=0.0),
        ValueError,
        "`loss_scale_factor`.*positive.*0.0",
    ),
    (lambda: relax_tf.RelaxOptimizer("adam", phi="sgd"), TypeError, "phi"),
    (lambda: relax_tf.RelaxOptimizer("adam").optimizers, AttributeError, "`optimizer` and a"),
    (
        lambda: relax_tf.losses.BernoulliNegativeLogLikelihood(reduction="avg"),
        ValueError,
        "`reduction`.*avg",
    ),
    (
        lambda: relax_tf.losses.BernoulliNegativeLogLikelihood(from_logits=True),
        TypeError,
        "from_logits",
    ),
    (lambda: relax_tf.RelaxOptimizer(3), TypeError, "`optimizer`.*Keras optimizer.*3"),
    (lambda: relax_tf.RelaxOptimizer(ADAM, ADAM), ValueError, "two objects"),
    (
        lambda: relax_tf.RelaxOptimizer(relax_tf.RelaxOptimizer("sgd")),
        ValueError,
        "`optimizer`.*plain.*RelaxOptimizer",
    ),
    (
        lambda: relax_tf.losses.BernoulliNegativeLogLikelihood()(tf.zeros([2, 3]), tf.zeros([2])),
        ValueError,
        "same shape",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_use_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=f"(?s){message}") as raised:
        call()
    assert type(raised.value) is error


def test_messages_name_estimators_by_their_ids():
    for _ in range(2):  # the second instance would be called rebar_1
        with pytest.raises(ValueError, match="estimator 'rebar' differentiates the cost"):
            estimate("rebar", cost=numpy_cost)
        with pytest.raises(ValueError, match="estimator 'relax' is defined for discrete"):
            estimate("relax", NORMAL)
    with pytest.raises(ValueError, match="its estimator 'relaxed_rebar' needs the cost"):
        relax_tf.StochasticBinaryLayer(2)(tf.zeros([1, 3]), training=True)


def test_classes_without_an_id_are_named_by_their_class():
    class Mine(estimators.Relax):
        pass

    assert Mine().id == "Mine"
    assert estimators.get("relax").id == "relax"
    with pytest.raises(ValueError, match="estimator 'Mine' is defined for discrete"):
        estimate(Mine(), NORMAL)


def test_an_estimator_can_be_changed_until_the_layer_is_built():
    b = layer(estimator="concrete", name="b")
    for wrong, error in (("rebarr", "unknown estimator"), ("lax", "continuous.*Bernoulli")):
        with pytest.raises(ValueError, match=error):
            b.estimator = wrong
    assert b.estimator.id == "concrete"
    b.estimator = "rebar"
    assert b.estimator.id == "rebar"
    model = functional(b)
    assert {v.name for v in b.estimator.variables} == {"log_temperature", "scale"}
    assert not any(isinstance(inside, estimators.Concrete) for inside in model._flatten_layers())
    before = b.estimator
    with pytest.raises(ValueError, match=r"(?s)layer 'b' is built.*new layer.*Received.*'relax'"):
        b.estimator = "relax"
    assert b.estimator is before


def test_inference_is_checked_when_it_is_assigned():
    b = layer()
    with pytest.raises(ValueError, match=r"`inference` must be one of.*'median'"):
        b.inference = "median"
    assert b.inference == "sample"
    b.inference = "mean"
    np.testing.assert_array_equal(b(tf.zeros([1, 3])), 0.5)
    assert b.get_config()["inference"] == "mean"


def resized(b):
    images = tf.reshape(b, [-1, 3, 1, 1])
    return tf.reduce_sum(tf.image.resize(images, [5, 2], "bicubic") ** 2, [1, 2, 3])


def ctc(b):
    logits = tf.reshape(b, [-1, 3, 1]) * tf.ones([1, 1, 3])
    labels = tf.sparse.from_dense(tf.ones([4, 1], tf.int32))
    lengths = tf.fill([4], 3)
    return tf.nn.ctc_loss(labels, logits, None, lengths, logits_time_major=False, blank_index=-1)


@pytest.mark.parametrize("cost", [resized, ctc])
@pytest.mark.parametrize("graph", [False, True])
def test_costs_without_second_derivatives_are_refused_with_a_way_out(cost, graph):
    for name in ("rebar", "relaxed_rebar"):
        estimator = estimators.get(name)
        estimate(estimator)  # builds it
        call = lambda estimator=estimator: estimate(estimator, cost=cost)  # noqa: E731
        message = f"(?s)estimator '{name}' .*twice differentiable.*'relax'.*'disarm'.*'muprop'"
        with pytest.raises(ValueError, match=message) as raised:
            (tf.function(call, autograph=False) if graph else call)()
        assert graph or isinstance(raised.value.__cause__, LookupError)
    of_pairs = lambda pair: tf.stack([cost(b) for b in tf.unstack(pair)])  # noqa: E731
    for name, way_out in (("relax", cost), ("muprop", cost), ("disarm", of_pairs)):
        assert np.isfinite(estimate(name, cost=way_out).gradient).all()


def test_theta_without_a_batch_axis_is_told_to_get_one():
    for wrong in (lambda: Bernoulli(0.3), lambda: OneHotCategorical([0.1, 0.2])):
        with pytest.raises(ValueError, match=r"add a batch axis.*Received shape"):
            wrong()
    with pytest.raises(ValueError, match=r"size 3, is the batch.*add a batch axis"):
        estimate(dist=Bernoulli(tf.zeros([3])), cost=tf.reduce_sum)
    with pytest.raises(ValueError, match=r"size 3, is the batch.*add a batch axis"):
        estimate("rloo", dist=Bernoulli(tf.zeros([3])), cost=total)


def test_one_theta_for_all_examples_is_told_to_be_repeated():
    x = tf.ones([5, 3])
    message = r"batch 1 while the cost has batch 5.*tf.repeat\(theta, 5, axis=0\).*keras.ops"
    for name in ("relax", "rloo"):
        with pytest.raises(ValueError, match=message):
            estimate(name, Bernoulli(tf.zeros([1, 3])), lambda b: tf.reduce_sum(b * x, -1))
    repeated = Bernoulli(tf.repeat(tf.zeros([1, 3]), 5, axis=0))
    assert estimate(dist=repeated, cost=lambda b: total(b * x)).gradient.shape == [5, 3]
    with pytest.raises(ValueError, match=r"Received shape: \(2,\)$"):
        estimate(cost=lambda b: tf.zeros([2]))  # another mistake


def test_sparse_inputs_are_told_to_be_dense():
    sparse = tf.sparse.from_dense(tf.eye(3))
    inputs = keras.Input([3], sparse=True)
    for call, what in (
        (lambda: layer(name="b")(inputs), "the input of layer 'b'"),
        (lambda: layer(name="b")(sparse), "the input of layer 'b'"),
        (lambda: layer(name="b")(tf.eye(3), context=sparse), "the context of layer 'b'"),
        (lambda: estimate(dist=Bernoulli(tf.eye(3)), context=sparse), "`context`"),
    ):
        with pytest.raises(ValueError, match=rf"{what} must be.*to_dense.*shape .*, 3\)"):
            call()
    model = relax_tf.RelaxModel(inputs, layer()(keras.layers.Dense(2)(inputs)))
    model.compile("sgd", loss="mse")
    assert np.isfinite(model.predict(sparse, verbose=0)).all()
