"""Examples that a cost couples are refused, under estimators with and without replays."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.layers.passes import Call
from relax_tf.step.coupling import mirrored
from tests.suspects import (
    COUPLED,
    Apply,
    LoadBalanced,
    Penalised,
    X,
    Y,
    meeting_in_python,
    model_of,
)

Binary = relax_tf.StochasticBinaryLayer
Dense = keras.layers.Dense


def contrastive(y, p):
    similarity = tf.matmul(p, p, transpose_b=True)
    return tf.reduce_logsumexp(similarity, -1) - tf.linalg.diag_part(similarity)


def normalised(y, p):
    error = tf.reduce_sum((p - y) ** 2, -1)
    return error / tf.reduce_mean(error)


def scalar_too(y, p):
    return tf.reduce_sum((p - y) ** 2, -1) + 0.01 * keras.losses.MeanSquaredError()(y, p)


COUPLING_LAYERS = {
    "batch normalisation": keras.layers.BatchNormalization,
    "mean over the batch": lambda: Apply(lambda x: x - tf.reduce_mean(x, 0)),
    "unit normalisation": lambda: keras.layers.UnitNormalization(axis=0),
    "neighbours": lambda: Apply(lambda x: x + 0.1 * tf.roll(x, 1, 0)),
    "pairs": lambda: Apply(lambda x: x + 0.1 * tf.roll(x, 6, 0)),
    "softmax": lambda: keras.layers.Softmax(axis=0),
}

COUPLING_LOSSES = {"contrastive": contrastive, "normalised": normalised, "scalar": scalar_too}


@pytest.mark.parametrize("estimator", ["relax", "reinforce", "relaxed_rebar", "disarm", "vimco"])
@pytest.mark.parametrize("kind", COUPLING_LAYERS)
def test_layers_that_couple_examples(kind, estimator):
    model = model_of(estimator, COUPLING_LAYERS[kind]())
    with pytest.raises(ValueError, match=f"{COUPLED}.*'b'.*certify = False"):
        model.fit(X, Y, batch_size=12, verbose=0)


@pytest.mark.parametrize("estimator", ["relax", "rebar", "rloo"])
@pytest.mark.parametrize("kind", COUPLING_LOSSES)
def test_losses_that_couple_examples(kind, estimator):
    model = model_of(estimator, keras.layers.Identity(), loss=COUPLING_LOSSES[kind])
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X, Y)


def test_keras_s_circle_loss_couples_examples():
    model = model_of("relax", keras.layers.UnitNormalization(), loss=keras.losses.Circle())
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X, np.arange(12) % 3)


def test_a_mask_that_is_made_of_samples_couples_examples():
    """Keras divides a masked loss by the share of unmasked steps of the whole batch."""
    inputs = keras.Input([5, 3])
    b = Binary(2, "relax", name="b")(inputs)
    outputs = keras.layers.Masking(0.0)(b)
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=COUPLED):
        model.check(np.random.RandomState(0).normal(size=[8, 5, 3]), np.ones([8, 5, 2], "f"))


@pytest.mark.parametrize("estimator", ["relax", "relaxed_rebar", "rloo"])
def test_a_load_balancing_penalty_on_samples_couples_examples(estimator):
    model = LoadBalanced(estimator)
    model.compile("sgd")
    with pytest.raises(ValueError, match=rf"{COUPLED}.*'route'"):
        model.fit(X, Y[:, :1], batch_size=12, verbose=0)


class NormalisedInCost(relax_tf.RelaxModel):
    def __init__(self):
        super().__init__()
        self.b, self.norm = Binary(3, "relax", name="b"), keras.layers.BatchNormalization()

    def call(self, x):
        return self.b(x)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.reduce_sum((self.norm(y_pred, training=True) - y) ** 2, -1)


def test_batch_normalisation_inside_the_cost():
    model = NormalisedInCost()
    model.norm.build((None, 3))
    model.compile("sgd")
    with pytest.raises(ValueError, match=COUPLED):
        model.fit(X, Y, batch_size=12, verbose=0)


def test_a_model_that_does_not_depend_on_anything_yet_is_seen_through():
    """The last layer starts at zero: at the first step no sample changes any cost."""
    inputs = keras.Input([3])
    b = Binary(4, "relax", name="b")(inputs)
    outputs = keras.layers.BatchNormalization()(Dense(3, kernel_initializer="zeros")(b))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=COUPLED):
        model.fit(X, Y, batch_size=12, verbose=0)
    assert not np.any(model.layers[-2].kernel)


def test_two_examples_suffice():
    model = model_of("relax", Apply(lambda x: x + 0.1 * x[::-1]))
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X[:2], Y[:2])


@pytest.mark.parametrize("estimator", ["concrete", "straight_through", "reparameterization"])
def test_backpropagation_through_the_sample_may_couple_examples(estimator):
    inputs = keras.Input([3])
    if estimator == "reparameterization":
        b = relax_tf.StochasticNormalLayer(4, estimator)(inputs)
    else:
        b = Binary(4, estimator)(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.BatchNormalization()(Dense(3)(b)))
    model.compile("sgd", loss="mse")
    model.fit(X, Y, verbose=0)


def test_coupling_upstream_of_the_sample_is_fine():
    model = model_of("relaxed_rebar", keras.layers.Identity(), keras.layers.BatchNormalization())
    model.fit(X, Y, verbose=0)


def test_frozen_batch_normalisation_is_fine():
    norm = keras.layers.BatchNormalization(trainable=False)
    model_of("relaxed_rebar", norm).fit(X, Y, verbose=0)


# What an adversary found (each was silently biased).


def test_coupling_that_vanishes_at_hard_samples():
    model = Penalised("rebar", lambda b: 8 * tf.reduce_mean(tf.reduce_sum(b * b * (1 - b), -1)))
    model.compile("sgd")
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X, Y)


@pytest.mark.parametrize("estimator", ["relax", "rloo"])
@pytest.mark.parametrize("seed", range(4))
def test_coupling_between_two_layers_shows_in_theta(estimator, seed):
    """The cost moves only where a unit above crosses its threshold, in a few batches."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input([3])
    lower = keras.layers.BatchNormalization()(Binary(1, estimator, (-1, 1), name="lower")(inputs))
    model = relax_tf.RelaxModel(inputs, Dense(3)(Binary(1, estimator, (-1, 1))(lower)))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=f"{COUPLED}.*'lower'"):
        model.check(X[:4], Y[:4])


