"""One optimizer for the model, one for the control variates, in one Keras optimizer."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates import is_control_variate
from relax_tf.control_variates.rates import control_variate_copy
from relax_tf.keras_internals import SwappedAverages, average_of, refuse_unknown, variables_of
from relax_tf.validation import positive_integer, positive_number


class _BySide(keras.optimizers.OptimizerMap):
    """Sends `phi` to one optimizer and everything else to the other."""

    def __init__(self, optimizer, control_variate_optimizer):
        super().__init__(optimizer)
        self._control_variate_optimizer = control_variate_optimizer

    def __call__(self, variable):
        if is_control_variate(variable):
            return self._control_variate_optimizer
        return self.default_optimizer

    def values(self):
        return [self.default_optimizer, self._control_variate_optimizer]


def _of_the_model_s(name: str) -> property:
    """A setting that every Keras optimizer has, read and set on the model's optimizer."""

    def get(self):
        # The wrapper's own averages and accumulators would be of no use.
        return None if self._builds_itself else getattr(self.optimizer, name)

    def set_(self, value):
        if self._is_made:  # else Keras's constructor sets its defaults
            setattr(self.optimizer, name, value)

    return property(get, set_)


@keras.saving.register_keras_serializable("relax_tf")
class RelaxOptimizer(SwappedAverages, keras.optimizers.MultiOptimizer):
    """Updates the model's parameters with one optimizer and the control variates' with another.

    `RelaxModel.compile` wraps a plain optimizer in one. Its `learning_rate` is the model's, so
    that Keras's learning-rate callbacks leave the control variates' alone. So are its other
    settings (`weight_decay`, `clipnorm`, `use_ema`, `exclude_from_weight_decay`, `beta_1` of an
    Adam, ...): read or set, they are those of `optimizer`.

    Args:
        optimizer: for the model: a Keras optimizer, or its id.
        control_variate_optimizer: for the control variates; by default a fresh copy of the
            first, with state of its own, whose learning rate is at most 1e-3 (a schedule's too):
            a rate that suits a few parameters makes a network follow noise, and its control
            variate is then worse than a slow one. Give a rate above that here.
        control_variate_update_every: k, at least 1: the control variates learn in every k-th
            step. The estimates stay unbiased, and the steps between cost less.
        loss_scale_factor, name: as in any Keras optimizer.

    Raises:
        TypeError: if one of them is not an optimizer, or k not an integer.
        ValueError: if k is below 1, if both are the same object, or one is itself a wrapper.

    Example:

    >>> adam = keras.optimizers.Adam
    >>> optimizer = relax_tf.RelaxOptimizer(adam(1e-3), adam(1e-2))
    >>> optimizer.learning_rate = 5e-4
    >>> round(float(optimizer.control_variate_optimizer.learning_rate), 4)
    0.01

    The paper's settings: for 1000 steps only the control variates learn, at ten times the model's
    rate, with weight decay.

    >>> rate = keras.optimizers.schedules.PiecewiseConstantDecay([1000], [0.0, 1e-3])
    >>> optimizer = relax_tf.RelaxOptimizer(adam(rate), adam(1e-2, weight_decay=1e-4))
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        control_variate_optimizer: keras.optimizers.Optimizer | str | None = None,
        control_variate_update_every: int = 1,
        loss_scale_factor: float | None = None,
        name: str = "relax_optimizer",
    ):
        every = positive_integer(control_variate_update_every, "control_variate_update_every")
        optimizer = _plain(optimizer, "optimizer")
        if control_variate_optimizer is None:
            control_variate_optimizer = control_variate_copy(optimizer)
        control_variate_optimizer = _plain(control_variate_optimizer, "control_variate_optimizer")
        if control_variate_optimizer is optimizer:
            raise ValueError(
                "`optimizer` and `control_variate_optimizer` must be two objects, each with its "
                "own state. Pass None for a fresh copy of the first."
            )
        if loss_scale_factor is not None:
            loss_scale_factor = positive_number(loss_scale_factor, "loss_scale_factor")
        by_side = _BySide(optimizer, control_variate_optimizer)
        loss_scale_factor = loss_scale_factor or optimizer.loss_scale_factor
        super().__init__(by_side, loss_scale_factor=loss_scale_factor, name=name)
        self._is_made = True
        self.control_variate_update_every = every

    @property
    def optimizers(self):
        """Hidden: Keras's learning-rate callbacks would set the rate of each of them."""
        raise AttributeError  # `__getattr__` says it in words

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer of the model's parameters."""
        return super().optimizers[0]

    @property
    def control_variate_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer of the control variates' parameters."""
        return super().optimizers[1]

    _is_made = False  # whether there are two optimizers to ask
    _builds_itself = False
    weight_decay = _of_the_model_s("weight_decay")
    clipnorm = _of_the_model_s("clipnorm")
    clipvalue = _of_the_model_s("clipvalue")
    global_clipnorm = _of_the_model_s("global_clipnorm")
    use_ema = _of_the_model_s("use_ema")
    ema_momentum = _of_the_model_s("ema_momentum")
    ema_overwrite_frequency = _of_the_model_s("ema_overwrite_frequency")
    gradient_accumulation_steps = _of_the_model_s("gradient_accumulation_steps")

    def __getattr__(self, name: str) -> Any:
        # Python comes here for what a RelaxOptimizer does not have.
        hidden = name.startswith("_") or name == "optimizers"
        if hidden or not self._is_made:
            raise AttributeError(
                f"a RelaxOptimizer has no attribute {name!r}, but an `optimizer` and a "
                "`control_variate_optimizer`."
            )
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if not own and self._is_made and hasattr(self.optimizer, name):
            setattr(self.optimizer, name, value)
        else:
            super().__setattr__(name, value)

    def exclude_from_weight_decay(self, var_list=None, var_names=None) -> None:
        """As in any Keras optimizer, for the model's parameters."""
        self.optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def iterations(self) -> Any:
        """The model's steps, as its optimizer counts them: over several `compile`s of one."""
        return self.optimizer.iterations if self._is_made else super().iterations

    def _optimizers_of_averages(self) -> list[tuple[keras.optimizers.Optimizer, keras.Variable]]:
        """For each variable, in the order of `build`, the optimizer that keeps its average."""
        if not (self.built and self.use_ema):
            raise AttributeError("the model's optimizer keeps no averages (`use_ema=False`).")
        pairs = [(self._side_of(variable), variable) for variable in variables_of(self)]
        if not all(side.use_ema for side, _ in pairs):
            raise ValueError(
                "`keras.callbacks.SwapEMAWeights` needs averages of all variables: make the "
                "RelaxOptimizer's `control_variate_optimizer` with use_ema=True too, or leave it "
                "out. Received: use_ema=True for the model and use_ema=False for the control "
                "variates."
            )
        return pairs

    def _side_of(self, variable: keras.Variable) -> keras.optimizers.Optimizer:
        of_control_variates = is_control_variate(variable)
        return self.control_variate_optimizer if of_control_variates else self.optimizer

    def build(self, variables: list) -> None:
        self._builds_itself = True
        try:
            super().build(variables)
        finally:
            self._builds_itself = False

    def apply(self, grads: list, trainable_variables: list | None = None) -> None:
        """As in any Keras optimizer; variables that were frozen since `build` may be left out."""
        if not grads or trainable_variables is None or not self.built:
            super().apply(grads, trainable_variables)
            return
        refuse_unknown(self, trainable_variables)
        of_model, of_control_variates = [], []
        for pair in zip(grads, trainable_variables, strict=True):
            (of_control_variates if is_control_variate(pair[1]) else of_model).append(pair)
        self._apply_side(self.optimizer, of_model)
        if self.control_variate_due is None:
            self._apply_side(self.control_variate_optimizer, of_control_variates)
        else:
            tf.cond(
                self.control_variate_due,
                lambda: self._apply_side(self.control_variate_optimizer, of_control_variates),
                lambda: None,
            )
        super().iterations.assign_add(1)

    def finalize_variable_values(self, var_list: list) -> None:
        """As in any Keras optimizer; after a `fit` without a step there is nothing to do.

        Keras takes the averages in the order of `build`, as if no variable were frozen since.
        """
        known = {id(variable) for variable in variables_of(self)} if self.built else set()
        for side in (self.optimizer, self.control_variate_optimizer):
            own = [v for v in var_list if id(v) in known and self._side_of(v) is side]
            if not side.use_ema:
                side.finalize_variable_values(own)
                continue
            for variable in own:
                if (average := average_of(side, variable)) is not None:
                    variable.assign(average)

    @staticmethod
    def _apply_side(optimizer: keras.optimizers.Optimizer, pairs: list) -> None:
        if pairs:
            optimizer.apply(*map(list, zip(*pairs, strict=True)))

    @property
    def control_variate_due(self) -> tf.Tensor | None:
        """Whether the control variates learn in this step; None if they do in every step."""
        if self.control_variate_update_every == 1:
            return None
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ValueError(
                "`control_variate_update_every` must be 1 on several replicas. "
                f"Received: {self.control_variate_update_every}"
            )
        return super().iterations % self.control_variate_update_every == 0

    @property
    def learning_rate(self) -> Any:
        """The model's learning rate; setting it leaves the control variates' alone."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizer.learning_rate = value

    def get_config(self) -> dict[str, Any]:
        return {
            "optimizer": keras.optimizers.serialize(self.optimizer),
            "control_variate_optimizer": keras.optimizers.serialize(self.control_variate_optimizer),
            "control_variate_update_every": self.control_variate_update_every,
            "loss_scale_factor": self.loss_scale_factor,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("optimizer", "control_variate_optimizer"):
            config[key] = keras.optimizers.deserialize(config[key], custom_objects=custom_objects)
        return cls(**config)


def _plain(optimizer: Any, name: str) -> keras.optimizers.Optimizer:
    if isinstance(optimizer, (str, dict)):
        optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"`{name}` must be a Keras optimizer. Received: {optimizer!r} "
            f"(of type {type(optimizer).__name__})"
        )
    wrappers = (keras.optimizers.MultiOptimizer, keras.optimizers.LossScaleOptimizer)
    if isinstance(optimizer, wrappers):
        raise ValueError(
            f"`{name}` must be a plain optimizer, not a wrapper around others. "
            f"Received: {type(optimizer).__name__}"
        )
    return optimizer


def wrap_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """`optimizer` with a `RelaxOptimizer` around it, inside loss scaling if there is any."""
    if isinstance(optimizer, RelaxOptimizer):
        return optimizer
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return RelaxOptimizer(optimizer)
    if isinstance(optimizer.inner_optimizer, RelaxOptimizer):
        return optimizer
    config = {
        **optimizer.get_config(),
        "inner_optimizer": RelaxOptimizer(optimizer.inner_optimizer),
    }
    return keras.optimizers.LossScaleOptimizer(**config)


def relax_optimizer(optimizer: keras.optimizers.Optimizer) -> RelaxOptimizer:
    """The `RelaxOptimizer` in what `wrap_optimizer` returned."""
    return optimizer if isinstance(optimizer, RelaxOptimizer) else optimizer.inner_optimizer
