"""Policy gradients: the estimators on trajectories, for agents of any make.

In state `s_t` the policy has a distribution over actions, `theta_t` its parameters; the agent draws
`z_t`, acts by `a_t = H(z_t)`, and later learns the return-to-go `R_t`. The actions cannot be taken
again, so an estimator gets the draw of the past (`z`) and `-R_t` as a black-box cost of step t:
estimators minimise. The steps are the batch, `[time]`; several episodes make one batch when they
are concatenated, and padding is left out (`tf.boolean_mask`).

| agent             | estimator                                  | its variables learn from   |
|-------------------|--------------------------------------------|----------------------------|
| REINFORCE         | `Reinforce()`                              | (it has none)              |
| A2C               | `Nvil(baseline=value_network, decay=None)` | the value's squared error  |
| RELAX, discrete   | `Relax(control_variate=network)`           | the gradient's variance    |
| LAX, continuous   | `Lax(control_variate=network)`             | the gradient's variance    |

With `g_t` the estimate at step t and `J_t = d theta_t / d weights`, the policy gradient of an
episode is `sum_t J_t^T g_t`. The variance that trains a control variate can be measured in two
places:

| signal                  | minimises               | costs                                 |
|-------------------------|-------------------------|---------------------------------------|
| per step (default)      | `mean_t |g_t|^2`        | nothing beyond the estimate           |
| `episode_second_moment` | `|mean_t J_t^T g_t|^2`, | a pass forward and back through the   |
|                         | the paper's (5.3, 6.4)  | policy, and one back through that     |

The first sees every step by itself: a signal of little noise, but blind to how steps add up in the
weights. The second is the very quantity whose variance matters, but one number for an episode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import Distribution
from relax_tf.distributions.noise import fold_in, make_seed
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.estimate import Estimate, second_moment
from relax_tf.trajectories import as_sample, check_estimator, draw_of, of_steps, real_tensor
from relax_tf.validation import function

__all__ = ["episode_second_moment", "policy_gradient", "returns_to_go"]


def returns_to_go(
    rewards: Any, discount: float | tf.Tensor = 1.0, bootstrap: float | tf.Tensor = 0.0
) -> tf.Tensor:
    """`R_t = r_t + discount_t R_{t+1}`, with `R_T = bootstrap` after the last step.

    Exact for every discount, by recursive doubling: `log2(T)` vectorised passes.

    Args:
        rewards: `[time, ...]`, a reward for each step; integers count as float32.
        discount: a number in [0, 1], or one for each step, of the shape of `rewards`; 0 at the
            last step of an episode keeps concatenated episodes apart.
        bootstrap: the value of what follows the last step, `[...]`: 0 where the episode ended, a
            value estimate where it was cut off.

    Returns:
        The shape of `rewards`.

    Raises:
        TypeError: if an argument is not made of real numbers.
        ValueError: if `rewards` lacks a time axis, a shape disagrees or a number is not in [0, 1].

    Example:

    >>> relax_tf.policy_gradients.returns_to_go([1.0, 0.0, 2.0], discount=0.5).numpy()
    array([1.5, 1. , 2. ], dtype=float32)
    """
    rewards = real_tensor(rewards, "rewards")
    if rewards.shape.rank == 0:
        raise ValueError("`rewards` need shape [time, ...]. Received shape: ()")
    discount = real_tensor(discount, "discount", rewards.dtype)
    known = tf.get_static_value(discount)
    if known is not None and not ((known >= 0) & (known <= 1)).all():
        raise ValueError(f"`discount` must be in [0, 1]. Received: {known}")
    if discount.shape.rank != 0 and not discount.shape.is_compatible_with(rewards.shape):
        raise ValueError(
            f"`discount` must be a number or have the shape of `rewards`, {tuple(rewards.shape)}. "
            f"Received shape: {tuple(discount.shape)}"
        )
    bootstrap = real_tensor(bootstrap, "bootstrap", rewards.dtype)
    if bootstrap.shape.rank != 0 and not bootstrap.shape.is_compatible_with(rewards.shape[1:]):
        raise ValueError(
            f"`bootstrap` must have shape {tuple(rewards.shape[1:])}, that of `rewards` without "
            f"time. Received shape: {tuple(bootstrap.shape)}"
        )
    # An affine map `R_{t+k} -> a_t + d_t R_{t+k}` stands at each t; k doubles until it leaves the
    # episode. What follows the last step is one more step of its own, with nothing after it.
    last = tf.broadcast_to(bootstrap, tf.shape(rewards)[1:])[tf.newaxis]
    a = tf.concat([rewards, last], 0)
    d = tf.concat([tf.broadcast_to(discount, tf.shape(rewards)), tf.zeros_like(last)], 0)

    def doubled(k, a, d):
        later_a, later_d = (tf.concat([x[k:], tf.zeros_like(x[:k])], 0) for x in (a, d))
        return 2 * k, a + d * later_a, d * later_d

    _, a, _ = tf.while_loop(
        lambda k, a, d: k < tf.shape(a)[0],
        doubled,
        [1, a, d],
        shape_invariants=[tf.TensorShape([]), a.shape, d.shape],
    )
    return a[:-1]


def policy_gradient(
    estimator: Estimator,
    dist: Distribution,
    action: Any,
    state: Any,
    returns: Any,
    z: Any = None,
    objective: Callable[[Any], tf.Tensor] = second_moment,
    seed: Any = None,
) -> Estimate:
    """The policy gradient at the steps of a trajectory that was walked earlier.

    Args:
        estimator: of those that need the cost at the action taken only: `relax`, `lax`, `nvil`,
            `reinforce`.
        dist: the policy's distributions of actions in the states, theta of shape
            `[time, *event]`: a `Normal`, a `Bernoulli`, or a `OneHotCategorical`.
        action: the actions taken, `[time, *event]`; of a `OneHotCategorical` with one variable
            also the integers `[time]`.
        state: `[time, ...]`, what the control variate or the baseline sees beside the action, or
            None. Whatever enters it must not depend on the action of its step.
        returns: `[time]`, the return-to-go of each step.
        z: `[time, *event]`, the variable that the action was read from, `a = H(z)`, drawn from
            this theta: if theta is `log pi`, `log pi + Gumbel`, if it is other logits, those.
            Discrete actions whose `z` was not kept get one from `p(z|a)`, which is as good.
        objective: what the control variate minimises, as a function of the gradient: its
            `second_moment` over the steps by default, or an `episode_second_moment`.
        seed: None, an integer, a `keras.random.SeedGenerator` or a stateless seed: of a `z` that
            has to be drawn, and of an estimator's own noise (`coupled=False`).

    Returns:
        An `Estimate` with `cost = -returns` and means over the steps: the gradient of its
        `surrogate`, whose value is `-mean(returns)`, is `1 / T` of an unbiased estimate of the
        gradient of minus the expected sum of rewards (each return weighted with
        `discount ** t`, if rewards are discounted and that shall be exact).

    Raises:
        TypeError: if `estimator` is not an estimator or `dist` not a distribution, or an argument
            is not made of numbers.
        ValueError: if the estimator needs more of the cost than its value at the action taken, if
            lengths or shapes disagree, or if the actions are not those that `z` stands for, or
            such that the policy cannot take (where values are known; in a graph a
            `tf.errors.InvalidArgumentError`, and with `jit_compile`, where there are none, a
            gradient that is NaN).

    Example:

    >>> weights = tf.Variable(tf.zeros([4, 2]))
    >>> state = tf.random.normal([6, 4], seed=0)
    >>> action = [0, 1, 1, 0, 1, 0]
    >>> returns = relax_tf.policy_gradients.returns_to_go(tf.ones([6]), discount=0.99)
    >>> estimator = relax_tf.estimators.get("relax")
    >>> with tf.GradientTape() as tape:
    ...     policy = relax_tf.distributions.OneHotCategorical(state @ weights)
    ...     estimate = relax_tf.policy_gradients.policy_gradient(
    ...         estimator, policy, action, state, returns
    ...     )
    >>> tape.gradient(estimate.surrogate, weights).shape
    TensorShape([4, 2])
    """
    check_estimator(estimator, dist)
    action = as_sample(action, dist)
    returns = real_tensor(returns, "returns", dist.dtype)
    if returns.shape.rank != 1:
        raise ValueError(f"`returns` need shape [time]. Received shape: {tuple(returns.shape)}")
    returns = of_steps(returns, dist, "returns")
    if state is not None:
        state = of_steps(real_tensor(state, "state"), dist, "state")
    function(objective, "objective")
    seed = make_seed(seed)
    draw = draw_of(dist.detached(), action, z, fold_in(seed, 2))
    cost = -tf.stop_gradient(returns)
    estimate = estimator.estimate_at(
        dist, draw, draw.b, cost, lambda b: cost, state, seed, objective=objective
    )
    estimator.observe(cost, state)
    return estimate


def episode_second_moment(
    policy: Callable[[tf.Tensor], Distribution], state: Any, variables: Sequence[Any]
) -> Callable[[Any], tf.Tensor]:
    """The paper's signal: the square of the episode's gradient in the policy's parameters.

    Args:
        policy: from states `[time, ...]` to the distribution of actions; the one that the
            estimate is made with.
        state: `[time, ...]`, of one episode.
        variables: the policy's parameters.

    Returns:
        An `objective` for `policy_gradient`: from the gradient per step to the scalar
        `|mean_t J_t^T g_t|^2`. It costs one more forward pass of the policy, one backward, and
        one through that.

    Raises:
        TypeError: if `policy` is not callable.
        ValueError: if there are no variables, or if theta depends on none of them.

    Example:

    >>> weights = tf.Variable(tf.ones([4, 2]))
    >>> state, action, returns = tf.ones([3, 4]), [0, 1, 1], [3.0, 2.0, 1.0]
    >>> policy = lambda state: relax_tf.distributions.OneHotCategorical(state @ weights)
    >>> objective = relax_tf.policy_gradients.episode_second_moment(policy, state, [weights])
    >>> estimate = relax_tf.policy_gradients.policy_gradient(
    ...     relax_tf.estimators.get("relax"), policy(state), action, state, returns,
    ...     objective=objective,
    ... )
    >>> float(objective(estimate.gradient))  # the three steps cancel
    0.0
    """
    if not callable(policy):
        raise TypeError(f"`policy` must be callable. Received: {policy!r}")
    values = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    if not values:
        raise ValueError("`variables` must be the policy's parameters. Received: none")

    def objective(gradient: Any) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            theta = tf.nest.flatten(policy(state).theta)
        steps = tf.cast(tf.shape(theta[0])[0], theta[0].dtype)
        totals = tape.gradient(theta, values, output_gradients=tf.nest.flatten(gradient))
        totals = [total for total in totals if total is not None]
        if not totals:
            raise ValueError(
                "the distribution of `policy` depends on none of the `variables`. Received: "
                f"{[getattr(v, 'path', v) for v in variables]}"
            )
        return tf.add_n([tf.reduce_sum(tf.square(total / steps)) for total in totals])

    return objective
