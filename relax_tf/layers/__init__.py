"""Stochastic layers: `theta = x W + beta`, a sample of `p(b|theta)` out, gradients by estimators.

A stochastic layer drops into any Keras model; `relax_tf.RelaxModel` trains it. In evaluation and
prediction it samples (or emits its mean). In training its estimator decides what it emits and
how the gradient comes back to theta. `Parameters` are a theta that depends on no input.
"""

from relax_tf.layers.base import StochasticLayer
from relax_tf.layers.binary import StochasticBinaryLayer
from relax_tf.layers.categorical import StochasticCategoricalLayer
from relax_tf.layers.normal import StochasticNormalLayer
from relax_tf.layers.parameters import Parameters

__all__ = [
    "Parameters",
    "StochasticBinaryLayer",
    "StochasticCategoricalLayer",
    "StochasticLayer",
    "StochasticNormalLayer",
]
