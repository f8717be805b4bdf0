"""Distributions to differentiate through: draws, relaxations, scores and conditional derivatives.

They hold the parameters `theta` of one stochastic layer and know what equations 7 and 10 of the
paper need: `z` from noise, `b = H(z)`, the score, and how `z` and `z_tilde ~ p(z|b)` move with
`theta`. They are plain objects around tensors: no state, no Keras.
"""

from relax_tf.distributions.base import Distribution, Draw
from relax_tf.distributions.bernoulli import Bernoulli
from relax_tf.distributions.normal import Normal
from relax_tf.distributions.one_hot_categorical import OneHotCategorical

__all__ = ["Bernoulli", "Distribution", "Draw", "Normal", "OneHotCategorical"]
