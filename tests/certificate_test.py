"""What cannot be unbiased is refused on the first batch, by a message that says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf

Binary = relax_tf.StochasticBinaryLayer
Categorical = relax_tf.StochasticCategoricalLayer
Dense = keras.layers.Dense

X = np.random.RandomState(0).normal(size=[12, 3]).astype("f")
Y = np.random.RandomState(1).normal(size=[12, 3]).astype("f")

COUPLED, NOT_REPEATED, WRONG_SLOPE = (
    "couples the examples",
    "cannot be replayed",
    "does not change as its derivative says",
)


def model_of(estimator, after, before=None, loss="mse", **kwargs):
    """x -> (before) -> 4 binary units -> dense -> after -> y."""
    inputs = keras.Input([3])
    hidden = inputs if before is None else before(inputs)
    b = Binary(4, estimator, name="b")(hidden)
    model = relax_tf.RelaxModel(inputs, after(Dense(3)(b)))
    model.compile("sgd", loss=loss, **kwargs)
    return model


class Apply(keras.layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


# (b): coupled examples, under estimators with and without replays.


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


class LoadBalanced(relax_tf.RelaxModel):
    """A mixture of experts whose cost has the mean of the sampled routes."""

    def __init__(self, estimator):
        super().__init__()
        self.route = Categorical(1, 4, estimator, name="route")
        self.experts = Dense(4)

    def call(self, x):
        return tf.reduce_sum(self.route(x)[:, 0] * self.experts(x), -1, keepdims=True)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        load = tf.reduce_mean(latents["route"].sample, [0, 1])
        return tf.reduce_sum((y_pred - y) ** 2, -1) + 0.01 * tf.reduce_sum(load**2)


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


# (a): what a replay does not repeat.


def raw_noise(x):
    return x + tf.random.normal(tf.shape(x))


class PythonState(keras.layers.Layer):
    """Another number in every call (while tracing, or eagerly)."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x + 0.1 * self.calls


