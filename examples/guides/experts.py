"""A hard mixture of experts: each example is sent to one of six small networks.

    python -m examples.guides.experts --figure=experts.png

The router draws one expert (`StochasticCategoricalLayer(1, 6)`, a one-hot vector), and the output
is that expert's. Nothing is averaged, so that in use only one expert has to run; here all are
computed, and the product with the one-hot vector picks one. A KL to the uniform distribution keeps
the router from settling before the experts have.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np

import relax_tf
from examples.guides.command_line import run, save


def build(experts: int) -> relax_tf.RelaxModel:
    inputs = keras.Input([1])
    h = keras.layers.Dense(32, activation="tanh")(inputs)
    choice = relax_tf.StochasticCategoricalLayer(
        1, experts, "rebar", prior="uniform", name="choice"
    )(h)
    # Each expert is a straight line, an output of one Dense. They start out different.
    apart = keras.initializers.RandomNormal(stddev=1.0)
    lines = keras.layers.Dense(experts, kernel_initializer=apart, bias_initializer=apart)(inputs)
    lines = keras.layers.Reshape([1, experts])(lines)
    outputs = keras.layers.Dot(-1)([choice, lines])
    model = relax_tf.RelaxModel(inputs, keras.layers.Flatten()(outputs))
    # A squared error times 50 is the log-likelihood of noise of 0.1, in nats, as the KL is.
    model.compile(keras.optimizers.Adam(0.01), "mse", loss_weights=[50], steps_per_execution=10)
    return model


def main(epochs: int = 100, experts: int = 6, figure: str | None = None) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    x = np.random.RandomState(0).uniform(-2, 2, [2000, 1]).astype("float32")
    y = np.abs(np.abs(x) - 1)  # a "W": four straight pieces
    model = build(experts)
    line = float(np.mean((y - np.mean(y)) ** 2))
    model.fit(x, y, batch_size=50, epochs=epochs, verbose=0)
    plain = model.for_inference("mode")
    predicted = plain.predict(x, verbose=0)
    error = float(np.mean((predicted - y) ** 2))
    router = keras.Model(plain.input, plain.get_layer("choice").output)
    chosen = router.predict(x, verbose=0)[:, 0].argmax(-1)
    used = np.unique(chosen).tolist()
    print(f"mean squared error: {line:.4f} of the best constant, {error:.4f} of the experts")
    print(f"experts in use: {used}")

    drawing, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
    order = np.argsort(x[:, 0])
    axis.plot(x[order, 0], y[order, 0], "k", lw=0.7)
    for expert in used:
        mine = chosen == expert
        axis.plot(x[mine, 0], predicted[mine, 0], ".", ms=3, label=f"expert {expert}")
    axis.legend(fontsize=7)
    save(drawing, figure)
    return {"constant": line, "error": error, "used": len(used)}


if __name__ == "__main__":
    run(main)
