import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.control_variates import mark_control_variates
from relax_tf.optimizers import relax_optimizer, wrap_optimizer

pytestmark = pytest.mark.uncertified


def variables():
    of_model, of_control_variate = keras.Variable([1.0, 2.0]), keras.Variable([3.0])
    mark_control_variates([of_control_variate])
    return of_model, of_control_variate


def test_each_group_has_its_own_optimizer():
    optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.1))
    w, phi = variables()
    optimizer.apply([np.array([1.0, 1.0], "f"), np.array([1.0], "f")], [w, phi])
    np.testing.assert_allclose(w, [0.5, 1.5])
    np.testing.assert_allclose(phi, [2.9])


def test_default_is_a_fresh_copy():
    adam = keras.optimizers.Adam(0.3, beta_2=0.5)
    optimizer = relax_tf.RelaxOptimizer(adam)
    copy = optimizer.control_variate_optimizer
    assert copy is not adam
    assert type(copy) is type(adam)
    assert copy.beta_2 == 0.5


@pytest.mark.parametrize(("rate", "copied"), [(0.05, 1e-3), (1e-3, 1e-3), (1e-4, 1e-4)])
def test_control_variates_follow_the_model_s_rate_up_to_a_limit(rate, copied):
    optimizer = relax_tf.RelaxOptimizer(keras.optimizers.Adam(rate))
    assert float(optimizer.learning_rate) == np.float32(rate)
    assert float(optimizer.control_variate_optimizer.learning_rate) == np.float32(copied)


def test_a_schedule_stays_one_up_to_the_limit():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.0, 0.1, 1e-4])
    optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(rate))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for each in (optimizer, again):
        w, phi = variables()
        rates = []
        for _ in range(3):
            before = np.concatenate([w.numpy()[:1], phi.numpy()])
            each.apply([np.array([1.0, 1.0], "f"), np.array([1.0], "f")], [w, phi])
            rates.append(before - np.concatenate([w.numpy()[:1], phi.numpy()]))
        expected = [[0.0, 0.0], [0.1, 1e-3], [1e-4, 1e-4]]
        np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_config_round_trip():
    optimizer = relax_tf.RelaxOptimizer("adam", keras.optimizers.SGD(0.1, momentum=0.5))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    assert again.control_variate_optimizer.momentum == 0.5


def test_build_partitions_a_full_list_in_any_order():
    for reverse in (False, True):
        optimizer = relax_tf.RelaxOptimizer("adam")
        both = variables()
        optimizer.build(list(reversed(both)) if reverse else list(both))
        assert [v.shape for v in optimizer.optimizer._momentums] == [(2,)]
        assert [v.shape for v in optimizer.control_variate_optimizer._momentums] == [(1,)]


def test_learning_rate_is_the_model_s():
    optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.1))
    optimizer.learning_rate = 0.25
    assert float(optimizer.optimizer.learning_rate) == 0.25
    assert float(optimizer.control_variate_optimizer.learning_rate) == pytest.approx(0.1)


def test_loss_scaling_stays_outside():
    scaled = wrap_optimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)))
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    assert isinstance(scaled.inner_optimizer, relax_tf.RelaxOptimizer)
    assert wrap_optimizer(scaled) is scaled


def test_warm_up_moves_the_control_variates_alone():
    inputs = keras.Input([2])
    b = relax_tf.StochasticBinaryLayer(3, "relax", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b))
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.0, 1e-2])
    adam = keras.optimizers.Adam
    model.compile(relax_tf.RelaxOptimizer(adam(rate), adam(1e-2, weight_decay=1e-4)), loss="mse")
    x, y = np.ones([8, 2], "f"), np.ones([8, 1], "f")

    def values():
        return {v.path: v.numpy() for v in model.trainable_variables}

    start = values()
    model.fit(x, y, batch_size=2, verbose=0)
    warm = values()
    model.fit(x, y, batch_size=2, verbose=0)
    trained = values()
    phi = {v.path for v in model.get_layer("b").estimator.trainable_variables}
    for path in start:
        assert np.any(warm[path] != start[path]) == (path in phi), path
        assert np.any(trained[path] != warm[path]), path


