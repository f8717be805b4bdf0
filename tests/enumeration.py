"""The exact gradient of a whole RelaxModel, by summing over all samples of all its layers.

It looks at a model from outside: the model is called with every joint sample in turn, whatever it
is made of, and the probabilities come from the layers' own `log_prob`.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

from relax_tf.control_variates import is_control_variate
from relax_tf.distributions import Bernoulli
from relax_tf.layers.passes import Pass
from tests.problems import z_scores


class Forced(Pass):
    """Call number i emits the sample `states[i]` in every example."""

    def __init__(self, states=None):
        super().__init__()
        self.states = states

    def _choose(self, index, layer, dist):
        if self.states is None:  # a first pass, which tells what there is to enumerate
            return None, None, dist.mean()
        shape = tf.shape(dist.mean())
        return None, None, tf.broadcast_to(tf.cast(self.states[index], dist.dtype), shape)


def forced_costs(model, batch, states):
    """The cost `[n]` and `log p` of the samples, `[n]`; the passes leave no trace in state."""
    x, y, weight = batch
    forced = Forced(states)
    with keras.StatelessScope(), forced:
        y_pred = model(x, training=True) if model._call_has_training_arg else model(x)
        cost = model.compute_cost(x, y, y_pred, forced.latents, sample_weight=weight)
        cost = forced.total(cost)
    log_p = [tf.cast(c.dist.log_prob(c.sample), cost.dtype) for c in forced.calls]
    return cost, tf.add_n(log_p), forced.calls


def states_of(call):
    event = call.dist.shape[1:].as_list()
    if isinstance(call.dist, Bernoulli):
        rows = itertools.product(call.dist.support, repeat=int(np.prod(event)))
        return [np.reshape(row, event) for row in rows]
    rows = itertools.product(np.eye(event[-1]), repeat=int(np.prod(event[:-1])))
    return [np.reshape(row, event) for row in rows]


def model_variables(model):
    return [v for v in model.trainable_variables if not is_control_variate(v)]


def exact_gradients(model, batch):
    """The expected cost of the batch, and its gradient, by enumeration; dropout masks as now."""
    variables = model_variables(model)
    _, _, calls = forced_costs(model, batch, None)

    @tf.function(autograph=False)
    def terms(*states):
        with tf.GradientTape() as tape:
            cost, log_p, _ = forced_costs(model, batch, states)
            term = tf.reduce_mean(tf.exp(log_p) * cost)
        return term, tape.gradient(term, variables, unconnected_gradients="zero")

    total, gradients = 0.0, [0.0] * len(variables)
    for states in itertools.product(*map(states_of, calls)):
        term, of_term = terms(*(tf.constant(state, tf.float32) for state in states))
        total += float(term)
        gradients = [
            g + tf.convert_to_tensor(t).numpy() for g, t in zip(gradients, of_term, strict=True)
        ]
    return total, gradients


def measured_gradients(model, batch, repeats, eager=False):
    """The weights' gradients of `estimate`, `[repeats, ...]` each, with the same dropout masks."""
    variables = model_variables(model)
    own = {id(layer.seed_generator.state) for layer in model._stochastic_layers()}
    held = [(v, v.numpy()) for v in model.non_trainable_variables if id(v) not in own]

    def gradients():
        with tf.GradientTape() as tape:
            surrogate = model.estimate(*batch).surrogate
        return tape.gradient(surrogate, variables, unconnected_gradients="zero")

    run = gradients if eager else tf.function(gradients, autograph=False)
    samples = [[] for _ in variables]
    for _ in range(repeats):
        for variable, value in held:
            variable.assign(value)
        for slot, gradient in zip(samples, run(), strict=True):
            slot.append(tf.convert_to_tensor(gradient).numpy())
    for variable, value in held:
        variable.assign(value)
    return [np.stack(slot) for slot in samples]


def worst_z(model, batch, repeats=100, **kwargs):
    """The largest |z| over all weights, of `repeats` estimates on the batch."""
    _, exact = exact_gradients(model, batch)
    measured = measured_gradients(model, batch, repeats, **kwargs)
    zs = [np.abs(z_scores(m, e)).max() for m, e in zip(measured, exact, strict=True) if e.size]
    return max(zs)


def first(count, batch):
    """The first examples of a batch."""
    return tuple(part if part is None else part[:count] for part in batch)


def tiled(x, y, copies):
    """A batch of `copies` times the same examples."""
    again = lambda t: np.tile(t, [copies] + [1] * (t.ndim - 1))  # noqa: E731
    return again(np.asarray(x, np.float32)), again(np.asarray(y, np.float32)), None
