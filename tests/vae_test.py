"""The VAE examples in one process: architectures, their bounds against enumeration, resuming."""

import itertools
import json
import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs import vae_digits, vae_smoke, vae_table1
from examples import data, vae, vae_models
from examples.iwae import importance_weighted_bound
from examples.metrics import read_metrics
from relax_tf import estimators
from relax_tf.layers.passes import EvaluationPass

DISCRETE = sorted(set(estimators._BY_ID) - {"lax", "reparameterization"})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def tiny(architecture, estimator="rebar"):
    """A model of 4 pixels and 2 units per layer with weights far from zero, and its images."""
    pixels = np.random.RandomState(0).rand(6, 4).round().astype(np.float32)
    images = data.Images(pixels, pixels, pixels, pixels.mean(0), (2, 2), "tiny", "none")
    config = vae_digits.get_config()
    config.architecture, config.estimator, config.units = architecture, estimator, 2
    config.hidden_units, config.tanh_units, config.jit_compile = (5,), (3, 3), False
    model = vae.compiled_model(config, images)
    random = np.random.RandomState(1)
    for variable in model.trainable_variables:
        if "temperature" not in variable.path and "scale" not in variable.path:
            variable.assign(random.normal(scale=0.7, size=variable.shape))
    return model, images


def log_bernoulli(logits, b):
    """`log p(b)` of values in {-1, 1} by their logits, summed over the last axis."""
    return np.sum(-np.logaddexp(0, -b * logits), -1)


def dense(layer, x):
    for part in getattr(layer, "layers", [layer]):
        x = x @ part.kernel.numpy() + part.bias.numpy()
        x = np.tanh(x) if part.activation is keras.activations.tanh else x
    return x


def log_joint_and_posterior(model, x):
    """`log p(x, b)` and `log q(b|x)` of all states, `[states]` each, by hand from the weights."""
    inputs = x - model.get_layer(index=1).mean.numpy().reshape(-1)
    states = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    decoder = model.get_layer("decoder")
    names = [layer.name for layer in model.layers]
    if "b2" not in names:
        encoded = dense(model.get_layer("encoder"), inputs) if "encoder" in names else inputs
        layer = model.get_layer("b")
        joint = log_bernoulli(layer.prior_logits.numpy(), states)
        joint += log_bernoulli(dense(decoder, states), 2 * x - 1)
        return joint, log_bernoulli(dense(layer.dense, encoded), states)
    b1, b2 = (np.array(s) for s in zip(*itertools.product(states, states), strict=True))
    layer1, layer2 = model.get_layer("b1"), model.get_layer("b2")
    joint = log_bernoulli(layer2.prior_logits.numpy(), b2)
    joint += log_bernoulli(dense(model.get_layer("b1_prior"), b2), b1)
    joint += log_bernoulli(dense(decoder, b1), 2 * x - 1)
    posterior = log_bernoulli(dense(layer1.dense, inputs), b1)
    return joint, posterior + log_bernoulli(dense(layer2.dense, b1), b2)


@pytest.mark.parametrize("architecture", ["linear1", "linear2", "nonlinear", "nonlinear_wide"])
def test_bounds_agree_with_enumeration(architecture):
    model, images = tiny(architecture)
    samples = 20_000
    elbos, evidences, variances_w, variances_log_w = [], [], [], []
    for x in images.validation:
        joint, posterior = log_joint_and_posterior(model, x)
        q, log_w = np.exp(posterior), joint - posterior
        np.testing.assert_allclose(q.sum(), 1, rtol=1e-5)
        evidence = np.logaddexp.reduce(joint)
        elbos.append(q @ log_w)
        evidences.append(evidence)
        variances_w.append(q @ (np.exp(log_w - evidence) - 1) ** 2)
        variances_log_w.append(q @ (log_w - elbos[-1]) ** 2)
    n = len(images.validation)
    bounds = importance_weighted_bound(model, images.validation, samples)
    assert abs(bounds.elbo - np.mean(elbos)) < 5 * np.sqrt(np.sum(variances_log_w) / samples) / n
    assert abs(bounds.bound - np.mean(evidences)) < 5 * np.sqrt(np.sum(variances_w) / samples) / n
    assert bounds.elbo < bounds.bound
    assert np.mean(evidences) - np.mean(elbos) > 0.05  # the two figures are told apart


def test_two_layer_cost_is_minus_the_log_weight_of_its_samples():
    model, images = tiny("linear2")
    rows = tf.repeat(images.validation[:1], 500, 0)
    with EvaluationPass() as evaluation:
        y_pred = model(rows, training=False)
    cost = model.compute_cost(rows, rows, y_pred, evaluation.latents).numpy()
    joint, posterior = log_joint_and_posterior(model, images.validation[0])
    bits = [evaluation.latents[name].sample.numpy() > 0 for name in ("b1", "b2")]
    index = np.concatenate(bits, 1) @ [8, 4, 2, 1]
    assert len(set(index)) > 8
    np.testing.assert_allclose(cost, (posterior - joint)[index], rtol=1e-4)
    weighted = model.compute_cost(
        rows, rows, y_pred, evaluation.latents, sample_weight=tf.fill([500], 3.0)
    )
    np.testing.assert_allclose(weighted, 3 * cost, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "disarm"])