@pytest.mark.parametrize("mode", [{"run_eagerly": True}, {"jit_compile": True}])
def test_control_variates_learn_in_every_third_step(mode):
    inputs = keras.Input([3])
    outputs = relax_tf.StochasticBinaryLayer(2, "relaxed_rebar", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, outputs)
    adam = keras.optimizers.Adam
    optimizer = relax_tf.RelaxOptimizer(adam(0.01), adam(0.01), control_variate_update_every=3)
    model.compile(optimizer, loss="mse", **mode)
    x, y = np.ones([4, 3], "float32"), np.full([4, 2], 0.3, "float32")
    model.train_on_batch(x, y)  # the first step, in which they learn
    phi = model.get_layer("b").estimator.trainable_variables
    changed, norms = [], []
    for _ in range(6):
        before = [variable.numpy() for variable in (model.get_layer("b").kernel, *phi)]
        model.reset_metrics()
        logs = model.train_on_batch(x, y, return_dict=True)
        after = [variable.numpy() for variable in (model.get_layer("b").kernel, *phi)]
        moved = [(a != b).any() for a, b in zip(before, after, strict=True)]
        assert moved[0]
        changed.append(any(moved[1:]))
        norms.append(logs["b_control_variate_norm"])
    assert changed == [False, False, True] * 2
    assert [norm > 0 for norm in norms] == changed
    assert int(optimizer.control_variate_optimizer.iterations) == 3
    assert int(optimizer.iterations) == 7


def test_config_keeps_how_often_control_variates_learn():
    optimizer = relax_tf.RelaxOptimizer("adam", control_variate_update_every=4)
    copy = relax_tf.RelaxOptimizer.from_config(optimizer.get_config())
    assert copy.control_variate_update_every == 4


SETTINGS = {
    "weight_decay": 0.1,
    "clipvalue": 0.5,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 3,
    "gradient_accumulation_steps": 2,
    "beta_1": 0.8,
}


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_settings_are_those_of_the_user_s_optimizer(loss_scaling):
    adam = keras.optimizers.Adam(0.1, **SETTINGS)
    optimizer = keras.optimizers.LossScaleOptimizer(adam) if loss_scaling else adam
    optimizer = relax_optimizer(wrap_optimizer(optimizer))
    assert optimizer.optimizer is adam
    copy = optimizer.control_variate_optimizer
    for name, value in SETTINGS.items():
        assert getattr(optimizer, name) == value, name
        setattr(optimizer, name, 1 - value)
        assert getattr(optimizer, name) == getattr(adam, name) == 1 - value, name
        assert getattr(copy, name) == value, name
    for name in ("clipnorm", "global_clipnorm"):
        setattr(optimizer, name, 2.0)
        assert getattr(adam, name) == 2.0
    with pytest.raises(AttributeError, match="no_such_setting"):
        _ = optimizer.no_such_setting
    assert not hasattr(optimizer, "optimizers")
    optimizer.mine = 1
    assert not hasattr(adam, "mine")


def small_model(estimator="relax", **compile_arguments):
    inputs = keras.Input([2])
    b = relax_tf.StochasticBinaryLayer(3, estimator, name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1, name="out")(b))
    model.compile(loss="mse", **compile_arguments)
    return model, (np.ones([8, 2], "f"), np.ones([8, 1], "f"))


def test_weights_are_excluded_from_weight_decay():
    decayed = keras.optimizers.SGD(1e-6, weight_decay=1e5)  # decay by a tenth, and no gradient
    model, data = small_model(optimizer=decayed)
    model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
    bias = model.get_layer("out").bias
    bias.assign([1.0])
    kernel = model.get_layer("out").kernel.numpy()
    model.train_on_batch(*data)
    np.testing.assert_allclose(bias, [0.9], atol=1e-3)
    np.testing.assert_allclose(model.get_layer("out").kernel, kernel, atol=1e-3)


def test_one_exclusion_survives_loss_scaling():
    adam = keras.optimizers.Adam()
    adam.exclude_from_weight_decay(var_names=["bias"])
    wrapped = wrap_optimizer(keras.optimizers.LossScaleOptimizer(adam))
    assert wrapped.inner_optimizer.optimizer is adam


def test_accumulated_gradients_count_as_one_step():
    sgd = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    model, data = small_model("reinforce", optimizer=sgd)
    kernel, kernels = model.get_layer("out").kernel, []
    for _ in range(4):
        kernels.append(kernel.numpy())
        model.train_on_batch(*data)
    kernels.append(kernel.numpy())
    moved = [(a != b).any() for a, b in itertools.pairwise(kernels)]
    assert moved == [False, True, False, True]
    assert int(model.optimizer.iterations) == 2
    assert len(model.optimizer._variables) == 2  # no accumulators of the wrapper's own


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_an_optimizer_goes_on_when_a_model_is_compiled_again(loss_scaling):
    adam = keras.optimizers.Adam()
    optimizer = keras.optimizers.LossScaleOptimizer(adam) if loss_scaling else adam
    model, data = small_model(optimizer=optimizer)
    for steps in (1, 2):
        model.train_on_batch(*data)
        assert int(relax_optimizer(model.optimizer).iterations) == steps == int(adam.iterations)
        model.compile(optimizer, loss="mse")


