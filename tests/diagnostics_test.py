import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import diagnostics, estimators
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.further import further
from tests.problems import TableCost, shake
from tests.small_models import data, small_model


def test_exact_gradient_agrees_with_differentiating_the_expectation():
    cost = TableCost(3, (-1, 1), seed=2)
    theta = np.random.RandomState(0).normal(size=[4, 3])
    exact = diagnostics.exact_gradient(Bernoulli(tf.constant(theta), (-1, 1)), cost)
    np.testing.assert_allclose(exact, [cost.gradient(row) for row in theta], rtol=1e-6)


@pytest.mark.parametrize("event", [[], [2, 2]])
def test_exact_gradient_of_any_event(event):
    dist = Bernoulli(tf.fill([3, *event], 0.3))
    cost = lambda b: tf.reduce_sum(b, list(range(2, b.shape.rank)))  # noqa: E731
    p = 1 / (1 + np.exp(-0.3))
    np.testing.assert_allclose(diagnostics.exact_gradient(dist, cost), p * (1 - p), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "unbiased"), [("rebar", True), ("relax", True), ("concrete", False)]
)
def test_certificate(name, unbiased):
    dist = Bernoulli(tf.constant([[0.4, -0.2], [1.0, 0.1]]))
    cost = TableCost(2, seed=1)
    estimator = estimators.get(name)
    estimator.estimate(dist, cost, seed=0)
    shake(estimator.trainable_variables)
    certificate = diagnostics.check_unbiased(estimator, dist, cost, num_draws=10_000)
    assert certificate.unbiased == unbiased
    assert certificate.z_scores.shape == (2, 2)
    np.testing.assert_allclose(
        certificate.exact + certificate.z_scores * certificate.standard_error,
        certificate.mean,
        rtol=1e-5,
    )


def test_variance_of_one_estimate():
    """Of REINFORCE with one unit, by hand: `s f` takes two values."""
    p, f = 1 / (1 + np.exp(-0.4)), np.array([1.0, 3.0])
    values, probs = np.array([-p, 1 - p]) * f, np.array([1 - p, p])
    expected = np.sum(probs * values**2) - np.sum(probs * values) ** 2
    dist = Bernoulli(tf.constant([[0.4]]))
    found = diagnostics.check_unbiased("reinforce", dist, lambda b: 1 + 2 * b[..., 0])
    np.testing.assert_allclose(found.variance, [[expected]], rtol=0.05)


def test_certificates_of_other_distributions():
    dist = OneHotCategorical(tf.constant([[[0.3, -0.2, 0.5]]]))
    cost = lambda b: b[..., 0, 0] + 2 * b[..., 0, 1] * b[..., 0, 1]  # noqa: E731
    rloo = diagnostics.check_unbiased(estimators.get("rloo"), dist, cost, num_draws=5_000)
    assert rloo.unbiased
    normal = Normal(tf.constant([[0.5]]), tf.constant([[1.0]]))
    exact = (np.array([[1.0]]), np.array([[2.0]]))  # of E[b ** 2] = loc ** 2 + scale ** 2
    for name in ("lax", "reparameterization"):
        certificate = diagnostics.check_unbiased(
            estimators.get(name), normal, lambda b: b[:, 0] ** 2, num_draws=5_000, exact=exact
        )
        assert certificate.unbiased
    with pytest.raises(ValueError, match="cannot be enumerated"):
        diagnostics.exact_gradient(normal, lambda b: b[:, 0])


def build(estimator):
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, estimator, name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2, name="out")(b))
    model.compile(keras.optimizers.Adam(1e-2), loss="mse")
    return model


def batch():
    random = np.random.RandomState(0)
    return random.normal(size=[16, 3]).astype("f"), random.normal(size=[16, 2]).astype("f")


def test_gradient_variance_is_that_of_repeated_estimates():
    model = build("reinforce")
    x, y = batch()
    weights = [v.numpy() for v in model.weights]
    result = diagnostics.gradient_variance(model, x, y, num_draws=400)
    estimate = tf.function(lambda: model.estimate(x, y).estimates["b"].gradient, autograph=False)
    draws = np.stack([estimate() for _ in range(400)])
    expected = draws.var(0, ddof=1).sum(-1).mean()
    assert 0.7 < result.layers["b"] / expected < 1.4
    assert set(result.weights) == {"b/theta/kernel", "b/theta/bias", "out/kernel", "out/bias"}
    for variable, value in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_callback_logs_the_log_variance():
    x, y = batch()
    callback = diagnostics.GradientVariance(x, y, num_draws=5)
    history = build("rebar").fit(x, y, epochs=2, callbacks=[callback], verbose=0).history
    assert np.isfinite(history["b_log_variance"]).all()
    assert len(history["b_log_variance"]) == 2


