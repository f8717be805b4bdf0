import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical, noise
from tests.problems import normal_from, z_scores

tfd = tfp.distributions

THETA = np.linspace(-3, 3, 7).astype(np.float32)


def many(draws=100_000, support=(0, 1)):
    return Bernoulli(tf.tile(tf.constant(THETA)[tf.newaxis], [draws, 1]), support)


@pytest.mark.parametrize("support", [(0, 1), (-1, 1), (-0.5, 4)])
def test_draws_are_thresholded_logistic(support):
    dist = many(support=support)
    b, z = dist.draw(seed=1)
    np.testing.assert_array_equal(b, np.where(z > 0, support[1], support[0]).astype(np.float32))
    assert np.abs(z_scores(dist.indicator(b), 1 / (1 + np.exp(-THETA)))).max() < 4
    assert np.abs(z_scores(z, THETA)).max() < 4


def test_conditional_draw_has_the_distribution_of_z_given_b():
    """Integrated over b, z_tilde must be distributed like z."""
    dist = many()
    b, z = dist.draw(seed=1)
    z_tilde = dist.conditional_draw(b, seed=2)
    np.testing.assert_array_equal(z_tilde > 0, b > 0.5)
    for statistic in (tf.identity, tf.abs, lambda z: tf.sigmoid(2 * z), lambda z: tf.sin(z)):
        difference = statistic(z_tilde) - statistic(z)
        assert np.abs(z_scores(difference, 0)).max() < 4


