"""RelaxModel through its public face: exact gradients of whole models, Keras's ways, refusals."""

import gc
import itertools
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.step.replay import Replays
from tests.problems import normal_grid, shake, z_scores

X = np.array([[0.7, -1.2, 0.4]], np.float32)
Y = np.array([[0.5, -1.0]], np.float32)


def two_layer_model(below, above, prior=None, kl="analytic"):
    """x -> b1 (3 units) -> b2 (2 units) -> tanh -> y, with b1 also reaching y directly."""
    inputs = keras.Input([3])
    b1 = relax_tf.StochasticBinaryLayer(3, below, (-1, 1), prior, kl, name="b1")(inputs)
    b2 = relax_tf.StochasticBinaryLayer(2, above, (0, 1), prior, kl, name="b2")(b1)
    both = keras.layers.Concatenate()([b1, b2])
    hidden = keras.layers.Dense(3, activation="tanh", name="hidden")(both)
    outputs = keras.layers.Dense(2, name="outputs")(hidden)
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    shake(model.trainable_variables, 0.7)
    return model


def model_variables(model):
    return [v for layer in model.layers for v in layer_variables(layer)]


def layer_variables(layer):
    phi = layer.estimator.trainable_variables if hasattr(layer, "estimator") else []
    return [v for v in layer.trainable_variables if not any(v is p for p in phi)]


def binary_states(units, support):
    return tf.constant(list(itertools.product(support, repeat=units)), tf.float32)


def enumerated_loss(model, x, y):
    """The expected cost of one example by summing over all samples of both layers."""
    l1, l2 = model.get_layer("b1"), model.get_layer("b2")
    total = 0.0
    dist1 = l1.distribution(x)
    for b1 in binary_states(3, (-1.0, 1.0)):
        b1 = b1[tf.newaxis]
        dist2 = l2.distribution(b1)
        for b2 in binary_states(2, (0.0, 1.0)):
            b2 = b2[tf.newaxis]
            hidden = model.get_layer("hidden")(tf.concat([b1, b2], -1))
            cost = tf.reduce_mean((model.get_layer("outputs")(hidden) - y) ** 2)
            for layer, dist, b in ((l1, dist1, b1), (l2, dist2, b2)):
                if layer.prior is not None:
                    cost += layer.kl_divergence(dist, b)[0]
            total += tf.exp(dist1.log_prob(b1) + dist2.log_prob(b2))[0] * cost
    return total


def exact_gradients(model):
    with tf.GradientTape() as tape:
        loss = enumerated_loss(model, tf.constant(X), tf.constant(Y))
    variables = model_variables(model)
    return loss.numpy(), tape.gradient(loss, [v.value for v in variables])


