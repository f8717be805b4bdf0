"""What is measured: the models and the data, by case.

A case is a dictionary of the arguments of `compiled`, so that it can be a row of a table and can be
handed to a child process.
"""

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import relax_tf
from benchmarks.recipe import TextbookVAE
from configs import vae as vae_config
from examples import vae_models
from examples.data import Images

FLOOR = "straight_through"


def binary_estimators() -> list[str]:
    """The ids of all estimators for binary layers, the floor first."""
    known = []
    for name in relax_tf.estimators._BY_ID:
        try:
            relax_tf.estimators.get(name).check_defined_for(relax_tf.distributions.Bernoulli)
        except ValueError:
            continue
        known.append(name)
    return sorted(known, key=lambda name: (name != FLOOR, name))


def random_images(count: int, pixels: int = 784) -> Images:
    """Binary noise in the place of MNIST: the time of a step does not depend on the images."""
    x = (np.random.RandomState(0).rand(count, pixels) < 0.2).astype(np.float32)
    return Images(x, x, x, x.mean(0), (1, pixels), "noise", "static_bernoulli")


def data(batch_size: int, pixels: int = 784) -> tf.data.Dataset:
    """Ten batches `(x, x)` in memory, without end."""
    x = random_images(10 * batch_size, pixels).train
    return endless(tf.data.Dataset.from_tensor_slices((x, x)).batch(batch_size).cache())


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Repeats it; with autotuning TensorFlow 2.21 blocks when an iterator is destroyed."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.repeat().with_options(options)


def compiled(
    estimator: str = "relaxed_rebar",
    architecture: str = "linear1",
    jit_compile: bool = True,
    steps_per_execution: int = 50,
    **fields,
) -> keras.Model:
    """A model of `examples/vae_models.py`, `"chain"` or `"textbook"`, compiled with Adam.

    Args:
        estimator: an id.
        architecture: which model.
        jit_compile, steps_per_execution: of `compile`.
        **fields: of the configuration, such as `units` or `estimator_settings`; for `"chain"`
            also `layers`; `pixels` of the images.
    """
    pixels, layers = fields.pop("pixels", 784), fields.pop("layers", 1)
    config = vae_config.get_config()
    with config.unlocked():
        config.update({"estimator": estimator, "architecture": architecture, **fields})
    images = random_images(240, pixels)
    if architecture == "chain":
        model = chain(config, images, layers)
    elif architecture == "textbook":
        model = TextbookVAE(images.mean, config.units, config.hidden_units)
    else:
        model = vae_models.build_model(config, images)
    model.compile(
        keras.optimizers.Adam(1e-3),
        loss=relax_tf.losses.BernoulliNegativeLogLikelihood(),
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    return model


def chain(config: ml_collections.ConfigDict, images: Images, layers: int) -> relax_tf.RelaxModel:
    """`x -> b1 -> ... -> bL -> x`, each layer with a KL: what a replay of bl costs is L - l."""
    h = x = keras.Input([images.mean.size])
    for layer in range(layers):
        h = relax_tf.StochasticBinaryLayer(
            config.units,
            vae_models.build_estimator(config),
            support=(-1, 1),
            prior="learned",
            kl="sampled",
            name=f"b{layer + 1}",
        )(h)
    return relax_tf.RelaxModel(x, keras.layers.Dense(images.mean.size)(h))


def without_metrics(model: relax_tf.RelaxModel) -> relax_tf.RelaxModel:
    """The model, with steps that track and report nothing."""

    class Silent(type(model)):
        def _track_loss(self, *args):
            pass

        def compute_metrics(self, *args, **kwargs):
            return {"loss": tf.zeros([])}  # Keras wants something

    model.__class__ = Silent
    for layer in vae_models.stochastic_layers(model):
        layer.tracked.update = lambda *args, **kwargs: None
    return model
