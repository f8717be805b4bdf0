"""A variational autoencoder with Bernoulli latent variables (section 6.2 of the paper).

    python -m examples.vae --config=configs/vae_digits.py --workdir=DIR

trains with `RelaxModel.fit`, logs the ELBO in nats and each layer's second moment of the gradient
estimate to `DIR/metrics.csv`, writes the importance-weighted bound at the end to
`DIR/results.json`, and draws figures. The same command resumes.

    python -m examples.vae --workdir=DIR --evaluate

writes `results.json` for whatever checkpoint `DIR` holds, without training. The ELBOs of
`metrics.csv` take one sample for each image, the training ELBO is the mean over the steps since
the row before. It is what the estimator optimises: `vimco`'s is its bound, `concrete`'s that of
relaxed samples.
"""

import json
import pathlib
from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf
from absl import app, flags

import relax_tf
from examples import figures
from examples.checkpoints import BestCheckpoint, Checkpoint, stop_on_nan
from examples.data import Images, batches, load
from examples.iwae import importance_weighted_bound
from examples.metrics import MetricsCSV
from examples.runs import Workdir, replace_file, start, tensorboard
from examples.vae_models import build_model, prior_means, reconstructions, stochastic_layers

_BEST = "best.keras"  # the row with the best validation ELBO


def build_optimizer(config: ml_collections.ConfigDict) -> relax_tf.RelaxOptimizer:
    """Adam for both groups; in the first `warmup_steps` only the control variate moves.

    Where the rate decays, it rises linearly in these steps.
    """
    schedules = keras.optimizers.schedules
    rate, warmup = config.learning_rate, config.warmup_steps
    # Runs that were stored before there was the field have it not; so below.
    decay_to = config.get("decay_to", 1.0)
    if decay_to < 1:
        rising = {"warmup_target": rate, "warmup_steps": warmup} if warmup else {}
        rate = schedules.CosineDecay(
            0.0 if warmup else rate, config.steps - warmup, decay_to, **rising
        )
    elif warmup:
        rate = schedules.PiecewiseConstantDecay([warmup], [0.0, rate])
    return relax_tf.RelaxOptimizer(
        keras.optimizers.Adam(rate, beta_2=config.beta_2),
        keras.optimizers.Adam(
            config.control_variate_learning_rate,
            beta_2=config.beta_2,
            weight_decay=config.control_variate_weight_decay or None,
        ),
        control_variate_update_every=config.get("control_variate_update_every", 1),
    )


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Trains, or goes on training, and returns the last row of `metrics.csv`."""
    folder = Workdir(workdir, config)
    images = load_images(config)
    model = compiled_model(config, images)
    checkpoint = Checkpoint(folder.checkpoints / "vae.keras")
    start_step = checkpoint.restore(model)
    metrics = MetricsCSV(folder.metrics, _columns(model), start_step, config.log_every)
    best = BestCheckpoint(folder.checkpoints / _BEST, metrics.rows, "validation_elbo")
    validation = _validation(images.validation)
    if start_step == 0:
        before = model.evaluate(validation, verbose=0, return_dict=True)
        metrics.write(0, {"val_loss": before["loss"]})
    callbacks = [stop_on_nan(), metrics, best, *tensorboard(folder), checkpoint]
    fit(config, model, images, start_step, validation_data=validation, callbacks=callbacks)
    bounds = evaluate(config, workdir, images, model)
    draw_figures(folder, model, images, metrics.rows)
    first, last = metrics.rows[0], metrics.rows[-1]
    print(
        f"{config.dataset}, {config.architecture}, {config.estimator}: validation ELBO "
        f"{first['validation_elbo']:.2f} before training, {last['validation_elbo']:.2f} after "
        f"{last['step']} steps; training ELBO of the last {config.log_every} steps "
        f"{last['train_elbo']:.2f} nats; {last['seconds']:.0f} s."
    )
    _print_bounds(bounds)
    print(f"Results in {folder.path}")
    return last


def fit(
    config: ml_collections.ConfigDict,
    model: keras.Model,
    images: Images,
    start_step: int,
    **arguments: Any,
) -> None:
    """Keras's `fit` from `start_step` on, an epoch for each `log_every` steps."""
    model.fit(
        batches(images.train, config.batch_size, config.seed, start_step),
        initial_epoch=start_step // config.log_every,
        epochs=config.steps // config.log_every,
        steps_per_epoch=config.log_every,
        shuffle=False,  # `batches` does
        verbose=config.verbose,
        **arguments,
    )


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str,
    images: Images | None = None,
    model: keras.Model | None = None,
) -> dict[str, Any]:
    """Bounds on the validation images at the last checkpoint and at the best one.

    Writes `results.json`, leaves the checkpoints alone, and leaves the last one in `model`.

    Raises:
        ValueError: if `workdir` holds no checkpoint.
    """
    folder = Workdir(workdir, config)
    last = Checkpoint(folder.checkpoints / "vae.keras")
    if not last.path.exists():
        raise ValueError(f"there is nothing to evaluate: {last.path} does not exist.")
    images = load_images(config) if images is None else images
    model = compiled_model(config, images) if model is None else model
    results = {"images": len(images.validation), "samples": config.iwae_samples}
    for name, checkpoint in (("best", Checkpoint(folder.checkpoints / _BEST)), ("last", last)):
        if checkpoint.path.exists():
            step = checkpoint.restore(model)
            bounds = importance_weighted_bound(model, images.validation, config.iwae_samples)
            results[name] = {"step": step, **bounds._asdict()}
    text = json.dumps(results, indent=2) + "\n"
    replace_file(folder.path / "results.json", lambda path: path.write_text(text))
    last.restore(model)
    return results


