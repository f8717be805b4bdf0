"""A variational autoencoder with Bernoulli latent variables (section 6.2 of the paper).

    python -m examples.vae --config=configs/vae_digits.py --workdir=DIR

trains with `RelaxModel.fit`, logs the ELBO in nats and each layer's second moment of the gradient
estimate to `DIR/metrics.csv`, and draws figures. The same command resumes.
"""

from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_flags

import relax_tf
from examples import figures
from examples.data import Images, batches, load
from examples.runs import Checkpoint, MetricsCSV, Workdir, stop_on_nan, tensorboard

_CONFIG = config_flags.DEFINE_config_file("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)

ARCHITECTURES = ("linear1",)


def build_model(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    """q(b|x) and p(x|b), linear maps around `config.units` units in {-1, 1}, learned prior.

    The encoder sees the image less the data mean; the decoder's bias starts at the mean's logit.
    """
    if config.architecture not in ARCHITECTURES:
        raise ValueError(
            f"`config.architecture` must be one of {ARCHITECTURES}. "
            f"Received: {config.architecture!r}"
        )
    pixels = images.mean.size
    inputs = keras.Input([pixels], name="x")
    centred = keras.layers.Normalization(mean=images.mean, variance=np.ones(pixels))(inputs)
    b = relax_tf.StochasticBinaryLayer(
        config.units,
        estimator=build_estimator(config),
        support=(-1, 1),
        prior="learned",
        kl="sampled",
        name="b",
    )(centred)
    decoder = keras.layers.Dense(pixels, name="decoder")
    model = relax_tf.RelaxModel(inputs, decoder(b), name="vae")
    mean = np.clip(images.mean, 0.001, 0.999)
    decoder.bias.assign(np.log(mean) - np.log1p(-mean))
    return model


def build_estimator(config: ml_collections.ConfigDict) -> relax_tf.estimators.Estimator:
    """The configured estimator, with those of the settings that it has."""
    estimator_class = type(relax_tf.estimators.get(config.estimator))
    settings = {"temperature": config.temperature, "coupled": config.coupled}
    known = estimator_class().get_config()
    arguments = {key: value for key, value in settings.items() if key in known}
    if "control_variate" in known:
        arguments["control_variate"] = relax_tf.control_variates.mlp(config.hidden_units)
    return estimator_class(**arguments)


def build_optimizer(config: ml_collections.ConfigDict) -> relax_tf.RelaxOptimizer:
    """Adam for both groups; in the first `warmup_steps` only the control variate moves."""
    rate = config.learning_rate
    if config.warmup_steps:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay([config.warmup_steps], [0.0, rate])
    return relax_tf.RelaxOptimizer(
        keras.optimizers.Adam(rate, beta_2=config.beta_2),
        keras.optimizers.Adam(
            config.control_variate_learning_rate,
            beta_2=config.beta_2,
            weight_decay=config.control_variate_weight_decay or None,
        ),
    )


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Trains, or goes on training, and returns the last row of `metrics.csv`."""
    folder = Workdir(workdir, config)
    images = load(config.dataset, config.data_dir or None, config.binarization)
    keras.utils.set_random_seed(config.seed)  # last: preparing a dataset draws random numbers
    model = build_model(config, images)
    model.compile(
        build_optimizer(config),
        loss=relax_tf.losses.BernoulliNegativeLogLikelihood(),
        jit_compile=config.jit_compile,
        steps_per_execution=config.steps_per_execution,
    )
    checkpoint = Checkpoint(folder.checkpoints / "vae.keras")
    start_step = checkpoint.restore(model)
    metrics = MetricsCSV(folder.metrics, _columns(), start_step, config.log_every)
    validation = _validation(images.validation)
    if start_step == 0:
        before = model.evaluate(validation, verbose=0, return_dict=True)
        metrics.write(0, {"val_loss": before["loss"]})
    model.fit(
        batches(images.train, config.batch_size, config.seed, start_step),
        initial_epoch=start_step // config.log_every,
        epochs=config.steps // config.log_every,
        steps_per_epoch=config.log_every,
        validation_data=validation,
        shuffle=False,  # `batches` does
        verbose=config.verbose,
        callbacks=[stop_on_nan(), metrics, *tensorboard(folder), checkpoint],
    )
    draw_figures(folder, model, images, metrics.rows)
    first, last = metrics.rows[0], metrics.rows[-1]
    print(
        f"{config.dataset}, {config.estimator}: validation ELBO {first['validation_elbo']:.2f} "
        f"before training, {last['validation_elbo']:.2f} after {last['step']} steps; "
        f"training ELBO of the last {config.log_every} steps {last['train_elbo']:.2f} nats; "
        f"{last['seconds']:.0f} s. Results in {folder.path}"
    )
    return last


def _columns() -> dict[str, Any]:
    def value(name: str):
        return lambda logs: logs.get(name, np.nan)

    return {
        "train_elbo": lambda logs: -value("loss")(logs),
        "validation_elbo": lambda logs: -value("val_loss")(logs),
        "b_second_moment": value("b_second_moment"),
    }


def _validation(images: np.ndarray) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(500)
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.map(lambda x: (x, x)).with_options(options)


def draw_figures(folder: Workdir, model: keras.Model, images: Images, rows: list) -> None:
    """Curves of the run, reconstructions, and decoded samples of the prior."""
    figures.elbo_curves(folder.figures / "curves.png", rows)
    originals = images.validation[:10]
    reconstructions = tf.sigmoid(model.predict(originals, verbose=0)).numpy()
    figures.image_rows(
        folder.figures / "reconstructions.png",
        {"data": originals, "reconstruction": reconstructions},
        images.image_shape,
    )
    prior = model.get_layer("b").prior_distribution()
    b = tf.squeeze(prior.draw(seed=0, sample_shape=(30,)).b, 1)
    samples = tf.sigmoid(model.get_layer("decoder")(b)).numpy()
    figures.image_rows(
        folder.figures / "prior_samples.png",
        {f"samples {k + 1}": samples[10 * k : 10 * (k + 1)] for k in range(3)},
        images.image_shape,
    )


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    train_and_evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