def test_two_layer_gradient_is_that_of_the_enumerated_elbo(estimator):
    """Every weight's gradient: both layers' estimates and the direct terms of the middle KL."""
    model, images = tiny("linear2", estimator)
    x = images.validation[:1]
    phi = {id(v) for layer in vae_models.stochastic_layers(model) for v in _phi(layer)}
    variables = [v for v in model.trainable_variables if id(v) not in phi]
    with tf.GradientTape() as tape:
        loss = -_enumerated_elbo(model, tf.constant(x))
    exact = tape.gradient(loss, [v.value for v in variables])

    @tf.function(autograph=False)
    def estimated():
        rows = tf.repeat(x, 1000, 0)
        with tf.GradientTape() as tape:
            surrogate = model.estimate(rows, rows).surrogate
        return tape.gradient(surrogate, [v.value for v in variables])

    batches = [estimated() for _ in range(40)]
    for variable, expected, *values in zip(variables, exact, *batches, strict=True):
        error = np.std(values, 0, ddof=1) / np.sqrt(len(values))
        z = (np.mean(values, 0) - expected) / (error + 1e-6)
        assert np.max(np.abs(z)) < 5, variable.path


def _phi(layer):
    return layer.estimator.trainable_variables


def _enumerated_elbo(model, x):
    centred = model.get_layer(index=1)(x)
    states = tf.constant(list(itertools.product([-1.0, 1.0], repeat=2)))

    def log_p(logits, b):
        return -tf.reduce_sum(tf.nn.softplus(-b * logits), -1)

    elbo = 0.0
    for b1, b2 in itertools.product(states[:, tf.newaxis], states[:, tf.newaxis]):
        q = log_p(model.get_layer("b1").dense(centred), b1)
        q += log_p(model.get_layer("b2").dense(b1), b2)
        p = log_p(model.get_layer("b2").prior_logits, b2)
        p += log_p(model.get_layer("b1_prior")(b2), b1)
        p += log_p(model.get_layer("decoder")(b1), 2 * x - 1)
        elbo += tf.reduce_sum(tf.exp(q) * (p - q))
    return elbo


@pytest.mark.parametrize("estimator", DISCRETE)
def test_every_discrete_estimator_estimates_both_layers(estimator):
    model, images = tiny("linear2", estimator)
    estimates = model.estimate(images.train, images.train).estimates
    assert list(estimates) == ["b1", "b2"]
    for estimate in estimates.values():
        assert np.isfinite(estimate.gradient).all()
        assert np.abs(estimate.gradient).max() > 0


def test_control_variates_see_the_image_and_samples_upstream():
    model, images = tiny("linear2", "relaxed_rebar")

    def seen(layer):
        network = layer.estimator.control_variate
        return network.of_z.kernel.shape[0], network.of_context.kernel.shape[0]

    sizes = {layer.name: seen(layer) for layer in vae_models.stochastic_layers(model)}
    assert sizes == {"b1": (2, 4), "b2": (2, 4 + 2)}
    with EvaluationPass() as evaluation:
        model(images.validation, training=False)
    centred = images.validation - images.mean
    context = next(call for call in evaluation.calls if call.name == "b2").context.numpy()
    np.testing.assert_allclose(context[:, :4], centred, atol=1e-6)
    np.testing.assert_array_equal(context[:, 4:], evaluation.latents["b1"].sample)
    nonlinear, _ = tiny("nonlinear", "relax")
    assert seen(nonlinear.get_layer("b")) == (2, 4)


def test_wide_decoder_is_as_wide_as_the_image():
    (narrow, images), (wide, _) = tiny("nonlinear"), tiny("nonlinear_wide")

    def widths(model, name):
        return [layer.units for layer in model.get_layer(name).layers]

    pixels = images.mean.size
    assert widths(wide, "decoder") == [pixels] * 3
    assert widths(narrow, "decoder") != widths(wide, "decoder")
    assert widths(narrow, "encoder") == widths(wide, "encoder")


def smoke(data_dir, **fields):
    config = vae_smoke.get_config()
    config.update(data_dir=data_dir, verbose=0, units=16, hidden_units=(16,), log_every=50)
    config.update(fields)
    return config


def without_seconds(folder):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(folder)]


