"""How fast control variates learn if nobody says: as the model, but no faster than is safe."""

from collections.abc import Callable
from typing import Any

import keras

from relax_tf.keras_internals import copy_exclusions, schedule_replaced

# A model of few parameters may want a rate of 0.05, at which a network does worse than none.
HIGHEST_RATE = 1e-3


def control_variate_copy(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """A fresh optimizer with the settings of another one, at a rate of `HIGHEST_RATE` at most.

    Of a schedule or a function it follows the object itself, which need not have a configuration.

    Raises:
        ValueError: if its class cannot be made from its configuration.
    """
    with schedule_replaced(optimizer, HIGHEST_RATE) as schedule:
        config = {**optimizer.get_config(), "name": "control_variate_optimizer"}
    makes_its_own = "learning_rate" not in config
    if schedule is not None and not makes_its_own:
        config["learning_rate"] = AtMost(schedule, HIGHEST_RATE)
    elif isinstance(config.get("learning_rate"), float):
        config["learning_rate"] = min(config["learning_rate"], HIGHEST_RATE)
    try:
        copy = type(optimizer).from_config(config)
    except TypeError as error:  # settings of its constructor that `get_config` does not have
        raise ValueError(
            "the control variates have an optimizer of their own, by default a copy of the "
            f"model's, but no {type(optimizer).__name__} can be made from its `get_config()`: "
            f"{error}. Have it return all that the constructor takes, or make both: "
            "relax_tf.RelaxOptimizer(optimizer, control_variate_optimizer). "
            f"Received: {optimizer!r}"
        ) from error
    if schedule is not None and makes_its_own:
        copy.learning_rate = AtMost(schedule, HIGHEST_RATE)
    copy_exclusions(optimizer, copy)
    return copy


@keras.saving.register_keras_serializable("relax_tf")
class AtMost(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that never exceeds a limit.

    Args:
        schedule: a learning-rate schedule, or a function without arguments, as Keras's optimizers
            take one.
        limit: the highest rate.

    Example:

    >>> decay = keras.optimizers.schedules.PiecewiseConstantDecay([100], [1.0, 0.25])
    >>> schedule = relax_tf.control_variates.rates.AtMost(decay, 0.5)
    >>> float(schedule(0)), float(schedule(200))
    (0.5, 0.25)
    """

    def __init__(self, schedule: Callable[..., Any], limit: float):
        super().__init__()
        self.schedule = schedule
        self.limit = limit

    def __call__(self, step):
        by_step = isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule)
        return keras.ops.minimum(self.schedule(step) if by_step else self.schedule(), self.limit)

    def get_config(self) -> dict[str, Any]:
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "limit": self.limit}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["limit"])