def test_one_large_cost_does_not_hide_coupling_in_the_others():
    model = model_of("rloo", Apply(lambda x: x + tf.reduce_mean(x, 0)))
    y = Y[:4].copy()
    y[0] = 1e4
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X[:4], y)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_gate_that_is_still_shut(trainable):
    class Gate(keras.layers.Layer):
        def build(self, shape):
            small = keras.initializers.Constant(1e-6)
            self.gate = self.add_weight(shape=(), initializer=small, trainable=trainable)

        def call(self, x):
            return x + self.gate * tf.reduce_mean(x, 0)

    gate = Gate()
    model = model_of("rloo", gate)
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X, Y)
    assert float(gate.gate) == np.float32(1e-6)


@pytest.mark.parametrize("pair", [(0, 1), (1, 4), (3, 6)])
def test_any_two_examples_are_told_apart(pair):
    first, second = pair
    chosen = tf.one_hot(first, 8)[:, tf.newaxis]
    model = model_of("relax", Apply(lambda x: x + chosen * x[second]))
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X[:8], Y[:8])


def test_a_batch_that_cannot_tell_is_not_the_last_word():
    model = model_of("relax", keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match="this batch cannot tell"):
        model.check(X[:1], Y[:1])
    weights = np.ones(12, "f")
    weights[:4] = 0
    with pytest.raises(ValueError, match=COUPLED):
        model.fit(X, Y, sample_weight=weights, batch_size=4, shuffle=False, verbose=0)


def test_looks_go_on_until_a_batch_can_tell():
    model = model_of("relax", keras.layers.BatchNormalization())
    for _ in range(7):
        model.train_on_batch(X[:4], Y[:4], sample_weight=np.zeros(4, "f"))
    with pytest.raises(ValueError, match=COUPLED) as found:
        model.train_on_batch(X[:4], Y[:4])
    assert found.value.__notes__ == ["This was found in call 8 of the training step."]


def test_a_refused_model_is_refused_again():
    model = model_of("relax", keras.layers.BatchNormalization())
    for _ in range(6):
        with pytest.raises(ValueError, match=COUPLED):
            model.train_on_batch(X, Y)
    assert int(model.optimizer.iterations) == 0
    model.certify = False
    for _ in range(4):
        model.train_on_batch(X, Y)
    model.certify = True
    with pytest.raises(ValueError, match=COUPLED):
        model.train_on_batch(X, Y)


class Scheduled(relax_tf.RelaxModel):
    """Its examples meet in the cost later, when a schedule, a counter or a callback lets them."""

    def __init__(self, kind):
        super().__init__()
        self.b, self.kind = Binary(2, "reinforce", name="b"), kind
        self.alpha = keras.Variable(1.0, trainable=False)
        self.count = keras.Variable(0, dtype="int32", trainable=False)

    def call(self, x):
        return self.b(x)

    def train_step(self, data):
        self.count.assign_add(1)
        return super().train_step(data)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        share = {
            "schedule": tf.minimum(tf.cast(self.optimizer.iterations, tf.float32) / 90, 1),
            "counter": tf.cast(self.count > 50, tf.float32),
            "callback": 1 - tf.convert_to_tensor(self.alpha),
        }[self.kind]
        together = tf.reduce_sum((y_pred - tf.reduce_mean(y_pred, 0)) ** 2, -1)
        return tf.reduce_sum((y_pred - 0.4) ** 2, -1) + share * together


