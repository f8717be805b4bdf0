"""A token-by-token policy: each token is drawn from what the tokens before it were.

    python -m examples.guides.tokens --figure=tokens.png

The policy writes the digits of a number back to front. A stochastic layer is called once for each
token, in a Python loop, so that every call is estimated for what follows from it; a reward tells at
the end how many digits are right, and no gradient says which. Two evaluations are cheap here; with
one `relax` would do the same.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import relax_tf
from examples.guides.command_line import run, save

LENGTH, SYMBOLS = 4, 5


class Writer(relax_tf.RelaxModel):
    """Reads `[batch, LENGTH, SYMBOLS]`, one-hot, and writes as much."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(64, activation="tanh")
        self.heads = [keras.layers.Dense(SYMBOLS) for _ in range(LENGTH)]
        self.token = relax_tf.StochasticCategoricalLayer(None, None, "rloo", name="token")

    def call(self, inputs):
        written = []
        for step, head in enumerate(self.heads):
            blank = tf.zeros([tf.shape(inputs)[0], LENGTH - step, SYMBOLS])
            seen = tf.concat([inputs, *written, blank], 1)
            logits = head(self.hidden(tf.reshape(seen, [-1, 2 * LENGTH * SYMBOLS])))
            written.append(self.token(logits[:, tf.newaxis]))
        return tf.concat(written, 1)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        right = tf.cast(tf.argmax(y_pred, -1) == tf.argmax(y, -1), tf.float32)
        return -tf.reduce_sum(right, -1)


def numbers(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of symbols, one-hot, and the same back to front."""
    symbols = np.random.RandomState(seed).randint(SYMBOLS, size=[count, LENGTH])
    x = np.eye(SYMBOLS, dtype="float32")[symbols]
    return x, x[:, ::-1]


def main(epochs: int = 30, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    model = Writer()
    model.compile(keras.optimizers.Adam(5e-3), steps_per_execution=10)
    logs = model.fit(*numbers(1000, 0), batch_size=50, epochs=epochs, verbose=0).history
    x, y = numbers(200, 1)
    model.token.inference = "mode"
    right = float(np.mean(model.predict(x, verbose=0).argmax(-1) == y.argmax(-1)))
    print(f"reward {-logs['loss'][0]:.2f} -> {-logs['loss'][-1]:.2f} of {LENGTH}")
    print(f"tokens right on new sequences: {right:.3f} (chance: {1 / SYMBOLS})")

    drawing, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
    axis.plot(1 + np.arange(epochs), -np.array(logs["loss"]))
    axis.set(xlabel="epoch", ylabel=f"reward of {LENGTH}")
    save(drawing, figure)
    return {"right": right, "first": -logs["loss"][0], "last": -logs["loss"][-1]}


if __name__ == "__main__":
    run(main)
