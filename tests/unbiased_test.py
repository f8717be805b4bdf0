"""Unbiased in any Keras model: what used to be biased silently, and its kin, against enumeration.

Each test states its draws (`COPIES` examples times `REPEATS` estimates) and bounds the worst |z|
over all weights. What cannot be unbiased is in certificate_test.py and those it names.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.enumeration import first, tiled, worst_z
from tests.further import further
from tests.problems import shake

Binary = relax_tf.StochasticBinaryLayer
Categorical = relax_tf.StochasticCategoricalLayer
Dense = keras.layers.Dense
Rebar, Relax, Rloo = (getattr(relax_tf.estimators, name) for name in ("Rebar", "Relax", "Rloo"))

X = np.array([[0.7, -1.2, 0.4], [-0.3, 0.5, 1.0]], np.float32)
Y = np.array([[0.5, -1.0], [1.0, 0.2]], np.float32)
COPIES, REPEATS = 500, 60  # of two examples: 60 000 draws
BATCH = tiled(X, Y, COPIES)

# One for each kind of replay: relaxed, at the mean, hard, hard with slopes.
REPLAYS = ["relaxed_rebar", "muprop", "rloo", "flip"]


def ready(model, batch=BATCH, loss="mse"):
    model.compile("sgd", loss=loss)
    model(batch[0])
    shake(model.trainable_variables, 0.7)
    return model


def assert_unbiased(model, batch=BATCH):
    model.check(*first(16, batch))
    z = worst_z(model, batch, REPEATS)
    assert z < 4.5, f"worst |z| of {COPIES * REPEATS * 2} draws: {z}"


# Seeds: no two draws of a step coincide.


@pytest.mark.parametrize("layer", [Binary, Categorical])
def test_independent_noise_in_the_second_call(layer):
    size = (2,) if layer is Binary else (1, 3)
    inputs = keras.Input([3])
    shared = layer(*size, Rebar(coupled=False), name="b")
    between = Dense(3)(keras.layers.Flatten()(shared(inputs)))
    outputs = Dense(2, "tanh")(keras.layers.Flatten()(shared(between)))
    assert_unbiased(ready(relax_tf.RelaxModel(inputs, outputs)))


@pytest.mark.parametrize("first", ["reinforce", "rebar", *further("rloo")])
def test_independent_noise_in_the_second_layer(first):
    inputs = keras.Input([3])
    a = Binary(2, first, seed=5)(inputs)
    b = Binary(2, Relax(coupled=False), seed=5)(a)
    c = Binary(2, Rebar(coupled=False), seed=5)(keras.layers.Concatenate()([a, b]))
    outputs = Dense(2, "tanh")(keras.layers.Concatenate()([a, b, c]))
    assert_unbiased(ready(relax_tf.RelaxModel(inputs, outputs)))


@pytest.mark.parametrize(
    ("estimator", "below", "above"),
    [
        ("rebar", "float64", "float32"),
        ("flip", "float32", "float64"),
        *further(("rloo", "float64", "float32")),
    ],
)
def test_layers_of_several_dtypes(estimator, below, above):
    """The cost and its slopes are rounded to float32, whatever theta has."""
    inputs = keras.Input([3])
    a = Binary(2, estimator, dtype=below, name="a")(inputs)
    b = Binary(2, estimator, dtype=above, name="b")(a)
    outputs = Dense(2, "tanh")(keras.layers.Concatenate()([a, b]))
    model = ready(relax_tf.RelaxModel(inputs, outputs))
    assert_unbiased(model)
    model.fit(*BATCH, verbose=0)


# What is downstream: everything that the graph does not exclude.


class Loop(keras.layers.Layer):
    """A stochastic layer applied to its own output."""

    def __init__(self, estimator, **kwargs):
        super().__init__(**kwargs)
        self.b = Binary(3, estimator, (-1, 1), name="inner")

    def build(self, shape):
        self.b.build(shape)

    def call(self, x):
        return self.b(self.b(x))


def inner_model(estimator):
    inputs = keras.Input([3])
    b = Binary(3, estimator, (-1, 1), name="inner")
    return keras.Model(inputs, b(Dense(3)(b(inputs))))


class Cell(keras.layers.Layer):
    def __init__(self, estimator, **kwargs):
        super().__init__(**kwargs)
        self.b = Binary(2, estimator, (-1, 1), name="inner")
        self.state_size = self.output_size = 2

    def build(self, shape):
        self.b.build((shape[0], shape[-1] + 2))

    def call(self, x, states):
        sample = self.b(keras.ops.concatenate([x, states[0]], -1))
        return sample, [sample]


def recurrent(estimator):
    return keras.Sequential(
        [
            keras.layers.Reshape([3, 1]),
            keras.layers.RNN(Cell(estimator), unroll=True, return_sequences=True),
            keras.layers.Flatten(),
        ]
    )


class Closure(keras.layers.Layer):
    """Calls a layer that Keras does not know to be inside it."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self._hidden = lambda: layer

    def call(self, x):
        return self._hidden()(x)


