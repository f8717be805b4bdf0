"""Wrong arguments of what is made: which error, and what it says."""

import keras
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import control_variates, estimators
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.misuse import DIST, NORMAL, ONE_HOT, assert_says, estimate, numpy_cost

ADAM = keras.optimizers.Adam()

WRONG = [
    # Estimators.
    (lambda: estimators.get("rebarr"), ValueError, "unknown.*'rebarr'.*mean 'rebar'.*rloo"),
    (lambda: estimators.get("??"), ValueError, r"unknown estimator '\?\?'. Known .*relaxed_rebar"),
    (lambda: estimators.get(estimators.Relax), TypeError, "id, its config or.*Relax.*of type type"),
    (lambda: estimators.get(None), TypeError, "id, its config or an Estimator.*None"),
    (
        lambda: estimators.get({"class_name": "rebar", "temperature": 3.0}),
        TypeError,
        "stand in 'config'.*'temperature'",
    ),
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
    assert_says(call, error, message)


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
