"""A worker of `tests/distribute_test.py`: `python -m tests.worker FOLDER` under TF_CONFIG."""

import os
import pathlib
import sys

import numpy as np
import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else runs

from configs import distributed as config_file  # noqa: E402
from examples import distributed  # noqa: E402
from tests import replicas  # noqa: E402


def build():
    with strategy.scope():
        model = replicas.build()
        model.optimizer.build(model.trainable_variables)
    return model


def train(model, epochs):
    """The loop of `RelaxModel.train_step`'s documentation; returns the metrics of each epoch."""
    dataset = tf.data.Dataset.from_tensor_slices(replicas.data()).batch(8)

    @tf.function(autograph=False)
    def step(batch):
        strategy.run(model.train_step, args=(batch,))

    history = []
    for _ in range(epochs):
        model.reset_metrics()
        for batch in strategy.experimental_distribute_dataset(dataset):
            step(batch)
        history.append({k: float(v) for k, v in model.get_metrics_result().items()})
    return history


def refusal(model):
    try:
        model.fit(*replicas.data()[:2], verbose=0)
    except ValueError as error:
        return str(error)
    return "fit ran"


def sample(model):
    """The noise of a plain layer on this worker."""
    layer = distributed.relax_tf.StochasticBinaryLayer(50)
    with strategy.scope():
        layer.build((None, 2))

    @tf.function(autograph=False)
    def draw():
        return strategy.run(lambda: layer(tf.zeros([4, 2])))

    return strategy.experimental_local_results(draw())[0].numpy()


def main(folder):
    index = strategy.cluster_resolver.task_id
    model = build()
    message = refusal(model)
    history = train(model, 2)
    saved = folder / f"saved-{index}.keras"
    model.save(saved)
    history += train(model, 1)
    restored = build()
    with strategy.scope():
        restored.load_weights(saved)
    train(restored, 1)
    results = {f"log-{name}": [logs[name] for logs in history] for name in history[0]}
    results |= {f"trained-{i}": weight for i, weight in enumerate(model.get_weights())}
    results |= {f"restored-{i}": weight for i, weight in enumerate(restored.get_weights())}
    np.savez(folder / f"worker-{index}.npz", sample=sample(model), refusal=message, **results)

    config = config_file.get_config()
    config.update(steps=20, log_every=10, units=4, hidden_units=(8,), verbose=0)
    config.data_dir = str(folder / f"tfds-{index}")
    distributed.train_and_evaluate(config, os.fspath(folder / "example"), strategy)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
