"""Optimising a black box without data: a knapsack whose value only a Python function knows.

    python -m examples.guides.knapsack --figure=knapsack.png

`relax_tf.Parameters` holds one logit for each of 20 items, `fit(steps_per_epoch=...,
batch_size=...)` needs no data, and the batch size is the number of packings tried in a step. The
value is NumPy's and has no gradient; two evaluations are cheap, so `disarm` it is. (For a function
that is dear take `relax`, which asks for one.)
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import relax_tf
from examples.guides.command_line import run, save

ITEMS = 20
random = np.random.RandomState(1)
VALUES, WEIGHTS = random.uniform(1, 10, ITEMS), random.uniform(1, 10, ITEMS)
CAPACITY = 40.0


def loss_of(packings: np.ndarray) -> np.ndarray:
    """Minus the value; what is too heavy costs three times the value of a kilogram."""
    overweight = np.maximum(packings @ WEIGHTS - CAPACITY, 0)
    return (3 * overweight - packings @ VALUES).astype("float32")


def optimum() -> float:
    """The best value, by looking at all packings."""
    packings = (np.arange(2**ITEMS)[:, np.newaxis] >> np.arange(ITEMS)) & 1
    return float(-loss_of(packings).min())


class Knapsack(relax_tf.RelaxModel):
    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.numpy_function(loss_of, [y_pred], tf.float32)


def main(epochs: int = 40, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    inputs = keras.Input([0])
    packed = relax_tf.StochasticBinaryLayer(None, "disarm", name="packed")(
        relax_tf.Parameters([ITEMS])(inputs)
    )
    model = Knapsack(inputs, packed)
    model.compile(keras.optimizers.Adam(0.05))
    logs = model.fit(steps_per_epoch=25, batch_size=16, epochs=epochs, verbose=0).history
    (best,) = model.for_inference("mode").predict(np.zeros([1, 0]), verbose=0)
    found, possible = float(-loss_of(best)), optimum()
    first, last = -logs["loss"][0], -logs["loss"][-1]
    print(f"mean value of the packings: {first:.1f} in the first epoch, {last:.1f} in the last")
    print(f"packed {np.flatnonzero(best).tolist()}, weight {best @ WEIGHTS:.1f} of {CAPACITY:.0f}")
    print(f"value {found:.2f}; the optimum is {possible:.2f}")

    drawing, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
    axis.plot(25 * (1 + np.arange(epochs)), -np.array(logs["loss"]), label="mean of the packings")
    axis.axhline(possible, color="k", lw=0.7, ls="--", label="optimum")
    axis.set(xlabel="step", ylabel="value")
    axis.legend(fontsize=7)
    save(drawing, figure)
    return {"found": found, "optimum": possible, "first": first}


if __name__ == "__main__":
    run(main)
