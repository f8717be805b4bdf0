"""Feature gates: which inputs does a model need? A penalty on each gate that is open.

    python -m examples.guides.gates --figure=gates.png

One gate for each of 30 features, of which 5 matter. `relax_tf.Parameters` holds the gates' logits,
which depend on no input; the cost of an example is its squared error plus a price for each open
gate. `compute_cost` returns both as named terms, which are logged. In use the gates are shut or
open for good: `for_inference("mode")`.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import relax_tf
from examples.guides.command_line import run, save

RELEVANT, FEATURES = 5, 30


class GatedRegression(relax_tf.RelaxModel):
    """Squared error, and `price` for each open gate."""

    price = 0.05

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        opened = tf.reduce_sum(latents["gates"].sample, -1)
        return {"error": tf.reduce_mean((y - y_pred) ** 2, -1), "price": self.price * opened}


def build() -> GatedRegression:
    inputs = keras.Input([FEATURES])
    initial = keras.initializers.Constant(1.0)
    logits = relax_tf.Parameters([FEATURES], initializer=initial, name="logits")(inputs)
    gates = relax_tf.StochasticBinaryLayer(None, "flip", name="gates")(logits)
    gated = keras.layers.Multiply()([inputs, gates])
    model = GatedRegression(inputs, keras.layers.Dense(1)(gated))
    model.compile(keras.optimizers.Adam(0.02), steps_per_execution=10)
    return model


def main(epochs: int = 60, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    random = np.random.RandomState(0)
    x = random.randn(2000, FEATURES).astype("float32")
    weights = np.where(np.arange(FEATURES) < RELEVANT, 1.0, 0.0)
    y = (x @ weights + 0.1 * random.randn(2000)).astype("float32")[:, np.newaxis]

    model = build()
    logs = model.fit(x, y, batch_size=50, epochs=epochs, verbose=0).history
    probabilities = tf.sigmoid(model.get_layer("logits").values).numpy()
    chosen = np.flatnonzero(probabilities > 0.5)
    plain = model.for_inference("mode")
    error = float(np.mean((plain.predict(x, verbose=0) - y) ** 2))
    print(f"error {logs['error'][0]:.3f} -> {logs['error'][-1]:.3f}, "
          f"price {logs['price'][0]:.3f} -> {logs['price'][-1]:.3f}")  # fmt: skip
    print(f"open gates: {chosen.tolist()}; mean squared error with them {error:.3f}")

    drawing, axis = plt.subplots(figsize=(6, 2), layout="constrained")
    axis.bar(np.arange(FEATURES), probabilities, color=["C0"] * RELEVANT + ["C7"] * 25)
    axis.set(xlabel="feature (blue: relevant)", ylabel="P(open)", ylim=(0, 1))
    save(drawing, figure)
    return {"chosen": chosen.tolist(), "error": error}


if __name__ == "__main__":
    run(main)
