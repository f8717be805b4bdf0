"""Export: a trained model as a SavedModel, a TFLite file and, where tf2onnx is installed, ONNX.

    python -m examples.guides.export --figure=export.png

`for_inference("mode")` is a plain `keras.Model` with the same weights, without control variates.
It predicts the most probable bits, so that every format can hold it; one that draws samples goes
into a SavedModel only, and `export` says so before it writes anything.
"""

import importlib.util
import pathlib
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import relax_tf
from examples.guides.command_line import run, save


def trained_model(x: np.ndarray, y: np.ndarray, epochs: int) -> relax_tf.RelaxModel:
    inputs = keras.Input([64])
    h = keras.layers.Dense(64, activation="relu")(inputs)
    b = relax_tf.StochasticBinaryLayer(16, name="bits")(h)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(10)(b))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss, steps_per_execution=10)
    model.fit(x, y, batch_size=50, epochs=epochs, verbose=0)
    return model


def run_tflite(content: bytes, x: np.ndarray) -> np.ndarray:
    interpreter = tf.lite.Interpreter(model_content=content)
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(returned["index"])


def main(epochs: int = 20, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    model = trained_model(x[:1500], y[:1500], epochs)
    plain = model.for_inference("mode")
    expected = plain.predict(x[1500:], verbose=0)
    accuracy = float(np.mean(expected.argmax(-1) == y[1500:]))
    print(f"{model.count_params()} parameters in training, {plain.count_params()} to deploy; "
          f"test accuracy {accuracy:.3f}")  # fmt: skip

    sizes, differences = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        plain.export(folder / "saved", verbose=False)
        saved = tf.saved_model.load(folder / "saved")
        sizes["SavedModel"] = sum(f.stat().st_size for f in (folder / "saved").rglob("*.*"))
        differences["SavedModel"] = saved.serve(x[1500:]) - expected

        plain.export(folder / "model.tflite", format="litert", verbose=False)
        content = (folder / "model.tflite").read_bytes()
        sizes["TFLite"] = len(content)
        differences["TFLite"] = run_tflite(content, x[1500:]) - expected

        if all(map(importlib.util.find_spec, ("tf2onnx", "onnxruntime"))):
            import onnxruntime

            plain.export(folder / "model.onnx", format="onnx", verbose=False)
            session = onnxruntime.InferenceSession(folder / "model.onnx")
            (returned,) = session.run(None, {session.get_inputs()[0].name: x[1500:]})
            sizes["ONNX"] = (folder / "model.onnx").stat().st_size
            differences["ONNX"] = returned - expected

        try:
            model.for_inference("sample").export(folder / "sample.tflite", format="litert")
        except ValueError as error:
            print(f"refused: {error}")
    largest = {name: float(np.abs(value).max()) for name, value in differences.items()}
    for name, size in sizes.items():
        print(f"{name}: {size / 1024:.0f} kB, differs by {largest[name]:.1e} at most")

    drawing, axis = plt.subplots(figsize=(5, 1.8), layout="constrained")
    axis.barh([*sizes], [size / 1024 for size in sizes.values()])
    axis.set(xlabel="kB")
    save(drawing, figure)
    return {"accuracy": accuracy, **largest}


if __name__ == "__main__":
    run(main)
