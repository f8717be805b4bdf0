"""What a model does in its life: ways to run it, saving, logs, precisions, noise, threads."""

import gc
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.step.replay import Replays
from tests.further import further
from tests.small_models import FunctionalSubclass, Subclassed, data, small_model
from tests.stacks import BINARY, CATEGORICAL, NORMAL, mixed_model

pytestmark = pytest.mark.uncertified


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2), (2, 0, 1), *further(((0, 2, 1),), ((1, 0, 2),), ((1, 2, 0),), ((2, 1, 0),))],
)
def test_both_kinds_of_model_live_together_in_any_order(order):
    makers = [small_model, Subclassed, FunctionalSubclass]
    for index in order:
        model = makers[index]()
        assert isinstance(model, relax_tf.RelaxModel)
        model.compile("adam", loss="mse", run_eagerly=True)
        model.fit(*data(), verbose=0)
    assert relax_tf.RelaxModel.__bases__[1] is keras.Model


EXECUTION = [
    {"run_eagerly": True},
    {"jit_compile": False},
    {"jit_compile": True, "steps_per_execution": 4},
]


@pytest.mark.parametrize("maker", [Subclassed, *further(small_model, FunctionalSubclass)])
def test_execution_modes_train_alike(maker):
    """The same noise in all modes, so the same weights up to rounding."""
    weights = []
    for mode in EXECUTION:
        keras.utils.set_random_seed(0)
        model = maker()
        model.compile("sgd", loss="mse", **mode)
        model.fit(*data(), batch_size=8, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_saved_functional_subclass_continues_as_the_original_would(tmp_path):
    """Of models of other kinds: saving_test.py."""
    model = FunctionalSubclass()
    model.compile("adam", loss="mse", run_eagerly=True)
    model.fit(*data(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    for each in (model, loaded):
        each.fit(*data(), batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_logs_hold_loss_second_moments_and_control_variate_norms():
    inputs = keras.Input([3])
    b1 = relax_tf.StochasticBinaryLayer(4, "reinforce", name="b1")(inputs)
    b2 = relax_tf.StochasticBinaryLayer(4, "rebar", name="b2")(b1)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b2))
    model.compile("sgd", loss="mse", metrics=["mae"])
    history = model.fit(*data(), validation_data=data(), verbose=0).history
    training = {"loss", "mae", "b1_second_moment", "b2_second_moment", "b2_control_variate_norm"}
    assert set(history) == training | {"val_loss", "val_mae"}
    assert all(np.isfinite(values).all() for values in history.values())


def test_concrete_logs_its_relaxed_loss_by_that_name():
    model = small_model("concrete")
    model.compile("sgd", loss="mse")
    history = model.fit(*data(), verbose=0).history
    assert history["relaxed_loss"] == history["loss"]
    model = small_model("straight_through")
    model.compile("sgd", loss="mse")
    assert "relaxed_loss" not in model.fit(*data(), verbose=0).history


def test_learning_rate_schedules_touch_the_model_only():
    model = small_model()
    model.compile(relax_tf.RelaxOptimizer("sgd", keras.optimizers.SGD(0.5)), loss="mse")
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.125)
    model.fit(*data(), callbacks=[schedule], verbose=0)
    assert float(model.optimizer.learning_rate) == 0.125
    assert float(model.optimizer.control_variate_optimizer.learning_rate) == 0.5


def test_both_groups_train():
    model = small_model()
    model.compile("adam", loss="mse", run_eagerly=True)
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(*data(), epochs=3, verbose=0)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert (variable.numpy() != value).any(), variable.path


def test_zero_rate_keeps_the_control_variate_still():
    model = small_model()
    model.compile(relax_tf.RelaxOptimizer("sgd", keras.optimizers.SGD(0.0)), loss="mse")
    phi = model.get_layer("b").estimator.trainable_variables
    before = [v.numpy() for v in phi]
    model.fit(*data(), verbose=0)
    for variable, value in zip(phi, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_subclassed_control_variate_trains():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = keras.layers.Dense(5, "tanh"), keras.layers.Dense(1)

        def call(self, x):
            return self.out(self.hidden(x))

    model = small_model(relax_tf.estimators.Relax(control_variate=Network()))
    model.compile(relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.0), "sgd"), loss="mse")
    phi = model.get_layer("b").estimator.control_variate.trainable_variables
    assert len(phi) == 4
    before = [v.numpy() for v in phi]
    model.fit(*data(), epochs=2, verbose=0)
    assert all((v.numpy() != value).any() for v, value in zip(phi, before, strict=True))


def test_everything_frozen_is_no_error():
    model = small_model()
    model.trainable = False
    model.compile("sgd", loss="mse")
    model.fit(*data(), verbose=0)


