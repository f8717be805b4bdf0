"""The variational autoencoders of the paper's Table 1, by name.

    linear1     q(b|x)            p(x|b) p(b)              linear maps
    linear2     q(b2|b1) q(b1|x)  p(x|b1) p(b1|b2) p(b2)   linear maps
    nonlinear   q(b|x)            p(x|b) p(b)              two tanh layers before each linear map
    nonlinear_wide                                         those of the decoder as wide as the image
    categorical q(b|x)            p(x|b) p(b)              one-hot variables, linear maps

The paper says no more of its nonlinear model than that; its published code passes the number of
pixels for the width of the decoder's tanh layers (784), which is `nonlinear_wide`.

Every stochastic layer has `config.units` binary units in {-1, 1} (`categorical`:
`config.num_variables` variables of `config.num_classes` classes); the topmost has a learned prior.
The encoder sees the image less the data mean, the decoder's bias starts at the mean's logit. Each
layer is estimated by itself; its control variate sees z, the centred image and the samples of the
layers before it. KL terms are taken at the samples, so that `-cost` is the log-weight
`log p(x, b) - log q(b|x)` of a sample from q.
"""

from collections.abc import Callable, Sequence

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import relax_tf
from examples.data import Images


def build_model(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    """The model that `config.architecture` names; compile it with the loss `-log p(x|b)`."""
    if config.architecture not in ARCHITECTURES:
        raise ValueError(
            f"`config.architecture` must be one of {tuple(ARCHITECTURES)}. "
            f"Received: {config.architecture!r}"
        )
    return ARCHITECTURES[config.architecture](config, images)


def _linear1(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    x, centred = _inputs(images)
    b = _binary(config, "b", prior="learned")(centred)
    return relax_tf.RelaxModel(x, _linear("decoder", images)(b), name="vae")


def _linear2(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    x, centred = _inputs(images)
    b1 = _binary(config, "b1", prior=None)(centred)
    seen = keras.layers.Concatenate(name="b2_context")([centred, b1])
    b2 = _binary(config, "b2", prior="learned", layer=1)(b1, context=seen)
    prior_logits = keras.layers.Dense(config.units, name="b1_prior")(b2)
    outputs = {"x": _linear("decoder", images)(b1), "b1_prior": prior_logits}
    return TwoLayerVAE(x, outputs, name="vae")


def _nonlinear(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    return _tanh_vae(config, images, config.tanh_units)


def _nonlinear_wide(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    return _tanh_vae(config, images, [images.mean.size] * len(config.tanh_units))


def _tanh_vae(
    config: ml_collections.ConfigDict, images: Images, decoder_units: Sequence[int]
) -> relax_tf.RelaxModel:
    x, centred = _inputs(images)
    encoder = keras.Sequential(_tanh_layers(config.tanh_units), name="encoder")
    decoder_layers = [*_tanh_layers(decoder_units), _linear("logits", images)]
    decoder = keras.Sequential(decoder_layers, name="decoder")
    b = _binary(config, "b", prior="learned")(encoder(centred), context=centred)
    return relax_tf.RelaxModel(x, decoder(b), name="vae")


def _categorical(config: ml_collections.ConfigDict, images: Images) -> relax_tf.RelaxModel:
    x, centred = _inputs(images)
    b = relax_tf.StochasticCategoricalLayer(
        config.num_variables,
        config.num_classes,
        estimator=build_estimator(config),
        prior="learned",
        kl="sampled",
        name="b",
    )(centred)
    flat = keras.layers.Flatten(name="flat")(b)
    return relax_tf.RelaxModel(x, _linear("decoder", images)(flat), name="vae")


ARCHITECTURES: dict[str, Callable] = {
    "linear1": _linear1,
    "linear2": _linear2,
    "nonlinear": _nonlinear,
    "nonlinear_wide": _nonlinear_wide,
    "categorical": _categorical,
}


@keras.saving.register_keras_serializable("relax_tf_examples")
class TwoLayerVAE(relax_tf.RelaxModel):
    """Minus the hierarchical ELBO for each example:

        -log p(x|b1) + [log q(b2|b1) - log p(b2)] + [log q(b1|x) - log p(b1|b2)]

    The compiled loss and the KL of the layer `b2` are the first two terms. The last one is taken
    at the sampled b1, since its prior depends on the sample b2.
    """

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        posterior, b1 = latents["b1"].dist, latents["b1"].sample
        prior = posterior.with_theta(tf.cast(y_pred["b1_prior"], posterior.dtype))
        log_ratio = posterior.log_prob(b1) - prior.log_prob(b1)
        if sample_weight is not None:
            log_ratio *= tf.cast(sample_weight, log_ratio.dtype)
        return log_ratio + super().compute_cost(x, y, y_pred["x"], latents, sample_weight)


def prior_means(model: relax_tf.RelaxModel, count: int, seed: int = 0) -> np.ndarray:
    """Pixel means of `count` samples of the generative model, `[count, pixels]`."""
    top = stochastic_layers(model)[-1]
    b = top.sample_prior([count], seed)
    if isinstance(model, TwoLayerVAE):
        logits = model.get_layer("b1_prior")(b)
        b = relax_tf.distributions.Bernoulli(logits, top.support).draw(seed + 1).b
    if isinstance(top, relax_tf.StochasticCategoricalLayer):
        b = tf.reshape(b, [count, -1])
    return tf.sigmoid(model.get_layer("decoder")(b)).numpy()


def reconstructions(model: relax_tf.RelaxModel, images: np.ndarray) -> np.ndarray:
    """Pixel means at one sample of the encoder, `[count, pixels]`."""
    logits = model.predict(images, verbose=0)
    return tf.sigmoid(logits["x"] if isinstance(logits, dict) else logits).numpy()


def stochastic_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The stochastic layers in the order in which they are called."""
    return [layer for layer in model.layers if hasattr(layer, "prior_distribution")]


def build_estimator(
    config: ml_collections.ConfigDict, layer: int = 0
) -> relax_tf.estimators.Estimator:
    """The configured estimator, with those of the settings that it has.

    `config.estimator` is that of all stochastic layers, or one for each, in the order in which they
    are called: `"midpoint+flip"`.
    """
    names = config.estimator.split("+")
    estimator_class = type(relax_tf.estimators.get(names[min(layer, len(names) - 1)]))
    settings = {
        "temperature": config.temperature,
        "coupled": config.coupled,
        "baseline_decay": config.baseline_decay or None,
    }
    known = estimator_class().get_config()
    arguments = {key: value for key, value in settings.items() if key in known}
    arguments.update(config.estimator_settings)
    if "control_variate" in known:
        arguments["control_variate"] = relax_tf.control_variates.MLP(config.hidden_units)
    return estimator_class(**arguments)


def _inputs(images: Images) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The image and the image less the data mean."""
    pixels = images.mean.size
    x = keras.Input([pixels], name="x")
    return x, keras.layers.Normalization(mean=images.mean, variance=np.ones(pixels))(x)


def _binary(
    config: ml_collections.ConfigDict, name: str, prior: str | None, layer: int = 0
) -> keras.layers.Layer:
    return relax_tf.StochasticBinaryLayer(
        config.units,
        estimator=build_estimator(config, layer),
        support=(-1, 1),
        prior=prior,
        kl="sampled",
        name=name,
    )


def _tanh_layers(widths: Sequence[int]) -> list[keras.layers.Layer]:
    return [keras.layers.Dense(units, activation="tanh") for units in widths]


def _linear(name: str, images: Images) -> keras.layers.Layer:
    """The map to the pixels' logits; its bias starts at the logit of the clipped data mean."""
    mean = np.clip(images.mean, 0.001, 0.999)
    bias = keras.initializers.Constant(np.log(mean) - np.log1p(-mean))
    return keras.layers.Dense(mean.size, bias_initializer=bias, name=name)
