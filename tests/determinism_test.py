"""The same seed gives the same training, and different layers different noise."""

import hashlib
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import estimators
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.further import further

pytestmark = pytest.mark.uncertified

ROOT = pathlib.Path(__file__).parent.parent


def train(seed=3, deep=True, **compile_arguments):
    """Everything that draws: three kinds of layers, dropout, initialisers, shuffled data."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input([4])
    x = keras.layers.Dropout(0.3)(keras.layers.Dense(6, "tanh")(inputs))
    estimator = "relax" if deep else "relaxed_rebar"
    binary = relax_tf.StochasticBinaryLayer(3, estimator, prior="learned")(x)
    top = binary
    if deep:
        one_hot = relax_tf.StochasticCategoricalLayer(2, 3, "rloo")(binary)
        top = relax_tf.StochasticNormalLayer(2, "lax")(keras.layers.Flatten()(one_hot))
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(top))
    model.compile("adam", loss="mse", **compile_arguments)
    x = np.random.RandomState(0).normal(size=[40, 4]).astype("f")
    history = model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0).history
    state = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    losses = model.evaluate(x, x[:, :1], verbose=0), model.predict(x, verbose=0)
    return state, losses, history["loss"]


@pytest.mark.parametrize(
    "mode", [{"jit_compile": False}, *further({"jit_compile": True})], ids=["tf", "xla"]
)
def test_equal_seeds_train_equally(mode):
    first, second = train(deep=False, **mode), train(deep=False, **mode)  # see below for a deep one
    np.testing.assert_equal(first, second)


def test_other_seeds_train_otherwise():
    first, second = (train(seed, deep=False, run_eagerly=True) for seed in (3, 4))
    assert first[2] != second[2]


def digest():
    state, losses, history = train(jit_compile=False, steps_per_execution=5)
    parts = [*state, *losses, *history]
    return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in parts)).hexdigest()


@pytest.mark.slow
def test_two_processes_train_equally():
    command = [sys.executable, "-c", "from tests import determinism_test as d; print(d.digest())"]
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        for env in environments
    ]
    first, second = (process.communicate()[0].split()[-1] for process in processes)
    assert len(first) == 64
    assert first == second


def random_things():
    """What relax_tf draws without a seed, in and out of graphs."""
    theta = tf.zeros([2, 50])
    dists = Bernoulli(theta), OneHotCategorical(theta), Normal(theta, theta + 1)
    draws = [dist.draw().z for dist in dists]
    estimator = estimators.Relax(relax_tf.control_variates.MLP([3]), coupled=False)

    def estimate():
        return estimator.estimate(dists[0], lambda b: tf.reduce_sum(b, -1)).gradient

    layer = relax_tf.StochasticBinaryLayer(4)
    parts = [*draws, estimate(), tf.function(estimate)(), layer(tf.ones([9, 3])), layer.kernel]
    return [np.asarray(part) for part in parts]


def test_set_random_seed_governs_everything():
    twins = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        twins.append(random_things())
    for first, second, other in zip(*twins, strict=True):
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()
    keras.utils.set_random_seed(1)
    assert (random_things()[0] != random_things()[0]).any()  # fresh noise at every call


def test_a_layer_s_seed_is_its_own():
    """With a seed a layer's noise does not depend on the global one."""
    samples = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        layer = relax_tf.StochasticBinaryLayer(40, seed=7, kernel_initializer="zeros")
        samples.append(layer(tf.ones([3, 2])).numpy())
    np.testing.assert_array_equal(*samples)


def twins_of_one_seed(training):
    """The samples of two layers of the same seed and the same theta."""
    inputs = keras.Input([2])
    samples = [
        relax_tf.StochasticBinaryLayer(50, "reinforce", seed=7, kernel_initializer="zeros")(inputs)
        for _ in range(2)
    ]
    model = relax_tf.RelaxModel(inputs, samples)
    x = tf.ones([8, 2])
    if not training:
        return model.predict(x, verbose=0)
    model.compile(loss=["mse", "mse"])
    result = model.estimate(x, [tf.zeros([8, 50])] * 2)
    return [estimate.sample.numpy() for estimate in result.estimates.values()]


@pytest.mark.parametrize("training", [False, True])
def test_layers_of_one_seed_do_not_share_noise(training):
    first, second = twins_of_one_seed(training)
    assert 0.4 < np.mean(first == second) < 0.6  # 400 fair coins: 4 standard errors


def test_noise_is_shared_by_those_who_ask():
    theta = tf.zeros([8, 50])
    dists = Bernoulli(theta), Bernoulli(theta + 0.1)
    first, second = (dist.draw(seed=7).z - dist.theta for dist in dists)
    np.testing.assert_allclose(first, second, atol=1e-5)
    draw = dists[0].draw()
    estimates = [
        estimators.get(name).estimate(dists[0], lambda b: tf.reduce_sum(b, -1), draw=draw)
        for name in ("reinforce", "rebar")
    ]
    np.testing.assert_array_equal(*(estimate.sample for estimate in estimates))
