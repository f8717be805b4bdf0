"""Wrong use of layers, models and diagnostics: which error, and what it says."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import diagnostics, estimators
from relax_tf.distributions import Bernoulli
from tests.misuse import DIST, NORMAL, assert_says, categorical, estimate, layer, normal, total


def later(setting, value):
    b = layer(estimator="reinforce", name="b")
    b(tf.zeros([2, 3]))
    setattr(b, setting, getattr(b, setting))
    setattr(b, setting, value)


def fit(*layers, loss="mse", **compile_arguments):
    inputs = keras.Input([3])
    x = inputs
    for a_layer in layers:
        x = a_layer(x)
    model = relax_tf.RelaxModel(inputs, x)
    model.compile("sgd", loss=loss, **compile_arguments)
    model.fit(np.zeros([8, 3], "f"), np.zeros([8, *x.shape[1:]], "f"), verbose=0)


def shared_estimator():
    estimator = estimators.get("relax")
    fit(layer(estimator=estimator), layer(estimator=estimator))


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


class Nested(Sequence):
    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return {"parts": {"one": total(y_pred)}}


def other_context():
    inputs = keras.Input([3])
    first = keras.layers.Lambda(lambda x: x[:1])(inputs)
    model = relax_tf.RelaxModel(inputs, layer(estimator="relax")(inputs, context=first))
    model.compile("sgd", loss="mse", run_eagerly=True)
    return model


def train(model, y=None, **arguments):
    model.compile("sgd", run_eagerly=True, **arguments)
    return model.train_on_batch(np.zeros([4, 3], "f"), y)


def functional(*stack, **arguments):
    inputs = keras.Input([3])
    x = inputs
    for a_layer in stack or [layer(**arguments)]:
        x = a_layer(x)
    return relax_tf.RelaxModel(inputs, x)


def masked_prior(symbolic, with_context=False):
    tokens = keras.Input([4]) if symbolic else tf.zeros([2, 4])
    x = keras.layers.Embedding(5, 3, mask_zero=True)(tokens)
    context = {"context": tokens} if with_context else {}
    layer(prior="uniform", estimator="reinforce")(x, **context)


def of_other_features(cls=layer, **arguments):
    b = cls(**arguments)
    b(keras.Input([6]))
    b(keras.Input([5]), context=keras.Input([2]))


WRONG_WEIGHTS = np.zeros([4, 3], "f"), np.zeros([4, 2], "f"), np.ones([3], "f")


def compiled():
    model = functional()
    model.compile("sgd", loss="mse")
    return model


def compare(build=lambda name: functional(estimator=name), names=("relax",), **arguments):
    return diagnostics.compare(build, names, np.zeros([4, 3], "f"), **arguments)


def check(estimator="relax", dist=DIST, **arguments):
    return diagnostics.check_unbiased(estimator, dist, total, **{"num_draws": 10, **arguments})


WRONG = [
    # Layers.
    (lambda: layer(prio="uniform"), ValueError, "StochasticBinaryLayer.*'prio': 'uniform'"),
    (lambda: layer(units="3"), TypeError, "`units`.*integer.*'3'"),
    (lambda: layer(support=(1, 0)), ValueError, r"`support`.*low < high.*\(1, 0\)"),
    (lambda: layer(seed=1.5), ValueError, "`seed` must be an integer.*1.5"),
    (lambda: layer(use_bias="no"), TypeError, "`use_bias`.*True or False.*'no'"),
    (lambda: layer(kernel_initializer="xavier"), ValueError, "initializer.*xavier"),
    (lambda: layer()(tf.zeros([2, 3]), output="mode"), ValueError, "`output`.*'sample'.*'mode'"),
    (lambda: layer()(keras.Input([3]), output="mode"), ValueError, "`output`.*'sample'.*'mode'"),
    (lambda: setattr(layer(), "prior", "flat"), ValueError, "`prior`.*uniform.*'flat'"),
    (lambda: later("prior", "uniform"), ValueError, "layer 'b' is built.*`prior`.*new.*'uniform'"),
    (lambda: later("kl", "exact"), ValueError, "`kl` must be.*'exact'"),
    (lambda: later("support", (1, 0)), ValueError, "`support`.*1, 0"),
    (lambda: layer(estimator=3), TypeError, "an estimator is named by.*3"),
    (lambda: layer(estimator="reinforce")(tf.zeros([3])), ValueError, r"min_ndim=2.*\(3,\)"),
    (lambda: layer()(keras.Input([])), ValueError, r"min_ndim=2.*\(None,\)"),
    (of_other_features, ValueError, r"axis -1.*value 6.*\(None, 5\)"),
    (lambda: of_other_features(categorical), ValueError, r"axis -1.*value 6.*\(None, 5\)"),
    (lambda: of_other_features(normal), ValueError, r"axis -1.*value 6.*\(None, 5\)"),
    (lambda: of_other_features(units=None), ValueError, r"axis -1.*value 6.*\(None, 5\)"),
    (lambda: layer()([tf.zeros([2, 3])] * 2), ValueError, "1 input.*received 2"),
    (lambda: masked_prior(symbolic=True), ValueError, "received a mask.*KL"),
    (lambda: masked_prior(symbolic=True, with_context=True), ValueError, "received a mask.*KL"),
    (lambda: masked_prior(symbolic=False), ValueError, "received a mask.*KL"),
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
    (
        lambda: functional().train_step((np.zeros([4, 3]), np.zeros([4, 2]))),
        ValueError,
        "needs an optimizer.*`compile`",
    ),
    *(
        (lambda run=run: run(compiled(), *WRONG_WEIGHTS), ValueError, r"each of the 4.*\(3,\)")
        for run in (relax_tf.RelaxModel.estimate, relax_tf.RelaxModel.check)
    ),
    (
        lambda: functional(prior="uniform").estimate(WRONG_WEIGHTS[0], None, WRONG_WEIGHTS[2]),
        ValueError,
        r"each of the 4.*\(3,\)",
    ),
    (lambda: functional().estimate(None), ValueError, "not optional, but None was passed"),
    (lambda: functional().compile(3), ValueError, "optimizer identifier: 3"),
    (lambda: train(functional(), loss="mse"), ValueError, "needs targets.*y=None"),
    (lambda: train(functional(), np.zeros([4, 2]), loss="msee"), ValueError, "loss.*: msee"),
    (lambda: setattr(functional(), "certify", "no"), TypeError, "`certify`.*True or False.*'no'"),
    (lambda: train(Nested(layer())), ValueError, "each under a name.*'parts': 'dict'"),
    (
        lambda: other_context().fit(np.zeros([4, 3]), np.zeros([4, 2]), verbose=0),
        ValueError,
        r"`context`.*batch of `dist`, 4.*\(1, 3\)",
    ),
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
    (lambda: normal(estimator="arm"), ValueError, "arm.*discrete distributions only.*Normal"),
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
    (lambda: check("lax", NORMAL), ValueError, "cannot be enumerated.*pass `exact"),
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
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_use_says_what_is_wrong(call, error, message):
    assert_says(call, error, message)


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


def test_a_model_that_is_not_compiled_has_no_optimizer():
    assert functional().optimizer is None


@pytest.mark.parametrize("weight", [2.0, np.full([1], 2.0), np.full([4, 1], 2.0)])
def test_weights_broadcast_as_in_keras(weight):
    model = compiled()
    model.get_layer(index=1).seed_generator.state.assign([1, 2])
    expected = model.estimate(*WRONG_WEIGHTS[:2]).surrogate
    model.get_layer(index=1).seed_generator.state.assign([1, 2])
    weighted = model.estimate(*WRONG_WEIGHTS[:2], weight).surrogate
    assert expected > 0
    np.testing.assert_allclose(weighted, 2 * expected, rtol=1e-6)


def test_inference_is_checked_when_it_is_assigned():
    b = layer()
    with pytest.raises(ValueError, match=r"`inference` must be one of.*'median'"):
        b.inference = "median"
    assert b.inference == "sample"
    b.inference = "mean"
    np.testing.assert_array_equal(b(tf.zeros([1, 3])), 0.5)
    assert b.get_config()["inference"] == "mean"


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


@pytest.mark.parametrize("prior", ["learned", None])
def test_a_prior_can_be_changed_until_the_layer_is_built(prior):
    b = layer(estimator="reinforce", prior="uniform", name="b")
    b.prior = prior
    model = functional(b)
    model.compile("sgd", loss="mse")
    logs = model.fit(np.zeros([4, 3], "f"), np.zeros([4, 2], "f"), verbose=0).history
    assert ("b_kl" in logs) == (prior is not None)
    assert len(b.trainable_variables) == (3 if prior else 2)


def test_a_context_may_be_of_bools():
    inputs = keras.Input([3])
    b = layer(estimator="relax")(inputs, context=keras.layers.Lambda(lambda x: x > 0)(inputs))
    model = relax_tf.RelaxModel(inputs, b)
    model.compile("sgd", loss="mse")
    model.fit(np.zeros([4, 3], "f"), np.zeros([4, 2], "f"), verbose=0)
