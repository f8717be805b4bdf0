"""Priors of stochastic layers: their parameters, the KL, samples from them."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import Distribution
from relax_tf.validation import one_of, positive_integers


class PriorLayer(keras.layers.Layer):
    """What a stochastic layer knows of its prior.

    Attributes:
        prior: None, the name of the class's fixed prior, or `"learned"`.
        kl: `"analytic"` or `"sampled"`.
        fixed_prior: the name of the prior that has nothing to learn.
    """

    prior: str | None
    kl: str
    fixed_prior = "uniform"

    def _new_prior(self, prior: str | None) -> str | None:
        prior = one_of(prior, [None, self.fixed_prior, "learned"], "prior")
        if self.built and prior != self.prior:
            raise ValueError(
                f"layer {self.name!r} is built, with the variables of its prior: `prior` cannot be "
                "changed any more. Make a new layer (`layer.get_config()` has its settings). "
                f"Received: prior={prior!r}"
            )
        return prior

    def prior_distribution(self, event_rank: int) -> Distribution:
        """The prior, with axes of size 1 for the batch and for leading axes of the event.

        All positions of a map or a sequence share the prior of their units.
        """
        raise NotImplementedError

    def build_prior(self, units: tuple[int, ...]) -> None:
        """Creates the prior's variables, by `add_prior_weight`, of the shape of the units."""
        raise NotImplementedError

    def add_prior_weight(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        """A parameter of the prior that starts at 0, and stays there unless it is learned."""
        return self.add_weight(
            name=name, shape=shape, initializer="zeros", trainable=self.prior == "learned"
        )

    def kl_divergence(self, dist: Distribution, sample: tf.Tensor) -> tf.Tensor | None:
        """`KL(p(b|theta) || prior)`, `[batch]`, exact or at the sample; None without a prior."""
        if self.prior is None:
            return None
        prior = self.prior_distribution(event_rank=dist.shape.rank - 1)
        if self.kl == "analytic":
            return dist.kl_divergence(prior)
        return dist.log_prob(sample) - prior.log_prob(sample)

    def sample_prior(self, shape: Sequence[int], seed: Any = None) -> tf.Tensor:
        """Samples of the prior, to generate with: the decoder of a VAE takes them in b's place.

        Args:
            shape: of what stands in front of the units, positive integers: `[n]` for n samples of
                a layer of units, `[n, height, width]` for samples of a feature map, all of whose
                positions share one prior.
            seed: an integer or a `keras.random.SeedGenerator`; by default Keras's global one.

        Returns:
            `[*shape, *units]`, in the layer's dtype.

        Raises:
            ValueError: if the layer has no prior, or is not built yet.

        Example:

        >>> inputs = keras.Input([4])
        >>> layer = relax_tf.StochasticBinaryLayer(8, prior="learned")
        >>> decoder = keras.layers.Dense(4)
        >>> vae = relax_tf.RelaxModel(inputs, decoder(layer(inputs)))
        >>> decoder(layer.sample_prior([16])).shape
        TensorShape([16, 4])
        """
        shape = positive_integers(shape, "shape")
        if self.prior is None or not self.built:
            missing = "no prior" if self.prior is None else "not been built: call it first"
            raise ValueError(f"layer {self.name!r} has {missing}.")
        prior = self.prior_distribution(len(shape) - 1 + self.unit_rank)
        repeated = keras.tree.map_structure(
            lambda t: tf.broadcast_to(t, [*shape, *t.shape[len(shape) :]]), prior.theta
        )
        return tf.cast(prior.with_theta(repeated).draw(seed).b, self.compute_dtype)


def as_event(weight: keras.Variable, event_rank: int) -> tf.Tensor:
    """A prior's parameter with leading axes of size 1, for the batch and the rest of the event."""
    missing = 1 + event_rank - len(weight.shape)
    return tf.reshape(tf.convert_to_tensor(weight), [1] * missing + list(weight.shape))
