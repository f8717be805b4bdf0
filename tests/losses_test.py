"""The shipped loss, and that our costs per example average to Keras's scalars."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.losses import BernoulliNegativeLogLikelihood, per_example


def masked(y_pred, mask):
    """A copy of a tensor with Keras's mask on it (None: without)."""
    y_pred = tf.identity(y_pred)
    if mask is not None:
        y_pred._keras_mask = tf.constant(mask)
    return y_pred


def test_masked_steps_are_left_out_of_the_log_likelihood():
    random = np.random.RandomState(0)
    for batch, time in ((3, 3), (4, 3)):  # equal sizes would broadcast if axes were mixed up
        x, logits = random.rand(2, batch, time, 5).astype("float32")
        mask = random.rand(batch, time) < 0.6
        logits[~mask] = np.nan  # nothing of a masked step may be read
        x[~mask] = np.nan
        logits = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            y_pred = masked(logits, mask)
            loss = BernoulliNegativeLogLikelihood(reduction=None)(x, y_pred)
        nll = tf.nn.sigmoid_cross_entropy_with_logits(x, logits).numpy()
        expected = np.where(mask[..., np.newaxis], nll, 0).sum((1, 2))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        gradient = tape.gradient(loss, logits).numpy()
        np.testing.assert_array_equal(gradient[~mask], 0)
        assert np.isfinite(gradient).all()
        assert (gradient[mask] != 0).all()
        scalar = BernoulliNegativeLogLikelihood()(x, y_pred)
        np.testing.assert_allclose(scalar, expected.mean(), rtol=1e-5)


class OwnMask(keras.losses.Loss):
    """A squared error that masks by its targets, as `ignore_class` does."""

    def call(self, y_true, y_pred):
        losses = tf.reduce_mean((y_true - y_pred) ** 2, -1)
        losses._keras_mask = y_true[..., 0] > 0.2
        return losses


def compiled(loss):
    return keras.src.trainers.compile_utils.CompileLoss(loss, output_names=["y"])


REDUCTIONS = ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("masks", ["none", "output", "loss", "both"])
@pytest.mark.parametrize("time", [3, 4], ids=["square", "oblong"])
def test_costs_average_to_keras_s_scalar(reduction, masks, time):
    random = np.random.RandomState(1)
    y, y_pred = random.rand(2, 4, time, 2).astype("float32")
    mask = random.rand(4, time) < 0.7 if masks in ("output", "both") else None
    loss_class = OwnMask if masks in ("loss", "both") else keras.losses.MeanSquaredError
    loss = loss_class(reduction=reduction)
    of_examples, of_steps = random.rand(4).astype("float32"), random.rand(4, time).astype("float32")
    for weight, theirs in (
        (None, None),
        (of_steps, of_steps),
        (of_examples[:, np.newaxis], of_examples[:, np.newaxis]),
        (of_examples, of_examples[:, np.newaxis]),  # [batch] fails in Keras
    ):
        costs = per_example(compiled(loss), y, masked(y_pred, mask), weight)
        assert costs.shape == [4]
        expected = loss(y, masked(y_pred, mask), theirs)
        np.testing.assert_allclose(np.mean(costs), expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_costs_of_one_value_per_example_average_to_keras_s_scalar(reduction):
    random = np.random.RandomState(2)
    y, y_pred = random.rand(2, 5, 3).astype("float32")
    weight = random.rand(5).astype("float32")
    mask = np.array([True, False, True, True, False])
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    for m, w in itertools.product((None, mask), (None, weight, weight[:, np.newaxis])):
        costs = per_example(compiled(loss), y, masked(y_pred, m), w)
        np.testing.assert_allclose(np.mean(costs), loss(y, masked(y_pred, m), w), rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_classes_do_not_count(reduction, weighted):
    random = np.random.RandomState(3)
    y = np.array([[0, 1, -1], [2, -1, -1], [1, 1, 0], [-1, -1, -1]])
    y_pred = random.dirichlet(np.ones(3), size=[4, 3]).astype("float32")
    weight = random.rand(4, 3).astype("float32") if weighted else None
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1, reduction=reduction)
    for mask in (None, random.rand(4, 3) < 0.7):
        costs = per_example(compiled(loss), y, masked(y_pred, mask), weight)
        np.testing.assert_allclose(np.mean(costs), loss(y, masked(y_pred, mask), weight), rtol=1e-5)
        assert float(costs[-1]) == 0


def test_masked_log_likelihoods_per_example():
    random = np.random.RandomState(4)
    x, logits = random.rand(2, 3, 3, 5).astype("float32")
    mask = random.rand(3, 3) < 0.6
    loss = BernoulliNegativeLogLikelihood()
    expected = np.where(mask, tf.nn.sigmoid_cross_entropy_with_logits(x, logits).numpy().sum(-1), 0)
    weight = random.rand(3).astype("float32")
    for w in (None, weight):
        costs = per_example(compiled(loss), x, masked(logits, mask), w)
        np.testing.assert_allclose(costs, expected.sum(1) * (1 if w is None else w), rtol=1e-5)
        np.testing.assert_allclose(np.mean(costs), loss(x, masked(logits, mask), w), rtol=1e-5)


def test_a_mask_of_everything_is_no_nan():
    loss = keras.losses.MeanSquaredError()
    y = tf.zeros([2, 3, 1])
    nothing = per_example(compiled(loss), y, masked(y + 1, np.zeros([2, 3], bool)))
    np.testing.assert_array_equal(nothing, [0, 0])


def two_outputs():
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(2, "reinforce", inference="mean", name="b")(inputs)
    outputs = {name: keras.layers.Dense(1, name=name)(b) for name in ("p", "q")}
    return relax_tf.RelaxModel(inputs, outputs)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("estimate_first", [False, True])
def test_the_loss_of_each_output_counts_every_batch_once(eager, estimate_first):
    model = two_outputs()
    model.compile(keras.optimizers.SGD(0.0), loss="mse", run_eagerly=eager)
    x, y = np.ones([8, 3], "float32"), np.repeat([[1.0], [10.0]], 4, axis=0)
    targets = {"p": y, "q": -y}  # a batch with a small loss, and one with a large loss
    if estimate_first:
        model.estimate(x, targets)
        assert {float(metric.count) for metric in model._compile_loss.metrics} == {0.0}
    arguments = {"batch_size": 4, "verbose": 0}
    logs = model.fit(x, targets, shuffle=False, **arguments).history
    assert logs["p_loss"][0] + logs["q_loss"][0] == pytest.approx(logs["loss"][0], rel=1e-5)
    logs = model.evaluate(x, targets, return_dict=True, **arguments)
    assert logs["p_loss"] + logs["q_loss"] == pytest.approx(logs["loss"], rel=1e-5)
