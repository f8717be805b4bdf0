"""What cannot be unbiased is refused on the first batch, by a message that says what to do.

Here: what replays do not repeat, how the certificate is run, networks of control variates. Coupled
examples are in coupling_test.py, derivatives that are none in derivatives_test.py.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further
from tests.suspects import (
    COUPLED,
    NOT_REPEATED,
    WRONG_SLOPE,
    Apply,
    X,
    Y,
    meeting_in_python,
    model_of,
)

Binary = relax_tf.StochasticBinaryLayer
Dense = keras.layers.Dense


# What a replay does not repeat.


def raw_noise(x):
    return x + tf.random.normal(tf.shape(x))


class PythonState(keras.layers.Layer):
    """Another number in every call (while tracing, or eagerly)."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x + 0.1 * self.calls


class VariableState(keras.layers.Layer):
    """State that Keras does not know of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, x):
        return x + 0.1 * self.count.assign_add(1.0)


NOT_REPEATABLE = {
    "tf.random": lambda: Apply(raw_noise),
    "a tf.Variable": VariableState,
    "Python": PythonState,
}


@pytest.mark.parametrize(
    ("estimator", "kind", "where"),
    [
        (estimator, kind, ("upstream", "downstream")[(k + j) % 2])
        for k, estimator in enumerate(["rloo", "disarm", "relaxed_rebar", "muprop"])
        for j, kind in enumerate(NOT_REPEATABLE)
    ],
)
def test_what_a_replay_does_not_repeat(estimator, kind, where):
    layer = NOT_REPEATABLE[kind]()
    if where == "downstream":
        model = model_of(estimator, layer)
    else:
        inputs = keras.Input([3])
        hidden = layer(inputs)
        both = keras.layers.Concatenate()([Binary(4, estimator, name="b")(hidden), hidden])
        model = relax_tf.RelaxModel(inputs, Dense(3)(both))
        model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=f"{NOT_REPEATED}.*'relax'"):
        model.fit(X, Y, batch_size=12, verbose=0)


@pytest.mark.parametrize("kind", NOT_REPEATABLE)
@pytest.mark.parametrize("estimator", ["relax", *further("reinforce", "nvil")])
def test_what_is_evaluated_once_need_not_be_repeatable(estimator, kind):
    model = model_of(estimator, NOT_REPEATABLE[kind](), NOT_REPEATABLE[kind]())
    history = model.fit(X, Y, batch_size=6, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_masks_are_not_folded_whatever_the_first_batch_shows():
    inputs = keras.Input([3])
    hidden = keras.layers.Dropout(0.5)(inputs)
    b = Binary(4, relax_tf.estimators.Rloo(num_samples=4))(hidden)
    model = relax_tf.RelaxModel(inputs, Dense(3)(keras.layers.Concatenate()([b, hidden])))
    model.compile("sgd", loss="mse")
    model.check(np.zeros([4, 3], "f"), Y[:4])
    assert not model._rows_are_alike


def test_layers_that_share_state_in_python_are_all_downstream():
    model = meeting_in_python("rloo", "rloo", keras.layers.Identity())
    model.check(X, Y)
    assert not model._graph_tells


# How it is run.

MODES = [
    {},
    {"run_eagerly": True},
    {"jit_compile": True},
    {"steps_per_execution": 3},
    {"jit_compile": True, "steps_per_execution": 4},
]


def batches(counter, count=7):
    for index in range(count):
        counter.append(index)
        yield X[index : index + 2] + index, Y[index : index + 2]


def inputs_of(kind, seen):
    if kind == "generator":
        return batches(seen)
    signature = (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 3]))
    return tf.data.Dataset.from_generator(lambda: batches(seen), output_signature=signature)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("dataset", {}), ("dataset", MODES[-1]), ("generator", {})),
        *further(*(("dataset", mode) for mode in MODES[1:-1]), ("generator", MODES[3])),
    ],
)
def test_no_batch_is_lost_and_no_trace_left(kind, mode):
    """A certified run is, weight by weight, the run of a model that is not certified."""
    weights, losses, ends = [], [], []
    for certify in (True, False):
        keras.utils.set_random_seed(0)
        dropout = keras.layers.Dropout(0.5)
        estimator = "rebar" if mode else "relaxed_rebar"
        model = model_of(estimator, dropout, keras.layers.BatchNormalization(), **mode)
        model.certify = certify
        seen, steps = [], []
        count = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, steps=steps: steps.append(batch)
        )
        history = model.fit(inputs_of(kind, seen), verbose=0, callbacks=[count]).history
        losses.append(history["loss"])
        weights.append([v.numpy() for v in model.variables])
        assert len(seen) == 7
        ends.append(steps)
    assert ends[0] == ends[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [*MODES[:-1], *further(MODES[-1])], ids=str)
def test_every_mode_refuses(mode):
    model = model_of("relax", keras.layers.BatchNormalization(), **mode)
    with pytest.raises(ValueError, match=COUPLED):
        model.fit(X, Y, batch_size=4, verbose=0)
    model.certify = False
    model.compile("sgd", loss="mse", **mode)
    model.fit(X, Y, batch_size=4, verbose=0)


def test_train_on_batch_certifies_too():
    model = model_of("relax", keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match=COUPLED):
        model.train_on_batch(X, Y)


@pytest.mark.parametrize("policy", ["mixed_float16", "float64", *further("mixed_bfloat16")])
def test_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    for estimator in ("relaxed_rebar", "rloo", "vimco", "relax"):
        model_of(estimator, keras.layers.Dropout(0.2)).check(X, Y)
        with pytest.raises(ValueError, match=COUPLED):
            model_of(estimator, keras.layers.BatchNormalization()).check(X, Y)
    with pytest.raises(ValueError, match=NOT_REPEATED):
        model_of("rloo", Apply(lambda x: x + tf.random.normal(tf.shape(x), dtype=x.dtype))).check(
            X, Y
        )
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model_of("rebar", Apply(lambda x: 0.5 * x + 0.5 * tf.stop_gradient(x))).check(X, Y)


def test_metrics_and_seeds_are_left_alone():
    model = model_of("relaxed_rebar", keras.layers.Dropout(0.5))
    model.compile("adam", loss="mse", metrics=["mae"])
    model.fit(X, Y, verbose=0)
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    metrics = model.get_metrics_result()
    model.check(X, Y)
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.get_metrics_result() == metrics


def test_a_long_unrolled_network_passes():
    b = Binary(2, "relaxed_rebar", (-1, 1), name="b")
    x = inputs = keras.Input([3])
    for _ in range(6):
        x = keras.layers.Concatenate()([inputs, b(x) if x is not inputs else b(inputs[:, :3])])
        x = Dense(3)(x)
    model = relax_tf.RelaxModel(inputs, x)
    model.compile("sgd", loss="mse")
    model.check(X, Y)


def test_costs_that_are_not_numbers_are_left_to_the_step():
    model = model_of("relaxed_rebar", Apply(lambda x: tf.math.log(x)))
    model.check(X, Y)


# Networks of control variates.


def network(*layers):
    return keras.Sequential([*layers, Dense(1, kernel_initializer="zeros")])


class NormalisedInTraining(keras.layers.BatchNormalization):
    """Whatever the model is told: estimators call networks without `training`."""

    def call(self, x):
        return super().call(x, training=True)


def half_stopped(x):
    return tf.stop_gradient(x) + 0.1 * x


BAD_NETWORKS = {
    "less the batch's mean": (
        lambda: Apply(lambda x: x - tf.reduce_mean(x, 0)),
        COUPLED,
    ),
    "batch normalisation in training": (NormalisedInTraining, COUPLED),
    "neighbours": (lambda: Apply(lambda x: x + 0.1 * tf.roll(x, 1, 0)), COUPLED),
    "stopped gradient": (lambda: Apply(half_stopped), WRONG_SLOPE),
    "rounding": (lambda: Apply(lambda x: x + tf.round(2 * x)), WRONG_SLOPE),
}

GOOD_NETWORKS = {
    "layer normalisation": keras.layers.LayerNormalization,
    "batch normalisation": keras.layers.BatchNormalization,
    "relu": lambda: Dense(16, "relu"),
    "dropout": lambda: keras.layers.Dropout(0.5),
    "sharp": lambda: Dense(16, "tanh", kernel_initializer=keras.initializers.RandomNormal(0, 5)),
}


TRAINED = ["less the batch's mean", "stopped gradient", "batch normalisation", "relu", "dropout"]
OTHERS = [kind for kind in (*BAD_NETWORKS, *GOOD_NETWORKS) if kind not in TRAINED]


def with_network(estimator, layer):
    inputs = keras.Input([3])
    own = getattr(relax_tf.estimators, estimator)(control_variate=network(Dense(8), layer))
    sibling = relax_tf.StochasticNormalLayer if estimator == "Lax" else Binary
    outputs = Dense(3)(sibling(4, own, name="b")(inputs))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss="mse")
    return model


@pytest.mark.parametrize("estimator", ["RelaxedRebar", "Lax"])
@pytest.mark.parametrize("kind", BAD_NETWORKS)
def test_networks_that_would_bias_equation_10(kind, estimator):
    layer, message = BAD_NETWORKS[kind]
    model = with_network(estimator, layer())
    with pytest.raises(ValueError, match=f"control variate whose network {message}"):
        model.check(X, Y)


@pytest.mark.parametrize("estimator", ["RelaxedRebar", *further("Lax")])
@pytest.mark.parametrize("kind", GOOD_NETWORKS)
def test_networks_that_are_of_each_example_alone(kind, estimator):
    model = with_network(estimator, GOOD_NETWORKS[kind]())
    before = [w.copy() for w in model.get_weights()]
    model.check(X, Y)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("kind", [*TRAINED, *further(*OTHERS)])
def test_networks_train_if_they_are_good_or_one_insists(kind):
    bad, _ = BAD_NETWORKS.get(kind, (None, None))
    model = with_network("Relax", (bad or GOOD_NETWORKS[kind])())
    if bad:
        with pytest.raises(ValueError, match="control variate whose network"):
            model.fit(X, Y, batch_size=12, verbose=0)
        model.certify = False
    model.fit(X, Y, batch_size=12, verbose=0)


@pytest.mark.parametrize("batch_size", [8, 5])
def test_a_model_that_is_another_one_in_the_next_fit_is_certified_again(batch_size):
    """A frozen batch normalisation couples no examples; one that is not frozen any more does."""
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "rloo", name="b")(inputs)
    normalization = keras.layers.BatchNormalization(center=False, scale=False, trainable=False)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(normalization(b)))
    model.compile("sgd", loss="mse")
    x, y = np.random.RandomState(0).normal(size=[2, 16, 3]).astype("f")
    y = y[:, :2]
    model.fit(x, y, batch_size=8, verbose=0)
    normalization.trainable = True
    with pytest.raises(ValueError, match="couples the examples"):
        model.fit(x, y, batch_size=batch_size, verbose=0)
    normalization.trainable = False
    model.fit(x, y, batch_size=8, verbose=0)


class BuiltLate(relax_tf.RelaxModel):
    """Its layers, and the network of its estimator, are made in the first step."""

    def __init__(self):
        super().__init__()
        self.b = relax_tf.StochasticBinaryLayer(4, "relax", name="b")
        self.top = keras.layers.Dense(3)

    def call(self, x):
        return self.top(self.b(x))


def test_a_model_that_is_built_late_is_the_same_in_the_next_fit():
    model = BuiltLate()
    model.compile("sgd", loss="mse")
    model.fit(X, Y, verbose=0)
    traced = model.train_function
    model.fit(X, Y, verbose=0)
    assert model.train_function is traced
