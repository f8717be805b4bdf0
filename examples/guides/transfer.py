"""Turning the Dense bottleneck of a trained model into bits.

    python -m examples.guides.transfer --figure=transfer.png

A plain Keras classifier with a sigmoid bottleneck is trained as usual. Then the bottleneck becomes
a `StochasticBinaryLayer` of the same size, which takes over kernel and bias of the Dense by
`set_weights(dense.get_weights())`; the layers below and above are the same objects. Keras's
callbacks do what they always do. (A tanh unit becomes a bit of `support=(-1, 1)` with twice the
kernel and the bias: tanh a = 2 sigmoid(2 a) - 1.)
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import relax_tf
from examples.guides.command_line import run, save


def accuracy(model: keras.Model, part: tuple[np.ndarray, np.ndarray]) -> float:
    return model.evaluate(*part, verbose=0, return_dict=True)["accuracy"]


def main(epochs: int = 30, units: int = 6, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    train, validation, test = ((x[i:j], y[i:j]) for i, j in ((0, 1200), (1200, 1500), (1500, None)))

    inputs = keras.Input([64])
    below = keras.layers.Dense(64, activation="relu")
    bottleneck = keras.layers.Dense(units, activation="sigmoid")
    above = keras.layers.Dense(10)
    plain = keras.Model(inputs, above(bottleneck(below(inputs))))
    settings = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        "steps_per_execution": 10,
    }
    plain.compile(keras.optimizers.Adam(3e-3), **settings)
    plain.fit(*train, batch_size=50, epochs=epochs, verbose=0)
    of_plain = [accuracy(plain, part) for part in (validation, test)]

    bits = relax_tf.StochasticBinaryLayer(units, "flip", name="bits")
    model = relax_tf.RelaxModel(inputs, above(bits(below(inputs))))
    bits.set_weights(bottleneck.get_weights())
    model.compile(keras.optimizers.Adam(3e-3), **settings)
    bits.inference = "mode"
    rounded = [accuracy(model, part) for part in (validation, test)]
    stop = keras.callbacks.EarlyStopping(
        "val_accuracy", patience=10, restore_best_weights=True, mode="max"
    )
    logs = model.fit(
        *train,
        batch_size=50,
        epochs=epochs,
        validation_data=validation,
        callbacks=[stop],
        verbose=0,
    ).history
    trained = accuracy(model, test)
    print(f"test accuracy: {of_plain[1]:.3f} with a sigmoid bottleneck of {units} units, "
          f"{rounded[1]:.3f} with its units rounded,")  # fmt: skip
    print(f"{trained:.3f} as bits after at most {epochs} more epochs")

    drawing, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
    curve = logs["val_accuracy"]
    axis.plot(1 + np.arange(len(curve)), curve, label="bits")
    axis.axhline(of_plain[0], color="k", lw=0.7, ls="--", label="sigmoid")
    axis.axhline(rounded[0], color="C1", lw=0.7, ls="--", label="rounded")
    axis.set(xlabel="epoch", ylabel="validation accuracy")
    axis.legend(fontsize=7)
    save(drawing, figure)
    return {"plain": of_plain[1], "rounded": rounded[1], "trained": trained}


if __name__ == "__main__":
    run(main)
