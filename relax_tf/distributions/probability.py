"""TensorFlow Probability, loaded where a log-probability or a KL is asked for.

Loading it takes a second or two, and most estimates need neither.
"""

from types import ModuleType

import tensorflow as tf


def tfp_distributions() -> ModuleType:
    """The module `tensorflow_probability.distributions`."""
    with tf.init_scope():  # what it makes when it is loaded belongs to no graph being traced
        from tensorflow_probability import distributions
    return distributions
