"""Losses that layers add: refused where they depend on samples, Keras's where they do not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further
from tests.suspects import Binary, Dense, X, Y

REFUSED = r"adds a loss .*depends on the samples of the stochastic layer 'b'.*compute_cost.*certify"


class Penalty(keras.layers.Layer):
    """Adds a multiple of the mean of what passes through to the loss."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        self.add_loss(self.factor * keras.ops.mean(x))
        return x


class Of(keras.layers.Layer):
    """Adds what a function of the samples says."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        self.add_loss(self.function(x))
        return x


class InCost(relax_tf.RelaxModel):
    """Calls `add_loss` where it has the samples at hand."""

    def __init__(self):
        super().__init__()
        self.b, self.head = Binary(4, "relax", name="b"), Dense(3)

    def call(self, x):
        return self.head(self.b(x))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        self.add_loss(keras.ops.mean(latents["b"].sample))
        return super().compute_cost(x, y, y_pred, latents, sample_weight)


def second_layer(b):
    return Penalty()(Binary(2, "reinmax", name="c")(b))


ON_SAMPLES = {
    "add_loss": Penalty(),
    "small": Penalty(1e-3),
    "activity": Dense(3, activity_regularizer="l2"),
    "second layer": second_layer,
}


def model_of(estimator, after=lambda b: b, **kwargs):
    inputs = keras.Input([3])
    b = Binary(4, estimator, name="b", **kwargs)(inputs)
    model = relax_tf.RelaxModel(inputs, Dense(3)(after(b)))
    model.compile("sgd", loss="mse")
    return model


@pytest.mark.parametrize(
    ("where", "estimator"),
    [
        *zip(ON_SAMPLES, ("relaxed_rebar", "flip", "rloo", "reinforce"), strict=True),
        *zip(ON_SAMPLES, ("rloo", "reinforce", "relaxed_rebar", "flip"), strict=True),
    ],
)
def test_losses_that_depend_on_samples_are_refused(where, estimator):
    with pytest.raises(ValueError, match=REFUSED):
        model_of(estimator, ON_SAMPLES[where]).fit(X, Y, batch_size=12, verbose=0)


def test_an_activity_regulariser_of_the_layer_itself_is_refused():
    with pytest.raises(ValueError, match=REFUSED):
        model_of("flip", activity_regularizer="l1").check(X, Y)


def test_a_loss_that_the_cost_adds_is_refused():
    model = InCost()
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=REFUSED):
        model.check(X, Y)


@pytest.mark.parametrize("seed", range(3))
def test_one_unit_and_two_examples_suffice(seed):
    """That the other samples have the same mean happens to one try in two."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input([3])
    b = Penalty()(Binary(1, "relax", name="b")(inputs))
    model = relax_tf.RelaxModel(inputs, Dense(3)(b))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=REFUSED):
        model.check(X[:2], Y[:2])


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "vimco"])
def test_losses_of_probabilities_weights_and_inputs_train(estimator):
    inputs = keras.Input([3])
    hidden = Penalty()(Dense(3, activity_regularizer="l2", kernel_regularizer="l2")(inputs))
    layer = Binary(4, estimator, name="b", kernel_regularizer="l2")
    both = keras.layers.Concatenate()([layer(hidden), Penalty()(layer.mean(hidden))])
    model = relax_tf.RelaxModel(inputs, Dense(3, kernel_regularizer="l1")(both))
    model.compile("sgd", loss="mse")
    model.fit(X, Y, verbose=0)


@pytest.mark.parametrize("estimator", ["rloo", *further("relax", "concrete")])
def test_losses_with_axes_are_summed(estimator):
    losses, weights = [], []
    for axes in (None, -1, ()):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        hidden = Of(lambda x, axes=axes: 0.1 * tf.reduce_sum(x**2, axes))(Dense(3)(inputs))
        model = relax_tf.RelaxModel(inputs, Dense(3)(Binary(4, estimator, seed=1)(hidden)))
        model.compile("sgd", loss="mse")
        model.layers[-1].set_weights([np.zeros([4, 3]), np.zeros(3)])
        history = model.fit(X, Y, batch_size=len(X), verbose=0).history
        losses.append([*history["loss"], model.evaluate(X, Y, batch_size=len(X), verbose=0)])
        weights.append(model.get_weights()[0])
    assert losses[0][0] > np.mean(Y**2) + 0.1
    for other, kernel in zip(losses[1:], weights[1:], strict=True):
        np.testing.assert_allclose(other, losses[0], rtol=1e-5)
        np.testing.assert_allclose(kernel, weights[0], rtol=1e-5)