def gradients_of_train_steps(model, steps=150, batch=400):
    """The weight gradients that `train_step` applies, read off SGD(1) updates, `[steps, ...]`."""
    variables = model_variables(model)
    before = [v.numpy() for v in model.trainable_variables]
    dataset = tf.data.Dataset.from_tensors((np.tile(X, [batch, 1]), np.tile(Y, [batch, 1])))
    gradients = [[] for _ in variables]

    class ReadAndReset(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            after = {id(v): v.numpy() for v in model.trainable_variables}
            for variable, value in zip(model.trainable_variables, before, strict=True):
                variable.assign(value)
            for slot, variable in zip(gradients, variables, strict=True):
                slot.append(variable.numpy() - after[id(variable)])

    model.fit(dataset.repeat(steps), callbacks=[ReadAndReset()], verbose=0)
    return [np.stack(slot) for slot in gradients]


@pytest.mark.parametrize(
    ("below", "above", "prior", "kl"),
    [
        ("relaxed_rebar", "relaxed_rebar", "learned", "sampled"),
        ("rebar", "relax", "learned", "analytic"),
        ("relax", "rebar", None, "analytic"),
        ("reinforce", "relaxed_rebar", "uniform", "sampled"),
        (relax_tf.estimators.RelaxedRebar(coupled=False), "rebar", "learned", "sampled"),
        ("rloo", "disarm", "learned", "sampled"),
        ("disarm", "rloo", "uniform", "analytic"),
        ("muprop", "nvil", "learned", "sampled"),
        ("nvil", "muprop", None, "analytic"),
        ("arm", relax_tf.estimators.Reinforce(baseline_decay=0.9), "uniform", "sampled"),
    ],
)
def test_train_step_follows_the_enumerated_gradient_of_two_layers(below, above, prior, kl):
    model = two_layer_model(below, above, prior, kl)
    loss, expected = exact_gradients(model)
    measured = gradients_of_train_steps(model)
    for variable, exact, samples in zip(model_variables(model), expected, measured, strict=True):
        z = z_scores(samples, np.asarray(exact))
        assert np.abs(z).max() < 4.5, (variable.path, z)
    assert abs(z_scores(evaluated_losses(model), loss)) < 8


def evaluated_losses(model):
    logs = [model.evaluate(*many(20_000), verbose=0, return_dict=True) for _ in range(5)]
    return [log["loss"] for log in logs]


def many(count):
    return np.tile(X, [count, 1]), np.tile(Y, [count, 1])


def test_unbiased_layer_below_a_pathwise_layer_follows_the_mixed_gradient():
    """With `concrete` above, the layer below must estimate the gradient of the relaxed cost."""
    model = two_layer_model("relaxed_rebar", "concrete")
    l1, l2 = model.get_layer("b1"), model.get_layer("b2")
    eps = l2.distribution(tf.zeros([40_000, 3])).noise(seed=0)

    with tf.GradientTape() as tape:
        total = 0.0
        dist1 = l1.distribution(tf.constant(X))
        for b1 in binary_states(3, (-1.0, 1.0)):
            b1 = b1[tf.newaxis]
            z2 = l2.distribution(b1).theta + eps
            b2 = tf.sigmoid(z2 / l2.estimator.temperature)
            hidden = model.get_layer("hidden")(tf.concat([tf.tile(b1, [len(eps), 1]), b2], -1))
            cost = tf.reduce_mean((model.get_layer("outputs")(hidden) - Y) ** 2)
            total += tf.exp(dist1.log_prob(b1))[0] * cost
    variables = model_variables(model)
    expected = tape.gradient(total, [v.value for v in variables])
    for exact, samples in zip(expected, gradients_of_train_steps(model), strict=True):
        # `expected` is itself a mean of 40 000 relaxed costs: about 1.2 times the tolerance.
        assert np.abs(z_scores(samples, np.asarray(exact))).max() < 5.5


def test_pathwise_estimates_agree_with_backpropagation():
    model = two_layer_model("concrete", "straight_through")
    x, y = many(8)
    with tf.GradientTape() as tape:
        result = model.estimate(x, y)
    g1 = result.estimates["b1"].gradient
    kernel = tape.gradient(result.surrogate, model.get_layer("b1").kernel.value)
    np.testing.assert_allclose(kernel, tf.transpose(tf.constant(x)) @ g1 / 8, rtol=1e-4, atol=1e-6)


def test_a_layer_called_twice_is_credited_for_both_calls():
    layer = relax_tf.StochasticBinaryLayer(3, "relaxed_rebar", (-1, 1), name="b")
    inputs = keras.Input([3])
    outputs = keras.layers.Dense(2, name="outputs")(layer(layer(inputs)))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    shake(model.trainable_variables, 0.7)

    with tf.GradientTape() as tape:
        total = 0.0
        first = layer.distribution(tf.constant(X))
        for b1 in binary_states(3, (-1.0, 1.0)):
            second = layer.distribution(b1[tf.newaxis])
            for b2 in binary_states(3, (-1.0, 1.0)):
                cost = tf.reduce_mean((model.get_layer("outputs")(b2[tf.newaxis]) - Y) ** 2)
                log_p = first.log_prob(b1[tf.newaxis]) + second.log_prob(b2[tf.newaxis])
                total += tf.exp(log_p)[0] * cost
    expected = tape.gradient(total, [v.value for v in model_variables(model)])
    assert set(model.estimate(X, Y).estimates) == {"b", "b:1"}
    for exact, samples in zip(expected, gradients_of_train_steps(model), strict=True):
        assert np.abs(z_scores(samples, np.asarray(exact))).max() < 4.5


# Mixed models.

BINARY, CATEGORICAL, NORMAL = (
    relax_tf.StochasticBinaryLayer,
    relax_tf.StochasticCategoricalLayer,
    relax_tf.StochasticNormalLayer,
)
SIZES = {BINARY: (2,), CATEGORICAL: (2, 3), NORMAL: (1,)}


def mixed_model(*stack, kl="analytic", scale=0.7):
    """x -> stochastic layers on top of each other -> tanh of all their samples -> y.

    Args:
        stack: for each layer its class, estimator and prior.
        scale: how far the variables are from their initial values.
    """
    x = inputs = keras.Input([3])
    samples = []
    for index, (cls, estimator, prior) in enumerate(stack):
        layer = cls(*SIZES[cls], estimator=estimator, prior=prior, kl=kl, name=f"s{index}")
        x = keras.layers.Flatten()(layer(x))
        samples.append(x)
    hidden = keras.layers.Concatenate()(samples) if len(samples) > 1 else x
    hidden = keras.layers.Dense(3, activation="tanh", name="hidden")(hidden)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2, name="outputs")(hidden))
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    shake(model.trainable_variables, scale)
    return model


