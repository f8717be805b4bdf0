"""Layers without W and beta: their inputs are theta."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import estimators
from relax_tf.layers.passes import EvaluationPass
from tests.enumeration import tiled, worst_z
from tests.further import further
from tests.problems import shake
from tests.small_models import data

pytestmark = pytest.mark.uncertified

BINARY, CATEGORICAL, NORMAL = (
    relax_tf.StochasticBinaryLayer,
    relax_tf.StochasticCategoricalLayer,
    relax_tf.StochasticNormalLayer,
)
DEFAULTS = {BINARY: "relaxed_rebar", CATEGORICAL: "relaxed_rebar", NORMAL: "lax"}


def own(cls, **arguments):
    """The layer of a class that takes its inputs for theta."""
    return cls(None, None, **arguments) if cls is CATEGORICAL else cls(None, **arguments)


def theta_layers(cls):
    """What computes theta, for two units (of three classes), and what shapes it."""
    if cls is BINARY:
        return [keras.layers.Dense(2)], lambda t: t[0]
    if cls is CATEGORICAL:
        return [keras.layers.Dense(6), keras.layers.Reshape([2, 3])], lambda t: t[0]
    return [keras.layers.Dense(2), keras.layers.Dense(2, "softplus")], list


def functional(cls, **arguments):
    inputs = keras.Input([3])
    (first, *second), shaped = theta_layers(cls)
    theta = [first(inputs)]
    if cls is CATEGORICAL:
        theta = [second[0](theta[0])]
    if cls is NORMAL:
        theta.append(second[0](inputs))
    sample = own(cls, name="b", **arguments)(shaped(theta))
    hidden = keras.layers.Dense(3, "tanh")(keras.layers.Flatten()(sample))
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(hidden))


@keras.saving.register_keras_serializable("own_logits_test")
class Subclassed(relax_tf.RelaxModel):
    def __init__(self, kind="StochasticBinaryLayer", **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.theta_layers, self.shaped = theta_layers(getattr(relax_tf, kind))
        self.b = own(getattr(relax_tf, kind), name="b", prior="learned")
        self.flat, self.top = keras.layers.Flatten(), keras.layers.Dense(2)

    def call(self, x):
        first, *second = self.theta_layers
        theta = [first(x)]
        if self.kind == "StochasticCategoricalLayer":
            theta = [second[0](theta[0])]
        if self.kind == "StochasticNormalLayer":
            theta.append(second[0](x))
        return self.top(self.flat(self.b(self.shaped(theta))))

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@pytest.mark.parametrize("cls", DEFAULTS)
def test_a_layer_with_a_kernel_is_one_behind_a_dense(cls):
    """The same noise, theta and sample; the KL of the same prior."""
    size = {BINARY: (2,), CATEGORICAL: (2, 3), NORMAL: (2,)}[cls]
    whole = cls(*size, prior="learned", seed=3)
    x = tf.constant(data()[0])
    expected = whole(x)
    dist = whole.distribution(x)
    apart = own(cls, prior="learned", seed=3)
    theta = list(dist.theta) if cls is NORMAL else dist.theta
    np.testing.assert_array_equal(apart(theta), expected)
    priors = [[v for v in layer.weights if "prior" in v.path] for layer in (whole, apart)]
    for ours, theirs in zip(*priors, strict=True):
        assert ours.shape == theirs.shape
        theirs.assign(tf.fill(ours.shape, 0.5))
        ours.assign(theirs)
    np.testing.assert_allclose(
        apart.kl_divergence(apart.distribution(theta), expected),
        whole.kl_divergence(dist, expected),
        rtol=1e-6,
    )
    assert (apart.kernel, apart.bias, apart.dense) == (None, None, None)
    assert apart.compute_output_shape([(None, 2)] * 2 if cls is NORMAL else (None, *size)) == (
        None,
        *size,
    )


@pytest.mark.parametrize(
    ("cls", "estimator", "kl"),
    [
        (BINARY, "relaxed_rebar", "sampled"),
        (BINARY, "relax", "analytic"),
        (BINARY, "rloo", "analytic"),
        (CATEGORICAL, "relaxed_rebar", "analytic"),
        (CATEGORICAL, "muprop", "sampled"),
    ],
)
def test_gradients_of_what_computes_the_logits_are_exact(cls, estimator, kl):
    model = functional(cls, estimator=estimator, prior="learned", kl=kl)
    model.compile("sgd", loss="mse")
    shake(model.trainable_variables, 0.7)
    x, y = data(2)
    assert worst_z(model, tiled(x, y, 100)) < 4.5


def test_gradients_of_what_computes_loc_and_scale_are_exact():
    """The cost is linear in the sample, so that its expectation is known."""
    inputs = keras.Input([3])
    loc = keras.layers.Dense(2, name="loc")(inputs)
    scale = keras.layers.Dense(2, "softplus", name="scale")(inputs)
    sample = own(NORMAL, prior="standard", name="b")([loc, scale])
    model = relax_tf.RelaxModel(inputs, sample)
    model.compile("sgd", loss=lambda y, b: keras.ops.sum(b * y, -1))
    shake(model.trainable_variables, 0.5)
    x, y = map(tf.constant, data(2))
    variables = [v for name in ("loc", "scale") for v in model.get_layer(name).trainable_variables]
    with tf.GradientTape() as tape:
        theta = [model.get_layer(name)(x) for name in ("loc", "scale")]
        dist = relax_tf.distributions.Normal(*theta)
        kl = dist.kl_divergence(model.get_layer("b").prior_distribution())
        expected = tf.reduce_mean(tf.reduce_sum(theta[0] * y, -1) + kl)
    exact = tape.gradient(expected, variables)
    many = [tf.tile(t, [500, 1]) for t in (x, y)]
    samples = []
    for _ in range(60):
        with tf.GradientTape() as tape:
            surrogate = model.estimate(*many).surrogate
        samples.append([np.asarray(g) for g in tape.gradient(surrogate, variables)])
    for measured, true in zip(zip(*samples, strict=True), exact, strict=True):
        error = np.std(measured, 0) / np.sqrt(len(measured))
        assert (np.abs(np.mean(measured, 0) - true) / error).max() < 4.5


@pytest.mark.parametrize("cls", DEFAULTS)
@pytest.mark.parametrize("kind", ["subclassed", *further("functional")])
def test_models_train_save_and_load(cls, kind, tmp_path):
    model = functional(cls, prior="learned") if kind == "functional" else Subclassed(cls.__name__)
    model.compile("adam", loss="mse", run_eagerly=True)
    model.fit(*data(), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(*data(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("cls", DEFAULTS)
def test_configurations_come_back(cls):
    layer = own(cls, prior="learned", kl="sampled", seed=3)
    config = layer.get_config()
    assert not {"use_bias", "kernel_initializer", "bias_regularizer"} & set(config)
    assert type(layer).from_config(config).get_config() == config


@pytest.mark.parametrize("cls", DEFAULTS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"use_bias": False},
        {"kernel_initializer": "zeros"},
        {"bias_initializer": "ones"},
        {"kernel_regularizer": "l2"},
        {"bias_regularizer": keras.regularizers.L2(0.1)},
    ],
)
def test_settings_of_a_kernel_are_refused_without_one(cls, arguments):
    with pytest.raises(ValueError, match=rf"no kernel.*Received: {next(iter(arguments))}="):
        own(cls, **arguments)


def test_the_size_is_an_explicit_choice():
    for cls in DEFAULTS:
        with pytest.raises(TypeError, match="missing"):
            cls()
    with pytest.raises(ValueError, match="num_variables=2, num_classes=None"):
        CATEGORICAL(2, None)
    with pytest.raises(ValueError, match="num_variables=None, num_classes=3"):
        CATEGORICAL(None, 3)


@pytest.mark.parametrize(
    ("cls", "inputs", "message"),
    [
        (BINARY, tf.zeros([4]), r"\[batch, \.\.\., units\].*\(4,\)"),
        (CATEGORICAL, tf.zeros([4, 3]), r"\[batch, \.\.\., variables, classes\].*\(4, 3\)"),
        (NORMAL, tf.zeros([4, 3]), r"\[loc, scale\].*Received: \(4, 3\)"),
        (NORMAL, [tf.zeros([4, 3])] * 3, r"\[loc, scale\].*Received"),
        (NORMAL, [tf.zeros([4, 3]), tf.ones([4, 2])], r"one shape.*\(4, 3\) and \(4, 2\)"),
        (NORMAL, [tf.zeros([4, 3]), tf.zeros([4, 3])], "`scale` must be positive"),
        (NORMAL, [tf.zeros([4]), tf.ones([4])], r"\[batch, \.\.\., units\]"),
        (BINARY, tf.zeros([4, 2], tf.int32), "floating"),
    ],
)
def test_inputs_that_are_no_theta_are_refused(cls, inputs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        own(cls)(inputs)


def test_another_number_of_units_is_refused():
    layer = own(BINARY, estimator="reinforce", prior="learned")
    layer(tf.zeros([2, 5, 3]))
    layer(tf.zeros([2, 3]))
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 3"):
        layer(tf.zeros([2, 1]))


@pytest.mark.parametrize("cls", DEFAULTS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_theta_keeps_its_precision(cls, policy):
    """A logit of 0.1 in half precision is another one."""
    keras.config.set_dtype_policy(policy)
    layer = own(cls, prior="learned")
    theta = tf.fill([2, 4, 3], 0.1)
    inputs = [theta, theta] if cls is NORMAL else theta
    with EvaluationPass() as recorded:
        assert layer(inputs).dtype == layer.compute_dtype
    dist = recorded.calls[0].dist
    assert dist.dtype == ("float64" if policy == "float64" else "float32")
    np.testing.assert_array_equal(tf.nest.flatten(dist.theta)[0], tf.cast(theta, dist.dtype))
    model = functional(cls, prior="learned")
    model.compile("adam", loss="mse", run_eagerly=True)
    assert np.isfinite(model.fit(*data(), verbose=0).history["loss"]).all()


def test_numbers_of_numpy_do_not_turn_a_layer_into_one_of_float64():
    layer = own(BINARY)
    assert layer.distribution(layer.theta(np.zeros([2, 3]))).dtype == tf.float32
    assert layer(np.zeros([2, 3])).dtype == tf.float32


@pytest.mark.parametrize("cls", DEFAULTS)
def test_the_control_variate_sees_theta_by_default_and_a_context_by_choice(cls):
    seen = []

    class Spy(keras.layers.Dense):
        def call(self, x):
            seen.append(x.shape[-1])
            return super().call(x)

    estimator = estimators.Lax if cls is NORMAL else estimators.Relax
    size = {BINARY: 2, CATEGORICAL: 6, NORMAL: 2}[cls]
    default = functional(cls, estimator=estimator(control_variate=Spy(1)))
    default.compile("sgd", loss="mse")
    default.estimate(*data())
    assert set(seen) == {size + (4 if cls is NORMAL else size)}
    seen.clear()
    layer = own(cls, estimator=estimator(control_variate=Spy(1)))
    theta = default.get_layer("b").input
    sample = layer(theta, context=default.input)
    shown = relax_tf.RelaxModel(
        default.input, keras.layers.Dense(2)(keras.layers.Flatten()(sample))
    )
    shown.compile("sgd", loss="mse")
    shown.estimate(*data())
    assert set(seen) == {size + 3}


def test_a_mask_passes_through_and_is_refused_with_a_prior():
    inputs = keras.Input([5, 3])
    masked = keras.layers.Masking()(inputs)
    loc, scale = keras.layers.Dense(2)(masked), keras.layers.Dense(2, "softplus")(inputs)
    sample = own(NORMAL)([loc, scale])
    assert sample._keras_mask.shape == (None, 5)
    assert own(BINARY)(loc)._keras_mask.shape == (None, 5)
    for theta, cls in (([loc, scale], NORMAL), (loc, BINARY)):
        for values in (theta, keras.Model(inputs, theta)(np.ones([2, 5, 3]))):
            with pytest.raises(ValueError, match="received a mask"):
                own(cls, prior="learned")(values)
        assert own(cls, prior="learned").mean(theta).shape == (None, 5, 2)
    own(NORMAL, prior="learned")([tf.ones([2, 5, 3])] * 2)  # no mask


def test_impossible_classes_of_a_mask_stay_impossible():
    inputs = keras.Input([4])
    mask = tf.constant([[0.0, -np.inf, 0.0, 0.0]])
    logits = keras.layers.Reshape([1, 4])(keras.layers.Dense(4)(inputs) + mask)
    model = relax_tf.RelaxModel(inputs, own(CATEGORICAL, name="c")(logits))
    model.compile("adam", loss=lambda y, c: keras.ops.sum(c[:, 0] * y, -1))
    x = np.random.RandomState(0).normal(size=[64, 4]).astype("f")
    assert np.isfinite(model.fit(x, x, epochs=3, verbose=0).history["loss"]).all()
    assert (model.predict(x, verbose=0)[:, 0, 1] == 0).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_file_of_version_0_1_loads_and_predicts_as_it_did():
    model = keras.models.load_model(pathlib.Path(__file__).parent / "data/version_0_1.keras")
    x = np.linspace(-1, 1, 24).reshape(8, 3).astype("f")
    expected = [[1.0700899, -0.6543494], [0.81842506, -0.6647457]]
    np.testing.assert_allclose(model.predict(x[:2], verbose=0), expected, rtol=1e-5)
    model.compile("sgd", loss="mse")
    assert np.isfinite(model.fit(x, x[:, :2], verbose=0).history["loss"]).all()


def test_logits_without_an_axis_of_variables_are_told_to_get_one():
    with pytest.raises(ValueError, match=r"Received shape: \(None, 4\)\. .*Reshape\(\[1, 4\]\)"):
        own(CATEGORICAL)(keras.Input([4]))
