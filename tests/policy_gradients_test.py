"""Policy gradients of trajectories, against exact gradients of tiny decision processes."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import control_variates, estimators
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from relax_tf.policy_gradients import episode_second_moment, policy_gradient, returns_to_go
from tests.problems import differentiate, normal_grid, shake, z_scores

EPISODES = 40_000
DISCOUNT = 0.9
HORIZON = 3
STATES = 2
CLASSES = 3


class TableMDP:
    """Two states, three actions, three steps; `theta` is a table of logits `[states, actions]`."""

    def __init__(self):
        random = np.random.RandomState(0)
        self.theta = random.normal(size=[STATES, CLASSES])
        self.rewards = random.normal(size=[STATES, CLASSES])
        self.to_one = random.uniform(size=[STATES, CLASSES])  # the probability of state 1 next

    def gradient(self):
        """Of the expected sum of discounted rewards, by enumeration of all trajectories."""
        steps = list(itertools.product(range(STATES), range(CLASSES)))
        paths = [p for p in itertools.product(steps, repeat=HORIZON) if p[0][0] == 0]
        states, actions = np.array(paths).transpose(2, 0, 1)
        to_one = self.to_one[states[:, :-1], actions[:, :-1]]
        moves = np.where(states[:, 1:] == 1, to_one, 1 - to_one).prod(1)
        totals = (self.rewards[states, actions] * DISCOUNT ** np.arange(HORIZON)).sum(1)
        assert len(paths) == CLASSES * (STATES * CLASSES) ** (HORIZON - 1)

        def expectation(theta):
            log_policy = tf.gather_nd(tf.nn.log_softmax(theta), np.stack([states, actions], -1))
            return tf.reduce_sum(tf.exp(tf.reduce_sum(log_policy, 1)) * moves * totals)

        return differentiate(expectation, self.theta)

    def walk(self, random):
        """States and rewards `[time, episodes]`, z `[time, episodes, actions]`."""
        state = np.zeros(EPISODES, int)
        states, zs, rewards = [], [], []
        for _ in range(HORIZON):
            z = self.theta[state] + random.gumbel(size=[EPISODES, CLASSES])
            action = z.argmax(-1)
            states.append(state)
            zs.append(z)
            rewards.append(self.rewards[state, action])
            state = (random.uniform(size=EPISODES) < self.to_one[state, action]).astype(int)
        return np.array(states), np.array(zs), np.array(rewards)

    def distribution(self, states):
        return OneHotCategorical(tf.gather(tf.constant(self.theta), states))


class NormalMDP:
    """Two states, one normal action, three steps; `theta` is `[states, (mean, scale)]`."""

    def __init__(self):
        self.theta = np.array([[0.3, 0.8], [-0.5, 1.2]])

    @staticmethod
    def reward(state, action):
        return tf.sin(action + state) - 0.3 * state

    @staticmethod
    def to_one(state, action):
        return tf.sigmoid(1.5 * action - state)

    def gradient(self):
        """Of the expected sum of discounted rewards, by quadrature from the last step backwards."""
        points, weights = normal_grid(1, nodes=60)
        points = points[:, 0]

        def expectation(theta):
            value = tf.zeros([STATES], tf.float64)
            for _ in range(HORIZON):
                values = []
                for s in range(STATES):
                    action = theta[s, 0] + theta[s, 1] * points
                    to_one = self.to_one(float(s), action)
                    after = to_one * value[1] + (1 - to_one) * value[0]
                    total = self.reward(float(s), action) + DISCOUNT * after
                    values.append(tf.reduce_sum(weights * total))
                value = tf.stack(values)
            return value[0]

        return differentiate(expectation, self.theta)

    def walk(self, random):
        state = np.zeros(EPISODES, int)
        states, zs, rewards = [], [], []
        for _ in range(HORIZON):
            loc, scale = self.theta[state].T
            action = loc + scale * random.normal(size=EPISODES)
            states.append(state)
            zs.append(action[:, np.newaxis])
            rewards.append(self.reward(state.astype(float), action).numpy())
            to_one = self.to_one(state.astype(float), action).numpy()
            state = (random.uniform(size=EPISODES) < to_one).astype(int)
        return np.array(states), np.array(zs), np.array(rewards)

    def distribution(self, states):
        loc, scale = tf.split(tf.gather(tf.constant(self.theta), states), 2, -1)
        return Normal(loc, scale)


def network():
    return control_variates.MLP([8], activation="tanh", dtype="float64")


def a2c():
    return estimators.Nvil(baseline=network(), decay=None, dtype="float64")


DISCRETE = {
    "reinforce": estimators.Reinforce,
    "a2c": a2c,
    "relax": lambda: estimators.Relax(network(), dtype="float64"),
    "relax, independent": lambda: estimators.Relax(network(), coupled=False, dtype="float64"),
}
CONTINUOUS = {
    "reinforce": estimators.Reinforce,
    "a2c": a2c,
    "lax": lambda: estimators.Lax(network(), dtype="float64"),
}


@pytest.mark.parametrize(
    ("mdp", "make_estimator", "keep_z"),
    [
        *((TableMDP, make, True) for make in DISCRETE.values()),
        (TableMDP, DISCRETE["relax"], False),
        *((NormalMDP, make, True) for make in CONTINUOUS.values()),
    ],
    ids=[*DISCRETE, "relax, z not kept", *(f"{name}, normal" for name in CONTINUOUS)],
)
def test_policy_gradient_is_unbiased(mdp, make_estimator, keep_z):
    mdp, estimator = mdp(), make_estimator()
    estimator.build((None, CLASSES if isinstance(mdp, TableMDP) else 1), (None, STATES))
    shake(estimator.trainable_variables)
    states, z, rewards = mdp.walk(np.random.RandomState(1))
    weights = DISCOUNT ** np.arange(HORIZON)[:, np.newaxis]
    returns = weights * returns_to_go(rewards, DISCOUNT).numpy()
    states = states.reshape(-1)
    dist = mdp.distribution(states)
    z = z.reshape([len(states), -1])
    estimate = policy_gradient(
        estimator,
        dist,
        dist.harden(z),
        tf.one_hot(states, STATES, dtype=tf.float64),
        returns.reshape(-1),
        z=z if keep_z else None,
        seed=3,
    )
    gradient = estimate.gradient
    if isinstance(gradient, tuple):
        gradient = tf.concat(gradient, -1)
    in_state = np.eye(STATES)[states][..., np.newaxis] * gradient.numpy()[:, np.newaxis, :]
    episodes = in_state.reshape([HORIZON, EPISODES, STATES, -1]).sum(0)
    exact = -mdp.gradient()  # estimators minimise
    assert np.abs(exact).max() > 0.1
    assert np.abs(z_scores(episodes, exact)).max() < 4
    # What would be forgotten is seen: the control variate moves single estimates.
    if estimator.trainable_variables:
        plain = policy_gradient(
            estimators.Reinforce(), dist, dist.harden(z), None, returns.reshape(-1), z=z
        ).gradient
        plain = tf.concat(plain, -1) if isinstance(plain, tuple) else plain
        assert np.abs(plain - gradient).mean() > 0.05


def loop_returns(rewards, discounts, bootstrap):
    result, following = np.zeros_like(rewards), bootstrap
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discounts[t] * following
        result[t] = following
    return result


@pytest.mark.parametrize("steps", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_returns_to_go_agree_with_a_loop(steps, shape):
    random = np.random.RandomState(steps)
    rewards = random.normal(size=[steps, *shape])
    discounts = random.choice([0.0, 0.5, 0.99, 1.0], p=[0.02, 0.1, 0.48, 0.4], size=[steps, *shape])
    bootstrap = random.normal(size=shape)
    expected = loop_returns(rewards, discounts, bootstrap)
    np.testing.assert_allclose(returns_to_go(rewards, discounts, bootstrap), expected, rtol=1e-10)
    constant = loop_returns(rewards, np.full_like(rewards, 0.7), np.zeros(shape))
    np.testing.assert_allclose(returns_to_go(rewards, 0.7), constant, rtol=1e-10, atol=1e-13)


def test_returns_to_go_of_unknown_length_and_of_nothing():
    compiled = tf.function(
        lambda rewards: returns_to_go(rewards, 0.5), input_signature=[tf.TensorSpec([None])]
    )
    np.testing.assert_array_equal(compiled([1.0, 0.0, 4.0]), [2.0, 2.0, 4.0])
    np.testing.assert_array_equal(compiled([8.0]), [8.0])
    assert compiled(tf.zeros([0])).shape == [0]
    assert returns_to_go([1, 2]).dtype == tf.float32  # integers
    jitted = tf.function(lambda rewards: returns_to_go(rewards, 0.5), jit_compile=True)
    np.testing.assert_array_equal(jitted(tf.constant([1.0, 0.0, 4.0])), [2.0, 2.0, 4.0])


def trajectory(steps=5, classes=3, states=4):
    random = np.random.RandomState(0)
    state = random.normal(size=[steps, states])
    weights = tf.Variable(random.normal(size=[states, classes]))
    z = OneHotCategorical(tf.constant(state) @ weights).draw(seed=1).z
    return state, weights, z, random.normal(size=steps)


def test_a2c_is_the_advantage_times_the_score_and_a_regression():
    state, weights, z, returns = trajectory()
    estimator = a2c()
    estimator.build((None, 3), (None, 4))
    shake(estimator.trainable_variables)
    with tf.GradientTape(persistent=True) as tape:
        dist = OneHotCategorical(tf.constant(state) @ weights)
        action = tf.argmax(z, -1)
        estimate = policy_gradient(estimator, dist, action, state, returns, z=z)
        value = -tf.squeeze(estimator.baseline(state), -1)  # the baseline predicts the cost
        log_prob = dist.log_prob(tf.one_hot(action, 3, dtype=tf.float64))
        actor_loss = -tf.reduce_mean(tf.stop_gradient(returns - value) * log_prob)
        critic_loss = tf.reduce_mean((returns - value) ** 2)
    np.testing.assert_allclose(
        tape.gradient(estimate.surrogate, weights), tape.gradient(actor_loss, weights), rtol=1e-10
    )
    np.testing.assert_allclose(estimate.control_variate_loss, critic_loss)
    variables = estimator.trainable_variables
    for ours, theirs in zip(
        tape.gradient(estimate.control_variate_loss, variables),
        tape.gradient(critic_loss, variables),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    again = policy_gradient(estimator, dist, action, state, returns, z=z)
    np.testing.assert_array_equal(again.gradient, estimate.gradient)  # no memory


def test_episode_second_moment_is_the_square_of_the_policy_gradient():
    state, weights, z, returns = trajectory()
    bias = tf.Variable(tf.zeros([3], tf.float64))
    estimator = DISCRETE["relax"]()
    estimator.build((None, 3), (None, 4))
    shake(estimator.trainable_variables)
    variables = [weights, bias]

    def policy(state):
        return OneHotCategorical(tf.constant(state) @ weights + bias)

    objective = episode_second_moment(policy, state, variables)

    past = [(variable, variable.numpy()) for variable in estimator.non_trainable_variables]

    def estimate():
        for variable, value in past:  # which the estimate updates in the end
            variable.assign(value)
        action = tf.argmax(z, -1)
        return policy_gradient(
            estimator, policy(state), action, state, returns, z=z, objective=objective
        )

    with tf.GradientTape(persistent=True) as tape:
        result = estimate()
    policy_gradients = tape.gradient(result.surrogate, variables)
    square = sum(np.square(g).sum() for g in policy_gradients)
    np.testing.assert_allclose(objective(result.gradient), square, rtol=1e-10)
    assert all(g is None for g in tape.gradient(result.control_variate_loss, variables))
    # Its derivative in the network r, against central differences. (B minimises its own error.)
    for variable in estimator.control_variate.trainable_variables:
        ours = tape.gradient(result.control_variate_loss, variable)
        direction = np.random.RandomState(2).normal(size=variable.shape)
        value, losses = variable.numpy(), []
        for step in (1e-5, -1e-5):
            variable.assign(value + step * direction)
            losses.append(float(estimate().control_variate_loss))
        variable.assign(value)
        slope = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose(np.sum(ours * direction), slope, rtol=1e-5, atol=1e-9)


def test_steps_may_be_unknown_when_the_update_is_compiled():
    estimator = estimators.Relax(control_variates.MLP([4]))
    estimator.build((None, 2), (None, 3))
    weights = tf.Variable(tf.ones([3, 2]))

    @tf.function(
        input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2]), tf.TensorSpec([None])]
    )
    def gradients(state, z, reward):
        with tf.GradientTape() as tape:
            dist = OneHotCategorical(state @ weights)
            returns = returns_to_go(reward, 0.9)
            estimate = policy_gradient(estimator, dist, dist.harden(z), state, returns, z=z)
        return tape.gradient(estimate.surrogate, weights), estimate.cost

    for steps in (1, 6):
        gradient, cost = gradients(tf.ones([steps, 3]), tf.eye(steps, 2), tf.ones([steps]))
        assert gradient.shape == [3, 2]
        np.testing.assert_allclose(cost, -returns_to_go(tf.ones([steps]), 0.9))
    assert gradients.experimental_get_tracing_count() == 1


def test_bernoulli_actions_and_one_hot_actions():
    dist = Bernoulli(tf.zeros([3, 2]), support=(-1, 1))
    b, z = dist.draw(seed=0)
    kept = policy_gradient(estimators.Reinforce(), dist, b, None, [1.0, 2.0, 3.0], z=z)
    drawn = policy_gradient(estimators.Reinforce(), dist, b, None, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(kept.gradient, drawn.gradient)
    np.testing.assert_array_equal(kept.sample, b)
    dist = OneHotCategorical(tf.zeros([3, 4]))
    by_number = policy_gradient(estimators.Reinforce(), dist, [1, 0, 3], None, [1.0, 2.0, 3.0])
    one_hot = tf.one_hot([1, 0, 3], 4)
    by_vector = policy_gradient(estimators.Reinforce(), dist, one_hot, None, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(by_number.gradient, by_vector.gradient)
    np.testing.assert_array_equal(by_number.sample, one_hot)


CATEGORICAL = OneHotCategorical(tf.zeros([4, 3]))
NORMAL = Normal(tf.zeros([4, 2]), tf.ones([4, 2]))


def gradient(
    estimator="relax", dist=CATEGORICAL, action=(0, 1, 2, 0), returns=(1.0,) * 4, **kwargs
):
    if isinstance(estimator, str):
        estimator = relax_tf.estimators.get(estimator)
    return policy_gradient(
        estimator, dist, action, kwargs.pop("state", tf.zeros([4, 5])), returns, **kwargs
    )


WRONG = [
    (lambda: gradient(estimator=3), TypeError, "`estimator`.*Received: 3"),
    (lambda: gradient(dist=tf.zeros([4, 3])), TypeError, "`dist` must be a distribution"),
    (lambda: gradient(action=[[0.5, 0.5, 0]] * 4), ValueError, "`action`.*support.*4 of 4 steps"),
    (lambda: gradient("lax"), ValueError, "'lax' is defined for continuous"),
    (lambda: gradient("rebar"), ValueError, "known at the action taken only.*Rebar"),
    (lambda: gradient("muprop"), ValueError, "known at the action taken only.*Muprop"),
    (lambda: gradient("rloo"), ValueError, "known at the action taken only.*Rloo"),
    (lambda: gradient("concrete"), ValueError, "known at the action taken only.*Concrete"),
    (
        lambda: gradient("reparameterization", dist=NORMAL, action=tf.zeros([4, 2])),
        ValueError,
        "known at the action taken only.*Reparameterization",
    ),
    (lambda: gradient(action=(0, 1)), ValueError, r"`action`.*steps.*4.*\(2,?"),
    (lambda: gradient(action=tf.zeros([4, 2])), ValueError, r"`action`.*\(4, 3\).*\(4, 2\)"),
    (lambda: gradient(action="left"), TypeError, "`action`.*real numbers"),
    (lambda: gradient(action=(0, 1, 2, 3)), ValueError, "`action`.*0 to 2.*3"),
    (lambda: gradient(returns=[1.0, 2.0]), ValueError, r"`returns`.*steps.*4.*\(2,\)"),
    (lambda: gradient(returns=tf.zeros([4, 1])), ValueError, r"`returns`.*\[time\].*\(4, 1\)"),
    (lambda: gradient(returns=None), TypeError, "`returns`.*real numbers.*None"),
    (lambda: gradient(returns=[True] * 4), TypeError, "`returns`.*real numbers.*bool"),
    (lambda: gradient(state=tf.zeros([3, 5])), ValueError, r"`state`.*steps.*4.*\(3, 5\)"),
    (lambda: gradient(state=tf.constant("up")), TypeError, "`state`.*real numbers.*string"),
    (lambda: gradient(z=tf.zeros([4])), ValueError, r"`z`.*\(4, 3\).*\(4,\)"),
    (lambda: gradient(z=tf.zeros([4, 3])), ValueError, "`z`.*action = H.z.*2 of 4 steps"),
    (lambda: gradient(seed="one"), TypeError, "`seed`.*'one'"),
    (
        lambda: gradient("nvil", objective=lambda g: tf.reduce_sum(g**2)),
        ValueError,
        "loss of its own.*objective",
    ),
    (lambda: returns_to_go(3.0), ValueError, r"`rewards`.*\[time, ...\].*\(\)"),
    (lambda: returns_to_go(["a"]), TypeError, "`rewards`.*real numbers"),
    (lambda: returns_to_go([1.0], discount=1.5), ValueError, r"`discount`.*\[0, 1\].*1.5"),
    (lambda: returns_to_go([1.0], discount=[0.5, 0.5]), ValueError, r"`discount`.*\(1,\).*\(2,\)"),
    (lambda: returns_to_go([1.0], bootstrap=[1.0]), ValueError, r"`bootstrap`.*\(\).*\(1,\)"),
    (lambda: episode_second_moment(None, tf.zeros([4, 5]), []), TypeError, "`policy`.*callable"),
    (
        lambda: episode_second_moment(lambda s: CATEGORICAL, tf.zeros([4, 5]), []),
        ValueError,
        "`variables`.*none",
    ),
    (
        lambda: gradient(
            objective=episode_second_moment(
                lambda s: CATEGORICAL, tf.zeros([4, 5]), [tf.Variable(1.0, name="w")]
            )
        ),
        ValueError,
        "depends on none of the `variables`",
    ),
    (lambda: estimators.Nvil(decay=None, normalize_variance=True), ValueError, "decay=None"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_use_is_named(call, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def test_nvil_without_averages_survives_its_config():
    estimator = estimators.deserialize(estimators.serialize(estimators.Nvil(decay=None)))
    assert estimator.decay is None
    assert not estimator.non_trainable_variables
    assert isinstance(estimator, keras.layers.Layer)


MASKED = OneHotCategorical(tf.constant([[0.0, 1.0, -np.inf], [0.0, 0.0, 0.0]]))
IMPOSSIBLE = [
    (OneHotCategorical(tf.zeros([2, 3])), [0.0, 7.0], "made of samples"),
    (OneHotCategorical(tf.zeros([2, 3])), [-1.0, 1.0], "made of samples"),
    (OneHotCategorical(tf.zeros([2, 3])), [0.0, 1.9], "made of samples"),
    (Bernoulli(tf.zeros([2, 1]), support=(-1, 1)), [[1.0], [0.0]], "made of samples"),
    (MASKED, [2.0, 0.0], "one that the policy can take"),
]


def gradient_of(dist, estimator="reinforce"):
    estimator, state = estimators.get(estimator), tf.ones([2, 3])
    estimator.ensure_built(dist.shape, state.shape)

    def gradient(action):
        return policy_gradient(estimator, dist, action, state, tf.ones([2])).gradient

    return gradient


@pytest.mark.parametrize(("dist", "action", "message"), IMPOSSIBLE)
def test_actions_that_cannot_be_are_named_in_a_graph_too(dist, action, message):
    in_graph = tf.function(gradient_of(dist), autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`action` must be {message}"):
        in_graph(tf.constant(action))


@pytest.mark.parametrize(("dist", "action", "message"), IMPOSSIBLE)
def test_actions_that_cannot_be_leave_no_gradient_under_xla(dist, action, message):
    """It drops assertions."""
    gradient = tf.function(gradient_of(dist), autograph=False, jit_compile=True)
    assert np.isnan(gradient(tf.constant(action))).any()
    fine = tf.constant(np.ones_like(action))
    assert np.isfinite(gradient(fine)).all()


@pytest.mark.parametrize("estimator", ["reinforce", "relax", "nvil"])
def test_an_action_behind_a_mask_is_refused(estimator):
    with pytest.raises(ValueError, match=r"the policy can take.*-inf .*\. .*in 1 of 2 steps"):
        gradient_of(MASKED, estimator)([2, 0])


def test_numbers_of_classes_are_whole():
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        gradient_of(OneHotCategorical(tf.zeros([2, 3])))([0.7, 1.9])


@pytest.mark.parametrize("short", ["action", "state", "returns", "z"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_step_does_not_stand_for_all_where_lengths_are_unknown(short, jit_compile):
    estimator = estimators.Relax(control_variates.MLP([4]))
    estimator.build((None, 2), (None, 3))
    shapes = {"theta": [None, 2], "action": [None, 2], "state": [None, 3], "z": [None, 2]}
    specs = [tf.TensorSpec(shape) for shape in (*shapes.values(), [None])]

    @tf.function(input_signature=specs, autograph=False, jit_compile=jit_compile)
    def gradient(theta, action, state, z, returns):
        dist = OneHotCategorical(theta)
        return policy_gradient(estimator, dist, action, state, returns, z=z).gradient

    one_hot = tf.eye(2, batch_shape=[3])[:, 0]
    values = {"theta": tf.zeros([3, 2]), "action": one_hot, "state": tf.ones([3, 3])}
    values = {**values, "z": one_hot, "returns": tf.ones([3])}
    assert np.isfinite(gradient(*values.values())).all()
    values[short] = values[short][:1]
    if jit_compile and short != "state":  # which XLA finds by itself
        assert np.isnan(gradient(*values.values())).all()
    elif jit_compile:
        with pytest.raises(tf.errors.InvalidArgumentError):
            gradient(*values.values())
    else:
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=f"{short} must have as many steps"
        ):
            gradient(*values.values())


def test_tensorflow_s_search_for_nan_finds_none_of_ours():
    tf.debugging.enable_check_numerics()
    try:

        @tf.function(input_signature=[tf.TensorSpec([None, 2])], autograph=False)
        def gradient(theta):
            action, returns = tf.zeros([tf.shape(theta)[0]]), tf.ones([tf.shape(theta)[0]])
            dist = OneHotCategorical(theta)
            return policy_gradient(estimators.Reinforce(), dist, action, None, returns).gradient

        assert np.isfinite(gradient(tf.constant([[0.0, 1.0], [0.0, -np.inf]]))).all()
    finally:
        tf.debugging.disable_check_numerics()


def test_an_undefined_policy_has_an_undefined_gradient_in_its_step_alone():
    dist = OneHotCategorical(tf.constant([[np.nan, 0.0], [0.0, 1.0]]))
    state = tf.ones([2, 3])
    result = policy_gradient(estimators.Reinforce(), dist, [0, 1], state, tf.ones([2]), z=None)
    assert np.isfinite(result.gradient[1]).all()