@pytest.mark.parametrize("kind", ["schedule", "counter", "callback"])
def test_what_couples_examples_later_is_found_later(kind):
    model = Scheduled(kind)
    model.compile("sgd")

    def later(epoch, logs):
        model.alpha.assign(0.5)

    callback = keras.callbacks.LambdaCallback(on_epoch_end=later)
    # Of unknown length, so that it ends in a call of its own.
    data = tf.data.Dataset.from_tensors(X).repeat(33).filter(lambda x: True)
    model.fit(data, epochs=3, verbose=0, callbacks=[callback])
    iterations = int(model.optimizer.iterations)
    for _ in range(3):
        with pytest.raises(ValueError, match=COUPLED) as found:
            model.fit(X, epochs=2, verbose=0)
        assert "in call 100" in found.value.__notes__[0]
        assert "`train_step` is overridden" in found.value.__notes__[1]
    assert int(model.optimizer.iterations) == iterations


# What a later adversary found (each was silently biased).


class Noise(keras.layers.Layer):
    """Raw noise, which no replay repeats."""

    def call(self, x):
        return x + 0.01 * tf.random.normal(tf.shape(x))


@pytest.mark.parametrize("estimator", ["reinforce", "relax", "nvil"])
def test_noise_does_not_hide_coupled_examples(estimator):
    def noisy(*layers):
        model = model_of(estimator, keras.Sequential([Noise(), *layers]))
        model.check(X, Y)

    noisy()
    with pytest.raises(ValueError, match=COUPLED):
        noisy(keras.layers.BatchNormalization())


class Offset(relax_tf.RelaxModel):
    """A large part of the cost that no sample moves, and the batch's mean of the samples."""

    def __init__(self, estimator, offset, penalty):
        super().__init__()
        self.b, self.head = Binary(2, estimator, name="b"), Dense(3)
        self.offset, self.penalty = offset, penalty

    def call(self, x):
        return self.head(self.b(x))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        mean = tf.reduce_mean(latents["b"].sample, 0)
        penalty = self.penalty * tf.reduce_sum((mean - 0.3) ** 2)
        return self.offset + tf.reduce_sum((y_pred - y) ** 2, -1) + penalty


@pytest.mark.parametrize("estimator", ["rloo", "disarm", "relax", "reinforce", "relaxed_rebar"])
def test_a_large_cost_does_not_hide_coupled_examples(estimator):
    for penalty, refused in ((0.01, True), (0.0, False)):
        model = Offset(estimator, 1e4, penalty)
        model.compile("sgd")
        if refused:
            with pytest.raises(ValueError, match=COUPLED):
                model.check(X, Y)
        else:
            model.check(X, Y)


class Small(relax_tf.RelaxModel):
    """A tiny cost beside the logits of a later layer."""

    def __init__(self, estimator, coupled):
        super().__init__()
        self.b, self.c = Binary(1, estimator, name="b"), Binary(1, estimator, name="c")
        self.between, self.coupled = Dense(2), coupled

    def call(self, x):
        b = self.b(x)
        return b, self.c(self.between(b))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        b, c = y_pred
        mean = tf.round(12 * tf.reduce_mean(b, 0)) / 12  # it has no slope
        return 1e-7 * tf.reduce_sum((c - y[:, :1]) ** 2 + self.coupled * mean, -1)


@pytest.mark.parametrize("estimator", ["disarm", "reinforce"])
def test_a_later_layer_does_not_hide_coupled_examples(estimator):
    for coupled in (True, False):
        model = Small(estimator, float(coupled))
        model.compile("sgd")
        if coupled:
            with pytest.raises(ValueError, match=rf"{COUPLED}.*'b'"):
                model.check(X, Y)
        else:
            model.check(X, Y)


def test_one_unit_and_two_examples_suffice():
    """Each example's only unit takes its other value."""
    inputs = keras.Input([3])
    centred = Apply(lambda x: x - tf.reduce_mean(x, 0))
    for seed in range(6):
        keras.utils.set_random_seed(seed)
        outputs = Dense(3)(centred(Binary(1, "rloo", name="b")(inputs)))
        model = relax_tf.RelaxModel(inputs, outputs)
        model.compile("sgd", loss="mse")
        with pytest.raises(ValueError, match=COUPLED):
            model.check(X[:2], Y[:2])


