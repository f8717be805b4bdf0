"""RelaxModel: a Keras model that trains through the samples of its stochastic layers."""

import functools
import math
from typing import Any

import keras

from relax_tf.control_variates import is_control_variate
from relax_tf.deployment import export, inference_model
from relax_tf.keras_internals import Functional, Trainer, replace_base, unpickler
from relax_tf.step.trainer import RelaxTrainer


class RelaxModel(RelaxTrainer, keras.Model):
    """A `keras.Model` that trains its stochastic layers with `compile` and `fit`.

    Build it like any Keras model, `RelaxModel(inputs, outputs)` or by subclassing. Each compiled
    loss is taken per example; the layers' KL terms join it; `sample_weight` multiplies the sum.
    Scalar `add_loss` terms and regularisers are added to the training loss as usual; one that
    depends on samples is refused, since none could be credited with it. A plain optimizer is
    wrapped in `relax_tf.RelaxOptimizer`. Logged are the loss (in nats, if the compiled loss is),
    each layer's second moment of the gradient estimate and the norm of its control variate's
    gradient; where there is a KL, also its value in nats and the compiled loss without it. For
    another cost override `compute_cost`.

    `*_control_variate_norm` has the units of what the control variate minimises, as a rule the
    second moment, the cost's squared (of `flip` a likelihood, which has none), so no value is
    healthy by itself: compare it with its own past. If it grows tenfold and stays there while the
    second moment does not fall, the control variate's rate is too high (`relax_tf.RelaxOptimizer`);
    if it is 0, the control variate learns nothing. A layer that is called several times logs the
    mean over its calls of both.

    Attributes:
        certify: whether `fit` measures on some batches what its estimates rest on (`check`);
            False insists on training a model that fails.
        evaluation_samples: how many samples of each example `evaluate` and `predict` draw.

    Both are saved with a compiled model.

    Example:

    >>> inputs = keras.Input([4])
    >>> b = relax_tf.StochasticBinaryLayer(8, prior="uniform", name="b")(inputs)
    >>> model = relax_tf.RelaxModel(inputs, keras.layers.Dense(4)(b))
    >>> model.compile("adam", loss=relax_tf.losses.BernoulliNegativeLogLikelihood())
    >>> x = tf.ones([32, 4])
    >>> history = model.fit(x, x, verbose=0)
    >>> sorted(history.history)
    ['b_control_variate_norm', 'b_kl', 'b_second_moment', 'compiled_loss', 'loss']
    """

    def __new__(cls, *args, **kwargs):
        if cls is RelaxModel and _functional_arguments(args, kwargs):
            cls = _FunctionalRelaxModel
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        if not _functional_arguments(args, kwargs):
            if args:
                raise TypeError(
                    "a RelaxModel is built from inputs and outputs, or by subclassing. Of a list "
                    "of layers make `sequential = keras.Sequential([keras.Input(...), ...])` and "
                    f"`RelaxModel(sequential.inputs[0], sequential.outputs[0])`. Received: {args}"
                )
            super().__init__(**kwargs)
            return
        if not isinstance(self, Functional):
            replace_base(type(self), RelaxModel, _FunctionalRelaxModel)
        Trainer.__init__(self)
        Functional.__init__(self, *args, **kwargs)

    def for_inference(self, inference: str = "mode") -> keras.Model:
        """A plain `keras.Model` with this model's weights, to predict with, save and export.

        It shares the weights, so that further training of this model shows in it. It has no
        control variates, and no prior or KL; `layer.inference` of this model has no say in it.
        Whoever loads what it saves must `import relax_tf`, which registers the layers' classes;
        a SavedModel or a TFLite file needs no relax_tf at all. Cut sub-models that only predict out
        of it (`keras.Model(plain.input, plain.get_layer("b").output)`) or make one of them,
        `relax_tf.RelaxModel(model.input, layer.output).for_inference()`: a `keras.Model` around
        this model's own layers has their control variates too. Where stochastic layers are hidden
        from a graph (in the `call` of a subclass, or in a layer of one's own) it is an
        `InferenceModel` around this one: then a `.keras` file holds this whole model and needs its
        class, while an export still leaves control variates out.

        Args:
            inference: what all stochastic layers emit: `"mode"`, the most probable values;
                `"mean"`; or `"sample"`, which SavedModels can and TFLite and ONNX cannot. Layers
                of a teacher, which are such copies themselves, go on as they are.

        Raises:
            ValueError: for another `inference`, or if the model has no weights yet.

        Example:

        >>> inputs = keras.Input([4])
        >>> b = relax_tf.StochasticBinaryLayer(8, name="b")(inputs)
        >>> model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b))
        >>> plain = model.for_inference("mode")
        >>> type(plain) is type(keras.Model(inputs, b))
        True
        >>> plain.count_params()  # of two dense layers
        58
        """
        return inference_model(self, inference)

    @functools.wraps(keras.Model.summary)
    def summary(self, line_length=None, positions=None, print_fn=None, **kwargs):
        super().summary(line_length, positions, print_fn, **kwargs)
        phi = [v for v in self.variables if is_control_variate(v)]
        count = sum(math.prod(v.shape) for v in phi)
        (print_fn or print)(f" Of these in control variates: {count:,} (`for_inference` has none)")

    @functools.wraps(keras.Model.save)
    def save(self, filepath, *args, **kwargs):
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "HDF5 files of whole models keep neither the seeds of layers nor what an estimator "
                'learns. Save to a name that ends in ".keras", or the weights alone by '
                f'`save_weights` to one that ends in ".weights.h5". Received: {filepath!s}'
            )
        super().save(filepath, *args, **kwargs)

    @functools.wraps(keras.Model.export)
    def export(self, filepath, *args, **kwargs):
        samples = any(layer.inference == "sample" for layer in self._stochastic_layers())
        export(self, samples, filepath, *args, **kwargs)


# `keras.Model.__init__` turns a class that is given inputs and outputs into a functional one by
# rewriting its bases for good, RelaxModel's included, after which no other subclass could have a
# `call` of its own. So functional models are built by a twin that is functional from the start.


@keras.saving.register_keras_serializable("relax_tf", "FunctionalRelaxModel")
class _FunctionalRelaxModel(RelaxModel, Functional):
    """What `RelaxModel(inputs, outputs)` is."""

    def __reduce__(self):
        _, saved = super().__reduce__()  # pickle cannot find this class by its name
        return unpickler(RelaxModel), saved


_FunctionalRelaxModel.__name__ = _FunctionalRelaxModel.__qualname__ = "RelaxModel"


def _functional_arguments(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a model is constructed from inputs and outputs."""
    return len(args) == 2 or {"inputs", "outputs"} <= {*kwargs, *["inputs"][: len(args)]}
