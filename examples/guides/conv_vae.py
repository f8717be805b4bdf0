"""A convolutional VAE with binary feature maps.

    python -m examples.guides.conv_vae --figure=conv_vae.png

The latent variables of an image are a map of bits, `[4, 4, 8]`: a stochastic layer works on the
last axis and repeats itself over the others, like a Dense. Its control variate is then a small
network that all positions share. `prior="uniform"` adds the KL, so that the loss is the negative
ELBO in nats.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import relax_tf
from examples.guides.command_line import run, save, show_images


def build() -> relax_tf.RelaxModel:
    inputs = keras.Input([8, 8, 1])
    h = keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(inputs)
    b = relax_tf.StochasticBinaryLayer(8, prior="uniform", name="bits")(h)
    h = keras.layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu")(b)
    logits = keras.layers.Conv2D(1, 3, padding="same")(h)
    model = relax_tf.RelaxModel(inputs, logits)
    loss = relax_tf.losses.BernoulliNegativeLogLikelihood()
    model.compile(keras.optimizers.Adam(3e-3), loss=loss, steps_per_execution=10)
    return model


def main(epochs: int = 60, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    images = (load_digits().images[..., np.newaxis] > 7).astype("float32")
    train, test = images[:1500], images[1500:]
    model = build()
    before = model.evaluate(test, test, verbose=0)
    model.fit(train, train, batch_size=50, epochs=epochs, verbose=0)
    model.evaluation_samples = 10
    after = model.evaluate(test, test, verbose=0)
    phi = model.get_layer("bits").estimator.count_params()
    print(f"test ELBO {-before:.2f} nats before training, {-after:.2f} after {epochs} epochs")
    print(f"{model.count_params() - phi} weights, and {phi} of the control variate")

    # Pixels' probabilities from one sample of the bits of each image.
    model.evaluation_samples = 1
    pixels = keras.ops.sigmoid(model.predict(test[:10], verbose=0)).numpy()
    drawing, axes = plt.subplots(2, 10, figsize=(7, 1.6), layout="constrained")
    show_images(axes, np.concatenate([test[:10], pixels]))
    drawing.suptitle("test images, and what 128 bits keep of them", fontsize=9)
    save(drawing, figure)
    return {"before": -before, "after": -after, "control_variate": phi}


if __name__ == "__main__":
    run(main)
