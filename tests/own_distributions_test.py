"""Distributions of one's own: right ones train, and wrong ones are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import diagnostics, estimators
from relax_tf.distributions import Bernoulli, Distribution, Draw, OneHotCategorical, noise
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

    def mean(self):
        first = tf.sigmoid(self.theta[:, :1])
        second = self.theta[:, 1:]
        second = first * tf.sigmoid(second + 2) + (1 - first) * tf.sigmoid(second - 2)
        return tf.concat([first, second], -1)

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
    else:
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
        ("relax", "relax"),
        (estimators.Relax(coupled=False), "conditional_draw"),
    ],
)
def test_what_an_estimator_needs_besides_is_named(name, method):
    estimator = estimators.get(name)
    with pytest.raises(ValueError, match=f"'{estimator.id}'.*{method}.*Received: Own"):
        estimator.estimate(Own(tf.constant(THETA)), cost)


class Relaxed(Own):
    """What equation 10 asks for in its coupled form, and nothing else."""

    def relax(self, z, temperature):
        return tf.sigmoid(z / temperature)

    def reparameterization_vjp(self, z, w):
        return w

    def conditional_vjp(self, b, z, w):
        return Bernoulli(self.theta).conditional_vjp(b, z, w)


class Wrapped(Own):
    """It has by delegation what it has not itself."""

    def __getattr__(self, name):
        if name.startswith("_"):  # what `copy` asks for
            raise AttributeError(name)
        return getattr(Relaxed(self.theta), name)


@pytest.mark.parametrize("family", [Relaxed, Wrapped])
@pytest.mark.parametrize("name", ["rebar", "relax"])
def test_no_more_is_asked_for_than_is_needed(family, name):
    dist = family(tf.constant(THETA))
    assert diagnostics.check_unbiased(name, dist, cost, num_draws=10_000).unbiased


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


class ScoreAlone(Own):
    """What `reinforce` and `rloo` ask for, and nothing else."""

    log_prob = None

    def with_theta(self, theta):
        raise NotImplementedError


class InNumPy(Own):
    def log_prob(self, b):
        return tf.numpy_function(lambda b: b.sum(-1), [b], tf.float32)


class NotYet(Own):
    def log_prob(self, b):
        raise NotImplementedError


class Softly(Own):
    """Its sample has rounding of a straight-through one."""

    def from_noise(self, eps):
        soft = tf.sigmoid(self.theta + eps)
        return Draw(self.harden(self.theta + eps) + soft - 1.0000001 * soft, self.theta + eps)


@pytest.mark.parametrize("family", [ScoreAlone, InNumPy, NotYet, Softly])
def test_models_train_whose_score_cannot_be_told(family):
    logs = model_of(family, "reinforce").fit(*data(), verbose=0).history
    assert np.isfinite(logs["loss"]).all()


class OurBits(Bernoulli):
    def score(self, b):
        return super().score(b)


class OurClasses(OneHotCategorical):
    def score(self, b):
        return super().score(b)


@pytest.mark.parametrize(
    "dist",
    [
        OurBits([[0.3, np.inf]]),
        OurBits([[0.3, -1e9]], support=(-1, 1)),
        OurClasses([[0.3, -np.inf, 1.0]]),
        OurClasses([[0.0, -np.inf]]),
    ],
)
def test_what_cannot_be_has_no_score_to_be_wrong(dist):
    cost = lambda b: tf.reduce_sum((b - 0.3) ** 2, -1)  # noqa: E731
    parent = type(dist).__mro__[1]
    theirs = diagnostics.exact_gradient(parent(dist.theta), cost)
    theirs = dist.zero_where_fixed(theirs)
    if isinstance(dist, OurClasses) or dist.support == (0, 1):
        np.testing.assert_allclose(diagnostics.exact_gradient(dist, cost), theirs, atol=1e-6)
    assert diagnostics.check_unbiased("rloo", dist, cost, num_draws=2000).unbiased


def test_a_layer_asks_about_the_distribution_that_it_makes():
    """Whatever its `family` says."""

    class Layer(relax_tf.StochasticBinaryLayer):
        def distribution(self, inputs):
            return Own(self.theta(inputs))

    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, Layer(2, "arm")(inputs))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"'arm' is defined for Bernoulli variables only\. .*Own"):
        model.fit(*data(), verbose=0)


class OtherMean(Own):
    def mean(self):
        return tf.sigmoid(2 * self.theta)


def test_a_wrong_mean_is_told():
    with pytest.raises(ValueError, match="`mean` of OtherMean must be the mean of its samples"):
        diagnostics.check_unbiased("muprop", OtherMean(tf.constant(THETA)), cost)


class Unbounded(Own):
    """Its theta may be infinite; there is no gradient then."""

    def score(self, b):
        return tf.where(tf.math.is_finite(self.theta), b - tf.sigmoid(self.theta), 0)


@pytest.mark.parametrize("theta", [[0.3, np.inf], [-np.inf, 0.5]])
def test_an_infinite_theta_leaves_the_surrogate_its_value(theta):
    theta = tf.Variable([theta])
    with tf.GradientTape() as tape:
        estimate = estimators.get("reinforce").estimate(Unbounded(tf.identity(theta)), cost, seed=0)
    assert float(estimate.surrogate) == float(tf.reduce_mean(estimate.cost))
    gradient = tape.gradient(estimate.surrogate, theta)
    np.testing.assert_array_equal(gradient, estimate.gradient)