def hidden_call(estimator):
    inputs = keras.Input([3])
    b = Binary(3, estimator, (-1, 1), name="inner")
    return keras.Model(inputs, keras.layers.Concatenate()([Closure(b)(b(inputs)), inputs]))


@pytest.mark.parametrize(
    ("block", "estimator"),
    [
        *((Loop, estimator) for estimator in REPLAYS),
        *((inner_model, estimator) for estimator in ("flip", "rloo")),
        *((recurrent, "relaxed_rebar"), (hidden_call, "rloo")),
        *further(*((Loop, estimator) for estimator in ("rebar", "disarm", "midpoint"))),
        *further(*((inner_model, estimator) for estimator in ("relaxed_rebar", "muprop"))),
        *further((recurrent, "rloo"), (hidden_call, "relaxed_rebar")),
    ],
)
def test_a_layer_applied_to_its_own_output_inside_one_operation(block, estimator):
    inputs = keras.Input([3])
    outputs = Dense(2, "tanh")(block(estimator)(inputs))
    assert_unbiased(ready(relax_tf.RelaxModel(inputs, outputs)))


class Extended(relax_tf.RelaxModel):
    """A functional model with a `call` of its own: its graph is not its call."""

    def __init__(self, estimator):
        inputs = keras.Input([3])
        b = Binary(3, estimator, (-1, 1), name="b")(inputs)
        super().__init__(inputs, b)
        self.again = Binary(2, estimator, name="again")
        self.head = Dense(2, "tanh")

    def call(self, x, training=None):
        first = super().call(x, training=training)
        return self.head(keras.ops.concatenate([first, self.again(first)], -1))


@pytest.mark.parametrize("estimator", ["muprop", "flip", *further("relaxed_rebar", "rloo")])
def test_a_functional_subclass_with_a_call_of_its_own(estimator):
    assert_unbiased(ready(Extended(estimator)))


class Rewired(relax_tf.RelaxModel):
    """Its graph has two samples side by side, its call one above the other."""

    def __init__(self, estimator):
        inputs = keras.Input([3])
        a, b = (Binary(3, estimator, (-1, 1), name=name) for name in "ab")
        super().__init__(inputs, keras.layers.Concatenate()([a(inputs), b(inputs)]))
        self.head = Dense(2, "tanh")

    def call(self, x, training=None):
        sample = self.get_layer("a")(x)
        return self.head(keras.ops.concatenate([sample, self.get_layer("b")(sample)], -1))


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "rloo", *further("muprop", "flip")])
def test_a_functional_subclass_whose_call_contradicts_its_graph(estimator):
    assert_unbiased(ready(Rewired(estimator)))


# K samples are K replays of the batch.


def noisy(estimator, noise, prior=None):
    """Random masks or noise upstream of the sample, with a skip connection around it."""
    inputs = keras.Input([3])
    hidden = noise(Dense(3, "tanh")(inputs))
    b = Binary(3, estimator, (-1, 1), prior=prior, kl="sampled", name="b")(hidden)
    both = noise(keras.layers.Concatenate()([b, hidden]))
    return relax_tf.RelaxModel(inputs, Dense(2)(Dense(3, "tanh")(both)))


@pytest.mark.parametrize("k", [4, *further(2, 8)])
@pytest.mark.parametrize("noise", [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0)])
def test_several_samples_under_random_masks(k, noise):
    model = ready(noisy(Rloo(num_samples=k), noise))
    assert_unbiased(model)
    assert not model._rows_are_alike


