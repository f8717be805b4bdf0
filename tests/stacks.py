"""Stacks of stochastic layers, and their exact gradients from sums that are written out.

`enumeration.py` has those of any model, from outside; here the distributions of layers above follow
from the samples below, one layer after the other.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

import relax_tf
from tests.problems import normal_grid, shake, z_scores

X = np.array([[0.7, -1.2, 0.4]], np.float32)
Y = np.array([[0.5, -1.0]], np.float32)


def two_layer_model(below, above, prior=None, kl="analytic"):
    """x -> b1 (3 units) -> b2 (2 units) -> tanh -> y, with b1 also reaching y directly."""
    inputs = keras.Input([3])
    b1 = relax_tf.StochasticBinaryLayer(3, below, (-1, 1), prior, kl, name="b1")(inputs)
    b2 = relax_tf.StochasticBinaryLayer(2, above, (0, 1), prior, kl, name="b2")(b1)
    both = keras.layers.Concatenate()([b1, b2])
    hidden = keras.layers.Dense(3, activation="tanh", name="hidden")(both)
    outputs = keras.layers.Dense(2, name="outputs")(hidden)
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    shake(model.trainable_variables, 0.7)
    return model


def model_variables(model):
    return [v for layer in model.layers for v in layer_variables(layer)]


def layer_variables(layer):
    phi = layer.estimator.trainable_variables if hasattr(layer, "estimator") else []
    return [v for v in layer.trainable_variables if not any(v is p for p in phi)]


def binary_states(units, support):
    return tf.constant(list(itertools.product(support, repeat=units)), tf.float32)


def enumerated_loss(model, x, y):
    """The expected cost of one example by summing over all samples of both layers."""
    l1, l2 = model.get_layer("b1"), model.get_layer("b2")
    pairs = itertools.product(binary_states(3, (-1.0, 1.0)), binary_states(2, (0.0, 1.0)))
    b1, b2 = map(tf.stack, zip(*pairs, strict=True))
    dist1, dist2 = l1.distribution(tf.repeat(x, len(b1), 0)), l2.distribution(b1)
    hidden = model.get_layer("hidden")(tf.concat([b1, b2], -1))
    cost = tf.reduce_mean((model.get_layer("outputs")(hidden) - y) ** 2, -1)
    for layer, dist, b in ((l1, dist1, b1), (l2, dist2, b2)):
        if layer.prior is not None:
            cost += layer.kl_divergence(dist, b)
    return tf.reduce_sum(tf.exp(dist1.log_prob(b1) + dist2.log_prob(b2)) * cost)


def exact_gradients(model):
    with tf.GradientTape() as tape:
        loss = enumerated_loss(model, tf.constant(X), tf.constant(Y))
    variables = model_variables(model)
    return loss.numpy(), tape.gradient(loss, [v.value for v in variables])


def gradients_of_train_steps(model, steps=60, batch=1000):
    """The weight gradients that `train_step` applies, read off SGD(1) updates, `[steps, ...]`."""
    variables = model_variables(model)
    before = [v.numpy() for v in model.trainable_variables]
    dataset = tf.data.Dataset.from_tensors((np.tile(X, [batch, 1]), np.tile(Y, [batch, 1])))
    gradients = [[] for _ in variables]

    class ReadAndReset(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            after = {id(v): v.numpy() for v in model.trainable_variables}
            for variable, value in zip(model.trainable_variables, before, strict=True):
                variable.assign(value)
            for slot, variable in zip(gradients, variables, strict=True):
                slot.append(variable.numpy() - after[id(variable)])

    model.fit(dataset.repeat(steps), callbacks=[ReadAndReset()], verbose=0)
    return [np.stack(slot) for slot in gradients]


def assert_follows(model, expected):
    measured = gradients_of_train_steps(model)
    for variable, exact, samples in zip(model_variables(model), expected, measured, strict=True):
        z = z_scores(samples, np.asarray(exact))
        assert np.abs(z).max() < 4.5, (variable.path, z)


# Mixed models.

BINARY, CATEGORICAL, NORMAL = (
    relax_tf.StochasticBinaryLayer,
    relax_tf.StochasticCategoricalLayer,
    relax_tf.StochasticNormalLayer,
)

SIZES = {BINARY: (2,), CATEGORICAL: (2, 3), NORMAL: (1,)}


def mixed_model(*stack, kl="analytic", scale=0.7):
    """x -> stochastic layers on top of each other -> tanh of all their samples -> y.

    Args:
        stack: for each layer its class, estimator and prior.
        scale: how far the variables are from their initial values.
    """
    x = inputs = keras.Input([3])
    samples = []
    for index, (cls, estimator, prior) in enumerate(stack):
        layer = cls(*SIZES[cls], estimator=estimator, prior=prior, kl=kl, name=f"s{index}")
        x = keras.layers.Flatten()(layer(x))
        samples.append(x)
    hidden = keras.layers.Concatenate()(samples) if len(samples) > 1 else x
    hidden = keras.layers.Dense(3, activation="tanh", name="hidden")(hidden)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2, name="outputs")(hidden))
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    shake(model.trainable_variables, scale)
    return model


def states_of(dist):
    """All samples of a distribution `[states, batch, *event]`, with probabilities."""
    if not dist.discrete:
        points, weights = normal_grid(dist.shape[-1], nodes=24)
        samples = dist.loc + dist.scale * tf.constant(points, tf.float32)[:, tf.newaxis]
        return samples, tf.constant(weights, tf.float32)[:, tf.newaxis]
    event = dist.shape[1:].as_list()
    if isinstance(dist, relax_tf.distributions.Bernoulli):
        states = itertools.product((0.0, 1.0), repeat=event[0])
    else:
        states = itertools.product(np.eye(event[1]), repeat=event[0])
    samples = tf.constant(np.array(list(states)), tf.float32)[:, tf.newaxis]
    return tf.tile(samples, [1, dist.shape[0], *[1] * len(event)]), tf.exp(dist.log_prob(samples))


def expected_loss(model):
    """The expected cost of the one example, over all samples of all layers."""
    x = tf.constant(X)
    samples, weights, kl = [], tf.ones([1]), tf.zeros([1])
    for layer in model.layers:
        if not hasattr(layer, "estimator"):
            continue
        dist = layer.distribution(x)
        values, p = states_of(dist)
        count = len(values)
        again = lambda t, n=count: tf.tile(t, [n, *[1] * (t.shape.rank - 1)])  # noqa: E731
        if layer.prior is not None:
            repeated = dist.map_theta(again)
            kl = again(kl) + layer.kl_divergence(repeated, tf.reshape(values, repeated.shape))
        else:
            kl = again(kl)
        weights = tf.reshape(p * weights, [-1])
        x = tf.reshape(values, [len(weights), -1])
        samples = [*(again(sample) for sample in samples), x]
    hidden = model.get_layer("hidden")(tf.concat(samples, -1))
    cost = tf.reduce_mean((model.get_layer("outputs")(hidden) - Y) ** 2, -1)
    return tf.reduce_sum(weights * (cost + kl))
