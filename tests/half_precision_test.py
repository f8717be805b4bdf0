"""In coarse precision the certificate is as strict about what is no rounding as in float32."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.suspects import COUPLED, NOT_REPEATED, WRONG_SLOPE, Binary, Dense, X

POLICIES = ["mixed_float16", "mixed_bfloat16"]


def passes_or(refusal):
    return pytest.raises(ValueError, match=refusal) if refusal else contextlib.nullcontext()


class Upstream(relax_tf.RelaxModel):
    """One unit that sees noise, which the cost reads too, beside a large constant."""

    def __init__(self, estimator, noise):
        super().__init__()
        self.noise, self.dense = noise, Dense(1)
        self.b = Binary(None, estimator, name="b")

    def call(self, x):
        n = self.noise(tf.zeros_like(x[:, :1]), training=True)
        return self.b(self.dense(n)), n

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        b, n = (tf.cast(value, tf.float32)[:, 0] for value in y_pred)
        return 300.0 + b * n


class RawNoise(keras.layers.Layer):
    def call(self, x, training=None):
        return tf.cast(tf.random.normal(tf.shape(x)), x.dtype)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("estimator", ["rloo", "disarm", "arms"])
def test_noise_that_no_replay_repeats_is_no_rounding(estimator, policy):
    keras.config.set_dtype_policy(policy)
    for noise, refusal in ((RawNoise(), NOT_REPEATED), (keras.layers.GaussianNoise(1.0), None)):
        model = Upstream(estimator, noise)
        model.compile("sgd")
        with passes_or(refusal):
            model.check(X)


class OfBatchSize(relax_tf.RelaxModel):
    """Its cost divides by the number of rows."""

    def __init__(self, estimator, rows):
        super().__init__()
        self.b, self.rows = Binary(2, estimator, name="b"), rows

    def call(self, x):
        return self.b(x)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        cost = tf.reduce_sum((tf.cast(y_pred, tf.float32) - 0.2) ** 2, -1)
        return cost / tf.cast(tf.shape(cost)[0], tf.float32) if self.rows else cost


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("estimator", ["rloo", "arms"])
def test_samples_are_folded_only_where_rows_are_alike(estimator, policy):
    keras.config.set_dtype_policy(policy)
    for rows in (True, False):
        model = OfBatchSize(estimator, rows)
        model.compile("sgd")
        model.check(X)
        assert model._rows_are_alike == (not rows)


class Beside(relax_tf.RelaxModel):
    """Two units beside a constant; the second one's slope is right or not."""

    def __init__(self, estimator, right, cast=lambda b: b):
        super().__init__()
        self.b, self.right, self.cast = Binary(2, estimator, name="b"), right, cast

    def call(self, x):
        return self.cast(self.b(x))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        b = tf.cast(y_pred, tf.float32)
        return 300.0 + b[:, 0] + (b[:, 1] if self.right else tf.stop_gradient(b[:, 1]))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("estimator", ["rebar", "relaxed_rebar"])
def test_a_wrong_slope_is_no_rounding(estimator, policy):
    keras.config.set_dtype_policy(policy)
    for right, refusal in ((False, WRONG_SLOPE), (True, None)):
        model = Beside(estimator, right)
        model.compile("sgd")
        with passes_or(refusal):
            model.check(X)
        assert model.dtype_policy.name == model.b.dtype_policy.name == policy


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_with_casts_of_its_own_is_measured_as_it_is(policy):
    """In float32 it fails, as TensorFlow's operations mix no dtypes, or goes on to round."""
    keras.config.set_dtype_policy(policy)
    half = policy.removeprefix("mixed_")
    for cast in (
        lambda b: b * tf.ones([2], half),
        lambda b: tf.cast(tf.cast(0.37 * b, half), b.dtype),
        keras.Sequential([Dense(8, "tanh"), Dense(2)]),
    ):
        model = Beside("rebar", True, cast)
        model.compile("sgd")
        model.fit(X, batch_size=12, verbose=0)
        assert model.b.dtype_policy.name == policy


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("estimator", ["rloo", "relaxed_rebar"])
def test_models_as_users_write_them_pass(estimator, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input([6, 3])
    h = keras.layers.Conv1D(4, 3, padding="same", activation="tanh")(inputs)
    h = keras.layers.LSTM(5, return_sequences=True)(keras.layers.Dropout(0.2)(h))
    b = Binary(4, estimator, prior="learned", name="b")(h)
    h = keras.layers.LayerNormalization()(keras.layers.MultiHeadAttention(2, 4)(b, b))
    outputs = Dense(2, dtype="float32")(keras.layers.GlobalAveragePooling1D()(h))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("adam", loss="mse")
    random = np.random.RandomState(0)
    model.check(random.normal(size=[16, 6, 3]).astype("f"), random.normal(size=[16, 2]))
    with pytest.raises(ValueError, match=COUPLED):
        norm = relax_tf.RelaxModel(inputs, keras.layers.BatchNormalization()(outputs))
        norm.compile("adam", loss="mse")
        norm.check(random.normal(size=[16, 6, 3]).astype("f"), random.normal(size=[16, 2]))


class OfAmpere(keras.layers.Layer):
    """A product as GPUs compute it under TensorFloat-32, where TensorFlow's switch is on."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=[shape[-1], 8], name="kernel")

    def call(self, x):
        kernel = tf.convert_to_tensor(self.kernel)
        if tf.config.experimental.tensor_float_32_execution_enabled():
            x, kernel = rounded_to_11_bits(x), rounded_to_11_bits(kernel)
        return x @ kernel


def rounded_to_11_bits(x):
    bits = tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32) + 0x1000, ~0x1FFF)
    return x + tf.stop_gradient(tf.bitcast(bits, tf.float32) - x)


@pytest.mark.parametrize("estimator", ["rebar", "relaxed_rebar"])
def test_tensor_float_32_is_no_wrong_slope(estimator):
    """And is on again after it: training has what the user chose."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    assert enabled()  # by default

    def check(*layers):
        inputs = keras.Input([3])
        h = Binary(8, estimator, name="b")(inputs)
        for layer in (OfAmpere(), *layers, OfAmpere()):
            h = keras.activations.tanh(layer(h))
        model = relax_tf.RelaxModel(inputs, Dense(2)(h))
        model.compile("sgd", loss="mse")
        model.check(X, np.zeros([12, 2], "f"))

    check()
    assert enabled()
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        check(keras.layers.Lambda(lambda h: 0.9 * h + 0.1 * tf.stop_gradient(h)))
    assert enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        check()
        assert not enabled()
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(True)
