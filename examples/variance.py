"""The variance of all unbiased estimators, side by side, on one frozen VAE.

    python -m examples.variance --config=configs/variance.py --workdir=DIR

trains a small VAE on digits with one estimator, freezes it, lets each estimator's control variate
adapt to it on the training images, and measures the variance of the gradient at theta on a batch
of validation images: `DIR/variance.csv` and `DIR/figures/variance.png`. Estimators that evaluate
the cost more often than others are also compared at equal numbers of evaluations. The same command
resumes the training.
"""

import csv
import pathlib

import keras
import ml_collections
import numpy as np

import relax_tf
from examples import vae
from examples.checkpoints import Checkpoint
from examples.data import Images, batches
from examples.metrics import MetricsCSV
from examples.runs import Workdir, replace_file, start
from relax_tf.diagnostics import Comparison, compare


def compiled_model(
    config: ml_collections.ConfigDict, images: Images, estimator: dict
) -> relax_tf.RelaxModel:
    """The VAE with this estimator, `{"id": ..., SETTING: ...}`; equal seeds, equal weights."""
    settings = config.copy_and_resolve_references()
    settings.estimator = estimator["id"]
    settings.estimator_settings = {k: v for k, v in estimator.items() if k != "id"}
    return vae.compiled_model(settings, images)


def train(config: ml_collections.ConfigDict, folder: Workdir, images: Images) -> keras.Model:
    """The VAE to be frozen, trained as `examples.vae` trains it, or the rest of that."""
    model = compiled_model(config, images, {"id": config.estimator})
    checkpoint = Checkpoint(folder.checkpoints / "vae.keras")
    start_step = checkpoint.restore(model)
    columns = {"train_elbo": lambda logs: -logs["loss"]}
    metrics = MetricsCSV(folder.metrics, columns, start_step, config.log_every)
    vae.fit(config, model, images, start_step, callbacks=[metrics, checkpoint])
    return model


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> Comparison:
    """Trains, freezes, adapts and measures; returns the comparison."""
    folder = Workdir(workdir, config)
    images = vae.load_images(config)
    frozen = train(config, folder, images)
    x = images.validation[: config.variance_batch]

    def build(name: str) -> relax_tf.RelaxModel:
        return compiled_model(config, images, dict(config.compared[name]))

    names = [name for name in config.compared]
    result = compare(
        build,
        names,
        x,
        x,
        num_draws=config.variance_draws,
        like=frozen,
        adapt_steps=config.adapt_steps,
        adapt_data=batches(images.train, config.batch_size, config.seed + 1),
    )
    print(result)
    replace_file(folder.path / "variance.csv", lambda path: _write(path, result))
    result.plot(str(folder.figures / "variance.png"))
    print(f"Results in {folder.path}")
    return result


def _write(path: pathlib.Path, result: Comparison) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["estimator", "evaluations", "layer", "variance", "log_variance"])
        for name, by_layer in result.variances.items():
            for layer, variance in by_layer.items():
                writer.writerow(
                    [name, result.evaluations[name], layer, variance, float(np.log(variance))]
                )


if __name__ == "__main__":
    start(train_and_evaluate)