class VariableState(keras.layers.Layer):
    """State that Keras does not know of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, x):
        return x + 0.1 * self.count.assign_add(1.0)


NOT_REPEATABLE = {
    "tf.random": lambda: Apply(raw_noise),
    "a tf.Variable": VariableState,
    "Python": PythonState,
}


@pytest.mark.parametrize("where", ["upstream", "downstream"])
@pytest.mark.parametrize("kind", NOT_REPEATABLE)
@pytest.mark.parametrize("estimator", ["rloo", "disarm", "relaxed_rebar", "muprop"])
def test_what_a_replay_does_not_repeat(estimator, kind, where):
    layer = NOT_REPEATABLE[kind]()
    if where == "downstream":
        model = model_of(estimator, layer)
    else:
        inputs = keras.Input([3])
        hidden = layer(inputs)
        both = keras.layers.Concatenate()([Binary(4, estimator, name="b")(hidden), hidden])
        model = relax_tf.RelaxModel(inputs, Dense(3)(both))
        model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=f"{NOT_REPEATED}.*'relax'"):
        model.fit(X, Y, batch_size=12, verbose=0)


@pytest.mark.parametrize("kind", NOT_REPEATABLE)
@pytest.mark.parametrize("estimator", ["relax", "reinforce", "nvil"])
def test_what_is_evaluated_once_need_not_be_repeatable(estimator, kind):
    model = model_of(estimator, NOT_REPEATABLE[kind](), NOT_REPEATABLE[kind]())
    history = model.fit(X, Y, batch_size=6, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# (c): a derivative that is none.


@tf.custom_gradient
def quantised(x):
    return tf.round(2 * x) / 2, lambda upstream: upstream


WRONG_SLOPES = {
    "stop_gradient on one of two paths": lambda x: x + tf.stop_gradient(x),
    "a detached probe": lambda x: tf.concat([x[:, :2], tf.stop_gradient(x[:, 2:])], -1),
    "rounding beside a smooth path": lambda x: x + tf.round(x),
    "argmax beside a smooth path": lambda x: x + tf.one_hot(tf.argmax(x, -1), 3),
    "a comparison": lambda x: tf.where(x > 0, x, -1.0),
    "a straight-through quantiser": quantised,
    "a fine quantiser": lambda x: quantised(8 * x) / 8,
    "half of the derivative": lambda x: 0.5 * x + 0.5 * tf.stop_gradient(x),
}


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "rebar"])
@pytest.mark.parametrize("kind", WRONG_SLOPES)
def test_wrong_derivatives(kind, estimator):
    model = model_of(estimator, Apply(WRONG_SLOPES[kind]))
    with pytest.raises(ValueError, match=f"{WRONG_SLOPE}.*'relax'"):
        model.fit(X, Y, batch_size=12, verbose=0)


@pytest.mark.parametrize("estimator", ["relax", "disarm", "rloo", "muprop", "nvil"])
@pytest.mark.parametrize("kind", WRONG_SLOPES)
def test_a_wrong_derivative_does_not_matter_to_others(kind, estimator):
    model_of(estimator, Apply(WRONG_SLOPES[kind])).check(X, Y)


@pytest.mark.parametrize("kind", WRONG_SLOPES)
def test_wrong_derivatives_of_normal_samples(kind):
    for estimator in ("lax", "reparameterization"):
        inputs = keras.Input([3])
        b = relax_tf.StochasticNormalLayer(4, estimator, name="b")(inputs)
        model = relax_tf.RelaxModel(inputs, Apply(WRONG_SLOPES[kind])(Dense(3)(b)))
        model.compile("sgd", loss="mse")
        if estimator == "lax":
            model.check(X, Y)
        else:
            with pytest.raises(ValueError, match=f"{WRONG_SLOPE}.*'lax'"):
                model.check(X, Y)


ROUGH = {
    "relu": tf.nn.relu,
    "abs": tf.abs,
    "max": lambda x: tf.reduce_max(x, -1, keepdims=True) + tf.zeros_like(x),
    "steep": lambda x: tf.tanh(30 * x),
    "exp": lambda x: tf.exp(3 * x),
    "sort": lambda x: tf.sort(x, -1),
    "sin": lambda x: tf.sin(10 * x),
    "tiny": lambda x: 1e-6 * x,
    "huge": lambda x: 1e6 * x,
    "constant": lambda x: 0 * x,
    "clip": lambda x: tf.clip_by_value(x, -0.2, 0.2),
}


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "reparameterization"])
@pytest.mark.parametrize("kind", ROUGH)
def test_kinks_and_steep_slopes_are_no_wrong_derivatives(kind, estimator):
    inputs = keras.Input([3])
    if estimator == "reparameterization":
        b = relax_tf.StochasticNormalLayer(4, estimator)(inputs)
    else:
        b = Binary(4, estimator)(Binary(4, estimator, (-1, 1))(inputs))
    hidden = Dense(8, "relu")(b)
    model = relax_tf.RelaxModel(inputs, Apply(ROUGH[kind])(Dense(3)(hidden)))
    model.compile("sgd", loss="mse")
    model.check(X, Y)


# How it is run.

MODES = [
    {},
    {"run_eagerly": True},
    {"jit_compile": True},
    {"steps_per_execution": 3},
    {"jit_compile": True, "steps_per_execution": 4},
]


def batches(counter, count=7):
    for index in range(count):
        counter.append(index)
        yield X[index : index + 2] + index, Y[index : index + 2]


def inputs_of(kind, seen):
    if kind == "generator":
        return batches(seen)
    signature = (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 3]))
    return tf.data.Dataset.from_generator(lambda: batches(seen), output_signature=signature)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("kind", ["generator", "dataset"])
def test_no_batch_is_lost_and_no_trace_left(kind, mode):
    """A certified run is, weight by weight, the run of a model that is not certified."""
    weights, losses, ends = [], [], []
    for certify in (True, False):
        keras.utils.set_random_seed(0)
        dropout = keras.layers.Dropout(0.5)
        model = model_of("relaxed_rebar", dropout, keras.layers.BatchNormalization(), **mode)
        model.certify = certify
        seen, steps = [], []
        count = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, steps=steps: steps.append(batch)
        )
        history = model.fit(inputs_of(kind, seen), verbose=0, callbacks=[count]).history
        losses.append(history["loss"])
        weights.append([v.numpy() for v in model.variables])
        assert len(seen) == 7
        ends.append(steps)
    assert ends[0] == ends[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_mode_refuses(mode):
    model = model_of("relax", keras.layers.BatchNormalization(), **mode)
    with pytest.raises(ValueError, match=COUPLED):
        model.fit(X, Y, batch_size=4, verbose=0)
    model.certify = False
    model.compile("sgd", loss="mse", **mode)
    model.fit(X, Y, batch_size=4, verbose=0)


def test_train_on_batch_certifies_too():
    model = model_of("relax", keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match=COUPLED):
        model.train_on_batch(X, Y)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    for estimator in ("relaxed_rebar", "rloo", "vimco", "relax"):
        model_of(estimator, keras.layers.Dropout(0.2)).check(X, Y)
        with pytest.raises(ValueError, match=COUPLED):
            model_of(estimator, keras.layers.BatchNormalization()).check(X, Y)
    with pytest.raises(ValueError, match=NOT_REPEATED):
        model_of("rloo", Apply(lambda x: x + tf.random.normal(tf.shape(x), dtype=x.dtype))).check(
            X, Y
        )
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model_of("rebar", Apply(lambda x: 0.5 * x + 0.5 * tf.stop_gradient(x))).check(X, Y)


def test_metrics_and_seeds_are_left_alone():
    model = model_of("relaxed_rebar", keras.layers.Dropout(0.5))
    model.compile("adam", loss="mse", metrics=["mae"])
    model.fit(X, Y, verbose=0)
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    metrics = model.get_metrics_result()
    model.check(X, Y)
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.get_metrics_result() == metrics


def test_a_long_unrolled_network_passes():
    b = Binary(2, "relaxed_rebar", (-1, 1), name="b")
    x = inputs = keras.Input([3])
    for _ in range(6):
        x = keras.layers.Concatenate()([inputs, b(x) if x is not inputs else b(inputs[:, :3])])
        x = Dense(3)(x)
    model = relax_tf.RelaxModel(inputs, x)
    model.compile("sgd", loss="mse")
    model.check(X, Y)


def test_costs_that_are_not_numbers_are_left_to_the_step():
    model = model_of("relaxed_rebar", Apply(lambda x: tf.math.log(x)))
    model.check(X, Y)


# What is refused otherwise.


def test_a_cost_cannot_read_z():
    class Model(relax_tf.RelaxModel):
        def __init__(self):
            super().__init__()
            self.b = Binary(3, "relax", name="b")

        def call(self, x):
            return self.b(x)

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            return tf.reduce_sum(latents["b"].z, -1)

    model = Model()
    model.compile("sgd")
    with pytest.raises(AttributeError, match=r"biased\. Use `sample`"):
        model.estimate(X, Y)


def test_a_mistyped_latent_is_told_the_names():
    class Model(LoadBalanced):
        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            return latents["routes"].sample

    model = Model("relax")
    model.compile("sgd")
    with pytest.raises(KeyError, match=r"no latent 'routes'\. The latents are: route"):
        model.estimate(X, Y)


@pytest.mark.parametrize("method", ["fit", "evaluate", "estimate", "train_on_batch", "check"])
def test_an_overridden_compute_loss_is_refused(method):
    class Model(relax_tf.RelaxModel):
        def __init__(self):
            super().__init__()
            self.b = Binary(3, "relax", name="b")

        def call(self, x):
            return self.b(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return tf.reduce_mean((y_pred - y) ** 2)

    model = Model()
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"overrides `compute_loss`.*Override `compute_cost"):
        getattr(model, method)(X, Y)


class SymbolicLoop(keras.layers.Layer):
    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how, self.b = how, Binary(3, "relax", name="b")

    def build(self, shape):
        self.b.build((None, 3))

    def call(self, x):
        if self.how == "while":
            return tf.while_loop(lambda i, h: i < 2, lambda i, h: (i + 1, self.b(h)), [0, x])[1]
        if self.how == "map":
            return tf.map_fn(lambda h: self.b(h[tf.newaxis])[0], x)
        if self.how == "cond":
            return tf.cond(tf.reduce_sum(x) > 0, lambda: self.b(x), lambda: x)
        return tf.function(self.b)(x)


@pytest.mark.parametrize("how", ["while", "map", "cond", "function"])
def test_symbolic_loops_are_refused(how):
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, SymbolicLoop(how)(inputs))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"inside a symbolic loop.*unroll=True"):
        model.fit(X, Y, verbose=0)


def test_fit_without_data_says_so():
    with pytest.raises(ValueError, match="`fit` needs data"):
        model_of("relax", keras.layers.Identity()).fit()


def test_training_true_inside_a_subclass_builds():
    class Model(relax_tf.RelaxModel):
        def __init__(self):
            super().__init__()
            self.b = Binary(3, "relax", name="b")

        def call(self, x):
            return self.b(x, training=True)

    model = Model()
    model.compile("sgd", loss="mse")
    model.fit(X, Y, verbose=0)
    assert model.predict(X, verbose=0).shape == (12, 3)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_network_that_shares_a_layer_with_the_model_is_refused_by_name(fresh):
    trunk = Dense(3, name="trunk")
    network = keras.Sequential([keras.Input([3]), Dense(3) if fresh else trunk, Dense(1)])
    inputs = keras.Input([3])
    b = Binary(4, relax_tf.estimators.Relax(baseline=network), name="b")(trunk(inputs))
    model = relax_tf.RelaxModel(inputs, Dense(3)(b))
    model.compile("sgd", loss="mse")
    if fresh:
        model.fit(X, Y, verbose=0)
        return
    with pytest.raises(ValueError, match=r"layer 'b' shares the layers \['trunk'\]"):
        model.fit(X, Y, verbose=0)


def test_vimco_refuses_a_summed_loss():
    model = model_of("vimco", keras.layers.Identity(), loss=keras.losses.MeanSquaredError())
    model.check(X, Y)
    summed = keras.losses.MeanSquaredError(reduction="sum")
    model = model_of("vimco", keras.layers.Identity(), loss=summed)
    with pytest.raises(ValueError, match=r"reduction='sum'.*'vimco'"):
        model.fit(X, Y, verbose=0)


def test_samples_whose_batch_is_not_the_cost_s_are_refused():
    inputs = keras.Input([4, 3])
    rows = keras.ops.reshape(inputs, [-1, 3])
    b = Binary(2, "relax", name="b")(rows)
    outputs = keras.ops.mean(keras.ops.reshape(b, [-1, 4, 2]), 1)
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"shape \(20,\).*\(5,\)|batch of 20.*5 examples"):
        model.fit(np.ones([5, 4, 3], "f"), np.ones([5, 2], "f"), verbose=0)


def test_python_under_xla_is_refused():
    def loss(y, p):
        value = tf.numpy_function(lambda y, p: ((y - p) ** 2).mean(-1), [y, p], tf.float32)
        return tf.ensure_shape(value, [None])

    model = model_of("relax", keras.layers.Identity(), loss=loss, jit_compile=True)
    with pytest.raises(ValueError, match=r"XLA.*jit_compile=False"):
        model.fit(X, Y, verbose=0)


def test_a_sample_that_no_loss_reads():
    inputs = keras.Input([3])
    unread = Binary(2, name="unread")(inputs)
    outputs = Dense(3)(Binary(4, "relax")(inputs))
    model = relax_tf.RelaxModel(inputs, [outputs, unread])
    model.compile("sgd", loss=["mse", None])
    with pytest.raises(ValueError, match="perhaps it does not depend on it at all"):
        model.fit(X, Y, verbose=0)


# Assignments after a first `fit` or `predict`.


def test_inference_takes_effect_when_it_is_assigned():
    model = model_of("relax", keras.layers.Identity())
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    model.get_layer("b").inference = "mean"
    np.testing.assert_array_equal(model.predict(X, verbose=0), model.predict(X, verbose=0))
    first, second = (model.evaluate(X, Y, verbose=0) for _ in range(2))
    assert first == second
    model.get_layer("b").inference = "sample"
    assert (model.predict(X, verbose=0) != model.predict(X, verbose=0)).any()
    with pytest.raises(ValueError, match="inference"):
        model.get_layer("b").inference = "average"


# What an adversary found (each was silently biased).


@pytest.mark.parametrize("estimator", ["rebar", "relaxed_rebar"])
def test_hardening_the_relaxed_sample_again(estimator):
    """Between hard samples the wrong slope of a quadratic cost adds up to the right change."""
    inputs = keras.Input([3])
    b = Binary(3, estimator, name="b")(inputs)
    hard = Apply(lambda x: x + tf.stop_gradient(tf.round(x) - x))(b)
    model = relax_tf.RelaxModel(inputs, Dense(3)(hard))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model.check(X, Y)


class Penalised(relax_tf.RelaxModel):
    def __init__(self, estimator, penalty):
        super().__init__()
        self.b, self.head, self.penalty = Binary(3, estimator, name="b"), Dense(3), penalty

    def call(self, x):
        return self.head(self.b(x))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.reduce_sum((y_pred - y) ** 2, -1) + self.penalty(latents["b"].sample)


VANISHING = {
    "a detached term": lambda b: tf.stop_gradient(tf.reduce_sum(4 * b * (1 - b), -1)),
    "a step": lambda b: tf.reduce_sum(tf.where(tf.abs(b - 0.5) < 0.25, 1.0, 0.0), -1),
}


@pytest.mark.parametrize("kind", VANISHING)
def test_wrong_slopes_of_what_vanishes_at_hard_samples(kind):
    model = Penalised("rebar", VANISHING[kind])
    model.compile("sgd")
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model.check(X, Y)


def test_coupling_that_vanishes_at_hard_samples():
    model = Penalised("rebar", lambda b: 8 * tf.reduce_mean(tf.reduce_sum(b * b * (1 - b), -1)))
    model.compile("sgd")
    with pytest.raises(ValueError, match=COUPLED):
        model.check(X, Y)


def test_a_rough_cost_does_not_hide_a_wrong_slope():
    rough = Apply(lambda x: 0.3 * tf.sin(100 * x) + x + 2 * tf.stop_gradient(x))
    with pytest.raises(ValueError, match=WRONG_SLOPE):
        model_of("rebar", rough).check(X, Y)


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


def test_masks_are_not_folded_whatever_the_first_batch_shows():
    inputs = keras.Input([3])
    hidden = keras.layers.Dropout(0.5)(inputs)
    b = Binary(4, relax_tf.estimators.Rloo(num_samples=4))(hidden)
    model = relax_tf.RelaxModel(inputs, Dense(3)(keras.layers.Concatenate()([b, hidden])))
    model.compile("sgd", loss="mse")
    model.check(np.zeros([4, 3], "f"), Y[:4])
    assert not model._rows_are_alike


def test_layers_that_share_state_in_python_are_all_downstream():
    kept = []
    inputs = keras.Input([3])
    a = Binary(3, "rloo", name="a")(inputs)
    pushed = Apply(lambda x: (kept.append(x), x)[1])(a)
    for _ in range(3):  # so that Keras runs this branch first
        pushed = keras.layers.Identity()(pushed)
    popped = Apply(lambda x: x + kept[-1])(inputs)
    b = Binary(3, "rloo", name="b")(popped)
    a = pushed
    model = relax_tf.RelaxModel(inputs, Dense(3)(keras.layers.Add()([a, b])))
    model.compile("sgd", loss="mse")
    model.check(X, Y)
    assert not model._graph_tells


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


def test_a_stochastic_layer_inside_recompute_grad_is_refused():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.b = Binary(3, "relax", name="b")
            self.function = tf.recompute_grad(lambda x: self.b(x))

        def build(self, shape):
            self.b.build(shape)

        def call(self, x):
            return self.function(x)

    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, Block()(inputs))
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="recompute_grad"):
        model.fit(X, Y, verbose=0)


# Networks of control variates.


def network(*layers):
    return keras.Sequential([*layers, Dense(1, kernel_initializer="zeros")])


class NormalisedInTraining(keras.layers.BatchNormalization):
    """Whatever the model is told: estimators call networks without `training`."""

    def call(self, x):
        return super().call(x, training=True)


def half_stopped(x):
    return tf.stop_gradient(x) + 0.1 * x


BAD_NETWORKS = {
    "less the batch's mean": (
        lambda: Apply(lambda x: x - tf.reduce_mean(x, 0)),
        COUPLED,
    ),
    "batch normalisation in training": (NormalisedInTraining, COUPLED),
    "neighbours": (lambda: Apply(lambda x: x + 0.1 * tf.roll(x, 1, 0)), COUPLED),
    "stopped gradient": (lambda: Apply(half_stopped), WRONG_SLOPE),
    "rounding": (lambda: Apply(lambda x: x + tf.round(2 * x)), WRONG_SLOPE),
}
GOOD_NETWORKS = {
    "layer normalisation": keras.layers.LayerNormalization,
    "batch normalisation": keras.layers.BatchNormalization,
    "relu": lambda: Dense(16, "relu"),
    "dropout": lambda: keras.layers.Dropout(0.5),
    "sharp": lambda: Dense(16, "tanh", kernel_initializer=keras.initializers.RandomNormal(0, 5)),
}


def with_network(estimator, layer):
    inputs = keras.Input([3])
    own = getattr(relax_tf.estimators, estimator)(control_variate=network(Dense(8), layer))
    sibling = relax_tf.StochasticNormalLayer if estimator == "Lax" else Binary
    outputs = Dense(3)(sibling(4, own, name="b")(inputs))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss="mse")
    return model


@pytest.mark.parametrize("estimator", ["Relax", "RelaxedRebar", "Lax"])
@pytest.mark.parametrize("kind", BAD_NETWORKS)
def test_networks_that_would_bias_equation_10(kind, estimator):
    layer, message = BAD_NETWORKS[kind]
    model = with_network(estimator, layer())
    with pytest.raises(ValueError, match=f"control variate whose network {message}"):
        model.fit(X, Y, batch_size=12, verbose=0)
    model.certify = False
    model.fit(X, Y, batch_size=12, verbose=0)


@pytest.mark.parametrize("estimator", ["Relax", "RelaxedRebar", "Lax"])
@pytest.mark.parametrize("kind", GOOD_NETWORKS)
def test_networks_that_are_of_each_example_alone(kind, estimator):
    model = with_network(estimator, GOOD_NETWORKS[kind]())
    before = [w.copy() for w in model.get_weights()]
    model.check(X, Y)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    model.fit(X, Y, batch_size=12, verbose=0)