def stored_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration of the run that `workdir` holds."""
    text = (pathlib.Path(workdir) / "config.json").read_text()
    return ml_collections.ConfigDict(json.loads(text))


def _print_bounds(results: dict[str, Any]) -> None:
    for name in ("best", "last"):
        if name in results:
            print(
                f"validation, {name} checkpoint (step {results[name]['step']}): ELBO "
                f"{results[name]['elbo']:.2f}, {results['samples']}-sample importance-weighted "
                f"bound {results[name]['bound']:.2f} nats"
            )


def load_images(config: ml_collections.ConfigDict) -> Images:
    """The configured dataset, splits and binarisation."""
    return load(
        config.dataset,
        config.data_dir or None,
        config.binarization,
        splits=tuple(config.splits) or None,
    )


def compiled_model(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    """The configured model before training, a function of `config.seed`.

    Build it after the data are at hand: preparing a dataset draws random numbers.
    """
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, images)
    model.compile(
        build_optimizer(config),
        loss=relax_tf.losses.BernoulliNegativeLogLikelihood(),
        jit_compile=config.jit_compile,
        steps_per_execution=config.steps_per_execution,
    )
    return model


def _columns(model: keras.Model) -> dict[str, Any]:
    def value(name: str):
        return lambda logs: logs.get(name, np.nan)

    moments = [f"{layer.name}_second_moment" for layer in stochastic_layers(model)]
    return {
        "train_elbo": lambda logs: -value("loss")(logs),
        "validation_elbo": lambda logs: -value("val_loss")(logs),
        **{name: value(name) for name in moments},
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
    figures.image_rows(
        folder.figures / "reconstructions.png",
        {"data": originals, "reconstruction": reconstructions(model, originals)},
        images.image_shape,
    )
    samples = prior_means(model, 30)
    figures.image_rows(
        folder.figures / "prior_samples.png",
        {f"samples {k + 1}": samples[10 * k : 10 * (k + 1)] for k in range(3)},
        images.image_shape,
    )


def main(config: ml_collections.ConfigDict | None, workdir: str) -> None:
    if not _EVALUATE.value:
        if config is None:
            raise app.UsageError("--config is required, except with --evaluate.")
        train_and_evaluate(config, workdir)
        return
    _print_bounds(evaluate(config or stored_config(workdir), workdir))


if __name__ == "__main__":
    _EVALUATE = flags.DEFINE_bool("evaluate", False, "Only write results.json, without training.")
    start(main)
