"""What `tf.distribute` strategies cannot do through `fit`: refused before Keras fails on it."""

import keras
import tensorflow as tf


def check_strategy(model: keras.Model) -> None:
    """Raises a ValueError where Keras cannot run `fit` or `evaluate` under the model's strategy.

    Keras 3.15 fails there with any model (keras-team/keras issues 20585 and 19246). A loop around
    `train_step` works in all these cases, without XLA.
    """
    strategy = model.distribute_strategy
    if _spans_machines(strategy):
        raise ValueError(
            "Keras's `fit` and `evaluate` do not work under MultiWorkerMirroredStrategy with more "
            "than one worker. Write the loop yourself, it is six lines around "
            "`strategy.run(model.train_step, args=(batch,))`: see the documentation of "
            "relax_tf.RelaxModel.train_step, and examples/distributed.py."
        )
    if strategy.num_replicas_in_sync == 1:
        return
    for argument, used, only in (
        ("jit_compile", model.jit_compile, False),
        ("steps_per_execution", model.steps_per_execution > 1, 1),
    ):
        if used:
            raise ValueError(
                f"Keras does not support `{argument}` on {strategy.num_replicas_in_sync} replicas "
                f"({type(strategy).__name__}). Compile with `{argument}={only}`. "
                f"Received: {argument}={getattr(model, argument)}"
            )


def _spans_machines(strategy: tf.distribute.Strategy) -> bool:
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec()
    return sum(cluster.num_tasks(job) for job in cluster.jobs if job in ("chief", "worker")) > 1