@pytest.mark.parametrize("estimator", ["rloo", "disarm"])
def test_a_loss_that_divides_by_the_size_of_the_batch(estimator):
    def loss(y, p):
        return tf.reduce_sum((y - p) ** 2, -1) / tf.cast(tf.shape(p)[0], p.dtype)

    assert_unbiased(ready(noisy(estimator, keras.layers.Identity()), loss=loss))


class Stateful(relax_tf.RelaxModel):
    """Carries something from batch to batch."""

    def __init__(self, estimator):
        super().__init__()
        self.b, self.head = Binary(3, estimator, name="b"), Dense(2, "tanh")
        self.memory = self.add_weight(shape=[3], initializer="ones", trainable=False)

    def call(self, x):
        b = self.b(x + self.memory)
        self.memory.assign(0.5 * self.memory + 0.1)
        return self.head(b * self.memory)


@pytest.mark.parametrize("estimator", ["rloo", "relaxed_rebar", "relax"])
def test_a_model_with_a_memory(estimator):
    model = ready(Stateful(estimator))
    before = model.memory.numpy()
    model.check(*BATCH)
    np.testing.assert_array_equal(model.memory, before)
    model.estimate(*BATCH)
    np.testing.assert_allclose(model.memory, 0.5 * before + 0.1, rtol=1e-6)
    assert worst_z(model, BATCH, REPEATS) < 4.5


def test_a_stateful_recurrent_layer_under_several_samples():
    inputs = keras.Input(batch_shape=[4, 3])
    b = Binary(3, "rloo")(inputs)
    h = keras.layers.GRU(2, stateful=True)(keras.layers.Reshape([3, 1])(b))
    model = relax_tf.RelaxModel(inputs, h)
    model.compile("sgd", loss="mse")
    x, y = np.ones([16, 3], "f"), np.ones([16, 2], "f")
    assert np.isfinite(model.fit(x, y, batch_size=4, verbose=0).history["loss"]).all()


def test_sparse_inputs_under_several_samples():
    inputs = keras.Input([3], sparse=True)
    b = Binary(3, "rloo")(Dense(3)(inputs))
    model = relax_tf.RelaxModel(inputs, Dense(2)(b))
    model.compile("sgd", loss="mse")
    x = tf.sparse.from_dense(np.eye(3, dtype="f")[[0, 1, 2, 0]])
    data = tf.data.Dataset.from_tensor_slices((x, np.ones([4, 2], "f"))).batch(2)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()


class Counter(keras.layers.Layer):
    """Counts the rows that it has seen."""

    def build(self, shape):
        self.rows = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.rows.assign(self.rows + tf.cast(tf.shape(x)[0], tf.float32))
        return x


@pytest.mark.parametrize("estimator", ["vimco", "relaxed_rebar", *further("rloo")])
def test_rows_are_counted_once(estimator):
    counter = Counter()
    model = ready(noisy(estimator, counter, prior="uniform"))
    model.compile(keras.optimizers.SGD(0.0), loss="mse")
    counter.rows.assign(0.0)
    model.check(*BATCH)
    assert float(counter.rows) == 0
    model.fit(*BATCH[:2], batch_size=200, verbose=0)
    assert float(counter.rows) == 2 * len(BATCH[0])  # the layer is called twice


@pytest.mark.parametrize("noise", [keras.layers.Identity(), keras.layers.Dropout(0.5)])
def test_particles_in_one_pass_or_in_several_are_the_same_estimator(noise):
    """`vimco` of a model whose rows are alike, both ways: equal in the mean, of all weights."""
    model = ready(noisy("vimco", noise, prior="uniform"))
    model.check(*BATCH)
    assert model._rows_are_alike == isinstance(noise, keras.layers.Identity)
    if model._rows_are_alike:
        from tests.enumeration import measured_gradients
        from tests.problems import z_scores

        long = measured_gradients(model, BATCH, REPEATS)
        model._rows_are_alike = False
        several = measured_gradients(model, BATCH, REPEATS)
        for a, b in zip(long, several, strict=True):
            assert np.abs(z_scores(a - b[::-1], 0.0)).max() < 4.5


# Variables are read and assigned as in any Keras model.


class CompiledDropout(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.5)
        self.function = tf.function(lambda x: self.dropout(x, training=True))

    def build(self, shape):
        self.dropout.build(shape)

    def call(self, x):
        return self.function(x)


