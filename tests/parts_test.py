"""Parts of the cost in the logs: KL, compiled loss, terms of one's own; and their scales."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further
from tests.replicas import two_replicas
from tests.small_models import data, optimizer, small_model


class Terms(relax_tf.RelaxModel):
    """A cost of named terms."""

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        b = latents["b"]
        error = tf.reduce_sum((y_pred - y) ** 2, -1)
        return {"error": error, "half_kl": 0.5 * b.kl, "active": tf.reduce_sum(b.sample, -1)}


class Sum(Terms):
    """The same cost without names."""

    def compute_cost(self, *args, **kwargs):
        return tf.add_n(list(super().compute_cost(*args, **kwargs).values()))


def with_terms(cls, estimator="relaxed_rebar"):
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, estimator, prior="uniform", name="b")(inputs)
    return cls(inputs, keras.layers.Dense(2)(b))


MODES = [{"run_eagerly": True}, {"jit_compile": True, "steps_per_execution": 2}]


@pytest.mark.parametrize("mode", MODES)
def test_parts_add_up_to_the_loss_in_training_and_validation(mode):
    model = small_model(prior="learned", kl="sampled")
    model.compile("sgd", loss="mse", **mode)
    history = model.fit(*data(), epochs=2, validation_data=data(), verbose=0).history
    assert {"b_kl", "compiled_loss", "val_b_kl", "val_compiled_loss"} <= set(history)
    for prefix in ("", "val_"):
        parts = np.add(history[prefix + "b_kl"], history[prefix + "compiled_loss"])
        np.testing.assert_allclose(parts, history[prefix + "loss"], rtol=1e-5)
    assert not any(name.startswith("val_b_second") for name in history)


def test_the_logged_kl_is_the_layer_s_and_of_all_its_calls():
    layer = relax_tf.StochasticBinaryLayer(3, "reinforce", prior="uniform", name="b")
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, layer(layer(inputs)))
    model.compile("sgd", loss="mse")
    x = tf.constant(data()[0])
    layer.inference = "mode"
    logs = model.evaluate(x, x, verbose=0, return_dict=True)
    first = layer.distribution(x)
    kls = [layer.kl_divergence(d, None) for d in (first, layer.distribution(first.mode()))]
    np.testing.assert_allclose(logs["b_kl"], np.mean(tf.add_n(kls)), rtol=1e-5)


def test_a_sole_compiled_loss_and_several_are_logged_as_ever():
    model = small_model()
    model.compile("sgd", loss="mse")
    logs = model.fit(*data(), verbose=0).history
    assert set(logs) == {"loss", "b_second_moment", "b_control_variate_norm"}
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "reinforce", prior="uniform", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, {n: keras.layers.Dense(2, name=n)(b) for n in "uv"})
    model.compile("sgd", loss={"u": "mse", "v": "mae"})
    x, y = data()
    logs = model.fit(x, {"u": y, "v": y}, verbose=0).history
    assert set(logs) == {"loss", "u_loss", "v_loss", "b_kl", "b_second_moment"}
    np.testing.assert_allclose(
        logs["loss"][0], sum(logs[n][0] for n in ("u_loss", "v_loss", "b_kl")), rtol=1e-5
    )


def test_the_compiled_loss_in_a_cost_of_ones_own_is_logged():
    """It need not be the whole cost."""

    class Doubled(relax_tf.RelaxModel):
        def compute_cost(self, *args, **kwargs):
            return 2 * super().compute_cost(*args, **kwargs)

    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "reinforce")(inputs)
    model = Doubled(inputs, keras.layers.Dense(2)(b))
    model.compile("sgd", loss="mse")
    logs = model.fit(*data(), verbose=0).history
    np.testing.assert_allclose(logs["loss"], np.multiply(2, logs["compiled_loss"]), rtol=1e-5)


@pytest.mark.parametrize("mode", [MODES[0], *further(MODES[1])])
def test_named_terms_are_logged_and_add_up(mode):
    model = with_terms(Terms)
    model.compile("sgd", **mode)
    history = model.fit(*data(), epochs=2, validation_data=data(), verbose=0).history
    for prefix in ("", "val_"):
        names = [prefix + name for name in ("error", "half_kl", "active")]
        parts = np.sum([history[name] for name in names], 0)
        np.testing.assert_allclose(parts, history[prefix + "loss"], rtol=1e-5)
    np.testing.assert_allclose(history["half_kl"], np.multiply(0.5, history["b_kl"]), rtol=1e-5)
    assert 0 < history["active"][0] < 4


@pytest.mark.parametrize("estimator", ["rloo", *further("relaxed_rebar")])
def test_names_change_nothing_in_training(estimator):
    weights = []
    for cls in (Terms, Sum):
        keras.utils.set_random_seed(0)
        model = with_terms(cls, estimator)
        model.compile(optimizer())
        model.fit(*data(), batch_size=8, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluate_has_parts_by_name_and_one_number_without_names():
    model = with_terms(Terms)
    model.compile("sgd")
    model.evaluation_samples = 3
    assert isinstance(model.evaluate(*data(), verbose=0), float)
    assert isinstance(float(model.test_on_batch(*data())), float)
    logs = model.evaluate(*data(), verbose=0, return_dict=True)  # before any training
    assert set(logs) == {"loss", "error", "half_kl", "active", "b_kl"}
    again = model.evaluate(*data(), verbose=0, return_dict=True)
    assert abs(again["half_kl"] - logs["half_kl"]) < 1e-6


@pytest.mark.parametrize(
    ("terms", "shapes"),
    [
        (lambda y: {"a": tf.reduce_mean(y), "b": y[:, 0]}, r"'a': \(\), 'b': \(32,\)"),
        (lambda y: {"a": y}, r"'a': \(32, 2\)"),
        (lambda y: {}, r"\{\}"),
    ],
)
def test_terms_of_other_shapes_are_refused(terms, shapes):
    class Wrong(relax_tf.RelaxModel):
        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            return terms(y_pred)

    model = with_terms(Wrong)
    model.compile("sgd")
    with pytest.raises(ValueError, match=rf"dict of such terms.*{shapes}"):
        model.estimate(*data())


@pytest.mark.parametrize("estimator", ["relax", "disarm", "rloo"])
def test_terms_that_python_computes(estimator):
    """TensorFlow does not know their rank. One that is not [batch] fails in the first step."""

    class Python(relax_tf.RelaxModel):
        axes = (-1,)

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            total = lambda b: np.sum(b, self.axes, dtype="f")  # noqa: E731
            return {"total": tf.numpy_function(total, [y_pred], tf.float32), "zero": 0 * x[:, 0]}

    inputs = keras.Input([3])
    model = Python(inputs, relax_tf.StochasticBinaryLayer(4, estimator)(inputs))
    model.compile("sgd")
    logs = model.fit(data()[0], verbose=0).history
    assert 0 < logs["total"][0] == logs["loss"][0] < 4
    model.axes = ()
    model.compile("sgd")
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"\[\?\]"):
        model.fit(data()[0], verbose=0)


def test_a_metric_of_ones_own_counts_the_hard_pass_alone():
    """As docs/keras.md has it: for what is logged and is no part of the cost."""

    class Counting(relax_tf.RelaxModel):
        def __init__(self, *args):
            super().__init__(*args)
            self.active = keras.metrics.Sum(name="active")

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            self.active.update_state(tf.ones_like(y_pred[:, 0]))
            return tf.reduce_sum(y_pred, -1)

    for estimator in ("relaxed_rebar", "disarm", "rloo", "flip", "vimco"):
        inputs = keras.Input([3])
        model = Counting(inputs, relax_tf.StochasticBinaryLayer(4, estimator)(inputs))
        model.compile("sgd")
        assert model.fit(data()[0], verbose=0).history["active"] == [32]


def test_replicas_log_the_kl():
    strategy = two_replicas()
    with strategy.scope():
        model = with_terms(Terms)
        model.compile("sgd")
    logs = model.fit(*data(), verbose=0).history
    assert np.isfinite([logs["loss"], logs["b_kl"]]).all()


# Scales.


def vae(loss, **arguments):
    inputs = keras.Input([20])
    b = relax_tf.StochasticBinaryLayer(6, "reinforce", prior="uniform", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(20)(b), name="vae")
    model.compile("sgd", loss=loss, **arguments)
    return model


PIXELS = np.random.RandomState(0).randint(0, 2, [16, 20]).astype("f")


@pytest.mark.parametrize(
    "loss", ["mse", keras.losses.BinaryCrossentropy(from_logits=True), keras.losses.Huber()]
)
def test_a_mean_beside_a_sum_gives_one_warning_with_both_numbers(loss):
    model = vae(loss)
    with pytest.warns(RuntimeWarning, match="BernoulliNegativeLogLikelihood") as caught:
        history = model.fit(PIXELS, PIXELS, epochs=3, verbose=0).history
        model.evaluate(PIXELS, PIXELS, verbose=0)
    (message,) = [str(w.message) for w in caught if "a KL of" in str(w.message)]
    assert f"loss of {history['compiled_loss'][0]:.4g}, a mean over the 20 numbers" in message
    assert f"a KL of {history['b_kl'][0]:.4g} nats" in message


def summed(y, p):
    return keras.ops.sum((y - p) ** 2, -1)


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (relax_tf.losses.BernoulliNegativeLogLikelihood(), {}),
        (summed, {}),
        ("mse", {"loss_weights": 20.0}),
        ("mse", {"loss_weights": 1.0}),
    ],
)
def test_no_false_alarm(loss, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        vae(loss, **arguments).fit(PIXELS, PIXELS, verbose=0)
        small = small_model(prior="uniform")  # two numbers an example
        small.compile("sgd", loss="mse")
        small.fit(*data(), verbose=0)


class Named(relax_tf.RelaxModel):
    """A cost of terms of these names."""

    names = ("loss", "other")

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return {name: tf.reduce_sum((y_pred - y) ** 2, -1) for name in self.names}


@pytest.mark.parametrize("certify", [True, *further(False)])
@pytest.mark.parametrize("name", ["loss", "relaxed_loss", "b_kl", "b_second_moment"])
def test_a_term_may_not_have_the_name_of_another_metric(name, certify):
    model = with_terms(Named)
    model.names, model.certify = (name, "other"), certify
    model.compile("sgd")
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=f"a metric of this name already.*Received: '{name}'"):
            call(*data(), verbose=0)


@pytest.mark.parametrize("certify", [True, *further(False)])
@pytest.mark.parametrize("first", ["fit", "evaluate", "other metrics"])
def test_a_term_may_not_have_the_name_of_a_compiled_metric(first, certify):
    model = with_terms(Named)
    model.names, model.certify = ("mae", "other"), certify
    if first == "other metrics":
        model.compile("sgd")
        model.fit(*data(), verbose=0)
    model.compile("sgd", metrics=["mae"])
    with pytest.raises(ValueError, match=r"a metric of this name already.*Received: 'mae'"):
        getattr(model, "evaluate" if first == "evaluate" else "fit")(*data(), verbose=0)


@pytest.mark.parametrize(("name", "taken"), [("a_mae", True), ("mae", False)])
def test_names_of_metrics_of_several_outputs_are_those_in_the_logs(name, taken):
    class Two(Named):
        names = (name, "other")

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            return super().compute_cost(x, y["a"], y_pred["a"], latents, sample_weight)

    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "relax", name="b")(inputs)
    model = Two(inputs, {key: keras.layers.Dense(2, name=key)(b) for key in ("a", "c")})
    model.compile("sgd", metrics={"a": ["mae"], "c": ["mae"]})
    x, y = data()
    if taken:
        with pytest.raises(ValueError, match="a metric of this name already"):
            model.fit(x, {"a": y, "c": y}, verbose=0)
    else:
        logs = model.fit(x, {"a": y, "c": y}, verbose=0).history
        assert {"a_mae", "c_mae", "mae", "other"} <= set(logs)
