"""Where the time of a step goes, and how little it could be.

    python -m benchmarks.profile --estimator=relaxed_rebar --batch_size=24

prints the time of each XLA kernel (TensorFlow's profiler, names joined with the optimised HLO), the
sum by kind of kernel, and the floor: the products of matrices of the step at the speed of one big
product, and the bytes that Adam moves at the speed of a pass over as much memory, both measured
here.
"""

import collections
import os
import pathlib
import re
import tempfile
import time

_DUMP = tempfile.mkdtemp()
os.environ["XLA_FLAGS"] = (  # before TensorFlow is imported
    f"--xla_dump_to={_DUMP} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*one_step.*"
)

import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402

from benchmarks import models, timing  # noqa: E402

_ESTIMATOR = flags.DEFINE_string("estimator", "relaxed_rebar", "An id.")
_ARCHITECTURE = flags.DEFINE_string("architecture", "linear1", "Of models.compiled.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 24, "Examples in a batch.")
_TOP = flags.DEFINE_integer("top", 30, "Kernels to print.")

_PIXELS, _UNITS, _HIDDEN = 784, 200, 200

# Products of a batch of rows with a matrix of this size, or of two batches of rows to one, that
# the linear one-layer VAE needs: encoder and decoder maps forward, their weights' gradients, and
# the decoder back to its input.
_PRODUCTS = {"straight_through": {_PIXELS * _UNITS: 5}, "reinforce": {_PIXELS * _UNITS: 4}}
# r_phi: the context forward and its weights' gradient; z, and the hidden layer, forward, back,
# tangent, weights' gradient.
_NETWORK = {_PIXELS * _HIDDEN: 2, _UNITS * _HIDDEN: 4, _HIDDEN * _HIDDEN: 4}
# eta f(relax(z, lambda)): the decoder forward, back, the tangent of both for eta and lambda.
_BASELINE = {_PIXELS * 64: 2}  # `relax` only
_RELAXED = {_PIXELS * _UNITS: 4}
_ADAM_BYTES = 7 * 4  # reads a parameter, its gradient and two moments, writes three of them


def products(estimator: str) -> int:
    """Multiplications of the products of a step, for one example."""
    parts = {
        "relax": [_PRODUCTS["reinforce"], _NETWORK, _BASELINE],
        "relaxed_rebar": [_PRODUCTS["reinforce"], _NETWORK, _RELAXED],
        "rebar": [_PRODUCTS["reinforce"], _RELAXED],
    }.get(estimator, [_PRODUCTS.get(estimator, {})])
    return sum(size * count for part in parts for size, count in part.items())


def kernels(model, dataset, steps: int) -> tuple[collections.Counter, collections.Counter]:
    """Microseconds a step, and calls a step, of whatever the profiler saw, by name."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    arguments = {"steps_per_epoch": steps, "verbose": 0, "shuffle": False}
    model.fit(dataset, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            model.fit(dataset, **arguments)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    microseconds, calls = collections.Counter(), collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                microseconds[name] += event.duration_ps / 1e6 / steps
                calls[name] += 1 / steps
    return microseconds, calls


def definitions() -> dict[str, str]:
    """The instructions of the compiled step by name, from what XLA dumped."""
    dumps = pathlib.Path(_DUMP).glob("*cpu_after_optimizations.txt")
    text = max(dumps, key=lambda path: path.stat().st_size).read_text()
    lines = re.findall(r"%(\S+) = (.*)", text[text.index("ENTRY") :])
    return {name: re.split(", metadata|, frontend", line)[0] for name, line in lines}


def machine(floats: int) -> tuple[float, float]:
    """Multiplications and bytes a second: a product of large matrices, passes over `floats`."""
    a, v, passes = tf.random.normal([2048, 2048]), tf.ones([floats]), 20
    product = tf.function(lambda: a @ a, jit_compile=True)

    @tf.function(jit_compile=True)
    def update():  # in place, as an optimizer does
        return tf.while_loop(lambda i, v: i < passes, lambda i, v: (i + 1, 0.5 * v + 1.0), (0, v))

    return 2048**3 / _fastest(product), 8 * floats * passes / _fastest(update)


def _fastest(function) -> float:
    function()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def report(estimator: str, architecture: str, batch_size: int, steps: int, top: int) -> list[str]:
    """The lines that `main` prints."""
    model = models.compiled(estimator, architecture)
    microseconds, calls = kernels(model, models.data(batch_size), steps)
    compiled = definitions()
    found = [name for name, _ in microseconds.most_common() if name in compiled]
    lines = [
        f"{microseconds[name]:9.1f} us {calls[name]:5.1f}x  {name[:36]:36s} {compiled[name][:90]}"
        for name in found[:top]
    ]
    kinds = collections.Counter()
    for name in found:
        kinds["products" if " dot(" in compiled[name] else "other kernels"] += microseconds[name]
    lines += [f"{total:9.1f} us        {kind}" for kind, total in kinds.most_common()]
    if architecture == "linear1" and (multiplications := products(estimator) * batch_size):
        parameters = sum(v.value.shape.num_elements() for v in model.trainable_variables)
        bytes_moved = _ADAM_BYTES * parameters
        per_second, bytes_per_second = machine(3 * parameters)
        lines += [
            f"floor: {2e-6 * multiplications:.1f} MFLOP, at {2e-9 * per_second:.0f} GFLOP/s "
            f"{1e6 * multiplications / per_second:.0f} us; Adam {1e-6 * bytes_moved:.1f} MB, at "
            f"{1e-9 * bytes_per_second:.1f} GB/s {1e6 * bytes_moved / bytes_per_second:.0f} us"
        ]
    return lines


def main(argv):
    del argv
    arguments = (_ESTIMATOR.value, _ARCHITECTURE.value, _BATCH_SIZE.value)
    print("\n".join(report(*arguments, timing.STEPS.value, _TOP.value)))


if __name__ == "__main__":
    app.run(main)