def states_of(dist):
    """All samples of a distribution `[states, batch, *event]`, with probabilities."""
    if not dist.discrete:
        points, weights = normal_grid(dist.shape[-1], nodes=24)
        samples = dist.loc + dist.scale * tf.constant(points, tf.float32)[:, tf.newaxis]
        return samples, tf.constant(weights, tf.float32)[:, tf.newaxis]
    event = dist.shape[1:].as_list()
    if isinstance(dist, relax_tf.distributions.Bernoulli):
        states = itertools.product((0.0, 1.0), repeat=event[0])
    else:
        states = itertools.product(np.eye(event[1]), repeat=event[0])
    samples = tf.constant(np.array(list(states)), tf.float32)[:, tf.newaxis]
    return tf.tile(samples, [1, dist.shape[0], *[1] * len(event)]), tf.exp(dist.log_prob(samples))


def expected_loss(model):
    """The expected cost of the one example, over all samples of all layers."""
    x = tf.constant(X)
    samples, weights, kl = [], tf.ones([1]), tf.zeros([1])
    for layer in model.layers:
        if not hasattr(layer, "estimator"):
            continue
        dist = layer.distribution(x)
        values, p = states_of(dist)
        count = len(values)
        again = lambda t, n=count: tf.tile(t, [n, *[1] * (t.shape.rank - 1)])  # noqa: E731
        if layer.prior is not None:
            repeated = dist.map_theta(again)
            kl = again(kl) + layer.kl_divergence(repeated, tf.reshape(values, repeated.shape))
        else:
            kl = again(kl)
        weights = tf.reshape(p * weights, [-1])
        x = tf.reshape(values, [len(weights), -1])
        samples = [*(again(sample) for sample in samples), x]
    hidden = model.get_layer("hidden")(tf.concat(samples, -1))
    cost = tf.reduce_mean((model.get_layer("outputs")(hidden) - Y) ** 2, -1)
    return tf.reduce_sum(weights * (cost + kl))


@pytest.mark.parametrize(
    ("stack", "kl"),
    [
        (
            [(BINARY, "relaxed_rebar", "learned"), (CATEGORICAL, "relaxed_rebar", "learned")],
            "sampled",
        ),
        ([(BINARY, "relax", "uniform"), (CATEGORICAL, "rebar", "uniform")], "analytic"),
        ([(CATEGORICAL, "rebar", None), (BINARY, "relaxed_rebar", "learned")], "analytic"),
        ([(NORMAL, "lax", "learned"), (CATEGORICAL, "relax", "learned")], "sampled"),
        ([(NORMAL, "reparameterization", "learned"), (BINARY, "rebar", None)], "sampled"),
        (
            [
                (CATEGORICAL, "relaxed_rebar", "learned"),
                (NORMAL, "lax", "standard"),
                (BINARY, "rebar", "learned"),
            ],
            "analytic",
        ),
        (
            [
                (BINARY, "relaxed_rebar", None),
                (NORMAL, "reparameterization", "standard"),
                (CATEGORICAL, "relaxed_rebar", "uniform"),
            ],
            "sampled",
        ),
    ],
)
def test_train_step_follows_the_exact_gradient_of_mixed_layers(stack, kl):
    model = mixed_model(*stack, kl=kl)
    variables = model_variables(model)
    with tf.GradientTape() as tape:
        loss = expected_loss(model)
    expected = tape.gradient(loss, [v.value for v in variables])
    measured = gradients_of_train_steps(model)
    for variable, exact, samples in zip(variables, expected, measured, strict=True):
        z = z_scores(samples, np.asarray(exact))
        assert np.abs(z).max() < 4.5, (variable.path, z)
    assert abs(z_scores(evaluated_losses(model), loss.numpy())) < 8


