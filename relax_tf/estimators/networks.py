"""Networks that a user may hand to an estimator: checked, and kept in its configuration."""

from typing import Any

import keras

from relax_tf.control_variates import MLP


def checked_network(network: Any, argument: str) -> keras.layers.Layer | None:
    """`network` if it is a Keras layer or None, which stands for a default."""
    if not isinstance(network, (keras.layers.Layer, type(None))):
        raise TypeError(
            f"`{argument}` must be a Keras layer or model. Received: "
            f"{network!r} (of type {type(network).__name__})"
        )
    return network


def network_or_mlp(network: Any, argument: str, dtype: keras.DTypePolicy) -> keras.layers.Layer:
    """`network` if it is a Keras layer, for None the default control variate."""
    given = checked_network(network, argument)
    return MLP(dtype=dtype.name) if given is None else given


def network_config(network: keras.layers.Layer | None, is_default: bool) -> dict[str, Any] | None:
    """What a configuration holds: a default is None again, whatever was built in its place."""
    return None if is_default else keras.saving.serialize_keras_object(network)


def with_networks(config: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """A configuration with these arguments deserialised, where they are given."""
    made = {
        name: keras.saving.deserialize_keras_object(config[name])
        for name in arguments
        if isinstance(config.get(name), dict)
    }
    return {**config, **made}
