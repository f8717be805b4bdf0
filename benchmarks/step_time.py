"""Time of one optimisation step through `model.fit`, against the straight-through floor.

    python -m benchmarks.step_time --quick
    python -m benchmarks.step_time --batch_sizes=24,100 --rounds=7

The unit of work is the linear one-layer VAE 784-200-784, both parameter groups updated, data in
memory. All models live in one process and take turns; each cell is the median over the rounds. The
floor is the same model trained with `straight_through`.
"""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import relax_tf

_QUICK = flags.DEFINE_bool("quick", False, "Batch 24 with XLA only, few rounds.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["24", "100"], "Batch sizes.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each model.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps in a round.")
_ESTIMATORS = flags.DEFINE_list(
    "estimators",
    ["straight_through", "reinforce", "rebar", "relax", "relaxed_rebar"],
    "The first is the floor.",
)


def vae(estimator: str, jit_compile: bool, steps_per_execution: int) -> relax_tf.RelaxModel:
    """The linear one-layer VAE of design section 7, compiled."""
    inputs = keras.Input([784])
    b = relax_tf.StochasticBinaryLayer(
        200, estimator, support=(-1, 1), prior="learned", kl="sampled"
    )(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(784)(b))
    model.compile(
        keras.optimizers.Adam(1e-3),
        loss=relax_tf.losses.BernoulliNegativeLogLikelihood(),
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    return model


def data(batch_size: int) -> tf.data.Dataset:
    """Random binary images, in memory, without end."""
    x = (np.random.RandomState(0).rand(10 * batch_size, 784) < 0.2).astype(np.float32)
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices((x, x)).batch(batch_size).cache().repeat()
    return dataset.with_options(options)


class _Timer(keras.callbacks.Callback):
    """Seconds of an epoch, from inside: `fit` has start-up costs of its own."""

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self._start


def measure(batch_size: int, jit_compile: bool, steps_per_execution: int, rounds: int) -> dict:
    """Milliseconds a step, by estimator, and seconds until the first round was through."""
    dataset, timer, steps = data(batch_size), _Timer(), _STEPS.value
    models = {e: vae(e, jit_compile, steps_per_execution) for e in _ESTIMATORS.value}
    arguments = {"steps_per_epoch": steps, "callbacks": [timer], "verbose": 0, "shuffle": False}
    first, times = {}, {estimator: [] for estimator in models}
    for estimator, model in models.items():
        start = time.perf_counter()
        model.fit(dataset, **arguments)
        first[estimator] = time.perf_counter() - start
    for _ in range(rounds):
        for estimator, model in models.items():
            model.fit(dataset, **arguments)
            times[estimator].append(1e3 * timer.seconds / steps)
    return {e: (statistics.median(times[e]), first[e]) for e in models}


def main(argv):
    del argv
    cases = [(int(size), True, 50) for size in _BATCH_SIZES.value]
    cases += [(int(size), False, 1) for size in _BATCH_SIZES.value]
    rounds = _ROUNDS.value
    if _QUICK.value:
        cases, rounds = [(24, True, 50)], 3
    print("batch   XLA  estimator          ms/step  ratio  first round (s)")
    for batch_size, jit_compile, steps_per_execution in cases:
        results = measure(batch_size, jit_compile, steps_per_execution, rounds)
        floor = results[_ESTIMATORS.value[0]][0]
        for estimator, (milliseconds, first) in results.items():
            print(
                f"{batch_size:5d} {jit_compile!s:>5}  {estimator:17s} {milliseconds:8.3f} "
                f"{milliseconds / floor:6.2f} {first:8.1f}"
            )


if __name__ == "__main__":
    app.run(main)