def all_three(**arguments):
    return mixed_model(
        (CATEGORICAL, "relaxed_rebar", "learned"),
        (NORMAL, "lax", "learned"),
        (BINARY, "rebar", "learned"),
        scale=0.05,
        **arguments,
    )


def test_mixed_model_execution_modes_train_alike():
    weights = []
    for mode in EXECUTION:
        keras.utils.set_random_seed(0)
        model = all_three()
        optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.01), keras.optimizers.SGD(1e-4))
        model.compile(optimizer, loss="mse", **mode)
        model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_saved_mixed_model_continues_as_the_original_would(tmp_path):
    model = all_three(kl="sampled")
    model.compile("adam", loss="mse")
    model.fit(*data(), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_mixed_model_trains_in_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    model = all_three()
    model.compile("adam", loss="mse")
    history = model.fit(*data(), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    ("layer", "event"),
    [
        (relax_tf.StochasticBinaryLayer(4, "relax", prior="learned"), [4]),
        (relax_tf.StochasticCategoricalLayer(2, 3, "rebar", prior="learned"), [2, 3]),
        (relax_tf.StochasticNormalLayer(4, "lax", prior="learned"), [4]),
    ],
    ids=["binary", "categorical", "normal"],
)
def test_layers_take_further_event_axes_and_describe_themselves(layer, event):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    inputs = keras.Input([5, 3])
    outputs = again(inputs)
    assert outputs.shape == (None, 5, *event)
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(p, tuple(range(1, p.ndim))))
    x = np.ones([8, 5, 3], "f")
    assert np.isfinite(model.fit(x, x, verbose=0).history["loss"]).all()
    assert again.estimator.get_config() == layer.estimator.get_config()
    sample = again(tf.constant(x))
    assert sample.shape == [8, 5, *event]
    assert again.kl_divergence(again.distribution(tf.constant(x)), sample).shape == [8]


def test_layers_emit_means_by_choice():
    x = tf.ones([2, 3])
    for cls in (BINARY, CATEGORICAL, NORMAL):
        layer = cls(*SIZES[cls], inference="mean")
        np.testing.assert_array_equal(layer(x), layer.distribution(x).mean())


def test_normal_layer_trains_by_reparameterization_in_a_plain_keras_model():
    inputs = keras.Input([3])
    z = relax_tf.StochasticNormalLayer(4, "reparameterization", prior="standard")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(z))
    model.compile(keras.optimizers.Adam(0.05), loss="mse")
    losses = model.fit(*data(), epochs=60, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


# Keras.


def small_model(estimator="relaxed_rebar", **arguments):
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, estimator, name="b", **arguments)(inputs)
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2, name="outputs")(b))


@keras.saving.register_keras_serializable("models_test")
class Subclassed(relax_tf.RelaxModel):
    def __init__(self, estimator="relaxed_rebar", **kwargs):
        super().__init__(**kwargs)
        self.b = relax_tf.StochasticBinaryLayer(4, estimator, name="b")
        self.outputs_layer = keras.layers.Dense(2)
        self.estimator_id = estimator

    def call(self, x, training=None):
        return self.outputs_layer(self.b(x))

    def get_config(self):
        return {**super().get_config(), "estimator": self.estimator_id}


@keras.saving.register_keras_serializable("models_test")
class FunctionalSubclass(relax_tf.RelaxModel):
    def __init__(self):
        inputs = keras.Input([3])
        b = relax_tf.StochasticBinaryLayer(4, name="b")(inputs)
        super().__init__(inputs=inputs, outputs=keras.layers.Dense(2)(b))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def data(count=32):
    random = np.random.RandomState(0)
    return random.normal(size=[count, 3]).astype("f"), random.normal(size=[count, 2]).astype("f")


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 2])))
def test_both_kinds_of_model_live_together_in_any_order(order):
    makers = [small_model, Subclassed, FunctionalSubclass]
    for index in order:
        model = makers[index]()
        assert isinstance(model, relax_tf.RelaxModel)
        model.compile("adam", loss="mse")
        model.fit(*data(), verbose=0)
    assert relax_tf.RelaxModel.__bases__[1] is keras.Model


EXECUTION = [
    {"run_eagerly": True},
    {"jit_compile": False},
    {"jit_compile": True},
    {"jit_compile": True, "steps_per_execution": 4},
]


@pytest.mark.parametrize("maker", [small_model, Subclassed, FunctionalSubclass])
def test_execution_modes_train_alike(maker):
    """The same noise in all modes, so the same weights up to rounding."""
    weights = []
    for mode in EXECUTION:
        keras.utils.set_random_seed(0)
        model = maker()
        model.compile("sgd", loss="mse", **mode)
        model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("maker", [small_model, Subclassed, FunctionalSubclass])
