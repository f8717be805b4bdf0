"""Estimators, problems and parametrisations of the suite that every estimator passes."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from relax_tf import estimators
from relax_tf.control_variates import MLP
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.problems import (
    CategoricalTableCost,
    NormalCost,
    TableCost,
    normal_from,
    shake,
    z_scores,
)

DRAWS = 100_000

# Small networks, since all draws run through them at once.
_SMALL = keras.saving.serialize_keras_object(MLP([16, 16]))
R = {"control_variate": _SMALL}
B = {"baseline": _SMALL}

UNBIASED = {
    "reinforce": {"class_name": "reinforce"},
    "reinforce-baseline": {"class_name": "reinforce", "config": {"baseline_decay": 0.9}},
    "nvil": {"class_name": "nvil", "config": B},
    "muprop": {"class_name": "muprop", "config": B},
    "rloo": {"class_name": "rloo", "config": {"num_samples": 3}},
    "arm": {"class_name": "arm"},
    "disarm": {"class_name": "disarm"},
    "arms-2": {"class_name": "arms", "config": {"num_samples": 2}},
    "arms": {"class_name": "arms"},
    "midpoint": {"class_name": "midpoint"},
    "relaxed_disarm": {"class_name": "relaxed_disarm"},
    "flip": {"class_name": "flip"},
    "flip-plain": {"class_name": "flip", "config": {"curvature": False}},
    "rebar": {"class_name": "rebar"},
    "rebar-independent": {"class_name": "rebar", "config": {"coupled": False}},
    "relax": {"class_name": "relax", "config": R | B},
    "relax-independent": {"class_name": "relax", "config": R | B | {"coupled": False}},
    "relaxed_rebar": {"class_name": "relaxed_rebar", "config": R},
    "relaxed_rebar-independent": {
        "class_name": "relaxed_rebar",
        "config": R | {"coupled": False},
    },
    "lax": {"class_name": "lax", "config": R | B},
    "reparameterization": {"class_name": "reparameterization"},
}
BIASED = {
    "concrete": {"class_name": "concrete"},
    "straight_through": {"class_name": "straight_through"},
    "reinmax": {"class_name": "reinmax"},
}
BOUND = {"vimco": {"class_name": "vimco", "config": {"num_samples": 3}}}
ALL = UNBIASED | BIASED | BOUND

PROBLEMS = {
    "bernoulli-1-direct": TableCost(1, (0, 1), direct=True, seed=1),
    "bernoulli-2": TableCost(2, (-1, 1), seed=2),
    "bernoulli-4-direct": TableCost(4, (-2, 3), direct=True, seed=4, wave=0.1),
    "bernoulli-6-direct": TableCost(6, (-1, 1), direct=True, seed=5),
    "categorical-1x2": CategoricalTableCost(1, 2, seed=6),
    "categorical-1x4-direct": CategoricalTableCost(1, 4, direct=True, seed=7, wave=0.1),
    "categorical-2x3": CategoricalTableCost(2, 3, seed=8, wave=0.1),
    "normal-2-direct": NormalCost(2, direct=True, seed=11),
    "normal-3": NormalCost(3, seed=12),
}
# Simpler or larger problems of the same kind.
FURTHER = {"bernoulli-1-direct", "bernoulli-6-direct", "categorical-1x2", "normal-3"}

# Distributions of one tensor theta, whose last axis is 4 long in these tests.
FAMILIES = {
    "bernoulli": lambda theta: Bernoulli(theta, support=(-1, 1)),
    "categorical": OneHotCategorical,
    "normal": normal_from,
}


def is_defined_for(config, name):
    family = {"bernoulli": Bernoulli, "categorical": OneHotCategorical, "normal": Normal}
    try:
        estimators.get(config).check_defined_for(family[name.split("-")[0]])
    except ValueError:
        return False
    return True


def by_problem(configs, problems=PROBLEMS):
    """Parametrises over the pairs of an estimator and a problem or family it is defined for."""
    pairs = [
        pytest.param(
            config,
            value,
            id=f"{name}-{problem}",
            marks=[pytest.mark.slow] if problem in FURTHER else [],
        )
        for problem, value in problems.items()
        for name, config in configs.items()
        if is_defined_for(config, problem)
    ]
    return pytest.mark.parametrize(("config", "other"), pairs)


def by_family(configs):
    return by_problem(configs, FAMILIES)


def by_name(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def total(b, event_rank=1):
    """The sum of each example's sample, `[..., batch]`."""
    return tf.reduce_sum(b, list(range(b.shape.rank - event_rank, b.shape.rank)))


def total_square(b, event_rank=1):
    return total((b - 0.4) ** 2, event_rank)


def total_square_of(dist):
    return functools.partial(total_square, event_rank=dist.shape.rank - 1)


def shaken(config, dist, context=None):
    """A built estimator whose variables are not at their initial values."""
    estimator = estimators.get(config)
    estimator.estimate(dist, total_square_of(dist), context=context, seed=0)
    shake(estimator.trainable_variables)
    return estimator


def repeated(theta, draws):
    return tf.tile(tf.constant(theta, tf.float32)[tf.newaxis], [draws] + [1] * np.ndim(theta))


def per_example_gradients(estimator, problem, draws=DRAWS, seed=1):
    """The surrogate's gradient, direct term included, for each of many draws: `[draws, ...]`."""

    thetas = repeated(problem.theta, draws)
    with tf.GradientTape() as tape:
        tape.watch(thetas)
        dist = problem.distribution(thetas)
        estimate = estimator.estimate(dist, lambda b: problem(b, thetas), seed=seed)
    return (tape.gradient(estimate.surrogate, thetas) * draws).numpy()


def while_learning(shown, estimator, dist, cost, context=None, steps=300):
    """What `shown` makes of each estimate while Adam trains phi, `[steps]`."""
    optimizer = keras.optimizers.Adam(1e-2)

    @tf.function(autograph=False)
    def step(seed):
        with tf.GradientTape() as tape:
            estimate = estimator.estimate(dist, cost, context=context, seed=seed)
        phi = estimator.trainable_variables
        optimizer.apply(tape.gradient(estimate.control_variate_loss, phi), phi)
        return shown(estimate)

    return np.array([step(tf.constant([seed, 0])) for seed in range(steps)])


def bias(identifier, problem, draws=100_000):
    """The mean of the estimates less the exact gradient, and z-scores of that."""
    gradients = per_example_gradients(estimators.get(identifier), problem, draws)
    exact = problem.gradient(problem.theta)
    return gradients.mean(0) - exact, z_scores(gradients, exact)
