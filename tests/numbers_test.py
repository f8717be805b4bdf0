"""No NaN and no infinity: properties over shapes, parameters, precisions and empty batches."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import relax_tf
from relax_tf import estimators
from relax_tf.control_variates import MLP
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.problems import shake

FAMILIES = (Bernoulli, OneHotCategorical, Normal)
HALF = (tf.float16, tf.bfloat16)
DTYPES = (*HALF, tf.float32, tf.float64)
# What makes an estimator beside its defaults: the settings of which each is drawn from.
TEMPERATURES = st.sampled_from([1e-3, 0.1, 0.5, 3.0])
SETTINGS = {
    "concrete": {"temperature": TEMPERATURES},
    "straight_through": {"temperature": TEMPERATURES},
    "rebar": {"temperature": TEMPERATURES, "coupled": st.booleans()},
    "relax": {"coupled": st.booleans()},
    "relaxed_rebar": {"temperature": TEMPERATURES, "coupled": st.booleans()},
    "reinforce": {"baseline_decay": st.sampled_from([None, 0.0, 0.9])},
    "nvil": {"normalize_variance": st.booleans()},
    "rloo": {"num_samples": st.integers(2, 4)},
    "vimco": {"num_samples": st.integers(2, 4)},
}
NAMES = sorted(estimators._BY_ID)


def is_defined_for(name, family):
    try:
        estimators.get(name).check_defined_for(family)
    except ValueError:
        return False
    return True


PAIRS = [(name, family) for family in FAMILIES for name in NAMES if is_defined_for(name, family)]


def make_estimator(draw, name):
    settings = {key: draw(values) for key, values in SETTINGS.get(name, {}).items()}
    cls = type(estimators.get(name))
    if "control_variate" in cls().get_config():
        settings["control_variate"] = MLP([4])
    if name in ("nvil", "muprop"):
        settings["baseline"] = MLP([4])
    return cls(**settings)


def make_theta(draw, family, dtype):
    """The tensors that a distribution is made of, `[batch, *event]`."""
    batch = draw(st.sampled_from([0, 1, 3]))
    event = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    if family is Bernoulli:
        event = draw(st.sampled_from([(), event]))
    if family is OneHotCategorical:
        event = (*event, draw(st.integers(1, 4)))
    shape = (batch, *event)
    if family is not Normal:
        extreme = st.sampled_from([-1e4, -80.0, 0.0, 80.0, 1e4])
        parts = [arrays(np.float64, shape, elements=st.floats(-1e4, 1e4) | extreme)]
    elif dtype in HALF:  # in which a gradient above 65504 has no value
        parts = [arrays(np.float64, shape, elements=st.floats(*ab)) for ab in ((-9, 9), (0.1, 9))]
    else:
        bounds = (-1e4, 1e4), (1e-3, 1e4)
        parts = [arrays(np.float64, shape, elements=st.floats(*ab)) for ab in bounds]
    return [tf.Variable(tf.cast(draw(part), dtype)) for part in parts]


def make_distribution(draw, family):
    """From theta to the distribution."""
    if family is not Bernoulli:
        return family
    support = draw(st.sampled_from([(0, 1), (-1, 1), (-1e3, 2.5), (0.0, 1e-3)]))
    return lambda logits: Bernoulli(logits, support)


def wave(event_rank):
    """A bounded and smooth cost."""
    return lambda b: tf.reduce_sum(
        tf.sin(b + 0.3), list(range(b.shape.rank - event_rank, b.shape.rank))
    )


def square(event_rank):
    """A cost without bounds."""
    return lambda b: tf.reduce_sum(
        (b - 0.4) ** 2, list(range(b.shape.rank - event_rank, b.shape.rank))
    )


def assert_finite(tree):
    for leaf in tf.nest.flatten(tree):
        assert np.isfinite(tf.cast(leaf, tf.float64).numpy()).all(), tree


@pytest.mark.parametrize(
    ("name", "family"), PAIRS, ids=[f"{name}-{family.__name__}" for name, family in PAIRS]
)
@given(data=st.data())
def test_estimates_are_finite_and_those_of_empty_batches_zero(name, family, data):
    draw = data.draw
    dtype = draw(st.sampled_from(DTYPES))
    theta = make_theta(draw, family, dtype)
    make = make_distribution(draw, family)
    batch, event_rank = theta[0].shape[0], theta[0].shape.rank - 1
    cost = draw(st.sampled_from([wave] if dtype in HALF else [wave, square]))(event_rank)
    estimator = make_estimator(draw, name)
    context = tf.cast(tf.fill([batch, 2], 7.0), dtype) if draw(st.booleans()) else None
    seed = draw(st.integers(0, 2**31))
    estimator.estimate(make(*theta), cost, context=context, seed=seed)
    shake(estimator.trainable_variables, scale=0.1, seed=seed)
    with tf.GradientTape(persistent=True) as tape:
        estimate = estimator.estimate(make(*theta), cost, context=context, seed=seed + 1)
    to_theta = tape.gradient(estimate.surrogate, theta)
    to_phi = tape.gradient(estimate.control_variate_loss, estimator.trainable_variables)
    assert None not in to_theta
    assert None not in to_phi
    assert_finite((list(estimate), to_theta, to_phi, [v.value for v in estimator.variables]))
    assert estimate.second_moment.dtype == (tf.float64 if dtype == tf.float64 else tf.float32)
    if batch == 0:
        scalars = estimate.surrogate, estimate.second_moment, estimate.control_variate_loss
        assert [float(scalar) for scalar in scalars] == [0, 0, 0]
        assert all(gradient.shape == theta[0].shape for gradient in to_theta)
        assert not any(gradient.numpy().any() for gradient in to_phi)


LAYERS = {
    Bernoulli: lambda **arguments: relax_tf.StochasticBinaryLayer(2, **arguments),
    OneHotCategorical: lambda **arguments: relax_tf.StochasticCategoricalLayer(2, 3, **arguments),
    Normal: lambda **arguments: relax_tf.StochasticNormalLayer(2, **arguments),
}
POLICIES = itertools.cycle(["float32", "mixed_float16", "mixed_bfloat16", "float64"])


@pytest.mark.parametrize(
    ("name", "family", "policy"),
    [(*pair, policy) for pair, policy in zip(PAIRS, POLICIES, strict=False)],
)
def test_models_train_on_empty_batches_and_at_extreme_weights(name, family, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input([3])
    layer = LAYERS[family](estimator=name, prior="learned", kl="sampled", name="b")
    model = relax_tf.RelaxModel(
        inputs, keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs)))
    )
    model.compile("adam", loss="mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    # Of each estimator once or not at all; the derivatives of an eager model take long.
    model.certify = policy == "mixed_float16" and not layer.estimator.relies_on_derivative

    def state():
        return [v.numpy() for v in (*model.trainable_variables, *model.optimizer.variables)]

    before = state()
    logs = model.train_on_batch(np.zeros([0, 3]), np.zeros([0, 1]), return_dict=True)
    assert logs["loss"] == 0
    assert logs["b_second_moment"] == 0
    for old, new in zip(before, state(), strict=True):
        if np.issubdtype(old.dtype, np.floating) and old.ndim:  # counters and loss scales move
            np.testing.assert_array_equal(new, old)
    assert model.test_on_batch(np.zeros([0, 3]), np.zeros([0, 1])) == 0

    extreme = 1e2 if family is Normal else 1e4  # a standard deviation is no logit
    layer.kernel.assign(extreme * tf.sign(layer.kernel))
    for batch in (1, 5):
        x = np.linspace(-1, 1, 3 * batch).reshape([batch, 3])
        logs = model.train_on_batch(x, np.ones([batch, 1]), return_dict=True)
        assert_finite((logs, state()))
        assert_finite(model.predict(x, verbose=0))
