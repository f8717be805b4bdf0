"""Models for inference: plain Keras models that share the weights, and their exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.control_variates import is_control_variate
from tests.further import further
from tests.small_models import FunctionalSubclass, Subclassed, data, nested, small_model

pytestmark = pytest.mark.uncertified

FUNCTIONAL = type(keras.Model(*[keras.Input([1])] * 2))


@keras.saving.register_keras_serializable("deployment_test")
class Block(keras.layers.Layer):
    """A stochastic layer that no graph shows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.b = relax_tf.StochasticBinaryLayer(4, name="b")

    def build(self, shape):
        self.b.build(shape)

    def call(self, x):
        return self.b(x)

    def compute_output_shape(self, shape):
        return self.b.compute_output_shape(shape)


def with_block():
    inputs = keras.Input([3])
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(Block()(inputs)))


def all_kinds():
    """Each kind of layer with and without a kernel, a mean, a context, a layer called twice."""
    inputs = keras.Input([3])
    binary = relax_tf.StochasticBinaryLayer(3, "relax", (-1, 1), prior="learned", name="b")
    b = binary(binary(inputs), context=inputs)
    logits = keras.layers.Reshape([1, 3])(keras.layers.Dense(3)(b))
    c = relax_tf.StochasticCategoricalLayer(None, None, prior="uniform", name="c")(logits)
    n = relax_tf.StochasticNormalLayer(2, prior="standard", name="n")(keras.layers.Flatten()(c))
    hidden = keras.layers.Concatenate()([b, keras.layers.Flatten()(c), n, binary.mean(inputs)])
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(hidden))


FROM_GRAPHS = [small_model, FunctionalSubclass, nested, all_kinds]
MAKERS = [*FROM_GRAPHS, Subclassed, with_block]
OTHERS = [maker for maker in MAKERS if maker is not all_kinds]


def trained(maker):
    model = maker()
    model.compile("adam", loss="mse", run_eagerly=True)
    model.fit(*data(), verbose=0)
    return model


def emitting(model, inference):
    """What the model itself predicts if all its layers emit means or modes."""
    for layer in model._stochastic_layers():
        layer.inference = inference
    predicted = model.predict(data()[0], verbose=0)
    for layer in model._stochastic_layers():
        layer.inference = "sample"
    return predicted


