"""Models for inference: the weights of a RelaxModel in a plain Keras model."""

import functools
from typing import Any

import keras

from relax_tf.control_variates import is_control_variate
from relax_tf.keras_internals import Functional, all_layers
from relax_tf.layers import StochasticLayer
from relax_tf.layers.passes import EvaluationPass
from relax_tf.step.evaluation import as_by_default
from relax_tf.step.graph import is_called_by_its_graph
from relax_tf.step.hard_pass import run
from relax_tf.validation import one_of


def inference_model(model: Any, inference: str) -> keras.Model:
    """What `RelaxModel.for_inference` returns, of a built model.

    Where the stochastic layers are operations of functional or sequential models, those are made
    anew around the same other layers. Elsewhere the model is called as it is, in an
    `InferenceModel`.
    """
    one_of(inference, ["mode", "mean", "sample"], "inference")
    if not model.built:
        raise ValueError(
            f"RelaxModel {model.name!r} has no weights yet: call it on a batch, or train it, "
            "before `for_inference`."
        )
    name = f"{model.name}_{inference}"
    if not _can_be_made_anew(model):
        wrapper = InferenceModel(model, inference, name=name)
        wrapper(keras.tree.map_shape_structure(keras.KerasTensor, _input_shape(model)))
        return wrapper
    plain = keras.Model(*_anew(model, inference), name=name)
    plain(plain.input)  # Keras exports no model that was never called
    if inference == "sample":
        plain.export = functools.partial(export, plain, True)
    return plain


def export(
    model: keras.Model, samples: bool, filepath: str, format: str = "tf_saved_model", **kwargs
) -> None:
    """`keras.Model.export`, after a look at whether the format can hold what the model does.

    Raises:
        ValueError: if the model draws samples and the format is not TensorFlow's own: TFLite and
            ONNX have no generator like ours, and the converters would write broken files.
    """
    if samples and format != "tf_saved_model":
        raise ValueError(
            f"model {model.name!r} draws samples, which the format {format!r} cannot express. "
            'Export `for_inference("mode")` or `for_inference("mean")` of the RelaxModel, or use '
            'format="tf_saved_model".'
        )
    keras.Model.export(model, filepath, format=format, **kwargs)


def _input_shape(model: Any) -> Any:
    if isinstance(model, Functional):
        return model.input_shape
    config = keras.Model.get_build_config(model)
    shapes = config.get("shapes_dict", config)  # one shape by itself, several in a dict
    return next(iter(shapes.values()))


def _can_be_made_anew(layer: Any) -> bool:
    """Whether a layer has no stochastic layers within, or only where a graph shows them."""
    if isinstance(layer, StochasticLayer) or not _holds_stochastic_layers(layer):
        return True
    graph = type(layer) is keras.Sequential or is_called_by_its_graph(layer)
    return graph and all(map(_can_be_made_anew, layer.layers))


def _holds_stochastic_layers(layer: keras.layers.Layer) -> bool:
    return any(isinstance(inner, StochasticLayer) for inner in all_layers(layer))


def _anew(model: Any, inference: str) -> tuple[Any, Any]:
    """Inputs and outputs of a functional model's graph with other stochastic layers."""
    made: dict[int, Any] = {}

    def layer_for_inference(layer):
        if id(layer) not in made:
            made[id(layer)] = _for_inference(layer, inference)
        return made[id(layer)]

    with as_by_default(model):  # Keras compiles the clone, a plain model maybe, as this one is
        clone = keras.models.clone_model(model, clone_function=layer_for_inference)
    return clone.input, clone.output


def _for_inference(layer: Any, inference: str) -> Any:
    if isinstance(layer, StochasticLayer):
        return layer if layer._predicts_alone else layer.for_inference(inference)
    if not isinstance(layer, keras.Layer) or not _holds_stochastic_layers(layer):
        return layer
    if isinstance(layer, keras.Sequential):
        layers = [_for_inference(inner, inference) for inner in layer.layers]
        return keras.Sequential(layers, name=layer.name)
    return keras.Model(*_anew(layer, inference), name=layer.name)


@keras.saving.register_keras_serializable("relax_tf")
class InferenceModel(keras.Model):
    """A model that calls another one for inference, with samples, means or modes throughout.

    Control variates are none of its variables, so that an export leaves them out.

    Args:
        model: a `relax_tf.RelaxModel`.
        inference: `"mode"`, `"mean"` or `"sample"`.
    """

    def __init__(self, model: Any, inference: str, **kwargs):
        super().__init__(**kwargs)
        self.model = model
        self.inference = inference

    def call(self, inputs):
        return run(self.model, EvaluationPass(self.inference), inputs, training=False)

    @functools.wraps(keras.Model.export)
    def export(self, filepath, *args, **kwargs):
        export(self, self.inference == "sample", filepath, *args, **kwargs)

    @property
    def variables(self):
        return [v for v in super().variables if not is_control_variate(v)]

    @property
    def trainable_variables(self):
        return [v for v in super().trainable_variables if not is_control_variate(v)]

    @property
    def non_trainable_variables(self):
        return [v for v in super().non_trainable_variables if not is_control_variate(v)]

    def get_config(self) -> dict[str, Any]:
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model, "inference": self.inference}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})
