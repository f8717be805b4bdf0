"""Running mean and spread of past batches: baselines that do not depend on the present sample."""

import keras
import tensorflow as tf


class MovingMoments(keras.layers.Layer):
    """Exponentially weighted mean and standard deviation of all values seen in past batches.

    West's incremental update, in which each batch weighs `decay` times the next one; so they are
    exact weighted averages from the first batch on, with no bias towards their initial zeros.

    Args:
        decay: in [0, 1): the weight of a batch relative to that of the one after it.
    """

    def __init__(self, decay: float, **kwargs):
        super().__init__(**kwargs)
        self.decay = decay
        self._weight, self._mean, self._squares = (
            self.add_weight(
                name=name, shape=(), initializer="zeros", trainable=False, aggregation="mean"
            )
            for name in ("weight", "mean", "squares")
        )
        self.built = True

    def mean(self) -> tf.Tensor:
        """Of past values, a scalar; 0 before the first batch."""
        return tf.convert_to_tensor(self._mean)

    def standard_deviation(self) -> tf.Tensor:
        """Of past values, a scalar; 0 before the first batch."""
        weight = tf.convert_to_tensor(self._weight)
        return tf.sqrt(tf.math.divide_no_nan(tf.convert_to_tensor(self._squares), weight))

    def update(self, values: tf.Tensor) -> None:
        """Takes in a batch, `[batch]` or `[..., batch]`.

        Under `tf.distribute` the batch is that of all replicas together. An empty batch leaves
        everything as it is, and so does one that holds a NaN or an infinity: a single one of them
        would otherwise stay in the averages for good.
        """
        values = tf.cast(values, self.variable_dtype)
        weight, mean, squares = map(tf.convert_to_tensor, (self._weight, self._mean, self._squares))
        count = _over_replicas(tf.cast(tf.size(values), values.dtype))

        def batch_mean(values):
            return tf.math.divide_no_nan(_over_replicas(tf.reduce_sum(values)), count)

        batch = batch_mean(values)
        spread = batch_mean(tf.square(values - batch))
        valid = tf.math.is_finite(spread) & (count > 0)
        batch, spread = (tf.where(valid, moment, 0.0) for moment in (batch, spread))
        one = tf.cast(valid, values.dtype)
        decay = 1 - one + one * self.decay
        past, present = decay * weight, decay * weight + one
        delta = one * (batch - mean)
        self._mean.assign(mean + tf.math.divide_no_nan(delta, present))
        self._squares.assign(
            decay * squares + spread + tf.math.divide_no_nan(tf.square(delta) * past, present)
        )
        self._weight.assign(present)


def _over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The sum over the replicas of a distributed step, `value` itself elsewhere."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)
