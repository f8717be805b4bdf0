"""Several samples of each example in `evaluate`, validation and `predict`."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further
from tests.replicas import two_replicas
from tests.small_models import Subclassed, data, small_model


def compiled(maker=small_model, **arguments):
    model = maker()
    model.compile("sgd", loss="mse", **arguments)
    model(data()[0])
    return model


@pytest.mark.parametrize("maker", [small_model, Subclassed])
@pytest.mark.parametrize("mode", [{"run_eagerly": True}, *further({"jit_compile": True})])
def test_costs_and_predictions_are_means_over_samples(maker, mode):
    """Of the very samples that single evaluations draw, since seeds move alike."""
    model = compiled(maker, **mode)
    x, y = data()
    state = [(v, v.numpy()) for v in model.non_trainable_variables]

    def again():
        for variable, value in state:
            variable.assign(value)

    losses = [model.evaluate(x, y, verbose=0) for _ in range(5)]
    again()
    predictions = [model.predict(x, verbose=0) for _ in range(5)]
    assert np.std(losses) > 0
    model.evaluation_samples = 5
    again()
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), np.mean(losses), rtol=1e-5)
    again()
    predicted = model.predict(x, verbose=0)
    np.testing.assert_allclose(predicted, np.mean(predictions, 0), rtol=1e-4, atol=1e-6)
    model.evaluation_samples = 1
    again()
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), losses[0], rtol=1e-6)


def test_losses_of_several_outputs_and_kl_are_means_of_costs_and_metrics_see_mean_predictions():
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "reinforce", prior="uniform", kl="sampled")(inputs)
    outputs = {name: keras.layers.Dense(2, name=name)(b) for name in ("u", "v")}
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss={"u": "mse", "v": "mae"}, metrics={"u": "mse"})
    x, y = data()
    targets = {"u": y, "v": y}
    model.evaluation_samples = 200
    logs = model.evaluate(x, targets, verbose=0, return_dict=True)
    predicted = model.predict(x, verbose=0)["u"]
    spread = logs["u_loss"] - np.mean((predicted - y) ** 2)
    assert spread > 0.01  # of a mean square over samples, the variance
    assert abs(logs["u_mse"] - np.mean((predicted - y) ** 2)) < spread / 10
    dist = model.layers[1].distribution(tf.constant(x))
    kl = np.mean(dist.kl_divergence(relax_tf.distributions.Bernoulli(tf.zeros([1, 4]))))
    assert abs(logs["loss"] - logs["u_loss"] - logs["v_loss"] - kl) < 0.05


def test_validation_during_fit_has_less_variance():
    model = compiled()
    model.optimizer.learning_rate = 0.0
    spreads = []
    for samples in (1, 50):
        model.evaluation_samples = samples
        history = model.fit(*data(), epochs=12, validation_data=data(), verbose=0).history
        spreads.append(np.std(history["val_loss"]))
    assert spreads[1] < spreads[0] / 3


def test_integers_are_the_first_sample_s_and_half_precision_stays():
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "reinforce")(inputs)
    whole = keras.layers.Lambda(lambda t: tf.cast(t, tf.int32), output_shape=(4,))(b)
    model = relax_tf.RelaxModel(inputs, {"b": b, "whole": whole})
    model.evaluation_samples = 20
    predicted = model.predict(data()[0], verbose=0)
    assert predicted["b"].dtype == np.float16
    assert ((predicted["b"] > 0) & (predicted["b"] < 1)).any()
    assert predicted["whole"].dtype == np.int32
    assert set(np.unique(predicted["whole"])) == {0, 1}


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_other_numbers_are_refused(value, error):
    model = small_model()
    with pytest.raises(error, match=r"`evaluation_samples` must be.*Received"):
        model.evaluation_samples = value
    assert model.evaluation_samples == 1


def test_replicas_average_too():
    strategy = two_replicas()
    with strategy.scope():
        model = compiled()
    x, y = data()
    model.evaluation_samples = 8
    loss = model.evaluate(x, y, verbose=0)
    model.layers[1].inference = "mean"
    predicted = model.predict(x, verbose=0)
    assert loss > np.mean((predicted - y) ** 2)  # a mean square, less that of the mean
    model.layers[1].inference, model.evaluation_samples = "sample", 8
    errors = [np.abs(model.predict(x, verbose=0) - predicted).mean()]
    model.evaluation_samples = 1
    errors.append(np.abs(model.predict(x, verbose=0) - predicted).mean())
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("maker", [small_model, Subclassed])
@pytest.mark.parametrize("how", ["file", "pickle"])
def test_settings_are_saved(maker, how, tmp_path):
    model = compiled(maker)
    model.evaluation_samples, model.certify = 7, False
    if how == "file":
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
    else:
        loaded = pickle.loads(pickle.dumps(model))
    assert (loaded.evaluation_samples, loaded.certify) == (7, False)
    fresh = maker()
    assert (fresh.evaluation_samples, fresh.certify) == (1, True)
