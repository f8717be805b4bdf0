"""Default networks of feature maps: small, local, valid, and not those of older files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.control_variates import MLP, build_network, differentiate_network, evaluate_network
from relax_tf.control_variates.local import map_positions
from tests.further import further
from tests.small_models import small_model

MAP = (None, 2, 3, 4)  # of theta


def shaken(*context_shape, shape=MAP, **kwargs):
    """A network on maps with random weights."""
    network = MLP(dtype="float64", **kwargs)
    build_network(network, theta=shape, context=context_shape or None)
    random = np.random.RandomState(0)
    for variable in network.variables:
        variable.assign(random.randn(*variable.shape))
    return network


def normal(*shape, seed=0):
    return tf.constant(np.random.RandomState(seed).randn(*shape))


@pytest.mark.parametrize(
    ("shapes", "positions"),
    [
        ([MAP], (2, 3)),
        ([MAP, (None, 2, 3, 7)], (2, 3)),
        ([MAP, (None, 7)], (2, 3)),
        ([MAP, (None, 8, 8, 1)], (2, 3)),
        ([(None, 2, 3, 5, 4), (None, 2, 3, 7)], (2, 3)),  # categorical
        ([(None, 7)], None),
        ([(None, 3, 4), (None, 7)], None),  # categorical, a vector of them
        ([(None, 3, 4), (None, 3, 7)], None),  # a sequence
        ([(None, 3, 5, 4), (None, 3, 7)], None),  # a sequence of categorical ones
    ],
)
def test_what_counts_as_a_map(shapes, positions):
    assert map_positions(shapes, 2) == positions


@pytest.mark.parametrize("estimator", ["relax", "relaxed_rebar", "nvil", "relaxed_disarm", "flip"])
def test_the_size_of_phi_follows_the_channels(estimator):
    def size(side, channels=64):
        layer = relax_tf.StochasticBinaryLayer(channels, estimator)
        layer.build((None, side, side, channels))
        return layer.estimator.count_params()

    assert size(32) < 300_000  # one network over everything has 26 million
    positions = 32 * 32 - 8 * 8
    assert size(32) - size(8) <= 200 * positions


def test_vectors_have_the_network_that_they_had():
    network = MLP()
    build_network(network, theta=(None, 3), context=(None, 4))
    shapes = [tuple(v.shape) for v in network.variables]
    assert shapes == [(200, 200), (200,), (200, 1), (1,), (3, 200), (200,), (4, 200)]


@pytest.mark.parametrize("context_shape", [(), (None, 2, 3, 5), (None, 7), (None, 8, 8, 2)])
def test_a_local_network_is_a_control_variate(context_shape):
    network = shaken(*context_shape)
    z = normal(5, 2, 3, 4)
    context = normal(5, *context_shape[1:], seed=1) if context_shape else None
    value, derivative = differentiate_network(network, z, context)
    assert value.shape == [5]

    v = normal(5, 2, 3, 4, seed=2)
    up, down = (evaluate_network(network, z + h * v, context) for h in (1e-6, -1e-6))
    slope = tf.reduce_sum(derivative * v, [1, 2, 3])
    np.testing.assert_allclose((up - down) / 2e-6, slope, rtol=1e-5)

    others = tf.concat([z[:1], normal(4, 2, 3, 4, seed=3)], 0)
    alone = evaluate_network(network, others, context)
    np.testing.assert_allclose(alone[0], value[0])
    assert np.abs(alone[1:] - value[1:]).min() > 1e-6
    if context is not None:
        moved = evaluate_network(network, z, context + normal(*context.shape, seed=4))
        assert np.abs(moved - value).min() > 1e-6


def test_positions_are_told_apart_by_what_is_made_of_them():
    network = shaken()
    z = np.zeros([2, 2, 3, 4])
    z[0, 0, 0], z[1, 1, 2] = 1.0, 1.0
    one, other = evaluate_network(network, tf.constant(z))
    assert abs(one - other) > 1e-3


def test_parts_of_another_size_are_refused():
    network = shaken(None, 2, 3, 5)
    for z, context in (((2, 12), (2, 30)), ((2, 24), (2, 15)), ((2, 24), None)):
        with pytest.raises(ValueError, match=r"was built for a .*Received: (12|15|None)"):
            network(normal(*z), None if context is None else normal(*context))


def test_it_starts_at_zero():
    network = MLP()
    build_network(network, theta=MAP, context=(None, 2, 3, 5))
    z, context = tf.random.normal([3, 24]), tf.random.normal([3, 30])
    np.testing.assert_array_equal(network(z, context), np.zeros([3, 1]))


def test_one_number_for_each_variable_is_made_at_its_position():
    network = shaken(outputs=24)
    z = np.random.RandomState(0).randn(1, 2, 3, 4)
    moved = z.copy()
    moved[0, 0, 0] += [1, -1, 0, 0]
    moved[0, 1, 1] -= [1, -1, 0, 0]  # the mean over the map stays
    change = np.reshape(network(moved.reshape(1, 24)) - network(z.reshape(1, 24)), [2, 3, 4])
    assert np.argwhere(np.abs(change).max(-1) > 1e-9).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("estimator", ["relax", "relaxed_rebar"])
def test_estimates_with_local_networks_are_unbiased(estimator):
    estimator = relax_tf.estimators.get(estimator)
    logits = tf.constant(np.random.RandomState(0).randn(1, 2, 2, 1), tf.float32)
    dist = relax_tf.distributions.Bernoulli(logits)
    weights = tf.constant([[1.0], [-2.0], [0.5], [3.0]])

    def cost(b):
        return tf.reduce_sum(tf.reshape(b, [*b.shape[:-3], 4]) @ weights, -1) ** 2

    estimator.estimate(dist, cost, context=logits, seed=0)
    random = np.random.RandomState(1)
    for variable in estimator.control_variate.trainable_variables:
        variable.assign(random.randn(*variable.shape))
    certificate = relax_tf.diagnostics.check_unbiased(
        estimator, dist, cost, num_draws=20_000, context=logits
    )
    assert certificate.unbiased


def conv_model(layer):
    inputs = keras.Input([4, 4, 2])
    b = layer(keras.layers.Conv2D(5, 3, padding="same", activation="relu")(inputs))
    if len(b.shape) == 5:
        b = keras.layers.Reshape([4, 4, 6])(b)
    model = relax_tf.RelaxModel(inputs, keras.layers.Conv2D(1, 3)(b))
    model.compile("adam", loss="mse")
    return model


def maps():
    random = np.random.RandomState(0)
    return random.rand(8, 4, 4, 2).astype("float32"), random.rand(8, 2, 2, 1).astype("float32")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: relax_tf.StochasticBinaryLayer(3, "relaxed_disarm", name="b"),
        lambda: relax_tf.StochasticCategoricalLayer(2, 3, "relaxed_rebar", name="b"),
        *further(
            lambda: relax_tf.StochasticNormalLayer(3, "lax", name="b"),
            # The certificate measures networks that are given.
            lambda: relax_tf.StochasticBinaryLayer(
                3, relax_tf.estimators.Relax(control_variate=MLP()), name="b"
            ),
        ),
    ],
)
def test_models_with_maps_train_and_continue_from_a_file(layer, tmp_path):
    keras.utils.set_random_seed(0)
    model = conv_model(layer())
    before = [v.numpy() for v in model.get_layer("b").estimator.trainable_variables]
    model.fit(*maps(), epochs=3, verbose=0)  # certified
    phi = model.get_layer("b").estimator.trainable_variables
    assert all((v.numpy() != b).any() for v, b in zip(phi, before, strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for trained in (model, loaded):
        trained.fit(*maps(), shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def as_earlier_versions_wrote(config):
    """A configuration without what tells local networks from those that see everything."""
    if isinstance(config, dict):
        new = {"networks_of_maps", "local", "shapes"}
        return {k: as_earlier_versions_wrote(v) for k, v in config.items() if k not in new}
    if isinstance(config, list | tuple):
        return type(config)(as_earlier_versions_wrote(v) for v in config)
    return config


@pytest.mark.parametrize("estimator", ["relax", "nvil", "relaxed_disarm", "flip", "explicit"])
def test_files_of_earlier_versions_have_networks_that_see_whole_maps(estimator):
    if estimator == "explicit":
        estimator = relax_tf.estimators.Relax(control_variate=MLP([7]))
    layer = relax_tf.StochasticBinaryLayer(3, estimator)
    config = as_earlier_versions_wrote(layer.get_config())
    sizes = []
    for _ in range(2):  # and when they are saved again
        old = relax_tf.StochasticBinaryLayer.from_config(config)
        old.build((None, 4, 4, 5))
        sizes.append(old.estimator.count_params())
        config = old.get_config()
    layer.build((None, 4, 4, 5))
    assert sizes[0] == sizes[1] > layer.estimator.count_params()


def test_sequences_may_share_a_network_too():
    network = MLP([8], local=True)
    build_network(network, theta=(None, 6, 3), context=(None, 6, 5))
    assert network.count_params() < 8 * 20 + 6 * 8 + 10
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
    copy.set_weights(network.get_weights())


def test_without_positions_nothing_is_local():
    with pytest.raises(ValueError, match=r"must have axes of positions.*Received shapes: .*3"):
        build_network(MLP(local=True), theta=(None, 3))
    with pytest.raises(TypeError, match="`local`"):
        MLP(local="yes")


def test_vector_models_are_as_they_were():
    keras.utils.set_random_seed(0)
    model = small_model()
    networks = [
        layer for layer in model._flatten_layers() if isinstance(layer, MLP) and layer.built
    ]
    assert networks
    assert all(network.local_network is None for network in networks)