@pytest.mark.parametrize("estimator", ["relax", "reinforce"])
@pytest.mark.parametrize("loss_scaling", [False, True])
def test_averaged_weights_are_swapped_in_for_evaluation(estimator, loss_scaling):
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
    model, data = small_model(estimator, optimizer=optimizer)
    kernel, path = model.get_layer("out").kernel, []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            path.append(kernel.numpy())

        def on_test_begin(self, logs=None):
            self.evaluated = kernel.numpy()

        def on_test_end(self, logs=None):
            self.after = kernel.numpy()

    note = Note()
    callbacks = [keras.callbacks.SwapEMAWeights(), note]
    model.fit(*data, batch_size=2, validation_data=data, callbacks=callbacks, verbose=0)
    average = path[0]
    for value in path[1:]:
        average = 0.5 * average + 0.5 * value
    assert np.abs(average - path[-1]).max() > 1e-3
    np.testing.assert_allclose(note.evaluated, average, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(note.after, path[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kernel, average, rtol=1e-5, atol=1e-6)  # as Keras ends a fit


def test_averages_of_one_side_only_are_refused_by_the_swap():
    sgd = keras.optimizers.SGD
    optimizer = relax_tf.RelaxOptimizer(sgd(0.1, use_ema=True), sgd(0.1))
    model, data = small_model(optimizer=optimizer)
    swap = keras.callbacks.SwapEMAWeights()
    with pytest.raises(ValueError, match="control_variate_optimizer"):
        model.fit(*data, validation_data=data, callbacks=[swap], verbose=0)
    model, data = small_model(optimizer="sgd")
    with pytest.raises(ValueError, match="use_ema=False"):
        model.fit(*data, validation_data=data, callbacks=[swap], verbose=0)


@pytest.mark.parametrize("optimizer", ["adam", "loss scaling"])
def test_a_fit_without_a_step_returns(optimizer):
    """As Keras's does: a run that is resumed when it is over has nothing to do."""
    if optimizer == "loss scaling":
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, relax_tf.StochasticBinaryLayer(2)(inputs))
    model.compile(optimizer, loss="mse")
    x = np.zeros([4, 3], "f")
    assert model.fit(x, x[:, :2], epochs=2, initial_epoch=2, verbose=0).history == {}
    model.fit(x, x[:, :2], epochs=3, initial_epoch=2, verbose=0)


class Decay(keras.optimizers.schedules.LearningRateSchedule):
    """As tutorials write them: no configuration, not registered."""

    def __call__(self, step):
        return 0.4 / (keras.ops.cast(step, "float32") + 1)


class Described(Decay):
    def get_config(self):
        return {}


class Boosted(keras.optimizers.SGD):
    """Without the configuration that its constructor needs."""

    def __init__(self, learning_rate, boost, name="boosted"):
        super().__init__(learning_rate, name=name)
        self.boost = boost


def a_rate():
    return 0.04


@pytest.mark.parametrize(
    ("rate", "expected"), [(Decay(), 0.2), (Described(), 0.2), (a_rate, 0.04), (lambda: 2e-4, 2e-4)]
)
def test_schedules_and_functions_need_no_configuration(rate, expected):
    model, data = small_model(optimizer=keras.optimizers.Adam(rate))
    model.fit(*data, verbose=0)
    optimizer = model.optimizer
    np.testing.assert_allclose(optimizer.learning_rate, expected, rtol=1e-6)
    of_control_variates = optimizer.control_variate_optimizer.learning_rate
    np.testing.assert_allclose(of_control_variates, min(expected, 1e-3), rtol=1e-6)


class WithItsOwn(keras.optimizers.Adam):
    """Makes its schedule by itself, and its configuration says of what."""

    def __init__(self, peak, name="with_its_own"):
        super().__init__(keras.optimizers.schedules.CosineDecay(peak, 100), name=name)
        self.peak = peak

    def get_config(self):
        return {"peak": self.peak, "name": self.name}


def test_an_optimizer_may_make_its_own_schedule():
    model, data = small_model(optimizer=WithItsOwn(0.1))
    model.fit(*data, verbose=0)
    copy = model.optimizer.control_variate_optimizer
    assert isinstance(copy, WithItsOwn)
    np.testing.assert_allclose(copy.learning_rate, 1e-3, rtol=1e-6)


def test_an_optimizer_with_a_function_loads(tmp_path):
    model, data = small_model(optimizer=keras.optimizers.SGD(a_rate))
    model.fit(*data, verbose=0)
    model.save(tmp_path / "model.keras")
    known = {"a_rate": a_rate}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=known)
    loaded.fit(*data, verbose=0)
    rates = loaded.optimizer.learning_rate, loaded.optimizer.control_variate_optimizer.learning_rate
    np.testing.assert_allclose(rates, [0.04, 1e-3], rtol=1e-6)


