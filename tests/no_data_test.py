"""Models whose parameters depend on no input, and `fit` without data."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.enumeration import worst_z

VALUES = np.array([6.0, 5.0, 8.0, 9.0, 6.0, 7.0, 3.0], np.float32)
WEIGHTS = np.array([2.0, 3.0, 6.0, 7.0, 5.0, 9.0, 4.0], np.float32)
CAPACITY = 18.0


def knapsack_cost(b):
    """Minus the value of what is packed; what is too heavy is worth nothing and fined."""
    weight = b @ WEIGHTS
    return np.where(weight <= CAPACITY, -(b @ VALUES), weight - CAPACITY).astype(np.float32)


def best():
    packings = np.array(list(itertools.product([0, 1], repeat=len(VALUES))), np.float32)
    return packings[np.argmin(knapsack_cost(packings))]


def black_box(self, x, y, y_pred, latents, sample_weight=None):
    return tf.ensure_shape(tf.numpy_function(knapsack_cost, [y_pred], tf.float32), [None])


class Knapsack(relax_tf.RelaxModel):
    compute_cost = black_box


class SubclassedKnapsack(relax_tf.RelaxModel):
    compute_cost = black_box

    def __init__(self):
        super().__init__()
        self.logits = relax_tf.Parameters([len(VALUES)])
        self.b = relax_tf.StochasticBinaryLayer(None, "relax", name="b")

    def call(self, x):
        return self.b(self.logits(x))


def functional_knapsack(size=0):
    inputs = keras.Input([size])
    logits = relax_tf.Parameters([len(VALUES)], name="logits")(inputs)
    return Knapsack(inputs, relax_tf.StochasticBinaryLayer(None, "relax", name="b")(logits))


@pytest.mark.parametrize("maker", [functional_knapsack, SubclassedKnapsack])
def test_a_knapsack_is_packed_without_data(maker):
    model = maker()
    model.compile(keras.optimizers.Adam(0.05))
    losses = model.fit(steps_per_epoch=100, batch_size=200, epochs=5, verbose=0).history["loss"]
    assert len(losses) == 5
    model.layers[-1].inference = "mean"
    np.testing.assert_array_equal(model.predict(np.zeros([1, 0]), verbose=0).round()[0], best())
    assert abs(losses[-1] - knapsack_cost(best())) < 1


def test_gradients_of_parameters_are_exact():
    """Also where the batch shares them: the mean over 100 samples."""

    class Model(relax_tf.RelaxModel):
        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            return tf.reduce_sum(tf.sin(3 * tf.cumsum(y_pred, -1)), -1)

    inputs = keras.Input([0])
    logits = relax_tf.Parameters([3], keras.initializers.RandomNormal(seed=0))(inputs)
    model = Model(inputs, relax_tf.StochasticBinaryLayer(None, "relaxed_rebar")(logits))
    model.compile("sgd")
    assert worst_z(model, (tf.zeros([100, 0]), None, None)) < 4.5


def test_the_batch_size_is_the_number_of_samples_of_each_step():
    model = functional_knapsack()
    model.compile("adam", run_eagerly=True)
    model.certify = False
    shapes, cost = [], model.compute_cost
    model.compute_cost = lambda x, *a, **k: (shapes.append(tuple(x.shape)), cost(x, *a, **k))[1]
    model.fit(steps_per_epoch=3, batch_size=5, verbose=0)
    assert shapes == [(5, 0)] * 3
    model.fit(steps_per_epoch=1, verbose=0)
    assert shapes[3:] == [(32, 0)]


def test_evaluation_needs_no_data_either():
    model = functional_knapsack()
    model.compile("adam")
    cost = model.evaluate(steps=3, batch_size=50, verbose=0)
    assert cost == pytest.approx(
        model.evaluate(np.zeros([20_000, 0]), batch_size=1_000, verbose=0), abs=0.5
    )
    with pytest.raises(ValueError, match=r"`evaluate` needs data.*evaluate\(steps=..., batch_size"):
        model.evaluate(verbose=0)


def test_data_are_asked_for_where_they_are_needed():
    for model in (functional_knapsack(0), functional_knapsack(2)):
        model.compile("adam")
        with pytest.raises(ValueError, match=r"`fit` needs data.*keras\.Input\(\[0\]\)"):
            model.fit(verbose=0)
    with pytest.raises(ValueError, match=r"`fit` needs data.*keras\.Input\(\[0\]\)"):
        functional_knapsack(2).fit(steps_per_epoch=3)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        functional_knapsack(0).fit(steps_per_epoch=3, batch_size=0)


def test_parameters_save_load_and_describe_themselves(tmp_path):
    inputs = {"a": keras.Input([2, 3], name="a"), "b": keras.Input([1], name="b")}
    layer = relax_tf.Parameters([2, 3], "ones", "l2", "non_neg", name="p")
    model = keras.Model(inputs, layer(list(inputs.values())))
    x = {"a": np.zeros([4, 2, 3]), "b": np.zeros([4, 1])}
    np.testing.assert_array_equal(model(x), np.ones([4, 2, 3]))
    assert model.output_shape == (None, 2, 3)
    layer.values.assign([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(layer.losses, 0.01 * 91, rtol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), model(x))
    assert again.get_layer("p").get_config() == layer.get_config()
    for shape, error in (((2, 0), ValueError), ((), ValueError), (3, TypeError)):
        with pytest.raises(error, match="`shape`"):
            relax_tf.Parameters(shape)
