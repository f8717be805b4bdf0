"""Keras's ways with models and optimizers: what its users take for granted."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further
from tests.small_models import Subclassed, data, small_model
from tests.stacks import layer_variables

pytestmark = pytest.mark.uncertified


def updates(model, *batch, **arguments):
    """What one step subtracts from each variable, as (of the model, of the control variate)."""
    before = [(variable, variable.numpy()) for variable in model.trainable_variables]
    model.train_on_batch(*batch, **arguments)
    layer = model.get_layer("b")
    of_model = [id(v) for each in model.layers for v in layer_variables(each)]
    sides = [], []
    for variable, value in before:
        sides[id(variable) not in of_model].append(value - variable.numpy())
    assert len(sides[1]) == len(layer.estimator.trainable_variables)
    return sides


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(array)) for array in arrays))


def sgd(model=None, control_variate=None):
    return relax_tf.RelaxOptimizer(
        keras.optimizers.SGD(1.0, **(model or {})),
        keras.optimizers.SGD(1.0, **(control_variate or {})),
    )


# Optimizers.


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}])
def test_moving_averages_of_weights_replace_them_in_the_end(mode):
    model = small_model()
    averaging = keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.9)
    model.compile(relax_tf.RelaxOptimizer(averaging, keras.optimizers.SGD(0.01)), "mse", **mode)
    weights = [variable for each in model.layers for variable in layer_variables(each)]
    steps = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append([w.numpy() for w in weights])
    )
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[note])
    average = steps[0]
    for step in steps[1:]:
        average = [0.9 * a + 0.1 * w for a, w in zip(average, step, strict=True)]
    for expected, weight, last in zip(average, weights, steps[-1], strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(weight - last).max() > 1e-5


@pytest.mark.parametrize("side", [0, 1])
def test_clipping_acts_on_its_own_side(side):
    def step(*arguments):
        keras.utils.set_random_seed(0)
        model = small_model()
        model.compile(sgd(*arguments), loss="mse")
        return updates(model, *data())

    free = step()
    limit = float(norm(free[side]) / 3)
    clipped = step(*[{"global_clipnorm": limit} if side == s else {} for s in (0, 1)])
    np.testing.assert_allclose(norm(clipped[side]), limit, rtol=1e-4)
    for a, b in zip(clipped[1 - side], free[1 - side], strict=True):
        np.testing.assert_array_equal(a, b)

    largest = max(norm([array]) for array in free[side])
    clipped = step(*[{"clipnorm": largest / 3} if side == s else {} for s in (0, 1)])
    for before, after in zip(free[side], clipped[side], strict=True):
        expected = min(norm([before]), largest / 3)
        np.testing.assert_allclose(norm([after]), expected, rtol=1e-4, atol=1e-6)


def test_accumulated_gradients_are_applied_together():
    model = small_model()
    accumulate = {"gradient_accumulation_steps": 2}
    model.compile(sgd(accumulate, accumulate), loss="mse")
    first, second = updates(model, *data()), updates(model, *data())
    assert norm(first[0] + first[1]) == 0
    assert min(norm(second[0]), norm(second[1])) > 0


def test_the_scale_of_the_loss_changes_no_step():
    """Powers of two, so exactly: a second moment of scaled gradients would differ."""
    steps = []
    for scale in (1.0, 2.0**10):
        keras.utils.set_random_seed(0)
        model = small_model()
        optimizer = keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=scale)
        model.compile(optimizer, loss="mse")
        steps.append(updates(model, *data()))
    for side in (0, 1):
        for a, b in zip(steps[0][side], steps[1][side], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("frozen", ["b", "outputs", "estimator"])
def test_frozen_parts_stay_with_the_optimizer_that_knew_them(frozen):
    model = small_model()
    model.compile("adam", loss="mse", run_eagerly=True)
    model.fit(*data(), verbose=0)
    layer = model.get_layer("b")
    part = layer.estimator if frozen == "estimator" else model.get_layer(frozen)
    part.trainable = False
    model.compile(model.optimizer, loss="mse", run_eagerly=True)
    kept = [(variable, variable.numpy()) for variable in part.weights]
    free = [(variable, variable.numpy()) for variable in model.trainable_variables]
    model.fit(*data(), verbose=0)
    for variable, value in kept:
        np.testing.assert_array_equal(variable, value)
    for variable, value in free:
        assert (variable.numpy() != value).any(), variable.path


def test_an_optimizer_that_never_saw_a_variable_says_so():
    model = small_model()
    model.get_layer("outputs").trainable = False
    model.compile("adam", loss="mse", run_eagerly=True)
    model.fit(*data(), verbose=0)
    model.get_layer("outputs").trainable = True
    model.compile(model.optimizer, loss="mse", run_eagerly=True)
    with pytest.raises(ValueError, match="Unknown variable"):
        model.fit(*data(), verbose=0)


# Batches and weights.


def two_by_two(inference="sample"):
    """Inputs by name, outputs by name."""
    inputs = {name: keras.Input([3], name=name) for name in ("left", "right")}
    joined = keras.layers.Concatenate()(list(inputs.values()))
    b = relax_tf.StochasticBinaryLayer(4, prior="uniform", inference=inference, name="b")(joined)
    outputs = {
        "number": keras.layers.Dense(2, name="number")(b),
        "kind": keras.layers.Dense(3, activation="softmax", name="kind")(b),
    }
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile(
        "adam",
        loss={"number": "mse", "kind": "sparse_categorical_crossentropy"},
        loss_weights={"number": 0.5, "kind": 2.0},
        metrics={"kind": "accuracy"},
    )
    return model


def two_by_two_data():
    x, number = data(20)
    return {"left": x, "right": -x}, {"number": number, "kind": np.arange(20) % 3}


def test_named_inputs_outputs_losses_and_weights_make_one_cost():
    model = two_by_two()
    x, y = two_by_two_data()
    weight = np.linspace(0, 2, 20).astype("f")
    estimate = model.estimate(x, y, weight).estimates["b"]
    number, kind = (model.get_layer(name)(estimate.sample) for name in ("number", "kind"))
    layer = model.get_layer("b")
    kl = layer.kl_divergence(layer.distribution(tf.concat([x["left"], x["right"]], -1)), None)
    expected = (
        0.5 * np.mean((number - y["number"]) ** 2, -1)
        + 2 * keras.losses.sparse_categorical_crossentropy(y["kind"], kind)
        + kl
    )
    np.testing.assert_allclose(estimate.cost, weight * expected, rtol=1e-5)


def test_a_weight_for_each_output_weighs_its_loss_and_their_mean_the_kl():
    model = two_by_two(inference="mean")
    x, y = two_by_two_data()
    ones = np.ones(20, "f")
    plain, number, both = (
        model.evaluate(x, y, sample_weight=weights, return_dict=True, verbose=0)["loss"]
        for weights in (
            {"number": ones, "kind": ones},
            {"number": ones, "kind": 0 * ones},
            {"number": 3 * ones, "kind": 3 * ones},
        )
    )
    layer = model.get_layer("b")
    dist = layer.distribution(tf.concat([x["left"], x["right"]], -1))
    kl = np.mean(layer.kl_divergence(dist, None))
    error = 0.5 * np.mean((model(x)["number"] - y["number"]) ** 2)
    np.testing.assert_allclose(number, error + kl / 2, rtol=1e-5)
    np.testing.assert_allclose(both, 3 * plain, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 10])
def test_datasets_with_ragged_batches_and_validation(steps):
    """20 examples in batches of 8, with validation and several steps at a time."""
    model = two_by_two(inference="mean")
    dataset = tf.data.Dataset.from_tensor_slices(two_by_two_data()).batch(8)
    loss = model.evaluate(*two_by_two_data(), batch_size=20, return_dict=True, verbose=0)
    model.steps_per_execution = steps
    model.optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.0), "sgd")
    history = model.fit(dataset, epochs=2, validation_data=dataset, verbose=0).history
    for name in ("loss", "kind_accuracy"):
        np.testing.assert_allclose(history[f"val_{name}"], [loss[name]] * 2, rtol=1e-5)
    assert {"kind_accuracy", "kind_loss", "number_loss", "b_second_moment"} <= set(history)


def test_a_wrapper_around_the_train_function_stays():
    model, calls = small_model("rebar"), []
    model.compile("sgd", "mse")

    def wrap(logs):
        inner = model.train_function

        def counted(iterator):
            calls.append(iterator)
            return inner(iterator)

        model.train_function = counted

    callback = keras.callbacks.LambdaCallback(on_train_begin=wrap)
    model.fit(*data(30), batch_size=3, verbose=0, callbacks=[callback])
    assert len(calls) == 10


def test_ten_steps_at_a_time_are_the_same_steps():
    results = []
    for steps in (1, 10):
        keras.utils.set_random_seed(0)
        model = small_model("nvil", prior="learned")
        model.compile("adam", loss="mse", steps_per_execution=steps)
        history = model.fit(*data(30), batch_size=2, epochs=2, shuffle=False, verbose=0).history
        results.append([*model.get_weights(), *history.values()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        "one output, XLA",
        "two outputs",
        "one output, uncertified",
        *further("one output", "subclass"),
    ],
)
def test_the_step_is_traced_once(build, monkeypatch):
    """It would be twice if metrics or the optimizer's variables were made in it.

    Without the certificate nobody knows the outputs that metrics need, or the terms of the cost.
    """
    traces = []
    step = relax_tf.RelaxModel.train_step
    monkeypatch.setattr(
        relax_tf.RelaxModel,
        "train_step",
        lambda model, batch: (traces.append(1), step(model, batch))[1],
    )
    if build == "two outputs":
        model, batch = two_by_two(), two_by_two_data()
    else:
        metrics, prior = (None, None) if "uncertified" in build else (["mae", "mse"], "learned")
        model = Subclassed() if build == "subclass" else small_model(prior=prior)
        batch = data()
        model.compile("adam", "mse", metrics=metrics, jit_compile="XLA" in build)
    model.certify = "uncertified" not in build
    model.fit(*batch, batch_size=8, epochs=2, verbose=0)
    assert len(traces) == 1


class LateLayers(relax_tf.RelaxModel):
    """Layers that no call outside of a step reaches."""

    def __init__(self):
        super().__init__()
        self.b = relax_tf.StochasticBinaryLayer(4, "relax", name="b")
        self.head, self.in_training = keras.layers.Dense(2), keras.layers.Dense(4)

    def call(self, x, training=None):
        b = self.b(x)
        return b + self.in_training(b) if training else b

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.reduce_sum((self.head(y_pred) - y) ** 2, -1)


@pytest.mark.parametrize("certify", [True, False])
def test_layers_that_are_first_called_in_a_step_train(certify):
    model = LateLayers()
    model.compile("adam")
    model.certify = certify
    model.fit(*data(), verbose=0)
    before = model.head.kernel.numpy(), model.in_training.kernel.numpy()
    model.fit(*data(), verbose=0)
    assert (model.head.kernel != before[0]).numpy().all()
    assert (model.in_training.kernel != before[1]).numpy().any()


def test_class_weights_are_sample_weights_by_class():
    losses, weights = [], {0: 0.0, 1: 1.0, 2: 3.0}
    kinds = np.arange(32) % 3
    by_example = np.array([weights[kind] for kind in kinds], "f")
    for arguments in ({"class_weight": weights}, {"sample_weight": by_example}):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        b = relax_tf.StochasticBinaryLayer(4, prior="uniform", name="b")(inputs)
        model = relax_tf.RelaxModel(inputs, keras.layers.Dense(3, activation="softmax")(b))
        model.compile("sgd", loss="sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
        losses.append(model.train_on_batch(data()[0], kinds, **arguments))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "concrete"])
@pytest.mark.parametrize("metrics", [None, ["mae"]])
def test_single_batches_return_what_keras_does(estimator, metrics):
    model = small_model(estimator, prior="uniform")
    model.compile("adam", loss="mse", metrics=metrics)
    logs = model.train_on_batch(*data(), return_dict=True)
    assert "b_second_moment" in logs
    for method in (model.train_on_batch, model.test_on_batch):
        values = method(*data())
        assert np.shape(values) == (() if metrics is None else (2,))


def test_single_batches_and_summary():
    model = small_model(inference="mean")
    model.compile("adam", loss="mse", metrics=["mae"])
    x, y = data()
    logs = model.train_on_batch(x, y, return_dict=True)
    assert set(logs) == {"loss", "mae", "b_second_moment", "b_control_variate_norm"}
    tested = model.test_on_batch(x, y, return_dict=True)
    assert set(tested) == {"loss", "mae"}
    evaluated = model.evaluate(x, y, batch_size=5, return_dict=True, verbose=0)
    for name, value in tested.items():
        np.testing.assert_allclose(evaluated[name], value, rtol=1e-5)
    for predicted in (model.predict_on_batch(x), model.predict(x, batch_size=5, verbose=0)):
        np.testing.assert_allclose(predicted, model(x), rtol=1e-5)
    lines = []
    model.summary(print_fn=lines.append)
    assert "StochasticBinaryLayer" in "\n".join(lines)


# Models.


class MeanSquare(keras.layers.Layer):
    """Adds the mean square of what passes through to the loss."""

    def call(self, x):
        self.add_loss(keras.ops.mean(x**2))
        return x


def test_losses_added_elsewhere_are_keras_s_and_counted_once():
    """Replays run every layer again; their added losses must not."""
    l2 = keras.regularizers.L2(0.1)
    inputs = keras.Input([3])
    hidden = keras.layers.Dense(3, kernel_regularizer=l2, activity_regularizer=l2)(inputs)
    layer = relax_tf.StochasticBinaryLayer(
        4, inference="mean", kernel_regularizer=l2, activity_regularizer="l1", name="b"
    )
    outputs = keras.layers.Dense(2, activity_regularizer=l2)(MeanSquare()(layer(hidden)))
    ours, theirs = (kind(inputs, outputs) for kind in (relax_tf.RelaxModel, keras.Model))
    for model in (ours, theirs):
        model.compile("sgd", loss="mse")
    x, y = data()
    values = [model.evaluate(x, y, batch_size=32, verbose=0) for model in (ours, theirs)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)

    result = ours.estimate(x, y)
    sample = result.estimates["b"].sample
    first, last = ours.layers[1], ours.layers[-1]
    activity = np.sum(first(x) ** 2) + np.sum(last(sample) ** 2) + 0.1 * np.sum(np.abs(sample))
    kernels = np.sum(first.kernel**2) + np.sum(layer.kernel**2)
    added = 0.1 * (activity / len(x) + kernels) + np.mean(sample**2)
    expected = np.mean(result.estimates["b"].cost) + added
    np.testing.assert_allclose(result.surrogate, expected, rtol=1e-5)


def layers_of(names="ab"):
    """Two stochastic layers and a readout whose noise depends on the seeds alone."""
    first, second = (
        relax_tf.StochasticBinaryLayer(4, "relaxed_rebar", prior="learned", seed=i, name=name)
        for i, name in enumerate(names)
    )
    return first, second, keras.layers.Dense(2)


def flat():
    inputs = x = keras.Input([3])
    for layer in layers_of():
        x = layer(x)
    return relax_tf.RelaxModel(inputs, x)


def in_sequential():
    inputs = keras.Input([3])
    return relax_tf.RelaxModel(inputs, keras.Sequential(list(layers_of()))(inputs))


def in_functional_model():
    first, second, readout = layers_of()
    inputs, inner_inputs = keras.Input([3]), keras.Input([3])
    inner = keras.Model(inner_inputs, second(first(inner_inputs)))
    return relax_tf.RelaxModel(inputs, readout(inner(inputs)))


def in_relax_model():
    first, second, readout = layers_of()
    inputs, inner_inputs = keras.Input([3]), keras.Input([3])
    inner = relax_tf.RelaxModel(inner_inputs, first(inner_inputs))
    return relax_tf.RelaxModel(inputs, readout(second(inner(inputs))))


def from_sequential():
    sequential = keras.Sequential([keras.Input([3]), *layers_of()])
    return relax_tf.RelaxModel(sequential.inputs[0], sequential.outputs[0])


def trained_in_order(model):
    """The logs of two epochs of the same batches."""
    model.compile(keras.optimizers.SGD(1e-3), loss="mse")
    return model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0).history


@pytest.fixture(scope="module")
def reference():
    """What the flat model starts from, its logs, and where it ends."""
    keras.utils.set_random_seed(0)  # the fixture that seeds each test comes after this one
    model = flat()
    start = model.get_weights()
    return start, trained_in_order(model), model.get_weights()


@pytest.mark.parametrize(
    "build", [in_functional_model, in_relax_model, *further(in_sequential, from_sequential)]
)
def test_nested_layers_train_as_flat_ones(build, reference):
    start, history, end = reference
    model = build()
    model.set_weights(start)
    own_history = trained_in_order(model)
    assert history.keys() == own_history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(own_history[name], values, rtol=1e-4)
    for a, b in zip(end, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_list_of_layers_is_refused_with_the_way_to_do_it():
    with pytest.raises(
        TypeError, match=r"RelaxModel\(sequential.inputs\[0\], sequential.outputs\[0\]\)"
    ):
        relax_tf.RelaxModel([keras.layers.Dense(2)])


def test_a_layer_called_twice_trains_with_several_estimators_at_once():
    layer = relax_tf.StochasticBinaryLayer(3, "relaxed_rebar", (-1, 1), prior="learned", name="b")
    inputs = keras.Input([3])
    above = relax_tf.StochasticBinaryLayer(3, "disarm", name="above")(layer(layer(inputs)))
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(above))
    model.compile("adam", loss="mse")
    before = [variable.numpy() for variable in model.trainable_variables]
    history = model.fit(*data(), batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert (variable.numpy() != value).any(), variable.path


@pytest.mark.parametrize(
    ("policy", "jit_compile"),
    [("mixed_bfloat16", False), ("mixed_float16", False), *further(("mixed_float16", True))],
)
def test_mixed_precision_estimates_in_float32(policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, prior="learned", name="b")(inputs)
    z = relax_tf.StochasticNormalLayer(4, "lax", prior="standard", name="z")(b)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(z))
    model.compile("adam", loss="mse", jit_compile=jit_compile)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    before = [variable.numpy() for variable in model.trainable_variables]
    history = model.fit(*data(), batch_size=8, validation_data=data(), verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert (variable.numpy() != value).any(), variable.path
    assert model(data()[0]).dtype == policy.removeprefix("mixed_")
    for estimate in model.estimate(*data()).estimates.values():
        assert estimate.cost.dtype == tf.float32
        assert all(g.dtype == tf.float32 for g in tf.nest.flatten(estimate.gradient))


@pytest.mark.parametrize("use_bias", [True, False])
def test_weights_of_a_dense_layer_are_taken_over(use_bias):
    dense = keras.layers.Dense(4, use_bias=use_bias, bias_initializer="ones")
    layer = relax_tf.StochasticBinaryLayer(4, "relax", prior="learned", use_bias=use_bias)
    x = tf.ones([2, 3])
    logits = dense(x)
    layer(x)
    others = [w for w in layer.weights if "theta" not in w.path]
    before = [w.numpy() for w in others]
    layer.set_weights(dense.get_weights())
    np.testing.assert_array_equal(layer.distribution(x).logits, logits)
    for variable, value in zip(others, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    layer.set_weights([0 * w for w in layer.get_weights()])  # all of them, as ever
    assert not any(np.any(w) for w in layer.get_weights())
    with pytest.raises(ValueError, match="expecting"):
        layer.set_weights(dense.get_weights() * 2)


def test_without_a_kernel_set_weights_is_keras_s():
    layer = relax_tf.StochasticBinaryLayer(None, "reinforce", prior="learned")
    layer(tf.zeros([2, 3]))
    layer.set_weights([np.ones(3)])
    np.testing.assert_array_equal(layer.prior_logits, np.ones(3))


# Inputs that are not there.


class OfDict(relax_tf.RelaxModel):
    """A subclassed model that is built by its first batch."""

    def __init__(self):
        super().__init__()
        self.b = relax_tf.StochasticBinaryLayer(3, name="b")
        self.parameters_ = relax_tf.Parameters([2])

    def call(self, x):
        return keras.ops.concatenate([self.b(x["x"]), self.parameters_([x["a"], x["x"]])], -1)


def test_optional_inputs_may_be_none():
    x, y = np.ones([8, 2], "f"), np.full([8, 5], 0.3, "f")
    first, second = keras.Input([3], optional=True), keras.Input([2])
    functional = relax_tf.RelaxModel(
        [first, second], relax_tf.StochasticBinaryLayer(5, name="b")(second)
    )
    for model, inputs in ((functional, [None, x]), (OfDict(), {"a": None, "x": x})):
        model.compile("sgd", loss="mse")
        model.fit(inputs, y, verbose=0)
        model.evaluate(inputs, y, verbose=0)
        model.train_on_batch(inputs, y)
        assert model.predict(inputs, verbose=0).shape == (8, 5)
