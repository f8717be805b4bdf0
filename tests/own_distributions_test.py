"""Distributions of one's own: right ones train, and wrong ones are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import diagnostics, estimators
from relax_tf.distributions import Bernoulli, Distribution, Draw, noise
from tests.small_models import data


class Own(Distribution):
    """Independent binary variables, with what the documentation asks for."""

    discrete = True

    def with_theta(self, theta):
        return type(self)(theta)

    def noise(self, seed=None, sample_shape=()):
        return noise.logistic(self._noise_shape(sample_shape), self.dtype, self._seed(seed))

    def from_noise(self, eps):
        z = self.theta + eps
        return Draw(self.harden(z), z)

    def harden(self, z):
        return tf.cast(z > 0, self.dtype)

    def score(self, b):
        return b - tf.sigmoid(self.theta)

    def log_prob(self, b):
        logits = tf.broadcast_to(self.theta, tf.shape(b))
        each = tf.nn.sigmoid_cross_entropy_with_logits(labels=b, logits=logits)
        return -tf.reduce_sum(each, range(1 - self.shape.rank, 0))

    def enumerate(self):
        return self._all_states(np.array([0.0, 1.0]), self.shape[1:])

    def mean(self):
        return tf.sigmoid(self.theta)

    def mode(self):
        return tf.cast(self.theta > 0, self.dtype)


class Chain(Own):
    """Two bits, `[batch, 2]`, of which the second one depends on the first."""

    def _logits(self, b):
        first = tf.broadcast_to(self.theta[:, :1], tf.shape(b[..., :1]))
        return tf.concat([first, self.theta[:, 1:] + 4 * b[..., :1] - 2], -1)

    def harden(self, z):
        first = tf.cast(z[..., :1] > 0, self.dtype)
        return tf.concat([first, tf.cast(z[..., 1:] + 4 * first - 2 > 0, self.dtype)], -1)

    def score(self, b):
        return b - tf.sigmoid(self._logits(b))

    def log_prob(self, b):
        each = tf.nn.sigmoid_cross_entropy_with_logits(labels=b, logits=self._logits(b))
        return -tf.reduce_sum(each, -1)


class OtherSign(Own):
    def score(self, b):
        return -super().score(b)


class Twice(Own):
    def score(self, b):
        return 2 * super().score(b)


class Half(Own):
    def score(self, b):
        return b - 0.5


class OtherShape(Own):
    def score(self, b):
        return super().score(b)[..., :1]


class SubclassOfOurs(Bernoulli):
    def score(self, b):
        return 1.1 * super().score(b)


class TooProbable(Own):
    def log_prob(self, b):
        return super().log_prob(b) + 0.3


class OneMissing(Own):
    def enumerate(self):
        return super().enumerate()[1:]


class OtherSample(Own):
    def from_noise(self, eps):
        return Draw(1 - self.harden(self.theta + eps), self.theta + eps)


def cost(b):
    return (b[..., 0] + 2 * b[..., 1] - 0.45) ** 2 + b[..., 0] * b[..., 1]


THETA = [[0.8, -0.4]]


@pytest.mark.parametrize("family", [Own, Chain])
@pytest.mark.parametrize("name", ["reinforce", "rloo", "nvil", "muprop", "arms", "midpoint"])
def test_estimators_are_unbiased_or_refuse(family, name):
    """ARMS and pairs with slopes rest on what binary and one-hot variables are; 10 000 draws."""
    dist = family(tf.constant(THETA))
    if name in ("arms", "midpoint"):
        with pytest.raises(
            ValueError, match=f"'{name}' is.*Bernoulli and OneHot.*{family.__name__}"
        ):
            diagnostics.check_unbiased(name, dist, cost)
    elif family is Own or name != "muprop":
        assert diagnostics.check_unbiased(name, dist, cost, num_draws=10_000).unbiased


@pytest.mark.parametrize("name", ["disarm", "arm", "relaxed_disarm"])
def test_antithetic_pairs_are_of_binary_variables(name):
    with pytest.raises(ValueError, match=r"Bernoulli variables only\. Received: Own.*'rloo'"):
        estimators.get(name).estimate(Own(tf.constant(THETA)), cost)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("flip", "neighbour"),
        ("reinmax", "trapezoid_vjp"),
        ("concrete", "relax"),
        ("straight_through", "reparameterization_vjp"),
        ("rebar", "conditional_vjp"),
        ("relax", "conditional_draw"),
    ],
)
def test_what_an_estimator_needs_besides_is_named(name, method):
    with pytest.raises(ValueError, match=f"'{name}'.*{method}.*Received: Own"):
        estimators.get(name).estimate(Own(tf.constant(THETA)), cost)


@pytest.mark.parametrize("family", [Own, Chain])
def test_the_exact_gradient_is_the_derivative_of_the_expectation(family):
    theta = tf.constant(THETA)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        dist = family(theta)
        b = dist.enumerate()[:, tf.newaxis]
        expected = tf.reduce_sum(tf.exp(dist.log_prob(b)) * cost(b))
    exact = diagnostics.exact_gradient(family(theta), cost)
    np.testing.assert_allclose(exact, tape.gradient(expected, theta), rtol=1e-5)


@pytest.mark.parametrize("family", [OtherSign, Twice, Half, OtherShape, SubclassOfOurs])
def test_a_wrong_score_is_no_exact_gradient(family):
    """It was both what is tested and what it is compared with."""
    dist = family(tf.constant(THETA))
    message = f"`score` of {family.__name__} is not the derivative of its `log_prob`"
    with pytest.raises(ValueError, match=message):
        diagnostics.exact_gradient(dist, cost)
    with pytest.raises(ValueError, match=message):
        diagnostics.check_unbiased("rloo", dist, cost)


@pytest.mark.parametrize(("family", "total"), [(TooProbable, "1.35"), (OneMissing, "0.8144")])
def test_probabilities_must_add_up(family, total):
    with pytest.raises(ValueError, match=f"`enumerate` of {family.__name__}.*add up to {total}"):
        diagnostics.exact_gradient(family(tf.constant(THETA)), cost)


def model_of(cls, estimator):
    class Layer(relax_tf.StochasticBinaryLayer):
        family = cls

        def distribution(self, inputs):
            return cls(self.theta(inputs))

    inputs = keras.Input([3])
    b = Layer(2, estimator, name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b))
    model.compile("sgd", loss="mse")
    return model


@pytest.mark.parametrize("estimator", ["reinforce", "rloo"])
def test_models_train(estimator):
    for family in (Own, Chain):
        logs = model_of(family, estimator).fit(*data(), verbose=0).history
        assert np.isfinite(logs["loss"]).all() and logs["b_second_moment"][0] > 0


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Half, "`score` of Half, of layer 'b', is not the derivative"),
        (OtherSign, "`score` of OtherSign, of layer 'b', is not the derivative"),
        (OtherSample, r"a sample of OtherSample, of layer 'b', must be `harden\(z\)`"),
    ],
)
def test_models_with_wrong_ones_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        model_of(family, "reinforce").fit(*data(), verbose=0)


def test_a_layer_refuses_an_estimator_that_is_not_for_its_family():
    with pytest.raises(ValueError, match="'arms' is defined for Bernoulli and OneHotCategorical"):
        model_of(Own, "arms")
