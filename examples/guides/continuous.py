"""Continuous latent variables with a likelihood that has no gradient: `lax`.

    python -m examples.guides.continuous --figure=continuous.png

Where a sample is continuous one reparameterises, unless what follows has no derivative. Here a
sensor counts: it reports a rounded number, and the likelihood is a table that NumPy looks up. `lax`
asks for the likelihood's value alone. The posterior of a position given such counts is compared
with the exact one, which a grid gives.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import relax_tf
from examples.guides.command_line import run, save

# log p(count | position) for counts 0..9 and positions rounded to a grid: a table.
GRID = np.linspace(-4, 4, 161)
_RATES = np.log1p(np.exp(2 * GRID))[:, np.newaxis]
_COUNTS = np.arange(10)
TABLE = _COUNTS * np.log(_RATES) - _RATES - np.cumsum(np.log(np.maximum(_COUNTS, 1)))
TABLE -= np.log(np.exp(TABLE).sum(-1, keepdims=True))  # no count is above 9


def negative_log_likelihood(position: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Steps of the grid, so that its derivative is 0 wherever it exists."""
    row = np.clip(np.rint((position[:, 0] + 4) * 20), 0, 160).astype(int)
    return -TABLE[row, count[:, 0].astype(int)].astype("float32")


def exact_bound(counts: np.ndarray) -> float:
    """The mean of log p(count): what no ELBO exceeds."""
    prior = np.exp(-0.5 * GRID**2)
    return float(np.mean(np.log((prior / prior.sum()) @ np.exp(TABLE))[counts[:, 0].astype(int)]))


class Posterior(relax_tf.RelaxModel):
    """From a count to a normal distribution of the position."""

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        position = latents["position"]
        likelihood = tf.numpy_function(negative_log_likelihood, [position.sample, x], tf.float32)
        return likelihood + position.kl


def build() -> Posterior:
    inputs = keras.Input([1])
    h = keras.layers.Dense(32, activation="tanh")(keras.layers.Rescaling(0.2)(inputs))
    position = relax_tf.StochasticNormalLayer(1, "lax", prior="standard", name="position")(h)
    model = Posterior(inputs, position)
    model.compile(keras.optimizers.Adam(5e-3))
    return model


def main(epochs: int = 40, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    random = np.random.RandomState(0)
    rows = np.clip(np.rint((random.randn(2000) + 4) * 20), 0, 160).astype(int)
    counts = [[random.choice(10, p=np.exp(TABLE[row]))] for row in rows]
    counts = np.array(counts, "float32")
    model = build()
    model.evaluation_samples = 20
    before = -model.evaluate(counts, verbose=0)
    model.fit(counts, batch_size=50, epochs=epochs, verbose=0)
    after = -model.evaluate(counts, verbose=0)
    bound = exact_bound(counts)
    print(f"ELBO {before:.3f} -> {after:.3f} nats; log p(counts) is {bound:.3f}")

    model.evaluation_samples = 1
    drawing, axes = plt.subplots(1, 2, figsize=(6, 2.2), layout="constrained")
    for axis, count in zip(axes, (0, 5), strict=True):
        exact = np.exp(TABLE[:, count] - 0.5 * GRID**2)
        axis.plot(GRID, exact / exact.sum() * 20, "k", lw=0.7, label="exact")
        samples = model.predict(np.full([2000, 1], count, "float32"), verbose=0)
        axis.set(title=f"position, given the count {count}", yticks=[])
        axis.hist(np.ravel(samples), bins=40, density=True, alpha=0.5, label="learned")
    axes[0].legend(fontsize=7)
    save(drawing, figure)
    return {"before": before, "after": after, "bound": bound}


if __name__ == "__main__":
    run(main)