def test_an_optimizer_that_cannot_be_copied_is_told_what_to_do():
    with pytest.raises(ValueError, match=r"(?s)no Boosted can be made.*RelaxOptimizer\("):
        small_model(optimizer=Boosted(0.1, boost=2.0))
    both = relax_tf.RelaxOptimizer(Boosted(0.1, boost=2.0), "sgd")
    model, data = small_model(optimizer=both)
    model.fit(*data, verbose=0)


def test_exclusions_from_weight_decay_hold_for_the_copy():
    optimizer = keras.optimizers.SGD(1e-6, weight_decay=1e5)
    optimizer.exclude_from_weight_decay(var_names=["scale"])
    model, data = small_model("rebar", optimizer=optimizer)
    model.train_on_batch(*data)
    weights = {v.name: float(v) for v in model.get_layer("b").estimator.trainable_variables}
    np.testing.assert_allclose(weights["scale"], 1.0, atol=1e-3)
    assert weights["log_temperature"] != 0


class Scaled(relax_tf.estimators.Estimator):
    """A score function with a learned baseline; its `build` forgets the one of its base."""

    def build(self, theta_shape, context_shape=None):
        self.baseline = self.add_weight(name="baseline", shape=(), initializer="ones")

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        credit = f_b - tf.convert_to_tensor(self.baseline)
        return relax_tf.estimators.score_function_gradient(dist, draw.b, credit), None


def test_what_an_estimator_makes_learns_by_the_control_variates_optimizer():
    sgd = keras.optimizers.SGD
    model, data = small_model(Scaled(), optimizer=relax_tf.RelaxOptimizer(sgd(0.0), sgd(0.1)))
    model.train_on_batch(*data)
    (baseline,) = model.get_layer("b").estimator.trainable_variables
    assert float(baseline) != 1


@pytest.mark.parametrize("batch_size", [4, 5])
def test_a_variable_that_was_frozen_since_has_its_own_average_in_the_end(batch_size):
    """Keras takes averages in the order of `build`: one layer had those of another."""
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    inputs = keras.Input([3])
    below, top = keras.layers.Dense(3), keras.layers.Dense(3)
    layer = relax_tf.StochasticBinaryLayer(3, "straight_through")
    model = relax_tf.RelaxModel(inputs, top(layer(below(inputs))))
    model.compile(optimizer, loss="mse")
    x = np.random.RandomState(0).rand(16, 3).astype("f")
    model.fit(x, x, batch_size=4, verbose=0)
    below.trainable = False
    before = [part.kernel.numpy() for part in (below, layer, top)]
    model.fit(x, x, batch_size=batch_size, verbose=0)
    np.testing.assert_array_equal(below.kernel, before[0])
    for number, part in enumerate((below, layer, top)):
        distances = [np.abs(part.kernel.numpy() - kernel).max() for kernel in before]
        assert np.argmin(distances) == number


@pytest.mark.parametrize("batch_size", [4, 3])
def test_a_layer_that_is_unfrozen_takes_another_compile_and_fit_says_so_at_once(batch_size):
    """Where batches had the same size as before, it ended in a KeyError."""
    model, (x, y) = small_model("rloo", optimizer="sgd")
    model.layers[-1].trainable = False
    model.compile("sgd", loss="mse")
    model.fit(x, y, batch_size=4, verbose=0)
    model.layers[-1].trainable = True
    steps = int(model.optimizer.iterations)
    with pytest.raises(ValueError, match="Unknown variable"):
        model.fit(x, y, batch_size=batch_size, verbose=0)
    assert int(model.optimizer.iterations) == steps
    model.compile("sgd", loss="mse")
    model.fit(x, y, batch_size=batch_size, verbose=0)
