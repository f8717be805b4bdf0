"""Gradient estimators for `d E[f(b)] / d theta`: classes, and a registry of short names.

`relax_tf.estimators.get("relax")` is the shortest way to one; `serialize` and `deserialize`
follow Keras. Every estimator has the method `estimate(dist, cost, ...)`.
"""

import difflib
from typing import Any

import keras

from relax_tf.estimators.antithetic import Arm, Disarm, arm_gradient, disarm_gradient
from relax_tf.estimators.arms import Arms, arms_gradient, categorical_arms_gradient
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.estimate import Estimate
from relax_tf.estimators.flip import Flip
from relax_tf.estimators.flip_gradient import curved_flip_gradient, flip_gradient
from relax_tf.estimators.midpoint import Midpoint, RelaxedDisarm, midpoint_gradient
from relax_tf.estimators.multi_sample import (
    MultiSampleEstimator,
    Rloo,
    Vimco,
    rloo_gradient,
    vimco_credits,
)
from relax_tf.estimators.muprop import Muprop, muprop_gradient
from relax_tf.estimators.nvil import Nvil
from relax_tf.estimators.pathwise import (
    Concrete,
    PathwiseEstimator,
    Reinmax,
    Reparameterization,
    StraightThrough,
)
from relax_tf.estimators.rebar import Rebar, RelaxedRebar
from relax_tf.estimators.relax import Lax, Relax, lax_gradient, relax_gradient
from relax_tf.estimators.score_function import Reinforce, score_function_gradient

_BY_ID = {
    "arm": Arm,
    "arms": Arms,
    "concrete": Concrete,
    "disarm": Disarm,
    "flip": Flip,
    "lax": Lax,
    "midpoint": Midpoint,
    "muprop": Muprop,
    "nvil": Nvil,
    "rebar": Rebar,
    "reinforce": Reinforce,
    "reinmax": Reinmax,
    "relax": Relax,
    "relaxed_disarm": RelaxedDisarm,
    "relaxed_rebar": RelaxedRebar,
    "reparameterization": Reparameterization,
    "rloo": Rloo,
    "straight_through": StraightThrough,
    "vimco": Vimco,
}
# What a serialised estimator says of its default networks. Those of earlier versions do not.
_OF_MAPS = "networks_of_maps"

for _id, _class in _BY_ID.items():
    _class._id = _id  # for messages


def get(identifier: str | dict[str, Any] | Estimator) -> Estimator:
    """An estimator from its id, its config or itself.

    Args:
        identifier: an id such as `"relax"` (a new estimator with the default settings), a config
            as `serialize` returns it, `{"class_name": "relax", "config": {...}}` with an id in
            place of the class, or an `Estimator`, which is returned as it is.

    Raises:
        ValueError: for an unknown id.
        TypeError: for anything else; from Keras, for settings in a config that the estimator does
            not have or that are out of range.

    Example:

    >>> relax_tf.estimators.get({"class_name": "rebar", "config": {"temperature": 0.1}}).coupled
    True
    """
    if isinstance(identifier, Estimator):
        return identifier
    if isinstance(identifier, str):
        return _class_of(identifier)()
    if isinstance(identifier, dict):
        return deserialize(identifier)
    raise TypeError(
        "an estimator is named by its id, its config or an Estimator instance. "
        f"Received: {identifier!r} (of type {type(identifier).__name__})"
    )


def serialize(estimator: Estimator) -> dict[str, Any]:
    """The estimator's configuration, as Keras serialises objects (without learned values)."""
    if not isinstance(estimator, Estimator):
        raise TypeError(
            "`estimator` must be an Estimator. "
            f"Received: {estimator!r} (of type {type(estimator).__name__})"
        )
    config = keras.saving.serialize_keras_object(estimator)
    return config if estimator.sees_whole_maps else {**config, _OF_MAPS: "local"}


def deserialize(config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Estimator:
    """An estimator from what `serialize` returned, or from `{"class_name": id, "config": {}}`."""
    if not isinstance(config, dict) or not isinstance(config.get("config", {}), dict):
        raise TypeError(
            "an estimator's config must be a dict, and so must its 'config'. "
            f"Received: {config!r} (of type {type(config).__name__})"
        )
    class_name = config.get("class_name")
    if class_name is None:
        raise ValueError(
            f"an estimator's config needs the keys 'class_name' and 'config'. Received: {config!r}"
        )
    if "module" not in config:
        if others := sorted(config.keys() - {"class_name", "config"}):
            raise TypeError(
                "an estimator's settings stand in 'config': {'class_name': 'rebar', 'config': "
                f"{{'temperature': 0.1}}}}. Received besides: {', '.join(map(repr, others))}"
            )
        return _class_of(class_name).from_config(config.get("config", {}))
    estimator = keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    if not isinstance(estimator, Estimator):
        raise TypeError(f"the config does not describe an Estimator. Received: {config!r}")
    estimator.sees_whole_maps = _OF_MAPS not in config
    return estimator


def _class_of(identifier: str) -> type[Estimator]:
    if identifier not in _BY_ID:
        close = difflib.get_close_matches(str(identifier), _BY_ID, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown estimator {identifier!r}.{hint} Known estimators: {', '.join(sorted(_BY_ID))}"
        )
    return _BY_ID[identifier]


__all__ = [
    "Arm",
    "Arms",
    "Concrete",
    "Disarm",
    "Estimate",
    "Estimator",
    "Flip",
    "Lax",
    "Midpoint",
    "MultiSampleEstimator",
    "Muprop",
    "Nvil",
    "PathwiseEstimator",
    "Rebar",
    "Reinforce",
    "Reinmax",
    "Relax",
    "RelaxedDisarm",
    "RelaxedRebar",
    "Reparameterization",
    "Rloo",
    "StraightThrough",
    "Vimco",
    "arm_gradient",
    "arms_gradient",
    "categorical_arms_gradient",
    "curved_flip_gradient",
    "deserialize",
    "disarm_gradient",
    "flip_gradient",
    "get",
    "lax_gradient",
    "midpoint_gradient",
    "muprop_gradient",
    "relax_gradient",
    "rloo_gradient",
    "score_function_gradient",
    "serialize",
    "vimco_credits",
]
