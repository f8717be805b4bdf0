"""Right uses of public entry points, for tests that make one argument wrong."""

import pytest
import tensorflow as tf

import relax_tf
from relax_tf import estimators
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical

DIST = Bernoulli(tf.zeros([4, 3]))
NORMAL = Normal(tf.zeros([4, 3]), tf.ones([4, 3]))
ONE_HOT = OneHotCategorical(tf.zeros([4, 3]))


def total(b):
    return tf.reduce_sum(b, -1)


def estimate(identifier="relax", dist=DIST, cost=total, **arguments):
    return estimators.get(identifier).estimate(dist, cost, **arguments)


def numpy_cost(b):
    return tf.ensure_shape(tf.numpy_function(lambda b: b.sum(-1), [b], tf.float32), [4])


def layer(**arguments):
    return relax_tf.StochasticBinaryLayer(**{"units": 2, **arguments})


def categorical(**arguments):
    return relax_tf.StochasticCategoricalLayer(
        **{"num_variables": 2, "num_classes": 3, **arguments}
    )


def normal(**arguments):
    return relax_tf.StochasticNormalLayer(**{"units": 2, **arguments})


def assert_says(call, error, message):
    with pytest.raises(error, match=f"(?s){message}") as raised:
        call()
    assert type(raised.value) is error, raised.value
