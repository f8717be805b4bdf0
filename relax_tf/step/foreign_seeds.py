"""The noise of foreign layers, such as dropout, in a model's saved state.

Keras saves no random generator, so that a loaded model would draw other masks than the original.
The stochastic layers save their own; a RelaxModel saves those of all other layers inside it.
"""

from typing import Any

import keras
import numpy as np

from relax_tf.keras_internals import all_layers, seed_generators
from relax_tf.layers import StochasticLayer

_KEY = "seed_generator_states"


def save_seeds(model: keras.Model, store: Any) -> None:
    """Puts the states of the generators, integers `[generators, 2]`, into Keras's store."""
    states = _states(model)
    if states:
        store[_KEY] = np.stack([keras.ops.convert_to_numpy(state) for state in states])


def load_seeds(model: keras.Model, store: Any) -> dict[str, Any]:
    """Takes the states from the store, and returns what else there is in it.

    A file without them, as a plain `keras.Model` writes it, leaves the generators alone.

    Raises:
        ValueError: if the file is from a model with another number of generators.
    """
    rest = {key: store[key] for key in store.keys()}  # noqa: SIM118 (an HDF5 group)
    if _KEY in rest:
        states, saved = _states(model), np.asarray(rest.pop(_KEY))
        if len(saved) != len(states):
            raise ValueError(
                f"model {model.name!r} has {len(states)} random generators outside of its "
                f"stochastic layers (dropout and the like), but the file is from a model with "
                f"{len(saved)}."
            )
        for state, value in zip(states, saved, strict=True):
            state.assign(value)
    return rest


def _states(model: keras.Model) -> list[keras.Variable]:
    return [
        generator.state
        for layer in all_layers(model)
        if not isinstance(layer, StochasticLayer)
        for generator in seed_generators(layer)
    ]
