"""Random small models of every kind against enumeration: whatever is not refused is unbiased.

A model is a list of operations on a growing list of tensors, put together in one of four styles of
writing Keras models. The suite tries 8, always the same; `pytest -m slow` tries 200.
"""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

import relax_tf
from tests.enumeration import first, tiled, worst_z
from tests.problems import shake

X = np.array([[0.7, -1.2, 0.4], [-0.3, 0.5, 1.0]], np.float32)
Y = np.array([[0.5, -1.0], [1.0, 0.2]], np.float32)
COPIES, REPEATS = 500, 50  # of two examples: 50 000 draws

SMALL = {"hidden_units": [8]}
NETWORK = keras.saving.serialize_keras_object(relax_tf.control_variates.MLP([8]))
ESTIMATORS = {
    "reinforce": {"baseline_decay": 0.9},
    "nvil": {"baseline": NETWORK},
    "muprop": {"baseline": NETWORK},
    "relax": {"control_variate": NETWORK, "baseline": NETWORK},
    "rebar": {},
    "relaxed_rebar": {"control_variate": NETWORK},
    "rebar-independent": {"coupled": False},
    "relax-independent": {"control_variate": NETWORK, "baseline": NETWORK, "coupled": False},
    "rloo": {"num_samples": 3},
    "disarm": {},
    "flip": {},
    "midpoint": {},
    "relaxed_disarm": {},
    "arms": {"num_samples": 3},
}
BINARY_ONLY = {"disarm", "relaxed_disarm"}
BITS = 5  # of all samples of a model together, 32 joint states


def estimator_of(name):
    return {"class_name": name.split("-")[0], "config": ESTIMATORS[name]}


class Twice(keras.layers.Layer):
    """Applies a layer to its own output."""

    def __init__(self, layer, width, **kwargs):
        super().__init__(**kwargs)
        self.layer, self.dense = layer, keras.layers.Dense(width)

    def build(self, shape):
        self.dense.build(shape)
        width = (None, self.dense.units)
        self.layer.build(width)
        self.again = keras.layers.Dense(self.dense.units)
        self.again.build(self.layer.compute_output_shape(width))

    def call(self, x):
        return self.layer(self.again(self.layer(self.dense(x))))


class Nested:
    """A layer inside a model of its own."""

    def __init__(self, layer, width):
        self.layer, self.width, self.model = layer, width, None

    def __call__(self, x):
        if self.model is None:
            inputs = keras.Input(x.shape[1:])
            hidden = keras.layers.Dense(self.width, "tanh")(inputs)
            self.model = keras.Model(inputs, self.layer(hidden))
        return self.model(x)


@st.composite
def specs(draw):
    """A style, and operations: (kind, index of the input, index of a skip connection, ...)."""
    operations, bits, count = [], 0, draw(st.integers(2, 5))
    for position in range(count):
        kinds = ["dense", "dropout", "noise", "norm"]
        if bits < BITS:
            kinds += ["binary", "binary", "nested", "loop", "again", "categorical"]
        kind = draw(st.sampled_from(kinds))
        if position == 0 or (position == count - 1 and not bits):
            kind = "binary"
        names = sorted(set(ESTIMATORS) - (BINARY_ONLY if kind == "categorical" else set()))
        units = draw(st.integers(1, 2))
        if kind in ("binary", "nested", "loop", "again", "categorical"):
            cost = {"loop": 2 * units, "categorical": 2}.get(kind, units)
            if bits + cost > BITS:
                kind = "dense"
            else:
                bits += cost
        operations.append(
            {
                "kind": kind,
                "input": draw(st.integers(0, position)),
                "skip": draw(st.integers(0, position)),
                "units": units,
                "estimator": draw(st.sampled_from(names)),
                "support": draw(st.sampled_from([(0, 1), (-1, 1)])),
                "prior": draw(st.sampled_from([None, "learned", "uniform"])),
                "kl": draw(st.sampled_from(["analytic", "sampled"])),
            }
        )
    return {
        "style": draw(st.sampled_from(["functional", "subclass", "extended", "wrapped"])),
        "operations": operations,
        "seed": draw(st.integers(0, 2**16)),
    }


