"""Derivatives that are none are refused where an estimator relies on them, and no others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.step.slopes import wrong_slope
from tests.further import further
from tests.suspects import WRONG_SLOPE, Apply, Penalised, X, Y, model_of

Binary = relax_tf.StochasticBinaryLayer
Dense = keras.layers.Dense


@tf.custom_gradient
def quantised(x):
    return tf.round(2 * x) / 2, lambda upstream: upstream


WRONG_SLOPES = {
    "stop_gradient on one of two paths": lambda x: x + tf.stop_gradient(x),
    "a detached probe": lambda x: tf.concat([x[:, :2], tf.stop_gradient(x[:, 2:])], -1),
    "rounding beside a smooth path": lambda x: x + tf.round(x),
    "argmax beside a smooth path": lambda x: x + tf.one_hot(tf.argmax(x, -1), 3),
    "a comparison": lambda x: tf.where(x > 0, x, -1.0),
    "a straight-through quantiser": quantised,
    "a fine quantiser": lambda x: quantised(8 * x) / 8,
    "half of the derivative": lambda x: 0.5 * x + 0.5 * tf.stop_gradient(x),
}


@pytest.mark.parametrize("estimator", ["rebar", *further("relaxed_rebar")])
@pytest.mark.parametrize("kind", WRONG_SLOPES)
def test_wrong_derivatives(kind, estimator):
    model = model_of(estimator, Apply(WRONG_SLOPES[kind]))
    with pytest.raises(ValueError, match=f"{WRONG_SLOPE}.*'relax'"):
        model.fit(X, Y, batch_size=12, verbose=0)


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        *((kind, ("relax", "disarm", "muprop")[k % 3]) for k, kind in enumerate(WRONG_SLOPES)),
        *((kind, ("rloo", "nvil", "relax")[k % 3]) for k, kind in enumerate(WRONG_SLOPES)),
    ],
)
def test_a_wrong_derivative_does_not_matter_to_others(kind, estimator):
    model_of(estimator, Apply(WRONG_SLOPES[kind])).check(X, Y)


@pytest.mark.parametrize("kind", WRONG_SLOPES)
def test_wrong_derivatives_of_normal_samples(kind):
    for estimator in ("lax", "reparameterization"):
        inputs = keras.Input([3])
        b = relax_tf.StochasticNormalLayer(4, estimator, name="b")(inputs)
        model = relax_tf.RelaxModel(inputs, Apply(WRONG_SLOPES[kind])(Dense(3)(b)))
        model.compile("sgd", loss="mse")
        if estimator == "lax":
            model.check(X, Y)
        else:
            with pytest.raises(ValueError, match=f"{WRONG_SLOPE}.*'lax'"):
                model.check(X, Y)


ROUGH = {
    "relu": tf.nn.relu,
    "abs": tf.abs,
    "max": lambda x: tf.reduce_max(x, -1, keepdims=True) + tf.zeros_like(x),
    "steep": lambda x: tf.tanh(30 * x),
    "exp": lambda x: tf.exp(3 * x),
    "sort": lambda x: tf.sort(x, -1),
    "sin": lambda x: tf.sin(10 * x),
    "tiny": lambda x: 1e-6 * x,
    "huge": lambda x: 1e6 * x,
    "constant": lambda x: 0 * x,
    "clip": lambda x: tf.clip_by_value(x, -0.2, 0.2),
}


@pytest.mark.parametrize("estimator", ["reparameterization", *further("rebar")])
@pytest.mark.parametrize("kind", ROUGH)
def test_kinks_and_steep_slopes_are_no_wrong_derivatives(kind, estimator):
    inputs = keras.Input([3])
    if estimator == "reparameterization":
        b = relax_tf.StochasticNormalLayer(4, estimator)(inputs)
    else:
        b = Binary(4, estimator)(Binary(4, estimator, (-1, 1))(inputs))
    hidden = Dense(8, "relu")(b)
    model = relax_tf.RelaxModel(inputs, Apply(ROUGH[kind])(Dense(3)(hidden)))
    model.compile("sgd", loss="mse")
    model.check(X, Y)


# Along a path, t in [0, 1]: a curve, and the height of a jump that its slope does not have.
CURVES = {
    "a steep step": (lambda t: np.tanh((t - 0.37) / 1e-4), 0),
    "a narrow dip": (lambda t: t + np.exp(-(((t - 0.37) / 1e-3) ** 2)), 0),
    "a pole": (lambda t: np.log(t + 1e-7), 0),
    "a pole at the other end": (lambda t: np.log(1 - t + 1e-7), 0),
    "a root": (lambda t: np.sqrt(np.abs(t - 0.37)), 0),
    "waves": (lambda t: t + np.sin(300 * t), 0),
    "a jump": (lambda t: t, 0.06),
    "a jump beside a steep step": (lambda t: np.tanh((t - 0.37) / 1e-4), 0.06),
    "a jump beside waves": (lambda t: t + np.sin(30 * t), 0.06),
    "a jump beside a pole": (lambda t: np.log(t + 1e-7), 0.6),
}


@pytest.mark.parametrize("kind", CURVES)
def test_steep_slopes_are_told_from_wrong_ones(kind):
    curve, jump = CURVES[kind]

    def at(t):
        shifted = t * np.array([1.0, 0.9, 0.8, 1.0])
        h = 1e-6 * np.minimum(shifted, 1 - shifted) + 1e-12
        slope = (curve(shifted + h) - curve(shifted - h)) / (2 * h) * shifted / max(t, 1e-300)
        value = curve(shifted) + jump * (shifted > 0.5)
        return value.astype("f"), slope.astype("f")

    assert (wrong_slope(at, 0.0) is not None) == (jump > 0)


def test_a_batch_of_steep_examples_takes_no_time_without_bounds():
    places, seen = np.linspace(0.1, 0.9, 500), set()

    def at(t):
        seen.add(t)
        x = (t - places) / 1e-5
        with np.errstate(over="ignore"):
            slope = 1e5 / np.cosh(x) ** 2
        return np.tanh(x).astype("f"), slope.astype("f")

    assert wrong_slope(at, 0.0) is None
    assert len(seen) < 3_000


# What an adversary found (each was silently biased).


@pytest.mark.parametrize("estimator", ["rebar", "relaxed_rebar"])
def test_hardening_the_relaxed_sample_again(estimator):
    """Between hard samples the wrong slope of a quadratic cost adds up to the right change."""
    inputs = keras.Input([3])
    b = Binary(3, estimator, name="b")(inputs)
    hard = Apply(lambda x: x + tf.stop_gradient(tf.round(x) - x))(b)
    model = relax_tf.RelaxModel(inputs, Dense(3)(hard))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model.check(X, Y)


VANISHING = {
    "a detached term": lambda b: tf.stop_gradient(tf.reduce_sum(4 * b * (1 - b), -1)),
    "a step": lambda b: tf.reduce_sum(tf.where(tf.abs(b - 0.5) < 0.25, 1.0, 0.0), -1),
}


@pytest.mark.parametrize("kind", VANISHING)
def test_wrong_slopes_of_what_vanishes_at_hard_samples(kind):
    model = Penalised("rebar", VANISHING[kind])
    model.compile("sgd")
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model.check(X, Y)


def test_a_rough_cost_does_not_hide_a_wrong_slope():
    rough = Apply(lambda x: 0.3 * tf.sin(100 * x) + x + 2 * tf.stop_gradient(x))
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model_of("rebar", rough).check(X, Y)


# What a later adversary found.


@pytest.mark.parametrize(
    ("between", "refused"),
    [(tf.sign, True), (lambda z: tf.sign(z) + tf.tanh(z), True), (tf.tanh, False)],
    ids=["sign", "sign and tanh", "tanh"],
)
def test_a_jump_between_a_normal_sample_and_later_logits(between, refused):
    """The discrete sample is held, so the cost does not jump, but its distribution does."""
    inputs = keras.Input([3])
    z = relax_tf.StochasticNormalLayer(1, "reparameterization", name="z")(inputs)
    b = Binary(2, "disarm", name="b")(Apply(between)(z))
    model = relax_tf.RelaxModel(inputs, Dense(3)(b))
    model.compile("sgd", loss="mse")
    if refused:
        with pytest.raises(ValueError, match=f"{WRONG_SLOPE}.*'z'.*later stochastic layer"):
            model.check(X, Y)
    else:
        model.check(X, Y)


class Weighted(relax_tf.RelaxModel):
    """Examples whose weight is y; all of them round."""

    def __init__(self, estimator):
        super().__init__()
        self.b = Binary(1, estimator, name="b")

    def call(self, x):
        return self.b(x)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        rounded = tf.round(y_pred)
        smooth = y * (tf.reduce_sum(y_pred, -1) - 0.3) ** 2
        return smooth + 2 * tf.reduce_sum(rounded, -1) * rounded[:, 0]


@pytest.mark.parametrize("weight", [1.0, 1e5, np.inf])
def test_heavy_examples_do_not_hide_the_wrong_slopes_of_others(weight):
    model = Weighted("rebar")
    model.compile("sgd")
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model.check(X, np.array(4 * [weight] + 8 * [1.0], "f"))


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "rebar"])
def test_samples_as_the_probabilities_of_a_cross_entropy(estimator):
    """The slope is 1 / p almost to p = 0: steep, and right."""
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, Binary(2, estimator)(inputs))
    model.compile("sgd", loss="binary_crossentropy")
    model.check(X, (Y[:, :2] > 0).astype("f"))
    model = relax_tf.RelaxModel(
        inputs, relax_tf.StochasticCategoricalLayer(1, 3, estimator)(inputs)
    )
    model.compile("sgd", loss="categorical_crossentropy")
    model.check(X, np.eye(3, dtype="f")[np.arange(12) % 3][:, np.newaxis])


def test_normal_samples_far_from_a_pole_stay_there():
    class Reciprocal(relax_tf.RelaxModel):
        def __init__(self):
            super().__init__()
            self.z = relax_tf.StochasticNormalLayer(None, "reparameterization", name="z")

        def call(self, x):
            return self.z([10 + 0.1 * x, 0.1 * tf.ones_like(x)])

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            return tf.reduce_sum(100 / y_pred, -1)

    model = Reciprocal()
    model.compile("sgd")
    model.check(X, Y)


def test_a_cost_that_is_random_by_itself_is_called_so():
    inputs = keras.Input([3])
    z = relax_tf.StochasticNormalLayer(2, "reparameterization", name="z")(inputs)
    noisy = Apply(lambda x: x + 0.5 * tf.random.normal(tf.shape(x)))
    model = relax_tf.RelaxModel(inputs, Dense(3)(noisy(z)))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=rf"{WRONG_SLOPE}.*random by itself.*SeedGenerator.*'lax'"):
        model.check(X, Y)


class TwoUnits(relax_tf.RelaxModel):
    """One of them decides most of the cost."""

    def __init__(self, estimator, large, small):
        super().__init__()
        kind = relax_tf.StochasticNormalLayer if estimator == "reparameterization" else Binary
        self.b, self.large, self.small = kind(2, estimator, name="b"), large, small

    def call(self, x):
        return self.b(x)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return self.large * y_pred[:, 0] ** 2 + self.small(y_pred[:, 1])


@pytest.mark.parametrize("seed", [0, *further(1, 2)])
@pytest.mark.parametrize("estimator", ["relaxed_rebar", "rebar", "reparameterization"])
def test_a_small_wrong_slope_beside_a_large_right_one(estimator, seed):
    keras.utils.set_random_seed(seed)
    model = TwoUnits(estimator, 100.0, lambda b: 0.3 * tf.stop_gradient(b))
    model.compile("sgd")
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model.check(X)
    model = TwoUnits(estimator, 100.0, lambda b: 0.3 * tf.abs(b - 0.3))
    model.compile("sgd")
    model.check(X)


@pytest.mark.parametrize("estimator", ["lax", "reinforce", "rloo", "muprop"])
@pytest.mark.parametrize("way", ["skip", *further("prior")])
def test_normal_samples_below_normal_samples_that_are_estimated(way, estimator):
    """The cost of those does not backpropagate: where they are moved, no slope foretells it."""

    def check(between):
        inputs = keras.Input([3])
        n = relax_tf.StochasticNormalLayer(2, "reparameterization", name="n")(inputs)
        layer = relax_tf.StochasticNormalLayer
        b = layer(2, estimator, prior="standard" if way == "prior" else None, name="b")(between(n))
        h = b if way == "prior" else keras.layers.Concatenate()([between(n), b])
        model = relax_tf.RelaxModel(inputs, keras.layers.Dense(3)(h))
        model.compile("sgd", loss="mse")
        model.check(X, X)

    check(keras.layers.Identity())
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        check(keras.layers.Lambda(lambda n: n - 0.3 * tf.stop_gradient(n)))