def test_conditional_vjp_is_the_derivative_of_the_conditional_draw():
    theta = tf.constant(np.random.RandomState(0).normal(size=[50, 3]) * 3)
    b = tf.cast(tf.random.stateless_uniform([50, 3], [1, 2]) > 0.5, tf.float64)
    w = tf.random.stateless_normal([50, 3], [3, 4], dtype=tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        z_tilde = Bernoulli(theta).conditional_draw(b, seed=3)
    expected = tape.gradient(z_tilde, theta, output_gradients=w)
    np.testing.assert_allclose(Bernoulli(theta).conditional_vjp(b, z_tilde, w), expected, 1e-8)


def test_score_is_the_derivative_of_log_prob():
    theta = tf.random.stateless_normal([20, 3], [1, 2], dtype=tf.float64)
    b = Bernoulli(theta, (-1, 1)).draw(seed=0).b
    with tf.GradientTape() as tape:
        tape.watch(theta)
        log_prob = Bernoulli(theta, (-1, 1)).log_prob(b)
    score = tape.gradient(log_prob, theta)
    np.testing.assert_allclose(Bernoulli(theta, (-1, 1)).score(b), score, rtol=1e-10)


def test_log_prob_and_kl_agree_with_tfp():
    p, q = (tf.random.stateless_normal([6, 3], [seed, 2]) * 3 for seed in (1, 2))
    dist, other = Bernoulli(p, (-1, 1)), Bernoulli(q, (-1, 1))
    expected = tfd.kl_divergence(tfd.Bernoulli(logits=p), tfd.Bernoulli(logits=q))
    np.testing.assert_allclose(dist.kl_divergence(other), tf.reduce_sum(expected, -1), rtol=1e-5)
    draw = dist.draw(seed=0, sample_shape=(4,))
    expected = tf.reduce_sum(tfd.Bernoulli(logits=p).log_prob((draw.b + 1) / 2), -1)
    np.testing.assert_allclose(dist.log_prob(draw.b), expected, rtol=1e-5)
    assert dist.log_prob(draw.b).shape == [4, 6]


def test_information_is_finite_at_extreme_logits():
    extremes = [-1e4, -100.0, 0.0, 100.0, 1e4]
    p, q = np.meshgrid(extremes, extremes)
    p, q = tf.constant(p.reshape(-1, 1), tf.float32), tf.constant(q.reshape(-1, 1), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([p, q])
        dist = Bernoulli(p)
        values = dist.kl_divergence(Bernoulli(q)) + dist.log_prob(dist.draw(seed=0).b)
    assert np.isfinite(values).all()
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(values, [p, q]))


def test_relaxation_and_mean_lie_in_the_support():
    dist = many(support=(-1, 3))
    z = dist.draw(seed=0).z
    away_from_threshold = np.abs(z) > 0.02
    np.testing.assert_allclose(
        dist.relax(z, 1e-3)[away_from_threshold], dist.harden(z)[away_from_threshold], atol=1e-6
    )
    np.testing.assert_allclose(dist.mean()[0], -1 + 4 / (1 + np.exp(-THETA)), rtol=1e-5)


# Categorical.

LOGITS = np.array([[0.5, -1.0, 2.0], [0.0, 0.0, -4.0]], np.float32)


def many_categorical(draws=200_000):
    return OneHotCategorical(tf.tile(tf.constant(LOGITS)[tf.newaxis], [draws, 1, 1]))


def test_categorical_draws_are_gumbel_max():
    dist = many_categorical()
    b, z = dist.draw(seed=1)
    np.testing.assert_array_equal(tf.argmax(b, -1), tf.argmax(z, -1))
    np.testing.assert_array_equal(tf.reduce_sum(b, -1), 1.0)
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    assert np.abs(z_scores(b, p)).max() < 4
    centred = (z - LOGITS).numpy()
    assert np.abs(z_scores(centred, np.euler_gamma)).max() < 4
    assert np.abs(z_scores((centred - np.euler_gamma) ** 2, np.pi**2 / 6)).max() < 4
    np.testing.assert_allclose(dist.mean()[0], p, rtol=1e-5)


def test_categorical_conditional_draw_has_the_distribution_of_z_given_b():
    """For each class of each variable, moments of z and z_tilde on the draws with that class."""
    dist = many_categorical()
    b, z = dist.draw(seed=1)
    z_tilde = dist.conditional_draw(b, seed=2)
    np.testing.assert_array_equal(dist.harden(z_tilde), b)
    gap = lambda z: tf.roll(z, 1, -1) - z  # noqa: E731
    for statistic in (tf.identity, tf.sin, tf.nn.softmax, gap, lambda z: tf.nn.sigmoid(2 * gap(z))):
        difference = statistic(z_tilde) - statistic(z)
        for k in range(3):
            assert np.abs(z_scores(difference * b[..., k : k + 1], 0)).max() < 4.2


def test_categorical_conditional_vjp_is_the_derivative_of_the_conditional_draw():
    theta = tf.constant(np.random.RandomState(0).normal(size=[50, 2, 4]) * 3)
    b = tf.one_hot(tf.random.stateless_uniform([50, 2], [1, 2], 0, 4, tf.int32), 4, dtype="float64")
    w = tf.random.stateless_normal([50, 2, 4], [3, 4], dtype=tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        z_tilde = OneHotCategorical(theta).conditional_draw(b, seed=3)
    expected = tape.gradient(z_tilde, theta, output_gradients=w)
    vjp = OneHotCategorical(theta).conditional_vjp(b, z_tilde, w)
    np.testing.assert_allclose(vjp, expected, rtol=1e-8, atol=1e-12)


def test_categorical_conditional_vjp_holds_at_coupled_noise():
    """With the noise that the conditional needs to arrive at z itself, and design's formula."""
    theta = tf.constant(np.random.RandomState(0).normal(size=[50, 4]))
    dist = OneHotCategorical(theta)
    b, z = dist.draw(seed=1)
    w = tf.random.stateless_normal([50, 4], [3, 4], dtype=tf.float64)
    z_b = tf.reduce_sum(b * z, -1, keepdims=True)
    winner_noise = z_b - tf.reduce_logsumexp(theta, -1, keepdims=True)
    # -log(exp(-z_b) + exp(-(theta + g))) = z, solved for g; any value does for the winner.
    loser_noise = -tf.math.log(tf.where(b > 0, 1.0, tf.exp(-z) - tf.exp(-z_b))) - theta
    with tf.GradientTape() as tape:
        tape.watch(theta)
        winner = tf.reduce_logsumexp(theta, -1, keepdims=True) + winner_noise
        losers = -tf.math.log(tf.exp(-winner) + tf.exp(-(theta + loser_noise)))
        z_tilde = tf.where(b > 0, winner, losers)
    np.testing.assert_allclose(z_tilde, z, rtol=1e-9)
    expected = tape.gradient(z_tilde, theta, output_gradients=w)
    np.testing.assert_allclose(dist.conditional_vjp(b, z, w), expected, rtol=1e-7, atol=1e-10)


def test_two_classes_are_a_bernoulli():
    theta = tf.constant([[0.7, -1.1]])
    two = OneHotCategorical(tf.stack([tf.zeros_like(theta), theta], -1))
    b = tf.constant([[1.0, 0.0]])
    one_hot = tf.stack([1 - b, b], -1)
    np.testing.assert_allclose(two.log_prob(one_hot), Bernoulli(theta).log_prob(b), rtol=1e-6)
    np.testing.assert_allclose(two.score(one_hot)[..., 1], Bernoulli(theta).score(b), rtol=1e-6)


def test_categorical_is_finite_at_extreme_logits():
    extremes = [-1e4, -100.0, 0.0, 100.0, 1e4]
    theta = np.stack(np.meshgrid(*[extremes] * 3), -1).reshape(-1, 3)
    other = tf.constant(theta[::-1].copy(), tf.float32)
    theta = tf.constant(theta, tf.float32)
    for seed in range(5):
        with tf.GradientTape() as tape:
            tape.watch([theta, other])
            dist = OneHotCategorical(theta)
            b, z = dist.draw(seed=seed)
            z_tilde = dist.conditional_draw(b, seed=seed)
            information = dist.kl_divergence(OneHotCategorical(other)) + dist.log_prob(b)
            values = [information, z_tilde, dist.relax(z, 0.1), dist.relax(z_tilde, 0.1)]
        gradients = tape.gradient(values, [theta, other])
        vjps = [dist.conditional_vjp(b, each, tf.ones_like(z)) for each in (z, z_tilde)]
        for value in [*values, *gradients, *vjps]:
            assert np.isfinite(value).all()


# Normal.


def test_normal_draws_have_the_mean_and_the_scale():
    loc, scale = tf.constant([[0.0, 3.0, -1.0]]), tf.constant([[1.0, 0.1, 5.0]])
    b, z = Normal(loc, scale).draw(seed=0, sample_shape=(200_000,))
    np.testing.assert_array_equal(b, z)
    assert b.shape == [200_000, 1, 3]
    eps = ((z - loc) / scale).numpy()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert np.abs(z_scores(eps**power, moment)).max() < 4


def test_normal_derivatives_are_those_of_autodiff():
    loc = tf.random.stateless_normal([20, 3], [1, 2], dtype=tf.float64)
    scale = tf.exp(tf.random.stateless_normal([20, 3], [3, 4], dtype=tf.float64))
    w = tf.random.stateless_normal([20, 3], [5, 6], dtype=tf.float64)
    b = Normal(loc, scale).draw(seed=0).b
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([loc, scale])
        dist = Normal(loc, scale)
        log_prob, z = dist.log_prob(b), dist.draw(seed=0).z
    pathwise = tape.gradient(z, [loc, scale], output_gradients=w)
    for actual, expected in (
        (dist.score(b), tape.gradient(log_prob, [loc, scale])),
        (dist.reparameterization_vjp(z, w), pathwise),
    ):
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12)


# All of them.

PAIRS = {
    "categorical": (OneHotCategorical, lambda t: tfd.OneHotCategorical(logits=t)),
    "normal": (normal_from, lambda t: tfd.Normal(*normal_from(t).theta)),
}
families = pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS.keys())