def layers_of(spec):
    """A layer for each operation; "again" is the layer of an earlier stochastic operation."""
    layers, binary = [], []
    for index, op in enumerate(spec["operations"]):
        arguments = {"prior": op["prior"], "kl": op["kl"], "name": f"s{index}"}
        stochastic = lambda op=op, arguments=arguments: relax_tf.StochasticBinaryLayer(  # noqa: E731
            op["units"], estimator_of(op["estimator"]), op["support"], **arguments
        )
        if op["kind"] == "binary":
            layers.append(stochastic())
            binary.append(layers[-1])
        elif op["kind"] == "again":
            layers.append(binary[0])
        elif op["kind"] == "categorical":
            estimator = estimator_of(op["estimator"])
            layers.append(relax_tf.StochasticCategoricalLayer(1, 3, estimator, **arguments))
        elif op["kind"] == "nested":
            layers.append(Nested(stochastic(), 2))
        elif op["kind"] == "loop":
            layers.append(Twice(stochastic(), 2))
        else:
            layers.append(
                {
                    "dense": lambda op=op: keras.layers.Dense(op["units"], "tanh"),
                    "dropout": lambda: keras.layers.Dropout(0.4),
                    "noise": lambda: keras.layers.GaussianNoise(0.5),
                    "norm": lambda: keras.layers.LayerNormalization(),
                }[op["kind"]]()
            )
    return layers


def assemble(spec, layers, adapters, head, x):
    """The output, from the operations applied to `x`."""
    tensors = [x]
    for op, layer, adapter in zip(spec["operations"], layers, adapters, strict=True):
        inputs = keras.ops.concatenate([tensors[op["input"]], tensors[op["skip"]]], -1)
        if op["kind"] in ("binary", "again", "categorical"):
            inputs = adapter(inputs)  # a layer that is called again needs inputs of one width
        output = layer(inputs)
        if op["kind"] == "categorical":
            output = keras.layers.Flatten()(output)
        tensors.append(output)
    return head(keras.ops.concatenate(tensors[1:], -1))


def build(spec):
    layers = layers_of(spec)
    adapters = [keras.layers.Dense(3) for _ in layers]
    head = keras.Sequential([keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)])
    apply = lambda x: assemble(spec, layers, adapters, head, x)  # noqa: E731
    inputs = keras.Input([3])

    class Subclass(relax_tf.RelaxModel):
        def __init__(self):
            super().__init__()
            self.parts = [layer for layer in layers if not isinstance(layer, Nested)]
            self.nested = keras.Model(inputs, apply(inputs))  # tracks the models inside Nested
            self.adapters, self.head = adapters, head

        def call(self, x):
            return apply(x)

    class Extended(relax_tf.RelaxModel):
        def __init__(self):
            first = keras.Model(inputs, apply(inputs))
            super().__init__(inputs, first(inputs))
            self.last = relax_tf.StochasticBinaryLayer(1, estimator_of("rebar"), name="last")
            self.mix = keras.layers.Dense(2)

        def call(self, x, training=None):
            hidden = super().call(x, training=training)
            return self.mix(keras.ops.concatenate([hidden, self.last(hidden)], -1))

    if spec["style"] == "functional":
        return relax_tf.RelaxModel(inputs, apply(inputs))
    if spec["style"] == "subclass":
        return Subclass()
    if spec["style"] == "extended":
        return Extended()
    inner = keras.Model(inputs, apply(inputs))
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(keras.layers.ReLU()(inner(inputs))))


def is_unbiased_or_refused(spec):
    keras.utils.set_random_seed(spec["seed"])
    model = build(spec)
    model.compile("sgd", loss="mse")
    batch = tiled(X, Y, COPIES)
    model(batch[0])
    shake(model.trainable_variables, 0.6, spec["seed"])
    try:
        model.check(*first(16, batch))
    except ValueError as error:
        hypothesis.event(f"refused: {str(error)[:60]}")
        pytest.fail(f"there is no reason to refuse this model: {error}")
    z = worst_z(model, batch, REPEATS)
    assert z < 5, f"worst |z| of {2 * COPIES * REPEATS} draws: {z}"


@hypothesis.given(specs())
@hypothesis.settings(max_examples=8, phases=[hypothesis.Phase.generate])
def test_eight_random_models(spec):
    is_unbiased_or_refused(spec)


@pytest.mark.slow
@hypothesis.given(specs())
@hypothesis.settings(max_examples=200, phases=[hypothesis.Phase.generate], derandomize=False)
def test_two_hundred_random_models(spec):
    is_unbiased_or_refused(spec)