def test_compare_ranks_estimators_and_draws(tmp_path):
    x, y = batch()
    y = y + 5  # a constant in the cost, which REBAR removes and REINFORCE suffers from
    result = diagnostics.compare(
        build, ["reinforce", "rebar", "relaxed_rebar"], x, y, num_draws=200, adapt_steps=50
    )
    variance = {name: by_layer["b"] for name, by_layer in result.variances.items()}
    assert variance["rebar"] < variance["reinforce"] / 2
    assert variance["relaxed_rebar"] < variance["reinforce"] / 2
    assert result.evaluations == {"reinforce": 1, "rebar": 2, "relaxed_rebar": 2}
    assert result.at_equal_evaluations("rebar", "b") == 2 * variance["rebar"]
    lines = str(result).splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:2] == ["rebar", "2"]
    result.plot(str(tmp_path / "comparison.png"))
    assert (tmp_path / "comparison.png").stat().st_size > 5_000


def test_compare_adapts_on_a_stream_and_leaves_the_model_s_weights_alone():
    x, y = batch()
    like = build("reinforce")
    models = {}

    def build_and_keep(estimator):
        models[estimator] = build(estimator)
        return models[estimator]

    stream = [(x[:8], y[:8]), (x[8:], y[8:])] * 10
    diagnostics.compare(
        build_and_keep, ["nvil", "relax"], x, y, 2, like, adapt_steps=20, adapt_data=stream
    )
    for name, model in models.items():
        for path in ("b/theta/kernel", "out/bias"):
            own, given = ({v.path: v.numpy() for v in m.weights}[path] for m in (model, like))
            np.testing.assert_array_equal(own, given)
        phi = model.get_layer("b").estimator.trainable_variables
        assert any(np.abs(v).max() > 0 for v in phi if v.shape == (1,)), name  # output biases
    with pytest.raises(ValueError, match="ended after 20 of 21"):
        diagnostics.compare(build, ["nvil"], x, y, 2, adapt_steps=21, adapt_data=stream)


def test_evaluations_of_stacked_layers_share_the_hard_pass():
    def build_stack(estimator):
        inputs = keras.Input([3])
        b = relax_tf.StochasticBinaryLayer(4, estimator, name="b1")(inputs)
        b = relax_tf.StochasticBinaryLayer(2, estimator, name="b2")(b)
        model = relax_tf.RelaxModel(inputs, b)
        model.compile("sgd", loss="mse")
        return model

    x, y = batch()
    result = diagnostics.compare(build_stack, ["reinforce", "rebar", "vimco"], x, y, 2)
    assert result.evaluations == {"reinforce": 1, "rebar": 3, "vimco": 5}
    assert result.layers == ["b1", "b2"]


def test_evaluations_and_state_of_a_layer_that_is_called_twice():
    """Counters stay as they were, and so do all other variables but the generators."""
    counter = keras.Variable(3, dtype="int32", trainable=False, name="counter")

    class Counting(relax_tf.RelaxModel):
        def __init__(self, estimator):
            super().__init__()
            self.b, self.counter = relax_tf.StochasticBinaryLayer(3, estimator, name="b"), counter

        def call(self, x):
            return self.b(self.b(x))

        def compute_cost(self, *arguments, **keywords):
            self.counter.assign_add(1)
            return super().compute_cost(*arguments, **keywords)

    def build_twice(estimator):
        model = Counting(estimator)
        model.compile("sgd", loss="mse")
        model(x)
        return model

    x, _ = batch()
    result = diagnostics.compare(build_twice, ["reinforce", "disarm", "rebar"], x, x, 3)
    assert result.evaluations == {"reinforce": 1, "disarm": 3, "rebar": 3}
    assert int(counter.value) == 3