@families
def test_information_agrees_with_tfp(ours, theirs):
    p, q = (tf.random.stateless_normal([6, 3, 4], [seed, 2]) * 3 for seed in (1, 2))
    over_event = lambda value: tf.reduce_sum(value, list(range(1, value.shape.rank)))  # noqa: E731
    kl = over_event(tfd.kl_divergence(theirs(p), theirs(q)))
    np.testing.assert_allclose(ours(p).kl_divergence(ours(q)), kl, rtol=1e-4)
    broadcast = over_event(tfd.kl_divergence(theirs(p), theirs(q[:1])))
    np.testing.assert_allclose(ours(p).kl_divergence(ours(q[:1])), broadcast, rtol=1e-4)
    b = ours(p).draw(seed=0, sample_shape=(5,)).b
    log_prob = theirs(p).log_prob(b)
    expected = tf.reduce_sum(log_prob, list(range(2, log_prob.shape.rank)))
    np.testing.assert_allclose(ours(p).log_prob(b), expected, rtol=1e-4)
    assert ours(p).log_prob(b).shape == [5, 6]


def test_categorical_score_is_the_derivative_of_log_prob():
    theta = tf.random.stateless_normal([20, 2, 3], [1, 2], dtype=tf.float64)
    b = OneHotCategorical(theta).draw(seed=0).b
    with tf.GradientTape() as tape:
        tape.watch(theta)
        log_prob = OneHotCategorical(theta).log_prob(b)
    score = tape.gradient(log_prob, theta)
    np.testing.assert_allclose(OneHotCategorical(theta).score(b), score, rtol=1e-9, atol=1e-12)


