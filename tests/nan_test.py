"""A cost that is NaN: logged, reported by layer, and kept out of everything that is saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further

pytestmark = pytest.mark.uncertified

BATCH, STEPS, BAD = 4, 6, 4


def build(estimator="relaxed_rebar", optimizer="adam", **compile_arguments):
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(2, estimator, prior="learned", seed=1, name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b), name="model")
    model.compile(optimizer, loss="mse", **compile_arguments)
    return model


def data(bad=np.nan):
    """Six batches; the fifth has one target that is not finite."""
    random = np.random.RandomState(0)
    x, y = random.normal(size=[STEPS * BATCH, 3]), random.normal(size=[STEPS * BATCH, 1])
    y[BAD * BATCH + 1] = bad
    return x.astype("f"), y.astype("f")


def fit(model, x, y, *callbacks, epochs=2):
    return model.fit(
        x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )


def state_of(model):
    variables = {id(v): v for v in (*model.variables, *model.optimizer.variables)}
    return [variable.numpy() for variable in variables.values()]


def assert_finite(model):
    assert all(np.isfinite(value).all() for value in state_of(model))


MODES = {
    "graph": {},
    "xla": {"jit_compile": True, "steps_per_execution": 2},
    "eager": {"run_eagerly": True},
    "clipped": {"optimizer": {"class_name": "adam", "config": {"global_clipnorm": 1.0}}},
}


@pytest.mark.parametrize(
    ("mode", "bad"),
    [("eager", np.inf), ("xla", np.nan), *further(*((m, np.nan) for m in MODES if m != "xla"))],
)
def test_a_nan_cost_stops_training_and_saves_no_nan(mode, bad, tmp_path):
    model = build(**MODES[mode])
    path = tmp_path / "model.keras"
    callbacks = keras.callbacks.TerminateOnNaN(), keras.callbacks.ModelCheckpoint(path)
    with pytest.warns(RuntimeWarning, match=r"'model'.*stochastic layers \['b'\]"):
        history = fit(model, *data(bad), *callbacks).history
    assert len(history["loss"]) == 1
    assert np.isnan(history["loss"][0])
    assert_finite(model)
    loaded = keras.saving.load_model(path)
    assert_finite(loaded)
    x, y = data(bad=0.0)
    assert np.isfinite(fit(loaded, x, y).history["loss"]).all()


@pytest.mark.filterwarnings("ignore:RelaxModel")
@pytest.mark.parametrize(
    "estimator",
    [
        *("relax", "muprop", "rloo", "vimco", "disarm", "concrete", "nvil"),
        {"class_name": "reinforce", "config": {"baseline_decay": 0.9}},
    ],
)
def test_a_nan_step_changes_nothing(estimator):
    """With plain gradient descent, that is; a moving average or a momentum goes on moving."""
    x, y = data()
    twins = []
    for steps in (BAD, BAD + 1):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        b = relax_tf.StochasticBinaryLayer(2, estimator, seed=1)(inputs)
        model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b))
        model.compile("sgd", loss="mse", run_eagerly=True)
        for step in range(steps):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            loss = model.train_on_batch(x[rows], y[rows], return_dict=True)["loss"]
        twins.append((model, loss))
    (before, fine), (after, bad) = twins
    assert np.isfinite(fine)
    assert np.isnan(bad)
    for old, new in zip(before.variables, after.variables, strict=True):
        if old.dtype == "float32":  # the generators' states move on
            np.testing.assert_array_equal(new.numpy(), old.numpy(), err_msg=old.path)


def test_training_goes_on_where_nobody_stops_it():
    model = build(jit_compile=True)
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        assert np.isnan(fit(model, *data(), epochs=1).history["loss"][0])
    x, y = data(bad=0.0)
    assert np.isfinite(fit(model, x, y).history["loss"]).all()


@pytest.mark.filterwarnings("ignore:RelaxModel")
def test_loss_scaling_goes_on_skipping_its_own_overflows_and_no_others():
    keras.config.set_dtype_policy("mixed_float16")
    scales = []
    for bad in (0.0, np.nan):
        keras.utils.set_random_seed(0)
        model = build()
        fit(model, *data(bad), epochs=1)
        scales.append(float(model.optimizer.dynamic_scale))
        assert_finite(model)
    assert scales[0] == scales[1]
    model.optimizer.dynamic_scale.assign(2.0**40)
    assert np.isfinite(fit(model, *data(bad=0.0)).history["loss"]).all()
    assert float(model.optimizer.dynamic_scale) < 2.0**40
    assert_finite(model)


class OneSided(relax_tf.RelaxModel):
    """A cost that is NaN between 0 and 1 in the left of two layers only."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (
            relax_tf.StochasticBinaryLayer(2, "rebar", name=name) for name in ("left", "right")
        )

    def call(self, x):
        return tf.concat([self.left(x), self.right(x)], -1)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        left = y_pred[:, 0]
        between = (left > 0) & (left < 1)
        return tf.reduce_sum(y_pred, -1) + tf.where(between, np.nan * left, left)


def test_a_nan_replay_is_reported_by_the_name_of_its_layer():
    model = OneSided()
    model.compile("adam")
    x, y = data(bad=0.0)
    with pytest.warns(RuntimeWarning, match=r"stochastic layers \['left'\]"):
        history = fit(model, x, y, keras.callbacks.TerminateOnNaN()).history
    assert np.isnan(history["loss"][0])
    assert np.isfinite(history["right_second_moment"][0])
    assert_finite(model)


def test_no_warning_where_all_is_finite(recwarn):
    model = build()
    x, y = data(bad=0.0)
    fit(model, x, y)
    assert np.isnan(model.evaluate(x, np.nan * y, verbose=0, return_dict=True)["loss"])
    assert not [warning for warning in recwarn if "infinite" in str(warning.message)]


def test_embeddings_upstream_of_a_sample_are_kept_too():
    inputs = keras.Input([1], dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(inputs))
    model = relax_tf.RelaxModel(inputs, relax_tf.StochasticBinaryLayer(1, name="b")(x))
    model.compile("adam", loss="mse")
    rows = np.arange(STEPS * BATCH)[:, np.newaxis] % 5
    with pytest.warns(RuntimeWarning, match=r"\['b'\]"):
        fit(model, rows, data()[1], keras.callbacks.TerminateOnNaN())
    assert_finite(model)


CASES = [
    ("relax", 4),
    *further(("flip", 1), ("rebar", 1), ("disarm", 4), ("muprop", 4), ("rloo", 1)),
]


@pytest.fixture
def _numerics_checked():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


@pytest.mark.usefixtures("_numerics_checked")
@pytest.mark.parametrize(("estimator", "variables"), CASES)
def test_tensorflow_s_search_for_nan_finds_none_of_ours(estimator, variables):
    """Neither in the certificate nor in a step, with a sure bit or an impossible class."""
    inputs = keras.Input([3])
    logits = keras.layers.Dense(4)(inputs) + tf.constant([0.0, 0.0, 0.0, -1e9])
    if variables == 4:
        layer = relax_tf.StochasticBinaryLayer(None, estimator, prior="uniform", name="b")
    else:
        logits = keras.layers.Reshape([1, 4])(logits)
        layer = relax_tf.StochasticCategoricalLayer(None, None, estimator, prior="uniform")
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(layer(logits)))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", "mse")
    model.certify = True
    for batch_size in (8, 5):  # with a batch of three, so that none has a known length
        history = model.fit(*(a[:8] for a in data()), batch_size=batch_size, verbose=0).history
        assert np.isfinite(history["loss"]).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
        model.fit(*(a[16:20] for a in data()), verbose=0)