@pytest.mark.parametrize(
    ("maker", "inference"),
    [
        *((all_kinds, "mean"), (nested, "mode"), (Subclassed, "mode"), (with_block, "mean")),
        *further(*((maker, "mode") for maker in MAKERS if maker not in (nested, Subclassed))),
    ],
)
def test_a_plain_model_predicts_saves_loads_and_exports(maker, inference, tmp_path):
    model = trained(maker)
    plain = model.for_inference(inference)
    x, _ = data()
    expected = emitting(model, inference)
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    assert not isinstance(plain, relax_tf.RelaxModel)
    if maker in FROM_GRAPHS:
        assert type(plain) is FUNCTIONAL

    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    assert type(loaded) is type(plain)

    plain.export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved_model")
    np.testing.assert_allclose(served.serve(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("maker", [all_kinds, *further(*OTHERS)])
def test_weights_are_shared_and_control_variates_left_out(maker):
    model = trained(maker)
    plain = model.for_inference("mean")
    assert not any(is_control_variate(variable) for variable in plain.variables)
    ours = {id(variable) for variable in model.variables}
    assert plain.trainable_variables
    assert all(id(variable) in ours for variable in plain.trainable_variables)
    model.fit(*data(), verbose=0)
    np.testing.assert_allclose(
        plain.predict(data()[0], verbose=0), emitting(model, "mean"), rtol=1e-5, atol=1e-6
    )
    if maker in FROM_GRAPHS:
        priors = [v for v in plain.variables if "prior" in v.path]
        assert (priors, plain.losses) == ([], [])


def test_sub_models_that_only_predict_have_no_control_variates():
    model = trained(small_model)
    plain = model.for_inference("mode")
    inside = keras.Model(plain.input, plain.get_layer("b").output)
    of_layers = relax_tf.RelaxModel(model.input, model.get_layer("b").output)
    above = of_layers.for_inference("mode")
    for sub_model in (inside, above):
        assert sub_model.count_params() == 3 * 4 + 4
    x, _ = data()
    np.testing.assert_array_equal(inside.predict(x, verbose=0), above.predict(x, verbose=0))


def test_the_summary_tells_control_variates_from_the_model(capsys):
    model = trained(small_model)
    model.summary()
    of_control_variates = model.count_params() - model.for_inference().count_params()
    assert of_control_variates > 40_000
    lines = []
    model.summary(print_fn=lines.append)
    for shown in (capsys.readouterr().out, "".join(lines)):
        assert f"Of these in control variates: {of_control_variates:,} " in shown


def test_the_original_goes_on_as_if_there_were_no_other():
    models = []
    for deployed in (False, True):
        keras.utils.set_random_seed(0)
        model = trained(all_kinds)
        layers = list(model.layers)
        if deployed:
            model.for_inference("mode").predict(data()[0], verbose=0)
        model.fit(*data(), verbose=0)
        assert model.layers == layers
        models.append(model)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("maker", "inference"),
    [
        *((small_model, "mode"), (Subclassed, "mean")),
        *further((small_model, "mean"), (Subclassed, "mode")),
    ],
)
def test_tflite_files_predict_the_same(maker, inference, tmp_path):
    model = trained(maker)
    plain = model.for_inference(inference)
    plain.export(tmp_path / "model.tflite", format="litert", verbose=False)
    converted = tf.lite.TFLiteConverter.from_keras_model(plain).convert()
    x, _ = data()
    for content in ((tmp_path / "model.tflite").read_bytes(), converted):
        interpreter = tf.lite.Interpreter(model_content=content)
        given = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(given, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, x)
        interpreter.invoke()
        predicted = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        expected = emitting(model, inference)
        np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maker", [small_model, Subclassed])
@pytest.mark.parametrize("inference", ["mode", "mean"])
def test_onnx_files_predict_the_same(maker, inference, tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = trained(maker)
    path = str(tmp_path / "model.onnx")
    model.for_inference(inference).export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (predicted,) = session.run(None, {session.get_inputs()[0].name: data()[0]})
    np.testing.assert_allclose(predicted, emitting(model, inference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maker", [small_model, Subclassed])
def test_samples_are_served_by_a_saved_model_and_refused_elsewhere(maker, tmp_path):
    model = trained(maker)
    plain = model.for_inference("sample")
    x, _ = data()
    assert (plain.predict(x, verbose=0) != plain.predict(x, verbose=0)).any()
    plain.export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved_model")
    draws = np.stack([served.serve(x) for _ in range(400)])
    assert draws.std(0).max() > 0
    # The top is linear, so that the mean of predictions is the prediction of means.
    np.testing.assert_allclose(draws.mean(0), emitting(model, "mean"), atol=0.3)
    for refusing in (plain, model):
        for form in ("litert", "onnx"):
            with pytest.raises(ValueError, match=rf"draws samples.*{form}.*for_inference"):
                refusing.export(tmp_path / f"model.{form}", format=form)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]


def test_a_deployed_model_refuses_to_train():
    plain = trained(small_model).for_inference()
    plain.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="needs the cost of its sample"):
        plain.fit(*data(), verbose=0)


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match=r"`inference` must be one of.*Received: 'median'"):
        small_model().for_inference("median")
    with pytest.raises(ValueError, match="has no weights yet"):
        Subclassed().for_inference()


@pytest.mark.parametrize("maker", [all_kinds, *further(*OTHERS)])
def test_settings_that_plain_models_have_not_are_no_hindrance(maker):
    model = trained(maker)
    model.evaluation_samples, model.certify = 5, False
    assert type(model.for_inference("mean")) is not type(model)
    assert (model.evaluation_samples, model.certify) == (5, False)
