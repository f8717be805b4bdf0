"""Semantic hashing: short binary codes with which similar images are found.

    python -m examples.guides.hashing --figure=hashing.png

A classifier whose only way from image to class leads through 16 bits. After training the most
probable bits are an image's code (`for_inference("mode")`), and a query's nearest neighbours are
the codes at the smallest Hamming distance. With one stochastic layer and a differentiable loss
`flip` has the least variance.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import relax_tf
from examples.guides.command_line import run, save, show_images


def precision_at(k: int, codes: np.ndarray, labels: np.ndarray, queries: int) -> float:
    """The share of the k nearest codes that have the query's label; the last rows are queries."""
    nearest = neighbours(codes, queries)[:, :k]
    return float(np.mean(labels[:-queries][nearest] == labels[-queries:, np.newaxis]))


def neighbours(codes: np.ndarray, queries: int) -> np.ndarray:
    """For each query the other rows by Hamming distance, the nearest first."""
    distances = (codes[-queries:, np.newaxis] != codes[np.newaxis, :-queries]).sum(-1)
    return np.argsort(distances, axis=-1, kind="stable")


def main(epochs: int = 40, bits: int = 16, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    queries = 297

    inputs = keras.Input([64])
    h = keras.layers.Dense(64, activation="relu")(inputs)
    code = relax_tf.StochasticBinaryLayer(bits, "flip", name="code")(h)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(10)(code))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss, steps_per_execution=10)

    def encode() -> np.ndarray:
        encoder = relax_tf.RelaxModel(model.input, model.get_layer("code").output)
        return encoder.for_inference("mode").predict(x, verbose=0)

    before = precision_at(10, encode(), y, queries)
    model.fit(x[:-queries], y[:-queries], batch_size=50, epochs=epochs, verbose=0)
    codes = encode()
    after = precision_at(10, codes, y, queries)
    print(f"precision@10 of {bits} bits: {before:.3f} before training, {after:.3f} after")

    drawing, axes = plt.subplots(4, 9, figsize=(6, 2.8), layout="constrained")
    nearest = neighbours(codes, queries)[:4, :8]
    shown = np.concatenate([np.arange(len(x))[-queries:][:4, np.newaxis], nearest], -1)
    show_images(axes, digits.images[shown.ravel()] / 16)
    drawing.suptitle("queries (left) and the digits whose codes are nearest", fontsize=9)
    save(drawing, figure)
    return {"before": before, "after": after}


if __name__ == "__main__":
    run(main)
