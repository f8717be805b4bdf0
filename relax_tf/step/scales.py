"""Two parts of a cost on different scales: one warning."""

import warnings

_FEW = 10  # numbers of an example; a mean over fewer is not far from a sum


def warn_of_scales(model_name: str, loss: float, kl: float, averaged_over: int) -> bool:
    """Warns of a loss that is a mean over an example beside a KL that is a sum over units.

    Args:
        model_name: for the message.
        loss, kl: the two, in nats.
        averaged_over: of how many numbers of an example the loss is a mean.

    Returns:
        Whether it did.
    """
    if averaged_over < _FEW:
        return False
    n = averaged_over
    warnings.warn(
        f"RelaxModel {model_name!r} adds a compiled loss of {loss:.4g}, a mean over the {n} "
        f"numbers of an example, and a KL of {kl:.4g} nats, a sum over units. In a variational "
        f"bound the loss would be a sum too, {n * loss:.4g}: as it is, the KL counts {n} times too "
        "much, and the samples tend to ignore the input. Use a loss that sums, such as "
        "relax_tf.losses.BernoulliNegativeLogLikelihood() for binary data, or "
        f"loss_weights={n}.0. If it is meant so, say loss_weights=1.0.",
        RuntimeWarning,
        stacklevel=2,
    )
    return True
