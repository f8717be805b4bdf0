import gc

import hypothesis
import keras
import pytest
import tensorflow as tf

import relax_tf

# Two devices for tests/distribute_test.py; TensorFlow wants to know before it starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# The suite runs in a process for each core.
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

# TensorFlow's tuning of input pipelines makes every `fit` wait for a tenth of a second at its end.
_iterator_of = tf.data.Dataset.__iter__
_UNTUNED = tf.data.Options()
_UNTUNED.autotune.enabled = False
tf.data.Dataset.__iter__ = lambda dataset: _iterator_of(dataset.with_options(_UNTUNED))

# Few examples, the same in every run: properties share the time of a whole suite.
hypothesis.settings.register_profile(
    "bounded", max_examples=12, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("bounded")


def pytest_collection_finish():
    """Traces are many small objects: looking through all modules at every 700th takes a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def _uncertified(request, monkeypatch):
    """Tests of other things than the certificate may do without: it takes a third of their time."""
    if request.node.get_closest_marker("uncertified"):
        monkeypatch.setattr(relax_tf.RelaxModel, "certify", False)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same seeds and leaves Keras's global settings alone."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    # What a function that raises inside `tf.map_fn` leaves in the outermost graph; with it no
    # `strategy.scope()` of the same process can be entered any more.
    with tf.compat.v1.get_default_graph().as_default():
        tf.compat.v1.get_variable_scope().set_caching_device(None)
