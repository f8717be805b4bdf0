"""The examples in docstrings run, and every public class and function has one."""

import doctest
import importlib
import pkgutil

import keras
import pytest
import tensorflow as tf

import relax_tf

MODULES = [
    info.name
    for info in pkgutil.walk_packages(relax_tf.__path__, "relax_tf.")
    if not info.name.startswith("relax_tf.datasets")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    names = {"tf": tf, "keras": keras, "relax_tf": relax_tf}
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, extraglobs=names, optionflags=options).failed == 0


@pytest.mark.parametrize(
    "thing",
    [
        relax_tf.RelaxModel,
        relax_tf.RelaxOptimizer,
        relax_tf.Latent,
        relax_tf.StochasticBinaryLayer,
        relax_tf.StochasticCategoricalLayer,
        relax_tf.StochasticNormalLayer,
        relax_tf.Parameters,
        relax_tf.losses.BernoulliNegativeLogLikelihood,
        relax_tf.distributions.Bernoulli,
        relax_tf.distributions.Normal,
        relax_tf.distributions.OneHotCategorical,
        relax_tf.control_variates.MLP,
        relax_tf.policy_gradients.returns_to_go,
        relax_tf.policy_gradients.policy_gradient,
        relax_tf.policy_gradients.episode_second_moment,
        relax_tf.estimators.get,
        relax_tf.estimators.Estimator.estimate,
        *relax_tf.estimators._BY_ID.values(),
    ],
)
def test_public_things_have_an_example(thing):
    assert ">>>" in thing.__doc__
