"""The VAE of `examples/vae.py` on several machines: one program, started on each of them.

    python -m examples.distributed --config=configs/distributed.py --workdir=DIR

Every machine trains on its share of each batch, and all hold the same weights. `TF_CONFIG` says
which machines there are and which one this is; without it the example runs on one machine and
prints the commands for two. DIR must be a folder that all machines see: the first writes it, the
others read its checkpoint when a run resumes.
"""

import json
import operator
import pathlib
from collections.abc import Iterable

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import relax_tf
from examples.checkpoints import Checkpoint
from examples.data import batches, load
from examples.metrics import MetricsCSV
from examples.runs import Workdir, start, tensorboard
from examples.vae import build_model, build_optimizer

_COMMAND = (
    "TF_CONFIG='{}' python -m examples.distributed --config=configs/distributed.py --workdir={}"
)


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str, strategy: tf.distribute.Strategy
) -> dict[str, float]:
    """Trains, or goes on training, and returns the last metrics, the same on every machine."""
    images = load(config.dataset, config.data_dir or None, config.binarization)
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = build_model(config, images)
        loss = relax_tf.losses.BernoulliNegativeLogLikelihood()
        model.compile(build_optimizer(config), loss=loss, jit_compile=False)
        checkpoint = Checkpoint(pathlib.Path(workdir) / "checkpoints" / "distributed.keras")
        start_step = checkpoint.restore(model)
    check_agreement(strategy, start_step)

    @tf.function(autograph=False)
    def train_step(batch):
        strategy.run(model.train_step, args=(batch,))

    @tf.function(autograph=False)
    def test_step(batch):
        strategy.run(model.test_step, args=(batch,))

    def run(step, dataset: Iterable) -> dict[str, float]:
        model.reset_metrics()
        for batch in dataset:
            step(batch)
        return {name: float(value) for name, value in model.get_metrics_result().items()}

    train = batches(images.train, config.batch_size, config.seed, start_step)
    train = iter(strategy.experimental_distribute_dataset(train))
    validation = tf.data.Dataset.from_tensor_slices((images.validation,) * 2).batch(96)
    validation = strategy.experimental_distribute_dataset(validation)
    callbacks = (
        writers(config, workdir, model, start_step, checkpoint) if is_first(strategy) else []
    )
    callbacks = keras.callbacks.CallbackList(callbacks, model=model)
    callbacks.on_train_begin()
    logs = {}
    for epoch in range(start_step // config.log_every, config.steps // config.log_every):
        logs = run(train_step, (next(train) for _ in range(config.log_every)))
        logs["val_loss"] = run(test_step, validation)["loss"]
        callbacks.on_epoch_end(epoch, logs)
        if config.verbose and is_first(strategy):
            print(f"step {(epoch + 1) * config.log_every}: validation ELBO {-logs['val_loss']:.2f}")
    callbacks.on_train_end()
    return logs


def is_first(strategy: tf.distribute.MultiWorkerMirroredStrategy) -> bool:
    """Whether this machine is the one that writes files."""
    return not strategy.cluster_resolver.task_id


def check_agreement(strategy: tf.distribute.Strategy, start_step: int) -> None:
    """Raises a ValueError unless all machines found the same checkpoint."""
    steps = strategy.run(lambda: tf.constant(start_step))
    total = strategy.reduce("SUM", steps, axis=None)
    if int(total) != start_step * strategy.num_replicas_in_sync:
        raise ValueError(
            "the machines found different checkpoints: --workdir must be a folder that all of them "
            f"see. This one resumes from step {start_step}."
        )


def writers(
    config: ml_collections.ConfigDict,
    workdir: str,
    model: keras.Model,
    start_step: int,
    checkpoint: Checkpoint,
) -> list[keras.callbacks.Callback]:
    """What keeps the run's files, on the first machine."""
    folder = Workdir(workdir, config)
    moments = [metric.name for metric in model.metrics if metric.name.endswith("second_moment")]
    columns = {
        "train_elbo": lambda logs: -logs["loss"],
        "validation_elbo": lambda logs: -logs["val_loss"],
        **{name: operator.itemgetter(name) for name in moments},
    }
    metrics = MetricsCSV(folder.metrics, columns, start_step, config.log_every)
    return [metrics, *tensorboard(folder), checkpoint]


def print_commands(workdir: str) -> None:
    """The commands that start the example on two machines."""
    workers = ["HOST0:12345", "HOST1:12345"]
    print("On two machines (put their addresses in place of HOST0 and HOST1) start one on each:")
    for index in range(len(workers)):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        print(" ", _COMMAND.format(json.dumps(task), workdir))


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    if not strategy.cluster_resolver.cluster_spec().jobs:
        print_commands(workdir)
    logs = train_and_evaluate(config, workdir, strategy)
    print(f"validation ELBO {-logs.get('val_loss', np.nan):.2f} nats")


if __name__ == "__main__":
    start(main)
