import keras
import pytest


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same seeds and leaves Keras's global settings alone."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
