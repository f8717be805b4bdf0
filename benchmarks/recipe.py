"""A COMPARATOR, no part of the library: the published recipe of RELAX, as it is written down.

The linear one-layer VAE with `c(z) = eta f(relax(z, lambda)) + r(z, x)`, in plain TensorFlow and
Keras layers. `z` and `z_tilde` have noise of their own (the paper's appendix B); the cost and the
control variate are evaluated at each: f(b), c(z), c(z_tilde). Nested tapes differentiate, once
for the estimate and once more for the variance; each group of parameters has its Adam. It trains
through `fit` and draws its noise as the library does, so that what differs is the recipe.
"""

import keras
import numpy as np
import tensorflow as tf


class TextbookVAE(keras.Model):
    """`q(b|x)`, `p(x|b)`, `p(b)` with `units` binary units in {-1, 1} and linear maps.

    Args:
        mean: of the images, `[pixels]`.
        units: of the layer.
        hidden_units: of the ReLU network r.
    """

    def __init__(self, mean: np.ndarray, units: int, hidden_units: tuple[int, ...] = (200, 200)):
        super().__init__()
        logits = np.log(np.clip(mean, 0.001, 0.999)) - np.log1p(-np.clip(mean, 0.001, 0.999))
        self.mean_image = mean
        self.encoder = keras.layers.Dense(units)
        self.decoder = keras.layers.Dense(
            mean.size, bias_initializer=keras.initializers.Constant(logits)
        )
        hidden = [
            keras.layers.Dense(h, "relu", kernel_initializer="he_normal") for h in hidden_units
        ]
        self.network = keras.Sequential(
            [*hidden, keras.layers.Dense(1, kernel_initializer="zeros")]
        )
        self.prior_logits = self.add_weight(shape=(units,), initializer="zeros")
        self.log_temperature = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(np.log(0.5))
        )
        self.eta = self.add_weight(shape=(), initializer="ones")
        self.encoder.build((None, mean.size))
        self.decoder.build((None, units))
        self.network.build((None, mean.size + units))
        self.built = True
        self.noise = keras.random.SeedGenerator()
        self.phi_optimizer = keras.optimizers.Adam(1e-3)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.variance_tracker = keras.metrics.Mean(name="second_moment")

    def call(self, x):
        return self.encoder(x - self.mean_image)

    @property
    def model_variables(self) -> list[keras.Variable]:
        layers = (self.encoder, self.decoder)
        return [*(v for layer in layers for v in layer.trainable_variables), self.prior_logits]

    @property
    def phi(self) -> list[keras.Variable]:
        return [*self.network.trainable_variables, self.log_temperature, self.eta]

    def cost(self, x: tf.Tensor, b: tf.Tensor, theta: tf.Tensor) -> tf.Tensor:
        """`-log p(x|b) - log p(b) + log q(b|theta)`, `[batch]`, for b in [0, 1]."""
        logits = self.decoder(2 * b - 1)
        cross_entropies = tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits)
        log_ratio = _log_prob(b, theta) - _log_prob(b, self.prior_logits)
        return tf.reduce_sum(cross_entropies, -1) + log_ratio

    def control_variate(self, x: tf.Tensor, z: tf.Tensor, theta: tf.Tensor) -> tf.Tensor:
        """`c(z)`, `[batch]`."""
        relaxed = tf.sigmoid(z / tf.exp(self.log_temperature))
        r = tf.squeeze(self.network(tf.concat([x - self.mean_image, z], -1)), -1)
        return self.eta * self.cost(x, relaxed, theta) + r

    def gradients(self, x: tf.Tensor) -> tuple[list, list, tf.Tensor, tf.Tensor]:
        """Of the model's parameters and of phi; the loss; the second moment of the estimate."""
        batch = tf.cast(tf.shape(x)[0], tf.float32)
        with tf.GradientTape() as variance_tape:
            with tf.GradientTape(persistent=True) as tape:
                theta = self(x)
                z = theta + self._logistic(theta)
                b = tf.cast(z > 0, tf.float32)
                z_tilde = self._conditional(b, theta)
                log_q = _log_prob(b, theta)
                f_b = self.cost(x, b, theta)
                loss = tf.reduce_mean(f_b)
                c_z = self.control_variate(x, z, theta)
                c_z_tilde = self.control_variate(x, z_tilde, theta)
            score = tape.gradient(log_q, theta)
            dc_z = tape.gradient(c_z, theta)
            dc_z_tilde = tape.gradient(c_z_tilde, theta)
            g = (f_b - c_z_tilde)[:, tf.newaxis] * score + dc_z - dc_z_tilde
            second_moment = tf.reduce_mean(tf.reduce_sum(tf.square(g), -1))
        of_phi = variance_tape.gradient(second_moment, self.phi)
        # The loss depends on theta through log q(b|theta) too.
        one = tf.ones_like(loss)
        of_model = tape.gradient(
            [loss, theta], self.model_variables, output_gradients=[one, g / batch]
        )
        return of_model, of_phi, loss, second_moment

    def train_step(self, data):
        of_model, of_phi, loss, second_moment = self.gradients(data[0])
        self.optimizer.apply_gradients(zip(of_model, self.model_variables, strict=True))
        self.phi_optimizer.apply_gradients(zip(of_phi, self.phi, strict=True))
        self.loss_tracker.update_state(loss)
        self.variance_tracker.update_state(second_moment)
        return {m.name: m.result() for m in (self.loss_tracker, self.variance_tracker)}

    def _logistic(self, like: tf.Tensor) -> tf.Tensor:
        """Standard logistic noise, `logit(u)`."""
        u = tf.random.stateless_uniform(
            tf.shape(like), tf.cast(self.noise.next(), tf.int32), alg="philox", minval=1e-7
        )
        return tf.math.log(u) - tf.math.log1p(-u)

    def _conditional(self, b: tf.Tensor, theta: tf.Tensor) -> tf.Tensor:
        """`z_tilde ~ p(z|b)`: logistic noise around theta, truncated to the side of b."""
        v = self._logistic(theta)
        above = tf.nn.softplus(v + tf.nn.softplus(theta))
        below = -tf.nn.softplus(v + tf.nn.softplus(-theta))
        return tf.where(b > 0, above, below)


def _log_prob(b: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    logits = logits + tf.zeros_like(b)
    return -tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=b, logits=logits), -1)