def test_each_example_takes_another_sample():
    dist = relax_tf.distributions.Bernoulli(tf.zeros([200, 1]))
    eps = dist.noise(seed=0)
    draw = dist.from_noise(eps)
    call = Call("b", None, dist, eps, draw.z, draw.b, None, None)
    assert (dist.harden(mirrored(call, tf.constant([0, 1]))) != draw.b).numpy().all()


@pytest.mark.parametrize("estimator", ["disarm", "relax", "rebar"])
def test_rounding_is_no_coupling(estimator):
    """The largest logit of the batch cancels, but for rounding."""

    def log_softmax(x):
        x = x - tf.reduce_max(x)
        return x - tf.math.log(tf.reduce_sum(tf.exp(x), -1, keepdims=True))

    model = model_of(estimator, Apply(log_softmax), loss=lambda y, p: -tf.reduce_sum(y * p, -1))
    x = np.random.RandomState(2).normal(size=[64, 3]).astype("f")
    model.check(x, np.eye(3, dtype="f")[np.arange(64) % 3])


def in_numpy(y, p):
    cost = tf.numpy_function(lambda y, p: ((p - y) ** 2).sum(-1), [y, p], tf.float32)
    return tf.ensure_shape(cost, y.shape[:1])


@tf.custom_gradient
def without_slopes(x):
    """Its derivative is there, and fails when it is computed."""

    def backward(w):
        tf.debugging.Assert(tf.reduce_any(w > np.inf), ["no derivative"])
        return w

    return tf.identity(x), backward


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("kind", ["in NumPy", "fails"])
def test_a_cost_without_a_derivative_may_not_couple_examples_either(kind, eager):
    def checked(*layers):
        if kind == "in NumPy":
            model = model_of("disarm", *layers, loss=in_numpy)
        else:
            model = model_of("disarm", keras.Sequential([*layers, Apply(without_slopes)]))
        model.run_eagerly = eager
        model.check(X, Y)

    checked(keras.layers.LayerNormalization())
    with pytest.raises(ValueError, match=COUPLED):
        checked(keras.layers.BatchNormalization())


# What a third adversary found in a change (each was silently biased, or could be).


@tf.custom_gradient
def clipped_together(x):
    """The norm of the batch's derivative is bounded, as a whole."""
    return tf.identity(x), lambda w: tf.clip_by_norm(w, 0.5)


@pytest.mark.parametrize("estimator", ["flip", "midpoint", "rebar"])
def test_slopes_that_the_backward_pass_couples(estimator):
    with pytest.raises(ValueError, match=COUPLED):
        model_of(estimator, Apply(clipped_together)).check(X, Y)


def test_coupling_through_a_call_that_the_graph_shows_to_be_apart():
    model = meeting_in_python("relax", "concrete", keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match=f"{COUPLED}.*'a'"):
        model.check(X, Y)


def upsampled(x):
    """An operation without a gradient."""
    return tf.reshape(tf.image.resize(tf.reshape(x, [-1, 2, 2, 1]), [4, 4], "area"), [-1, 16])


class BesideABlackBox(relax_tf.RelaxModel):
    """The slopes of one layer's cost are coupled, the other layer's cost has no derivative."""

    def __init__(self, black_box):
        super().__init__()
        self.a, self.b = Binary(4, "disarm", name="a"), Binary(4, "flip", name="b")
        self.black_box = black_box

    def call(self, x):
        return self.b(x), self.black_box(self.a(x))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        b, of_a = y_pred
        coupled = tf.reduce_sum(b * (1 - b), -1) * tf.reduce_mean(b)  # 0, but for its slopes
        return tf.reduce_sum(of_a, -1) + coupled


@pytest.mark.parametrize("black_box", [tf.identity, upsampled])
def test_a_black_box_hides_no_coupled_slopes_of_other_layers(black_box):
    model = BesideABlackBox(black_box)
    model.compile("sgd")
    with pytest.raises(ValueError, match=f"{COUPLED}.*'b'"):
        model.check(X, Y)


class Decided(relax_tf.RelaxModel):
    """Logits that leave little to chance, and noise beside the square of the batch's mean."""

    def __init__(self, logit):
        super().__init__()
        bias = keras.initializers.Constant(logit)
        self.b = Binary(1, "relax", (-1, 1), bias_initializer=bias, name="b")

    def call(self, x):
        return self.b(x)[:, 0]

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        noise = tf.random.normal(tf.shape(y_pred))
        return (y_pred - 0.3) ** 2 + noise + 0.5 * tf.reduce_mean(y_pred) ** 2


@pytest.mark.parametrize("logit", [0.0, 8.0])
def test_halves_that_cancel_hide_nothing(logit):
    """All units are 1, and half of them mirrored: the mean is 0, and its square has no slope."""
    model = Decided(logit)
    model.compile("sgd")
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X[:8], Y[:8])