@pytest.mark.slow
@pytest.mark.uncertified
def test_two_layers_train_and_resume_as_if_nothing_had_happened(tmp_path, data_dir):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = {"architecture": "linear2", "batch_size": 100, "control_variate_weight_decay": 1e-3}
    vae.train_and_evaluate(smoke(data_dir, steps=150, **config), str(whole))
    vae.train_and_evaluate(smoke(data_dir, steps=50, **config), str(stopped))
    assert json.loads((stopped / "results.json").read_text())["last"]["step"] == 50
    vae.train_and_evaluate(smoke(data_dir, steps=150, **config), str(stopped))
    rows = without_seconds(whole / "metrics.csv")
    np.testing.assert_equal(rows, without_seconds(stopped / "metrics.csv"))
    assert list(rows[0])[3:] == ["b1_second_moment", "b2_second_moment"]
    assert rows[-1]["validation_elbo"] > rows[0]["validation_elbo"] + 1
    results = json.loads((whole / "results.json").read_text())
    assert results == json.loads((stopped / "results.json").read_text())
    best = max(rows[1:], key=lambda row: row["validation_elbo"])
    assert results["best"]["step"] == best["step"]
    assert abs(results["best"]["elbo"] - best["validation_elbo"]) < 1
    assert results["best"]["bound"] > results["best"]["elbo"]

    # Evaluating again changes nothing, by the stored configuration or with more samples.
    (whole / "results.json").unlink()
    config = vae.stored_config(str(whole))
    assert vae.evaluate(config, str(whole)) == results
    config.iwae_samples = 30
    assert vae.evaluate(config, str(whole))["best"]["bound"] > results["best"]["bound"]
    loaded = keras.models.load_model(whole / "checkpoints" / "best.keras")
    assert isinstance(loaded, vae_models.TwoLayerVAE)


def test_nonlinear_trains(tmp_path, data_dir):
    config = smoke(data_dir, architecture="nonlinear", estimator="nvil", tanh_units=(20, 20))
    config.steps = 100
    last = vae.train_and_evaluate(config, str(tmp_path))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert last["validation_elbo"] > rows[0]["validation_elbo"]
    assert (tmp_path / "figures" / "prior_samples.png").stat().st_size > 5_000


def test_bound_refuses_a_closed_form_kl_no_samples_and_no_checkpoint(tmp_path):
    model, images = tiny("linear1")
    with pytest.raises(ValueError, match=r"nothing to evaluate: .*vae.keras does not exist"):
        vae.evaluate(smoke("", steps=50), str(tmp_path))
    with pytest.raises(ValueError, match=r"at least 1. Received: 0"):
        importance_weighted_bound(model, images.validation, 0)
    model.get_layer("b").kl = "analytic"
    with pytest.raises(ValueError, match=r"kl='sampled'.*'b'"):
        importance_weighted_bound(model, images.validation)


def test_unknown_architecture_and_row_are_named(data_dir):
    config = smoke(data_dir, architecture="linear3")
    with pytest.raises(ValueError, match=r"'linear1', 'linear2', 'nonlinear'.*'linear3'"):
        vae_models.build_model(config, data.load("digits", data_dir))
    with pytest.raises(ValueError, match=r"DATASET-ARCHITECTURE-ESTIMATOR.*Received: 'mnist'"):
        vae_table1.get_config("mnist")
    config = vae_table1.get_config("omniglot-nonlinear-relaxed_rebar")
    assert (config.dataset, config.architecture) == ("omniglot", "nonlinear")


@pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("TFDS_DATA_DIR", "/nowhere")) / "omniglot").exists(),
    reason="TFDS_DATA_DIR is not set or holds no omniglot",
)
def test_omniglot_is_28x28_with_bright_strokes():
    images = data.load("omniglot", splits=("small1", "small2"))
    assert images.train.shape == (2720, 784)
    assert images.validation.shape == (3120, 784)
    assert images.test is images.validation
    assert set(np.unique(images.train)) == {0, 1}
    assert 0.03 < images.mean.mean() < 0.15  # strokes are few
    borders = images.mean.reshape(28, 28)[[0, -1]]
    assert borders.mean() < 0.5 * images.mean.mean()
    again = data.load("omniglot", splits=("small1", "small2"))
    np.testing.assert_array_equal(images.train, again.train)
    with pytest.raises(ValueError, match=r"two or three splits.*Received: \('small1',\)"):
        data.load("omniglot", splits=("small1",))


@pytest.mark.parametrize(
    ("warmup", "decay_to", "expected"),
    [
        (0, 1.0, [1e-3, 1e-3, 1e-3, 1e-3]),
        (100, 1.0, [0.0, 0.0, 1e-3, 1e-3]),
        (0, 0.1, [1e-3, 0.994460e-3, 0.55e-3, 1e-4]),
        (100, 0.1, [0.0, 0.5e-3, 0.628142e-3, 1e-4]),
    ],
)
def test_learning_rates(warmup, decay_to, expected):
    """At the first step, in the warm-up, half way and at the end, by the cosine's formula."""
    config = vae_digits.get_config()
    config.steps, config.learning_rate = 1_000, 1e-3
    config.warmup_steps, config.decay_to = warmup, decay_to
    optimizer = vae.build_optimizer(config).optimizer
    rates = []
    for step in (0, 50, 500, 1_000):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
