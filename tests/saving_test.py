"""What is saved comes back: files, configurations, clones, interrupted runs, callbacks."""

import copy
import importlib.util
import json
import pickle

import keras
import numpy as np
import pytest

import relax_tf
from relax_tf import estimators
from tests.further import further
from tests.small_models import data, functional, nested, optimizer, small_model

pytestmark = pytest.mark.uncertified


@keras.saving.register_keras_serializable("saving_test")
class Network(keras.Model):
    """A control variate of one's own."""

    def __init__(self, units=5, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden, self.out = keras.layers.Dense(units, "tanh"), keras.layers.Dense(1)
        self.dropout = keras.layers.Dropout(0.2)

    def call(self, x):
        return self.out(self.dropout(self.hidden(x), training=True))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("saving_test")
class Own(relax_tf.RelaxModel):
    """A subclassed model with Keras's and our layers among its attributes."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dropout = keras.layers.Dropout(0.5)
        self.latent = relax_tf.StochasticNormalLayer(units, "lax", prior="standard")
        self.top = [keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)]

    def call(self, x, training=None):
        x = self.latent(self.dropout(x, training=training))
        for layer in self.top:
            x = layer(x)
        return x

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def functional_network():
    features = keras.Input([4 + 3])  # z and the layer's input
    hidden = keras.layers.Dense(5, "tanh")(features)
    return keras.Model(features, keras.layers.Dense(1)(keras.layers.Add()([hidden, hidden])))


def with_control_variate(network):
    return functional(estimators.RelaxedRebar(temperature=0.7, control_variate=network))


MODELS = {
    "functional": functional,
    "subclassed": Own,
    "nested": nested,
    "sequential_control_variate": lambda: with_control_variate(
        keras.Sequential([keras.layers.Dense(5, "elu"), keras.layers.Dense(1)])
    ),
    "functional_control_variate": lambda: with_control_variate(functional_network()),
    "subclassed_control_variate": lambda: with_control_variate(Network(units=6)),
    "nvil": lambda: functional(
        estimators.Nvil(
            keras.Sequential([keras.layers.Dropout(0.2), keras.layers.Dense(1)]),
            normalize_variance=True,
        )
    ),
    "reinforce": lambda: functional(estimators.Reinforce(baseline_decay=0.9)),
}


def train(model, **arguments):
    settings = {"batch_size": 16, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(*data(), **settings)


def everything(model):
    """Weights, generators and optimizer state."""
    state = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in state]


def assert_same(ours, theirs):
    for a, b in zip(everything(ours), everything(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


SAVED_FIRST = ["nested", "functional_control_variate", "subclassed", "nvil"]


@pytest.mark.parametrize(
    "name", [*SAVED_FIRST, *further(*(name for name in MODELS if name not in SAVED_FIRST))]
)
def test_loaded_model_and_weights_continue_bit_for_bit(name, tmp_path):
    def compiled():
        model = MODELS[name]()
        model(data()[0])  # builds it
        model.compile(optimizer(), loss="mse", run_eagerly=True)
        return model

    original = compiled()
    train(original)
    original.save(tmp_path / "model.keras")
    original.save_weights(tmp_path / "model.weights.h5")
    train(original)

    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(original)
    filled = compiled()  # with other weights, seeds and no steps
    filled.optimizer.build(filled.trainable_variables)
    filled.load_weights(tmp_path / "model.weights.h5")
    for again in (loaded, filled):
        train(again)
        assert_same(again, original)


def test_saved_model_keeps_the_estimator_s_configuration(tmp_path):
    estimator = estimators.Rebar(temperature=0.3, scale=0.5, coupled=False)
    model = functional(estimator)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").get_layer("b").estimator
    assert type(again) is estimators.Rebar
    assert again.get_config() == estimator.get_config()


def test_files_without_foreign_seeds_load_and_wrong_ones_are_named(tmp_path):
    """A plain Keras model of the same layers writes the former."""
    inputs = keras.Input([3])
    outputs = relax_tf.StochasticBinaryLayer(2)(keras.layers.Dropout(0.5)(inputs))
    keras.Model(inputs, outputs).save_weights(tmp_path / "plain.weights.h5")
    model = relax_tf.RelaxModel(inputs, outputs)
    model.load_weights(tmp_path / "plain.weights.h5")

    model.save_weights(tmp_path / "one.weights.h5")
    twice = keras.layers.Dropout(0.5)(keras.layers.Dropout(0.5)(inputs))
    other = relax_tf.RelaxModel(inputs, relax_tf.StochasticBinaryLayer(2)(twice))
    with pytest.raises(ValueError, match=r"has 2 random generators.*with 1"):
        other.load_weights(tmp_path / "one.weights.h5")


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_pickled_and_copied_models_continue(copied):
    model = functional()
    model.compile("adam", loss="mse", run_eagerly=True)
    train(model)
    again = copied(model)
    for each in (model, again):
        train(each)
    assert_same(again, model)


# Configurations.

DENSE = {"name": "x", "kernel_regularizer": keras.regularizers.L2(0.1), "seed": 3}
PUBLIC = [
    relax_tf.StochasticBinaryLayer(None, prior="learned", name="own"),
    relax_tf.Parameters([2, 3], "ones", constraint="non_neg", name="p"),
    relax_tf.StochasticBinaryLayer(
        3, "rebar", (-1, 1), prior="learned", kl="sampled", inference="mean", **DENSE
    ),
    relax_tf.StochasticCategoricalLayer(2, 3, "relax", prior="uniform", use_bias=False, **DENSE),
    relax_tf.StochasticNormalLayer(3, "reparameterization", bias_initializer="ones", **DENSE),
    relax_tf.losses.BernoulliNegativeLogLikelihood(reduction="sum", name="nll"),
    optimizer(),
    functional(),
    Own(units=2),
    estimators.Arm(name="a"),
    estimators.Concrete(temperature=0.3),
    estimators.Disarm(),
    estimators.Lax(control_variate=keras.layers.Dense(1)),
    estimators.Muprop(decay=0.5, baseline=keras.layers.Dense(1), dtype="float64"),
    estimators.Nvil(decay=0.5, baseline=keras.layers.Dense(1), normalize_variance=True),
    estimators.Rebar(temperature=0.3, scale=0.5, coupled=False),
    estimators.Reinforce(baseline_decay=0.7),
    estimators.Relax(control_variate=Network(units=2), coupled=False),
    estimators.RelaxedRebar(temperature=2.0, control_variate=functional_network()),
    estimators.Reparameterization(),
    estimators.Rloo(num_samples=7),
    estimators.StraightThrough(temperature=0.1),
    estimators.Vimco(num_samples=3),
    estimators.Flip(decay=0.9),
    estimators.RelaxedDisarm(),
    estimators.Arms(num_samples=3),
    estimators.Reinmax(),
    estimators.Midpoint(),
]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: type(thing).__name__)
def test_configurations_come_back_and_are_json(thing):
    again = type(thing).from_config(thing.get_config())
    assert type(again) is type(thing)
    assert as_json(again) == as_json(thing)
    again = keras.saving.deserialize_keras_object(as_json(thing))
    assert type(again) is type(thing)
    assert as_json(again) == as_json(thing)


def as_json(thing):
    return json.loads(json.dumps(keras.saving.serialize_keras_object(thing)))


def test_every_public_class_is_among_them():
    covered = {type(thing) for thing in PUBLIC}
    assert covered >= set(estimators._BY_ID.values())


def test_a_clone_learns_by_itself():
    model = functional()
    model.compile("adam", loss="mse", run_eagerly=True)
    train(model)
    before = everything(model)
    clone = keras.models.clone_model(model)
    assert type(clone) is type(model)
    assert clone.get_layer("b").estimator is not model.get_layer("b").estimator
    clone.set_weights(model.get_weights())
    clone.compile("adam", loss="mse", run_eagerly=True)
    train(clone)
    for value, kept in zip(everything(model), before, strict=True):
        np.testing.assert_array_equal(value, kept)
    changed = [
        (a.numpy() != b.numpy()).any()
        for a, b in zip(clone.trainable_variables, model.trainable_variables, strict=True)
    ]
    assert all(changed)


# Callbacks.


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_interrupted_fit_continues_as_if_nothing_had_happened(tmp_path):
    def compiled():
        model = functional()
        schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.5)
        model.compile(keras.optimizers.Adam(schedule), loss="mse")
        return model

    keras.utils.set_random_seed(1)
    whole = compiled()
    train(whole, epochs=4)

    keras.utils.set_random_seed(1)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(compiled(), epochs=4, callbacks=[backup, Interrupt()])
    keras.utils.set_random_seed(2)
    resumed = compiled()
    history = train(resumed, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    assert history.epoch == [2, 3]
    assert_same(resumed, whole)


class Score(keras.callbacks.Callback):
    """Logs a score that is best after the second epoch, and keeps what was there."""

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = [0.0, 3.0, 2.0, 1.0][epoch]
        if epoch == 1:
            self.best = self.model.get_weights()


def test_early_stopping_and_checkpoints_keep_the_best(tmp_path):
    model = functional()
    model.compile("adam", loss="mse", metrics=["mae"], run_eagerly=True)
    score, best = Score(), {"monitor": "score", "mode": "max"}
    callbacks = [
        score,
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True, **best),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True, **best
        ),
        keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True, **best),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    history = train(model, epochs=8, validation_data=data(), callbacks=callbacks)
    assert history.epoch == [0, 1, 2, 3]
    filled = functional()
    filled.load_weights(tmp_path / "best.weights.h5")
    for each in (model, filled, keras.models.load_model(tmp_path / "best.keras")):
        for a, b in zip(each.get_weights(), score.best, strict=True):
            np.testing.assert_array_equal(a, b)
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert {"loss", "mae", "val_loss", "b_second_moment"} <= set(header.split(","))
    assert len(rows) == 4


def test_reduced_learning_rate_is_the_model_s_only():
    model = small_model()
    model.compile(relax_tf.RelaxOptimizer("sgd", keras.optimizers.SGD(0.5)), loss="mse")
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e3)
    history = train(model, epochs=4, callbacks=[plateau]).history
    np.testing.assert_allclose(history["learning_rate"], [0.01, 0.01, 0.005, 0.0025])
    assert float(model.optimizer.control_variate_optimizer.learning_rate) == 0.5


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5"])
def test_hdf5_files_of_models_are_refused(name, tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match=rf"ends in \"\.keras\".*Received: .*{name}"):
        model.save(tmp_path / name)
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed"
)
def test_tensorboard_shows_second_moments(tmp_path):
    model = small_model()
    model.compile("adam", loss="mse", run_eagerly=True)
    train(model, callbacks=[keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)])
    events = b"".join(path.read_bytes() for path in (tmp_path / "train").iterdir())
    assert b"epoch_b_second_moment" in events
    assert b"kernel/histogram" in events
