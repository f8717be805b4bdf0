"""`summary()` of subclassed models: Keras asks each built layer for the shape of its output."""

import keras
import numpy as np
import pytest

import relax_tf

LAYERS = {
    "binary": (lambda: relax_tf.StochasticBinaryLayer(4), [[3]], "4)"),
    "categorical": (lambda: relax_tf.StochasticCategoricalLayer(2, 5), [[3]], "2, 5)"),
    "normal": (lambda: relax_tf.StochasticNormalLayer(4), [[3]], "4)"),
    "logits": (lambda: relax_tf.StochasticBinaryLayer(None), [[6]], "6)"),
    "logits of classes": (
        lambda: relax_tf.StochasticCategoricalLayer(None, None),
        [[2, 7]],
        "2, 7)",
    ),
    "loc and scale": (lambda: relax_tf.StochasticNormalLayer(None), [[8], [8]], "8)"),
    "parameters": (lambda: relax_tf.Parameters([9]), [[0]], "9)"),
}


class Scaled(relax_tf.StochasticBinaryLayer):
    """A subclass with names of its own, and without context."""

    def build(self, input_shape):
        super().build(input_shape)

    def call(self, x, training=None):
        return super().call(0.5 * x, training=training)


def test_a_layer_of_one_s_own_has_a_shape():
    inputs = keras.Input([3])
    outputs = Scaled(4)(inputs)
    assert outputs.shape == (None, 4)
    models = relax_tf.RelaxModel(inputs, outputs), keras.Sequential([Scaled(4, "reinmax")])
    for model in models:
        model(np.ones([2, 3], "f"))
        lines = []
        model.summary(print_fn=lines.append)
        assert ", 4)" in "\n".join(lines)


@pytest.mark.parametrize("base", [relax_tf.RelaxModel, keras.Model])
@pytest.mark.parametrize(
    ("kind", "with_context"),
    [(kind, c) for kind in LAYERS for c in (False, True) if not c or kind != "parameters"],
)
def test_the_summary_of_a_subclassed_model_has_shapes(base, kind, with_context):
    make, shapes, output = LAYERS[kind]

    class Model(base):
        def __init__(self):
            super().__init__()
            self.stochastic = make()

        def call(self, inputs):
            context = {"context": np.ones([2, 3], "f")} if with_context else {}
            return self.stochastic(inputs, **context)

    model = Model()
    inputs = [np.ones([2, *shape], "f") for shape in shapes]
    model(inputs if len(inputs) > 1 else inputs[0])
    lines = []
    model.summary(print_fn=lines.append)
    assert f"(2, {output}" in "\n".join(lines)
