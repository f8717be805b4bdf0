"""A stochastic layer outside of the passes of a RelaxModel: in plain Keras models, by itself."""

from typing import Any

import tensorflow as tf

from relax_tf.distributions import Distribution
from relax_tf.distributions.noise import fold_in
from relax_tf.estimators.estimate import batch_mean
from relax_tf.keras_internals import current_call
from relax_tf.layers.passes import without_chance


def sample_alone(layer: Any, dist: Distribution, training: bool | None) -> tf.Tensor:
    """The sample where no pass of a RelaxModel is active; the KL joins by `add_loss`."""
    sample = _sample(layer, dist, training)
    if layer.prior is not None:
        layer.add_loss(batch_mean(layer.kl_divergence(dist, sample)))
    return sample


def _sample(layer: Any, dist: Distribution, training: bool | None) -> tf.Tensor:
    if not training:
        if layer.inference != "sample":
            return without_chance(dist, layer.inference)
        return dist.draw(_seed(layer)).b
    if layer.estimator.needs_cost:
        raise ValueError(
            f"layer {layer.name!r} was called with training=True outside of a training step "
            f"of relax_tf.RelaxModel, but its estimator {layer.estimator.id!r} needs the "
            "cost of its sample. Use a relax_tf.RelaxModel with `fit` or `estimate`, call "
            "with training=False, or choose an estimator that backpropagates through its "
            "own sample ('concrete', 'straight_through', 'reinmax'; 'reparameterization' "
            "where the sample is continuous)."
        )
    return layer.estimator.emit(dist, dist.draw(_seed(layer)))


def _seed(layer: Any) -> tf.Tensor:
    """`next_seed` where no pass numbers the calls: differs between layers of one seed."""
    position = _position_in_call(layer)
    return fold_in(layer.next_seed(), position) if position else layer.next_seed()


def _position_in_call(layer: Any) -> int:
    """How many other stochastic layers the outermost Keras call met before this one.

    By the order of calls, not by names: a model that is built again numbers its layers alike.
    """
    call = current_call()
    if call is None:  # `layer.call` by itself
        return 0
    seen = call.get_value("relax_tf_layers", [])
    if layer not in seen:
        seen.append(layer)
    call.set_value("relax_tf_layers", seen)
    return seen.index(layer)
