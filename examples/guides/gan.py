"""A small GAN whose generator writes strings.

    python -m examples.guides.gan --figure=gan.png

A string of a small language is some number of `a`, then as many `b`, then blanks: "ab", "aabb",
"aaabbb", "aaaabbbb". The generator draws eight symbols, and a discriminator, itself a Keras model,
tells them from true ones. Symbols are discrete, so that no gradient leads from the discriminator to
the generator; a plain GAN stops there. Here `compute_cost` returns the discriminator's verdict, and
`flip` takes its derivative at hard samples for what it is, a hint, and stays unbiased.

The two take turns by `train_on_batch`. An example is four strings at a time, as in PacGAN, so that
a generator that writes the same string again and again is found out.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import relax_tf
from examples.guides.command_line import run, save

LENGTH, SYMBOLS, NOISE, PACK = 8, "ab ", 8, 4
LANGUAGE = [("a" * n + "b" * n).ljust(LENGTH) for n in range(1, LENGTH // 2 + 1)]


def one_hot(strings: list[str]) -> np.ndarray:
    indices = [[SYMBOLS.index(symbol) for symbol in string] for string in strings]
    return np.eye(len(SYMBOLS), dtype="float32")[indices]


def strings(samples: np.ndarray) -> list[str]:
    indices = samples.argmax(-1).reshape(-1, LENGTH)
    return ["".join(SYMBOLS[k] for k in row) for row in indices]


def share_of_language(generator: keras.Model, noise: np.ndarray) -> float:
    """How many of the generated strings belong to the language."""
    return float(np.mean([s in LANGUAGE for s in strings(generator.predict(noise, verbose=0))]))


def build_discriminator() -> keras.Model:
    inputs = keras.Input([PACK, LENGTH, len(SYMBOLS)])
    h = keras.layers.Flatten()(inputs)
    for _ in range(2):
        h = keras.layers.LeakyReLU()(keras.layers.Dense(64)(h))
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    model.compile(keras.optimizers.Adam(2e-3, beta_1=0.5), keras.losses.BinaryCrossentropy(True))
    return model


def build_generator(discriminator: keras.Model) -> relax_tf.RelaxModel:
    class Generator(relax_tf.RelaxModel):
        """From noise to a string; the discriminator is none of its layers."""

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            verdict = discriminator(y_pred, training=False)[:, 0]
            return tf.nn.softplus(-verdict)

    inputs = keras.Input([PACK, NOISE])
    h = keras.layers.Dense(64, activation="relu")(inputs)
    h = keras.layers.Dense(64, activation="relu")(h)
    text = relax_tf.StochasticCategoricalLayer(LENGTH, len(SYMBOLS), "flip", name="text")(h)
    model = Generator(inputs, text)
    model.compile(keras.optimizers.Adam(2e-3, beta_1=0.5))
    return model


def main(rounds: int = 1500, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    random = np.random.RandomState(0)
    true = one_hot(LANGUAGE)
    discriminator = build_discriminator()
    generator = build_generator(discriminator)

    def noise(count: int) -> np.ndarray:
        return random.randn(count, PACK, NOISE).astype("float32")

    before = share_of_language(generator, noise(500))
    shares = []
    for k in range(rounds):
        written = generator(noise(64)).numpy()
        both = np.concatenate([true[random.randint(len(true), size=[64, PACK])], written])
        labels = np.concatenate([np.full([64, 1], 0.9), np.zeros([64, 1])]).astype("float32")
        discriminator.train_on_batch(both, labels)
        generator.train_on_batch(noise(64))
        if (k + 1) % max(rounds // 30, 1) == 0:
            shares.append((k + 1, share_of_language(generator, noise(500))))
    written = strings(generator.predict(noise(500), verbose=0))
    share = float(np.mean([s in LANGUAGE for s in written]))
    known = sorted({s.strip() for s in written if s in LANGUAGE}, key=len)
    print(f"in the language: {before:.1%} before training, {share:.1%} after {rounds} rounds")
    print(f"written: {', '.join(repr(s) for s in written[:8])}")
    print(f"{len(known)} of the {len(LANGUAGE)} strings of the language: {', '.join(known)}")

    drawing, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
    axis.plot(*np.transpose(shares))
    axis.set(xlabel="round", ylabel="share in the language", ylim=(0, 1))
    save(drawing, figure)
    return {"before": before, "after": share, "known": len(known)}


if __name__ == "__main__":
    run(main)
