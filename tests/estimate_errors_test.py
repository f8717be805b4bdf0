"""Wrong use of `estimate` and of the functions behind it: which error, and what it says."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from relax_tf import estimators
from relax_tf.distributions import Bernoulli, OneHotCategorical
from tests.misuse import DIST, NORMAL, ONE_HOT, assert_says, estimate, numpy_cost, total


def partly_numpy_cost(b):
    return numpy_cost(b) + total(b)


def without_its_context(name):
    estimator = estimators.get(name)
    estimate(estimator, context=tf.ones([4, 2]))
    estimate(estimator)


def built_for_three_units():
    estimator = estimators.get("relax")
    estimate(estimator)
    return estimator


def reused(name, other, first=DIST):
    def cost(b):
        return tf.reduce_sum(b, list(range(b.shape.rank - first.shape.rank + 1, b.shape.rank)))

    estimator = estimators.get(name)
    estimate(estimator, first, cost)
    estimate(estimator, other, cost)


WIDER = Bernoulli(tf.zeros([4, 5]))
TABLE = Bernoulli(tf.zeros([4, 2, 3]))
ONE_HOT_TABLE = OneHotCategorical(tf.zeros([4, 2, 3]))


def returning(gradient, dist=DIST):
    """An estimate by an estimator of one's own that returns this."""

    class Own(estimators.Estimator):
        def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
            return gradient

    return estimate(Own(), dist)


def unused_output(network_output):
    return keras.layers.Lambda(lambda x: network_output(x[:, :1]))


WRONG = [
    # estimate().
    *(
        (lambda name=name: reused(name, WIDER), ValueError, r"theta of .*\(None, 3\).*\(4, 5\)")
        for name in ("flip", "midpoint")
    ),
    (lambda: reused("flip", ONE_HOT_TABLE, TABLE), ValueError, "built for binary.*OneHot"),
    (lambda: reused("flip", TABLE, ONE_HOT_TABLE), ValueError, "built for one-hot.*Bernoulli"),
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
        "built without a `context`.*Received: 2",
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
    # Estimators of one's own.
    (lambda: estimate(estimators.Estimator()), NotImplementedError, "`estimate_gradient`"),
    (lambda: returning(tf.ones([4, 3])), TypeError, r"'Own'.*pair.*or None.*4, 3\)"),
    (lambda: returning(tf.ones([2, 4, 3])), TypeError, r"'Own'.*pair.*or None.*2, 4, 3\)"),
    (lambda: returning((tf.ones([4]), None)), ValueError, r"'Own'.*\(4, 3\).*\(4,\)"),
    (lambda: returning((tf.ones([4, 1]), None)), ValueError, r"'Own'.*\(4, 3\).*\(4, 1\)"),
    (lambda: returning(([tf.ones([4, 3])], None)), ValueError, r"'Own'.*\(4, 3\).*\[.*4, 3"),
    (lambda: returning((None, None)), ValueError, r"'Own'.*\(4, 3\).*None"),
    (
        lambda: returning((tf.ones([4, 3]), None), NORMAL),
        ValueError,
        r"'Own'.*\(4, 3\), \(4, 3\).*\(4, 3\)",
    ),
    (lambda: returning(([tf.ones([4, 3])] * 3, None), NORMAL), ValueError, r"'Own'.*\(4, 3\)"),
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
    (lambda: estimate("disarm", dist=NORMAL), ValueError, "discrete distributions only.*Normal"),
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
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_use_says_what_is_wrong(call, error, message):
    assert_says(call, error, message)


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


def test_costs_of_another_rank_are_told_to_be_reduced():
    with pytest.raises(ValueError, match="sums or means over all axes but the first"):
        estimate(cost=tf.reduce_mean)
    with pytest.raises(ValueError, match=r"axes behind the batch, or tf.squeeze\(cost, -1\)"):
        estimate(cost=lambda b: tf.reduce_sum(b, -1, keepdims=True))


def test_gradients_of_ones_own_may_have_shapes_that_are_known_later():
    @tf.function(input_signature=[tf.TensorSpec([None, None]), tf.TensorSpec([None, 3])])
    def step(gradient, theta):
        return returning((gradient, None), Bernoulli(theta)).gradient

    np.testing.assert_array_equal(step(tf.ones([2, 3]), tf.zeros([2, 3])), np.ones([2, 3]))
    gradient = [np.ones([4, 3], "f"), tf.zeros([4, 3])]
    np.testing.assert_array_equal(returning((gradient, None), NORMAL).gradient, gradient)


ONE_EACH = {
    "cost": "cost must return one value per example",
    "context": "context must have the batch of theta",
    "draw": "draw must have the shape of theta",
    "theta": "have the (batch|shape) of theta",
}


@pytest.mark.parametrize("short", ONE_EACH)
@pytest.mark.parametrize("name", ["relax", "rloo"])
def test_one_example_does_not_stand_for_all_where_the_batch_is_unknown(short, name):
    """It was broadcast in place of an error."""
    estimator = estimators.get(name)
    estimator.build((None, 3), (None, 2))
    leading = () if name == "relax" else (estimator.num_samples,)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 3])] * 2 + [tf.TensorSpec([None, 2])], autograph=False
    )
    def gradient(theta, other, context):
        dist = Bernoulli(theta)
        draw = Bernoulli(other).draw(0, leading)
        f_b = lambda b: total(b)[..., :1] if short == "cost" else total(b)  # noqa: E731
        return estimator.estimate(dist, f_b, draw, context, seed=0).gradient

    def sized(**lengths):
        lengths = {"theta": 4, "draw": 4, "context": 4, **lengths}
        widths = {"theta": 3, "draw": 3, "context": 2}
        return [tf.ones([lengths[key], width]) for key, width in widths.items()]

    if short != "cost":
        assert gradient(*sized()).shape == [4, 3]
    with pytest.raises(tf.errors.InvalidArgumentError, match=ONE_EACH[short]):
        gradient(*sized(**{short: 1}))
