"""What else would be biased or fail obscurely is refused, by a message that says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.estimators.score_function import score_function_gradient
from relax_tf.step.sharing import refuse_shared_layers
from tests.suspects import LoadBalanced, X, Y, model_of

Binary = relax_tf.StochasticBinaryLayer
Dense = keras.layers.Dense


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


class Borrowing(keras.layers.Layer):
    """A control variate with a weight of the decoder's."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def call(self, x):
        return tf.reduce_sum(x, -1) * tf.reduce_sum(self.weight)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_network_that_shares_a_weight_with_the_model_is_refused_by_name(trainable):
    head = Dense(3, name="head")
    head.build([None, 4])
    head.trainable = trainable
    b = Binary(4, relax_tf.estimators.Relax(control_variate=Borrowing(head.kernel)), name="b")
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, head(b(inputs)))
    model.compile("sgd", loss="mse")
    if trainable:
        with pytest.raises(ValueError, match=r"layer 'b' shares the layers \['head'\]"):
            model.fit(X, Y, verbose=0)
    else:
        refuse_shared_layers(model)


def test_a_model_may_hold_what_its_estimators_made():
    model = model_of("relaxed_rebar", keras.layers.Identity())
    estimator = next(each.estimator for each in model.layers if hasattr(each, "estimator"))
    model.phi = estimator.trainable_variables
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


def test_python_trains_without_xla(tmp_path):
    """On a GPU Keras takes XLA by default."""

    @keras.saving.register_keras_serializable("refusals_test")
    def loss(y, p):
        value = tf.numpy_function(lambda y, p: ((y - p) ** 2).mean(-1), [y, p], tf.float32)
        return tf.ensure_shape(value, [None])

    model = model_of("relax", keras.layers.Identity(), loss=loss, jit_compile=True)
    model.predict(X, verbose=0)
    with pytest.warns(UserWarning, match=r"XLA.*jit_compile=False"):
        history = model.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0).history
    assert np.isfinite([history["loss"], history["val_loss"]]).all()
    model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    assert not keras.saving.load_model(tmp_path / "model.keras").jit_compile


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


class Silent(relax_tf.estimators.Estimator):
    """Two evaluations of the cost, and says nothing of the second."""

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        return score_function_gradient(dist, draw.b, f_b - cost(dist.mode())), None


class Telling(Silent):
    evaluations = 2


def test_an_estimator_says_that_it_evaluates_the_cost_again():
    model_of(Telling(), keras.layers.Identity()).fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"'Silent' evaluates.*`evaluations`.*evaluations=1"):
        model_of(Silent(), keras.layers.Identity()).fit(X, Y, verbose=0)


class Stopping(relax_tf.RelaxModel):
    """Asks for one more sample until all examples have stopped."""

    def __init__(self, estimator):
        super().__init__()
        self.stop, self.head = Binary(1, estimator, name="stop"), Dense(3)

    def call(self, x):
        alive, steps = tf.ones_like(x[:, :1]), tf.zeros_like(x[:, :1])
        for _ in range(20):
            if not tf.executing_eagerly() or not tf.reduce_any(alive > 0):
                break
            steps += alive
            alive *= 1 - self.stop(tf.concat([x, steps], -1))
        if not tf.executing_eagerly():
            self.stop(tf.concat([x, steps], -1))
        return self.head(steps)


def test_a_loop_until_all_examples_stop_is_told_a_way():
    model = Stopping("relax")
    model.compile("sgd", loss="mse", run_eagerly=True)
    with pytest.raises(ValueError, match=r"same order in every pass.*'relax'.*certify = False"):
        model.fit(X, Y, batch_size=12, verbose=0)
    model.certify = False
    model.fit(X, Y, batch_size=12, verbose=0)


class Difference(relax_tf.RelaxModel):
    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.reduce_sum((y_pred - y) ** 2, -1)


def test_arrays_of_float64_are_cast_as_fit_does():
    inputs = keras.Input([3])
    model = Difference(inputs, Dense(3)(Binary(4, "relax")(inputs)))
    model.compile("sgd")
    model.check(X.astype("float64"), Y.astype("float64"))
    assert model.estimate(X.astype("float64"), Y.astype("float64")).surrogate.dtype == tf.float32


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "nvil", "flip", "rebar", "disarm"])
def test_networks_need_sizes_and_say_who_does_not(estimator):
    inputs = keras.Input([None, 3])
    if estimator in ("relaxed_rebar", "nvil"):
        with pytest.raises(ValueError, match=r"fixed size.*'flip'.*'disarm'"):
            Binary(4, estimator)(inputs)
        return
    model = relax_tf.RelaxModel(inputs, Dense(1)(Binary(4, estimator)(inputs)))
    model.compile("sgd", loss="mse")
    model.fit(np.ones([4, 5, 3], "f"), np.ones([4, 5, 1], "f"), verbose=0)