def test_mixed_precision_trains():
    keras.config.set_dtype_policy("mixed_float16")
    model = small_model()
    model.compile("adam", loss="mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    history = model.fit(*data(), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model(data()[0]).dtype == tf.float16
    assert model.estimate(*data()).estimates["b"].gradient.dtype == tf.float32


def test_float64_trains():
    keras.config.set_dtype_policy("float64")
    model = small_model()
    model.compile("sgd", loss="mse")
    model.fit(*data(), verbose=0)
    assert model.estimate(*data()).estimates["b"].gradient.dtype == tf.float64


# Mixed models.


def all_three(**arguments):
    return mixed_model(
        (CATEGORICAL, "relaxed_rebar", "learned"),
        (NORMAL, "lax", "learned"),
        (BINARY, "rebar", "learned"),
        scale=0.05,
        **arguments,
    )


@pytest.mark.slow
def test_mixed_model_execution_modes_train_alike():
    weights = []
    for mode in EXECUTION:
        keras.utils.set_random_seed(0)
        model = all_three()
        optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.01), keras.optimizers.SGD(1e-4))
        model.compile(optimizer, loss="mse", **mode)
        model.fit(*data(), batch_size=8, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_saved_mixed_model_continues_as_the_original_would(tmp_path):
    model = all_three(kl="sampled")
    model.compile("adam", loss="mse", run_eagerly=True)
    model.fit(*data(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(*data(), batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_float16", *further("float64")])
def test_mixed_model_trains_in_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    model = all_three()
    model.compile("adam", loss="mse")
    history = model.fit(*data(), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# State and coupling.


def test_replays_share_dropout_and_leave_no_trace(monkeypatch):
    inputs = keras.Input([3])
    normed = keras.layers.BatchNormalization()(inputs)
    b = relax_tf.StochasticBinaryLayer(4, "relaxed_rebar", name="b")(normed)
    dropout = keras.layers.Dropout(0.5, seed=1)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(dropout(b)))
    model.compile("sgd", loss="mse")
    x, y = map(tf.constant, data())
    costs = []
    original = Replays.cost

    def spy(replays, index):
        cost = original(replays, index)
        costs.append(cost(replays._calls[index].sample))
        return cost

    monkeypatch.setattr(Replays, "cost", spy)
    before = dropout.seed_generator.state.numpy()
    mean = model.layers[1].moving_mean.numpy()
    estimate = model.estimate(x, y).estimates["b"]
    np.testing.assert_allclose(costs[0], estimate.cost, rtol=1e-6)
    np.testing.assert_array_equal(dropout.seed_generator.state.numpy() - before, [0, 1])
    expected = 0.99 * mean + 0.01 * np.mean(x, 0)
    np.testing.assert_allclose(model.layers[1].moving_mean, expected, rtol=1e-5, atol=1e-7)


def test_a_parallel_branch_keeps_its_hard_sample_in_replays():
    """Relaxing what does not depend on the replaced sample would add variance for nothing."""
    inputs = keras.Input([3])
    first, second = (relax_tf.StochasticBinaryLayer(4, "rebar", name=name) for name in "ab")
    outputs = keras.layers.Concatenate()([first(inputs), second(inputs)])
    model = relax_tf.RelaxModel(inputs, outputs)
    emitted = []
    model.compile("sgd", loss=lambda y, p: (emitted.append(p), keras.ops.sum(p, -1))[1])
    model.estimate(tf.ones([2, 3]), tf.ones([2, 1]))
    hard = emitted[0]
    replays = [p for p in emitted[1:] if tf.executing_eagerly() and hasattr(p, "numpy")]
    assert any((p[:, 4:].numpy() == hard[:, 4:].numpy()).all() for p in replays)
    for p in replays:
        unchanged = [(p[:, k : k + 4].numpy() == hard[:, k : k + 4].numpy()).all() for k in (0, 4)]
        assert sum(unchanged) >= 1


def test_two_layers_with_the_same_seed_draw_different_noise():
    inputs = keras.Input([3])
    layers = [relax_tf.StochasticBinaryLayer(50, "reinforce", seed=1, name=n) for n in "ab"]
    outputs = keras.layers.Concatenate()([layer(inputs) for layer in layers])
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss=lambda y, p: keras.ops.sum(p, -1))
    estimates = model.estimate(tf.zeros([4, 3]), tf.zeros([4, 1])).estimates
    assert (estimates["a"].sample.numpy() != estimates["b"].sample.numpy()).any()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux does")
def test_a_model_that_was_trained_leaves_no_threads():
    """Iterators have some; a hundred models in one process once ran out of them."""
    counts = []
    for _ in range(3):
        model = small_model("reinforce")
        model.compile("sgd", loss="mse")
        model.fit(*data(), batch_size=8, verbose=0)
        del model
        gc.collect()
        counts.append(len(os.listdir("/proc/self/task")))
    assert counts[2] <= counts[1]