def test_only_continuous_samples_are_their_own_relaxation():
    z = tf.random.stateless_normal([3, 4], [1, 2])
    assert normal_from(tf.zeros([3, 8])).relax(z, 0.1) is z
    relaxed = OneHotCategorical(tf.zeros([3, 4])).relax(z, 1e-3)
    np.testing.assert_allclose(relaxed, OneHotCategorical(z).harden(z), atol=1e-6)


# Noise.


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_uniform_noise_is_open_symmetric_and_uniform(dtype):
    u = noise.uniform([2_000_000], dtype, noise.make_seed(1)).numpy()
    assert u.min() > 0
    assert u.max() < 1
    for transformed in (noise.logistic, noise.gumbel, noise.normal):
        assert np.isfinite(transformed([2_000_000], dtype, noise.make_seed(1))).all()
    assert abs(z_scores(u, 0.5)) < 4
    assert abs(z_scores((u - 0.5) ** 2, 1 / 12)) < 4


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical, normal_from])
def test_noise_is_the_same_under_xla(dtype, family):
    def draw(seed):  # an argument: a constant seed would be folded before XLA sees it
        return family(tf.zeros([11, 4], dtype)).noise(noise.fold_in(seed, 5))

    seed = tf.constant([123456789, -5])
    # The same bits; the two logarithms differ in the last place.
    expected = draw(seed)
    for jit_compile in (False, True):
        compiled = tf.function(draw, jit_compile=jit_compile)(seed)
        np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-5)


def test_seeds_that_differ_in_one_bit_draw_independent_noise():
    """Those that a counter makes, those folded from one seed, and noise beside folded seeds."""

    def eight(seed):
        folded = noise.fold_in(seed, 1)
        parts = (noise.uniform([4], tf.float32, part) for part in (seed, folded))
        return tf.concat([*parts], 0)

    @tf.function
    def draws(seeds):
        return tf.map_fn(eight, seeds, fn_output_signature=tf.float32)

    numbers = tf.range(1500)
    counted = tf.stack([numbers, tf.zeros_like(numbers)], -1)
    root = noise.make_seed(7)
    folded = tf.map_fn(lambda number: noise.fold_in(root, number), numbers)
    assert len(np.unique(folded.numpy().view(np.int64))) == 1500
    np.testing.assert_array_equal(noise.fold_in(root, -1), noise.fold_in(root, tf.constant(-1)))
    for seeds in (counted, folded):
        normal = math.sqrt(2) * tf.math.erfinv(2 * draws(seeds) - 1).numpy()
        neighbours = np.concatenate([normal[:-1], normal[1:]], -1)
        correlations = np.corrcoef(neighbours.T)[np.triu_indices(16, 1)] * math.sqrt(1499)
        assert np.abs(correlations).max() < 4.5
        assert np.abs(normal.mean(0)).max() * math.sqrt(1500) < 4.5
        assert np.abs((normal**2).mean(0) - 1).max() * math.sqrt(1500 / 2) < 4.5


def test_sample_shape_leads():
    draw = Bernoulli(tf.zeros([2, 3])).draw(seed=0, sample_shape=(5,))
    assert draw.b.shape == draw.z.shape == [5, 2, 3]


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical, normal_from])
def test_half_precision_parameters_are_computed_in_float32(family):
    assert family(tf.zeros([1, 2], tf.float16)).draw().z.dtype == tf.float32
    assert family(tf.zeros([1, 2], tf.float64)).draw().z.dtype == tf.float64
