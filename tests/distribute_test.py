"""tf.distribute: replicas and workers train as one process on the joint batch would."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests import replicas
from tests.further import further
from tests.problems import z_scores
from tests.small_models import small_model
from tests.stacks import (
    exact_gradients,
    gradients_of_train_steps,
    model_variables,
    two_layer_model,
)

pytestmark = pytest.mark.uncertified

ROOT = pathlib.Path(__file__).parent.parent
# The norm of each replica's gradient, averaged: the only log that depends on their number.
PER_REPLICA = "b_control_variate_norm"
# Several replicas log the whole cost alone, not its terms.
NOT_COMPARED = {PER_REPLICA, "compiled_loss"}


@pytest.fixture(scope="module")
def strategy():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def fit(model, count=32, epochs=2, weighted=True):
    x, y, weight = replicas.data(count)
    arguments = {"sample_weight": weight} if weighted else {}
    history = model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **arguments)
    return {name: values for name, values in history.history.items() if name not in NOT_COMPARED}


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "loss", "weighted"),
    [
        ("relaxed_rebar", "mse", True),
        ("disarm", keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"), False),
        *further(("nvil", keras.losses.MeanSquaredError(reduction="sum"), True)),
    ],
)
def test_two_replicas_with_given_noise_train_as_one(strategy, estimator, loss, weighted):
    """Loss, KL, regularisers, added losses, sample weights and momenta, over eight steps."""
    alone = replicas.build(estimator, loss)
    with strategy.scope():
        together = replicas.build(estimator, loss)
    logs = [fit(model, weighted=weighted) for model in (alone, together)]
    assert_close(together.get_weights(), alone.get_weights())
    assert set(logs[0]) == {"loss", "mae", "b_kl", "b_second_moment"}
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[1][name], values, rtol=1e-4)


@pytest.mark.parametrize("estimator", ["concrete", *further("relax")])
def test_metrics_of_a_ragged_last_batch_are_means_over_the_examples(strategy, estimator):
    """Three examples on two replicas; nothing moves, so that the updates play no part."""
    with strategy.scope():
        together = replicas.build(estimator, rate=0.0, added=False)
    alone = replicas.build(estimator, rate=0.0, added=False)
    logs = [fit(model, count=11, epochs=1) for model in (alone, together)]
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[1][name], values, rtol=1e-5)
    x, y, weight = replicas.data(11)
    ours, theirs = (
        model.evaluate(x, y, sample_weight=weight, batch_size=8, verbose=0, return_dict=True)
        for model in (alone, together)
    )
    for name in set(ours) - NOT_COMPARED:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-5)


def test_a_replica_without_examples_does_no_harm(strategy):
    with strategy.scope():
        model = replicas.build(added=False)  # Keras's own mean over no examples is no number
    logs = fit(model, count=9)  # the last batch holds one example
    assert all(np.isfinite(values).all() for values in logs.values())
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_replicas_draw_different_noise(strategy):
    with strategy.scope():
        model = small_model("relax", seed=1)
        model.compile("sgd", loss="mse")
    batch = tf.ones([50, 3]), tf.ones([50, 2])

    @tf.function
    def samples():
        estimates = strategy.run(lambda: model.estimate(*batch).estimates["b"].sample)
        return strategy.experimental_local_results(estimates)

    draws = [sample.numpy() for _ in range(2) for sample in samples()]
    assert len({draw.tobytes() for draw in draws}) == 4


def test_two_replicas_follow_the_enumerated_gradient(strategy):
    with strategy.scope():
        model = two_layer_model("relaxed_rebar", "rebar", "learned", "sampled")
    _, expected = exact_gradients(model)
    measured = gradients_of_train_steps(model, steps=40)
    for variable, exact, samples in zip(model_variables(model), expected, measured, strict=True):
        z = z_scores(samples, np.asarray(exact))
        assert np.abs(z).max() < 4.5, (variable.path, z)


def test_saved_replicas_continue_as_the_original_would(strategy, tmp_path):
    with strategy.scope():
        inputs = keras.Input([3])
        model = relax_tf.RelaxModel(inputs, small_model()(keras.layers.Dropout(0.5)(inputs)))
        model.compile("adam", loss="mse")
    x, y = np.ones([16, 3], "f"), np.ones([16, 2], "f")
    model.fit(x, y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    with strategy.scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = keras.models.load_model(tmp_path / "model.keras")
    alone.fit(x, y, batch_size=8, verbose=0)


@pytest.mark.parametrize("argument", [{"jit_compile": True}, {"steps_per_execution": 10}])
def test_what_keras_cannot_do_on_replicas_is_refused(strategy, argument):
    with strategy.scope():
        model = replicas.build(**argument)
    name = next(iter(argument))
    with pytest.raises(ValueError, match=f"`{name}` on 2 replicas.*Received: {name}="):
        fit(model)
    x, y, _ = replicas.data()
    for method in (model.evaluate, model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match=f"`{name}` on 2 replicas"):
            method(x, y)


# Several machines.


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_worker(index, addresses, folder):
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(cluster), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.worker", str(folder)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_two_workers_train_as_one_process(tmp_path):
    """`tests/worker.py` runs the documented loop in two processes, then examples/distributed.py."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = [start_worker(index, addresses, tmp_path) for index in range(2)]
    try:
        outputs = [worker.communicate(timeout=500)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    first, second = (np.load(tmp_path / f"worker-{index}.npz") for index in range(2))

    for name in first.files:  # both hold the same weights and metrics
        if name != "sample":
            np.testing.assert_array_equal(first[name], second[name])
    assert (first["sample"] != second["sample"]).any()

    alone = replicas.build()
    logs = fit(alone, epochs=3)
    for index, weight in enumerate(alone.get_weights()):
        np.testing.assert_allclose(first[f"trained-{index}"], weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(first[f"restored-{index}"], first[f"trained-{index}"])
    for name, values in logs.items():
        np.testing.assert_allclose(first[f"log-{name}"], values, rtol=1e-4)
    assert "strategy.run(model.train_step" in str(first["refusal"])
    assert (tmp_path / "example" / "metrics.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("coupled", [True, *further(False)])
def test_a_model_on_two_replicas_certifies_itself(strategy, coupled):
    def built():
        keras.utils.set_random_seed(0)
        inputs = keras.Input([7])
        hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(inputs))
        b = relax_tf.StochasticBinaryLayer(4, "rloo", name="b")(hidden)
        outputs = keras.layers.Dense(2)(b)
        if coupled:
            outputs = keras.layers.BatchNormalization()(outputs)
        model = relax_tf.RelaxModel(inputs, outputs)
        model.compile("sgd", loss="mse")
        return model

    weights = []
    for certify in (True, False):
        with strategy.scope():
            model = built()
        model.certify = certify
        if certify and coupled:
            with pytest.raises(ValueError, match="couples the examples"):
                fit(model, weighted=False)
        else:
            fit(model, weighted=False)
        weights.append(model.get_weights())
    if not coupled:
        assert_close(*weights)