@pytest.mark.parametrize("dtype", ["float32", *further("float64")])
def test_the_check_of_unbiasedness_is_one_of_any_unit(dtype):
    """A cost in other units, and one beside a large constant."""
    dist = Bernoulli(tf.constant([[0.3, -1.0]], dtype))
    for scale in (1e-6, 1.0, 1e6):

        def cost(b, scale=scale):
            return scale * tf.reduce_sum(5 * tf.abs(b - 0.45) ** 3, -1)

        assert not diagnostics.check_unbiased("straight_through", dist, cost).unbiased
        assert diagnostics.check_unbiased("rebar", dist, cost).unbiased

    def offset(b):
        return 1e6 + tf.reduce_sum(b, -1) ** 2

    for estimator in ("midpoint", "rloo", "disarm"):
        assert diagnostics.check_unbiased(estimator, dist, offset, 5000).unbiased


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: diagnostics.exact_gradient(Bernoulli(tf.zeros([1, 17])), tf.reduce_sum),
            ValueError,
            "at most 2",
        ),
        (lambda: diagnostics.gradient_variance(3, 1), TypeError, "RelaxModel"),
        (
            lambda: diagnostics.gradient_variance(build("relax"), *batch(), num_draws=1),
            ValueError,
            "at least 2",
        ),
        (lambda: diagnostics.GradientVariance(1, every=0), ValueError, "`every`"),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_gradient_variance_leaves_moving_averages_where_they_are():
    inputs = keras.Input([2])
    normed = keras.layers.BatchNormalization()(inputs)
    outputs = relax_tf.StochasticBinaryLayer(3, "relax", name="b")(normed)
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss="mse")
    x, y = np.ones([8, 2], "f"), np.full([8, 3], 0.3, "f")
    model.fit(x, y, verbose=0)
    before = model.get_weights()
    result = relax_tf.diagnostics.gradient_variance(model, x, y, num_draws=5)
    assert result.layers["b"] > 0
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_repeated_checks_do_not_look_like_repeated_tracing(caplog):
    """TensorFlow warns of functions that trace in each of their calls, here and in `fit`."""
    dist = Bernoulli(tf.zeros([1, 2]))
    for _ in range(7):
        diagnostics.check_unbiased("reinforce", dist, lambda b: b[..., 0], num_draws=2)
        model = small_model("relaxed_rebar")
        model.compile("sgd", loss="mse")
        model.check(*data())
    assert "retracing" not in caplog.text


@pytest.mark.parametrize(("num_draws", "verdicts"), [(2, 20), *further((3, 40))])
def test_few_draws_condemn_no_estimator(num_draws, verdicts):
    """Of 2 draws Student's t is beyond 4 in one case of six, of 3 of 17; none may be wrong."""
    dist = Bernoulli(tf.constant([[0.4, -0.2]]))
    cost = lambda b: tf.reduce_sum((b - 0.3) ** 2, -1) + b[..., 0] * b[..., 1]  # noqa: E731
    estimator = estimators.get("rebar")
    found = [
        diagnostics.check_unbiased(estimator, dist, cost, num_draws=num_draws, seed=seed)
        for seed in range(verdicts)
    ]
    assert all(each.unbiased for each in found)
    assert max(np.abs(each.z_scores).max() for each in found) > 10


class Plain(relax_tf.RelaxModel):
    """A cost that mixes its arguments, which then must be of one dtype."""

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.reduce_sum((y_pred - y) ** 2, -1)


def test_diagnostics_take_the_arrays_that_fit_takes():
    def build(estimator):
        first, second = keras.Input([2]), keras.Input([2], optional=True)
        outputs = relax_tf.StochasticBinaryLayer(3, estimator, name="b")(first)
        model = Plain([first, second], outputs)
        model.compile("sgd")
        return model

    x, y = [np.ones([8, 2]), None], np.full([8, 3], 0.3)  # float64
    model = build("rebar")
    callback = diagnostics.GradientVariance(x, y, num_draws=3)
    model.fit(x, y, verbose=0, callbacks=[callback])
    assert diagnostics.gradient_variance(model, x, y, num_draws=3).layers["b"] > 0
    result = diagnostics.compare(build, ["rebar"], x, y, num_draws=3, adapt_steps=2)
    assert result.variances["rebar"]["b"] > 0


def test_a_cost_of_the_wrong_axis_is_told_so_and_no_estimator_is_blamed():
    """Where events are as long as the batch no shape tells."""
    dist = Bernoulli(tf.zeros([3, 3]))
    for name in ("reinforce", "rloo"):
        with pytest.raises(ValueError, match=r"counted from the end \(axis=-1\)"):
            diagnostics.check_unbiased(name, dist, lambda b: tf.reduce_sum(b, 1) ** 2)


def test_costs_that_round_or_are_random_have_no_wrong_axis():
    dist = Bernoulli(tf.zeros([3, 3]))
    weights = tf.constant([1e4, -1e4 + 0.1, 1e-3])
    exact = diagnostics.exact_gradient(dist, lambda b: tf.linalg.matvec(b, weights) - 1e-3)
    assert np.isfinite(exact).all()
    noisy = lambda b: tf.reduce_sum(b, -1) + tf.random.normal(tf.shape(b)[:-1])  # noqa: E731
    assert np.isfinite(diagnostics.exact_gradient(dist, noisy)).all()
