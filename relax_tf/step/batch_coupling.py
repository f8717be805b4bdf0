"""Refuses batch normalisation downstream of a sample.

Estimators give each example's sample the credit for that example's cost. Batch normalisation in
training mode lets one example's sample change another example's cost, and the estimate is wrong.
"""

from typing import Any

import keras

from relax_tf.step.graph import may_depend
from relax_tf.layers import StochasticLayer
from relax_tf.layers.passes import TrainingPass


def refuse_batch_normalization(model: Any, x: Any) -> None:
    """Raises a ValueError if trainable batch normalisation runs downstream of a sample.

    Downstream by the graph in functional models, by the order of calls in others. Costs nothing
    in models without batch normalisation, and one more traced pass in the others.
    """
    if model.allow_batch_normalization:
        return
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not norms:
        return
    stochastic = [layer for layer in model._flatten_layers() if isinstance(layer, StochasticLayer)]
    culprits = [
        norm.name
        for norm in _after_a_sample(model, x, norms)
        if any(may_depend(model, norm, on=layer) for layer in stochastic)
    ]
    if culprits:
        raise ValueError(
            f"batch normalisation {culprits} runs in training mode downstream of a stochastic "
            "layer. It makes the cost of one example depend on the samples of the others, so the "
            "gradient estimates would be wrong. Use LayerNormalization, move it upstream of the "
            "sample, freeze it (`trainable=False`), or insist with "
            "`model.allow_batch_normalization = True`."
        )


def _after_a_sample(model: Any, x: Any, norms: list) -> list:
    """The layers among `norms` whose statistics move after the first sample of a pass."""
    with keras.StatelessScope([(v, v.value) for v in model.variables]) as scope:

        def statistics():
            return [scope.get_current_value(norm.moving_mean) for norm in norms]

        probe = _Probe(statistics)
        with probe:
            model(x, training=True) if model._call_has_training_arg else model(x)
        after = statistics()
    if probe.before is None:
        return []
    return [
        norm for norm, old, new in zip(norms, probe.before, after, strict=True) if old is not new
    ]


class _Probe(TrainingPass):
    """Notes the statistics at the first call of a stochastic layer."""

    def __init__(self, statistics):
        super().__init__()
        self._statistics = statistics
        self.before = None

    def _choose(self, index, layer, dist):
        if self.before is None:
            self.before = self._statistics()
        return super()._choose(index, layer, dist)
