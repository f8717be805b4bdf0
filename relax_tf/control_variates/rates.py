"""How fast control variates learn if nobody says: as the model, but no faster than is safe."""

from typing import Any

import keras

# A model of few parameters may want a rate of 0.05, at which a network does worse than none.
HIGHEST_RATE = 1e-3


def control_variate_copy(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """A fresh optimizer with the settings of another one, at a rate of `HIGHEST_RATE` at most."""
    config = {**optimizer.get_config(), "name": "control_variate_optimizer"}
    rate = config.get("learning_rate")
    if isinstance(rate, float):
        config["learning_rate"] = min(rate, HIGHEST_RATE)
    elif isinstance(rate, dict):
        rate = keras.optimizers.schedules.deserialize(rate)
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            config["learning_rate"] = AtMost(rate, HIGHEST_RATE)
    return type(optimizer).from_config(config)


@keras.saving.register_keras_serializable("relax_tf")
class AtMost(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that never exceeds a limit.

    Args:
        schedule: a learning-rate schedule.
        limit: the highest rate.

    Example:

    >>> decay = keras.optimizers.schedules.PiecewiseConstantDecay([100], [1.0, 0.25])
    >>> schedule = relax_tf.control_variates.rates.AtMost(decay, 0.5)
    >>> float(schedule(0)), float(schedule(200))
    (0.5, 0.25)
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, limit: float):
        super().__init__()
        self.schedule = schedule
        self.limit = limit

    def __call__(self, step):
        return keras.ops.minimum(self.schedule(step), self.limit)

    def get_config(self) -> dict[str, Any]:
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "limit": self.limit}

    @classmethod
    def from_config(cls, config):
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(schedule, config["limit"])