@pytest.mark.parametrize("estimator", ["rloo", "relaxed_rebar", "relax"])
def test_dropout_inside_a_tf_function(estimator):
    inputs = keras.Input([3])
    hidden = CompiledDropout()(Dense(3)(inputs))
    b = Binary(3, estimator, (-1, 1))(hidden)
    both = CompiledDropout()(keras.layers.Concatenate()([b, hidden]))
    assert_unbiased(ready(relax_tf.RelaxModel(inputs, Dense(2, "tanh")(both))))


class Compiled(keras.layers.Layer):
    """A dense layer inside a `tf.function`, or inside `tf.recompute_grad`."""

    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.dense = Dense(3, "tanh")
        self.function = how(lambda x: self.dense(x))

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("how", "estimator"),
    [
        (tf.function, "relaxed_rebar"),
        (tf.recompute_grad, "rloo"),
        *further((tf.function, "rloo"), (tf.function, "relax"), (tf.recompute_grad, "relax")),
    ],
)
@pytest.mark.parametrize("eager", [False, True])
def test_weights_inside_a_function_train_as_outside_of_it(how, eager, estimator):
    weights = []
    for wrapper in (how, lambda f: f):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        b = Binary(3, estimator, (-1, 1))(Compiled(wrapper)(inputs))
        model = relax_tf.RelaxModel(inputs, Dense(2)(Compiled(wrapper)(b)))
        model.compile(keras.optimizers.SGD(0.01), loss="mse", run_eagerly=eager)
        before = [v.numpy() for v in model.trainable_variables]
        model.certify = wrapper is how and not eager
        model.fit(*BATCH[:2], batch_size=200, epochs=2, shuffle=False, verbose=0)
        weights.append([v.numpy() for v in model.trainable_variables])
        for old, new, v in zip(before, weights[-1], model.trainable_variables, strict=True):
            assert (old != new).any() or "of_context" in v.path, v.path
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_recomputed_gradient_has_no_derivative_of_its_own():
    inputs = keras.Input([3])
    b = Binary(3, "relaxed_rebar")(inputs)
    model = relax_tf.RelaxModel(inputs, Dense(2)(Compiled(tf.recompute_grad)(b)))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"'relaxed_rebar'.*twice"):
        model.fit(*BATCH[:2], verbose=0)


def test_spectral_normalisation_beside_a_sample_trains_as_in_a_keras_model():
    """The layer assigns its own kernel before it uses it."""
    weights = []
    for cls in (relax_tf.RelaxModel, keras.Model):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        normed = keras.layers.SpectralNormalization(Dense(2, name="dense"))(inputs)
        outputs = [normed]
        if cls is relax_tf.RelaxModel:
            outputs.append(Binary(2, "reinforce")(inputs))
        model = cls(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.5), loss=["mse", None][: len(outputs)])
        keras.utils.set_random_seed(1)
        kernel = model.layers[1].layer.kernel
        kernel.assign(np.random.RandomState(0).normal(size=[3, 2]))
        model.layers[1].vector_u.assign(np.ones([1, 2]))
        model.fit(*BATCH[:2], batch_size=500, verbose=0)
        weights.append(kernel.numpy())
    np.testing.assert_allclose(*weights, rtol=1e-5)


# The cost is part of the pass.


class Cycle(relax_tf.RelaxModel):
    """Samples again inside its cost."""

    def __init__(self, estimator):
        super().__init__()
        self.encoder = Binary(2, estimator, (-1, 1), name="encoder")
        self.decoder = Dense(3, "tanh")
        self.extra = Binary(1, estimator, name="extra")

    def call(self, x):
        return self.decoder(self.encoder(x))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        code = latents["encoder"].sample
        again = self.encoder(y_pred)
        gate = self.extra(y_pred)[:, 0]
        return tf.reduce_sum((again - code) ** 2, -1) * gate + tf.reduce_sum((y_pred - x) ** 2, -1)


@pytest.mark.parametrize(
    "estimator", [*REPLAYS, "relax", *further("midpoint", "disarm", "reinforce")]
)
def test_a_stochastic_layer_that_the_cost_calls(estimator):
    model = ready(Cycle(estimator), loss=None)
    model.extra.build((None, 3))
    assert_unbiased(model)
    assert set(model.estimate(*BATCH).estimates) == {"encoder", "encoder:1", "extra"}