def test_saved_model_continues_as_the_original_would(maker, tmp_path):
    model = maker()
    model.compile("adam", loss="mse")
    model.fit(*data(), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    for each in (model, loaded):
        each.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
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
    model.compile("adam", loss="mse")
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


def test_mixed_precision_trains():
    keras.config.set_dtype_policy("mixed_float16")
    model = small_model()
    model.compile("adam", loss="mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    history = model.fit(*data(), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model(data()[0]).dtype == tf.float16
    assert model.estimate(*data()).estimates["b"].gradient.dtype == tf.float32


# The cost.


def deterministic_twins(loss, loss_weights=None, structure="single"):
    """A RelaxModel that emits means in evaluation, and the same layers in a keras.Model."""
    inputs = keras.Input([3])
    layer = relax_tf.StochasticBinaryLayer(4, inference="mean")
    hidden = layer(inputs)
    first = keras.layers.Dense(2, activation="sigmoid", name="first")(hidden)
    second = keras.layers.Dense(3, activation="softmax", name="second")(hidden)
    outputs = {"single": first, "dict": {"a": first, "b": second}, "list": [first, second]}
    models = [cls(inputs, outputs[structure]) for cls in (relax_tf.RelaxModel, keras.Model)]
    for model in models:
        model.compile("sgd", loss=loss, loss_weights=loss_weights)
    return models


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "binary_crossentropy",
        keras.losses.Huber(),
        keras.losses.MeanAbsoluteError(reduction="sum"),
        lambda y, p: keras.ops.mean(keras.ops.abs(y - p), -1),
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        relax_tf.losses.BernoulliNegativeLogLikelihood(),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_keras_s(loss, weighted):
    ours, theirs = deterministic_twins(loss)
    x, _ = data()
    y = np.random.RandomState(1).randint(0, 2, [32, 2]).astype("f")
    weight = np.linspace(0, 3, 32).astype("f") if weighted else None
    values = [m.evaluate(x, y, sample_weight=weight, verbose=0) for m in (ours, theirs)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_several_losses_are_weighted_like_keras_s(structure):
    losses = {"a": "mse", "b": "sparse_categorical_crossentropy"}
    weights = {"a": 0.3, "b": 2.0}
    x, _ = data()
    y = {"a": np.ones([32, 2], "f"), "b": np.arange(32) % 3}
    if structure == "list":
        losses, weights, y = (list(value.values()) for value in (losses, weights, y))
    ours, theirs = deterministic_twins(losses, weights, structure)
    logs = [model.evaluate(x, y, return_dict=True, verbose=0) for model in (ours, theirs)]
    assert set(logs[0]) == set(logs[1])
    for name, value in logs[1].items():
        np.testing.assert_allclose(logs[0][name], value, rtol=1e-5)
    assert np.isfinite(ours.fit(x, y, verbose=0).history["loss"]).all()


def test_sample_weight_multiplies_the_whole_cost():
    model = small_model(prior="uniform")
    model.compile("sgd", loss="mse")
    x, y = data()
    weight = np.linspace(0, 2, 32).astype("f")
    plain, weighted = (
        model.estimate(x, y, sample_weight=w).estimates["b"] for w in (np.ones(32, "f"), weight)
    )
    assert weighted.cost[0] == 0
    np.testing.assert_array_equal(weighted.gradient[0], np.zeros(4))
    assert (np.abs(plain.gradient[0]) > 0).any()


def test_regularisers_and_add_loss_join_the_surrogate_once():
    model = small_model("rebar", kernel_regularizer=keras.regularizers.L2(0.1))
    model.compile("sgd", loss="mse")
    x, y = data()
    result = model.estimate(x, y)
    kernel = model.get_layer("b").kernel.numpy()
    expected = np.mean(result.estimates["b"].cost) + 0.1 * np.sum(kernel**2)
    np.testing.assert_allclose(result.surrogate, expected, rtol=1e-5)


def test_kl_of_layers_joins_the_cost():
    model = small_model(prior="learned")
    model.compile("sgd", loss=None)  # nothing but the KL
    layer = model.get_layer("b")
    shake(layer.trainable_variables)
    x, _ = data()
    expected = tf.reduce_mean(layer.kl_divergence(layer.distribution(tf.constant(x)), None))
    logs = model.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_regularised_control_variates_stay_out_of_the_surrogate():
    network = keras.Sequential(
        [keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(100.0))]
    )
    model = small_model(relax_tf.estimators.Relax(control_variate=network))
    model.compile("sgd", loss="mse")
    with tf.GradientTape() as tape:
        result = model.estimate(*data())
    np.testing.assert_allclose(result.surrogate, np.mean(result.estimates["b"].cost), rtol=1e-6)
    phi = model.get_layer("b").estimator.trainable_variables
    assert tape.gradient(result.surrogate, [v.value for v in phi]) == [None] * len(phi)
    moment = result.estimates["b"].control_variate_loss
    penalty = 100 * np.sum(np.square(network.layers[0].kernel))
    np.testing.assert_allclose(result.control_variate_loss, moment + penalty, rtol=1e-5)


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


def test_rank_three_inputs_with_a_sampled_kl():
    inputs = keras.Input([4, 5])
    b = relax_tf.StochasticBinaryLayer(3, prior="learned", kl="sampled", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b))
    model.compile("sgd", loss="mse")
    estimate = model.estimate(tf.ones([6, 4, 5]), tf.ones([6, 4, 1])).estimates["b"]
    assert estimate.gradient.shape == [6, 4, 3]
    layer = model.get_layer("b")
    dist = layer.distribution(tf.ones([6, 4, 5]))
    exact = tf.reduce_mean(tf.stack([layer.kl_divergence(dist, dist.draw().b) for _ in range(500)]))
    layer.kl = "analytic"
    np.testing.assert_allclose(exact, tf.reduce_mean(layer.kl_divergence(dist, None)), atol=0.05)


def test_prior_in_a_plain_keras_model_joins_by_add_loss():
    inputs = keras.Input([3])
    layer = relax_tf.StochasticBinaryLayer(4, "concrete", prior="learned")
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", loss=None)
    shake(layer.trainable_variables)
    x, _ = data()
    expected = tf.reduce_mean(layer.kl_divergence(layer.distribution(tf.constant(x)), None))
    np.testing.assert_allclose(
        model.fit(x, batch_size=32, verbose=0).history["loss"][0], expected, rtol=1e-5
    )


def test_layer_config_can_be_reused_with_another_input_size():
    model = small_model()
    layer = relax_tf.StochasticBinaryLayer.from_config(model.get_layer("b").get_config())
    assert layer(tf.zeros([2, 7])).shape == [2, 4]


def test_everything_frozen_is_no_error():
    model = small_model()
    model.trainable = False
    model.compile("sgd", loss="mse")
    model.fit(*data(), verbose=0)


def test_float64_trains():
    keras.config.set_dtype_policy("float64")
    model = small_model()
    model.compile("sgd", loss="mse")
    model.fit(*data(), verbose=0)
    assert model.estimate(*data()).estimates["b"].gradient.dtype == tf.float64


def test_compute_cost_sees_the_latents_of_each_pass():
    class Custom(Subclassed):
        seen = ()

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            latent = latents["b"]
            assert latent.theta.shape == latent.sample.shape
            self.seen = (*self.seen, latent.sample.numpy())
            return tf.reduce_sum((y_pred - y) ** 2, -1)

    model = Custom("rebar")
    model.certify = False  # it would see those of the certificate too
    model.compile("sgd", run_eagerly=True)
    model.train_on_batch(*data())
    hard, relaxed = model.seen
    assert set(np.unique(hard)) <= {0, 1}
    assert ((relaxed > 0) & (relaxed < 1)).any()


def test_black_box_cost_trains_with_relax_and_is_refused_by_rebar():
    def loss(y, p):
        value = tf.numpy_function(lambda y, p: ((y - p) ** 2).mean(-1), [y, p], tf.float32)
        return tf.ensure_shape(value, [None])

    model = small_model("relax")
    model.compile(keras.optimizers.SGD(0.1), loss=loss)
    kernel = model.get_layer("b").kernel.numpy()
    model.fit(*data(), verbose=0)
    assert (model.get_layer("b").kernel.numpy() != kernel).any()
    for estimator in ("rebar", "relaxed_rebar"):
        for arguments in ({}, {"prior": "learned", "kl": "sampled"}):
            model = small_model(estimator, **arguments)
            model.compile("sgd", loss=loss)
            with pytest.raises(ValueError, match="'relax'"):
                model.fit(*data(), verbose=0)


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
