import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from relax_tf.distributions import Bernoulli, noise
from tests.problems import z_scores

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
    tfd = tfp.distributions
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


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_uniform_noise_is_open_symmetric_and_uniform(dtype):
    u = noise.uniform([2_000_000], dtype, noise.make_seed(1)).numpy()
    assert u.min() > 0
    assert u.max() < 1
    assert np.isfinite(noise.logistic([2_000_000], dtype, noise.make_seed(1))).all()
    assert abs(z_scores(u, 0.5)) < 4
    assert abs(z_scores((u - 0.5) ** 2, 1 / 12)) < 4


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_noise_is_the_same_under_xla(dtype):
    def draw(seed):  # an argument: a constant seed would be folded before XLA sees it
        return Bernoulli(tf.zeros([11, 3], dtype)).noise(noise.fold_in(seed, 5))

    seed = tf.constant([123456789, -5])
    # The same bits; the two logarithms differ in the last place.
    expected = draw(seed)
    for jit_compile in (False, True):
        compiled = tf.function(draw, jit_compile=jit_compile)(seed)
        np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-5)


def test_sample_shape_leads():
    draw = Bernoulli(tf.zeros([2, 3])).draw(seed=0, sample_shape=(5,))
    assert draw.b.shape == draw.z.shape == [5, 2, 3]


def test_half_precision_logits_are_computed_in_float32():
    assert Bernoulli(tf.zeros([1, 1], tf.float16)).draw().z.dtype == tf.float32
    assert Bernoulli(tf.zeros([1, 1], tf.float64)).draw().z.dtype == tf.float64