ADDED = {
    "sum": lambda h: 0.1 * tf.reduce_sum(h**2),
    "axes": lambda h: 0.1 * tf.reduce_sum(h**2, -1),
    "slope alone": lambda h: tf.reduce_sum(0.2 * tf.stop_gradient(h) * (h - tf.stop_gradient(h))),
}


@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize("examples", [1, len(X)])
def test_a_bound_of_several_samples_has_a_loss_on_inputs_once(kind, examples):
    """The stochastic kernel is 0: what reaches the layer before is the added loss alone."""
    inputs = keras.Input([3])
    first = Dense(3, use_bias=False)
    hidden = Of(ADDED[kind])(first(inputs))
    vimco = relax_tf.estimators.Vimco(num_samples=5)
    b = Binary(4, vimco, kernel_initializer="zeros")(hidden)
    model = relax_tf.RelaxModel(inputs, Dense(3)(b))
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    kernel, x = first.kernel.numpy(), X[:examples]
    model.fit(x, Y[:examples], batch_size=examples, verbose=0)
    slope = 0.2 * x.T @ (x @ kernel)
    np.testing.assert_allclose(kernel - first.kernel.numpy(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["concrete", *further("straight_through", "reinmax")])
def test_backpropagation_trains_with_a_loss_on_samples(estimator):
    model = model_of(estimator, Penalty(10.0))
    layer = model.get_layer("b")
    before = np.mean(layer.mean(X))
    model.fit(X, Y, batch_size=12, epochs=200, verbose=0)
    assert np.mean(layer.mean(X)) < before - 0.2


HIDDEN = {
    "noise": lambda b: 10 * tf.reduce_mean(b) + tf.random.normal([]),
    "a large constant": lambda b: 1e4 + 0.1 * tf.reduce_mean(b),
    "a larger constant": lambda b: 1e5 + tf.reduce_mean(b),
}


@pytest.mark.parametrize("estimator", ["relax", "flip", "rloo"])
@pytest.mark.parametrize("by", HIDDEN)
def test_neither_noise_nor_size_hides_a_loss_on_samples(by, estimator):
    with pytest.raises(ValueError, match=REFUSED):
        model_of(estimator, Of(HIDDEN[by])).check(X, Y)


@tf.custom_gradient
def without_gradient(x):
    def grad(upstream):
        raise RuntimeError("nobody asks for it in training")

    return tf.sign(x), grad


def in_python(b):
    """Its derivative fails when it is computed, since there is none."""
    return tf.ensure_shape(tf.py_function(lambda b: tf.constant(1.0), [b], tf.float32), [])


INDEPENDENT = {
    "noise": lambda b: tf.random.normal([]),
    "a constant": lambda b: tf.constant(1e4),
    "lengths that are all 1": lambda b: (
        1e3 * tf.reduce_mean(tf.linalg.normalize(b + 0.1, axis=-1)[0] ** 2)
    ),
    "probabilities, whose sum is 1": lambda b: (
        0.01 * tf.reduce_mean(tf.reduce_sum(tf.nn.softmax(keras.ops.tile(b, [1, 16]) * 3), -1))
    ),
    "an order, which has no derivative": lambda b: tf.cast(tf.reduce_sum(tf.argsort(b)), b.dtype),
    "a sign whose gradient fails": lambda b: 0 * tf.reduce_sum(without_gradient(b)),
    "Python code": in_python,
}


@pytest.mark.parametrize("kind", INDEPENDENT)
def test_losses_that_no_sample_moves_pass(kind):
    model_of("relax", Of(INDEPENDENT[kind])).check(X, Y)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("seed", range(2))
def test_regularisers_of_what_is_normalised_pass(policy, seed):
    """Their slopes cancel but for rounding."""
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input([3])
    b = Binary(64, "relax", name="b")(inputs)
    scale = keras.initializers.RandomNormal(stddev=1.0)
    one = Dense(
        32, "softmax", kernel_initializer=scale, activity_regularizer=keras.regularizers.L1(0.01)
    )
    two = keras.layers.UnitNormalization(activity_regularizer=keras.regularizers.L2(0.01))
    both = keras.layers.Concatenate()([one(b), two(Dense(200)(b))])
    model = relax_tf.RelaxModel(inputs, Dense(3)(both))
    model.compile("sgd", loss="mse")
    model.check(X, Y)
