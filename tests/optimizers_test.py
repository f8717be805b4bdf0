import keras
import numpy as np
import pytest

import relax_tf
from relax_tf.control_variates import mark_control_variates
from relax_tf.optimizers import wrap_optimizer


def variables():
    of_model, of_control_variate = keras.Variable([1.0, 2.0]), keras.Variable([3.0])
    mark_control_variates([of_control_variate])
    return of_model, of_control_variate


def test_each_group_has_its_own_optimizer():
    optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.1))
    w, phi = variables()
    optimizer.apply([np.array([1.0, 1.0], "f"), np.array([1.0], "f")], [w, phi])
    np.testing.assert_allclose(w, [0.5, 1.5])
    np.testing.assert_allclose(phi, [2.9])


def test_default_is_a_fresh_copy():
    adam = keras.optimizers.Adam(0.3, beta_2=0.5)
    optimizer = relax_tf.RelaxOptimizer(adam)
    copy = optimizer.control_variate_optimizer
    assert copy is not adam
    assert type(copy) is type(adam)
    assert copy.beta_2 == 0.5
    assert float(copy.learning_rate) == pytest.approx(0.3)


def test_config_round_trip():
    optimizer = relax_tf.RelaxOptimizer("adam", keras.optimizers.SGD(0.1, momentum=0.5))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    assert again.control_variate_optimizer.momentum == 0.5


def test_build_partitions_a_full_list_in_any_order():
    for reverse in (False, True):
        optimizer = relax_tf.RelaxOptimizer("adam")
        both = variables()
        optimizer.build(list(reversed(both)) if reverse else list(both))
        assert [v.shape for v in optimizer.optimizer._momentums] == [(2,)]
        assert [v.shape for v in optimizer.control_variate_optimizer._momentums] == [(1,)]


def test_learning_rate_is_the_model_s():
    optimizer = relax_tf.RelaxOptimizer(keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.1))
    optimizer.learning_rate = 0.25
    assert float(optimizer.optimizer.learning_rate) == 0.25
    assert float(optimizer.control_variate_optimizer.learning_rate) == pytest.approx(0.1)


def test_loss_scaling_stays_outside():
    scaled = wrap_optimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)))
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    assert isinstance(scaled.inner_optimizer, relax_tf.RelaxOptimizer)
    assert wrap_optimizer(scaled) is scaled


def test_warm_up_moves_the_control_variates_alone():
    inputs = keras.Input([2])
    b = relax_tf.StochasticBinaryLayer(3, "relax", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b))
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.0, 1e-2])
    adam = keras.optimizers.Adam
    model.compile(relax_tf.RelaxOptimizer(adam(rate), adam(1e-2, weight_decay=1e-4)), loss="mse")
    x, y = np.ones([8, 2], "f"), np.ones([8, 1], "f")

    def values():
        return {v.path: v.numpy() for v in model.trainable_variables}

    start = values()
    model.fit(x, y, batch_size=2, verbose=0)
    warm = values()
    model.fit(x, y, batch_size=2, verbose=0)
    trained = values()
    phi = {v.path for v in model.get_layer("b").estimator.trainable_variables}
    for path in start:
        assert np.any(warm[path] != start[path]) == (path in phi), path
        assert np.any(trained[path] != warm[path]), path


@pytest.mark.parametrize("mode", [{"run_eagerly": True}, {"jit_compile": True}])
def test_control_variates_learn_in_every_third_step(mode):
    inputs = keras.Input([3])
    outputs = relax_tf.StochasticBinaryLayer(2, "relaxed_rebar", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, outputs)
    adam = keras.optimizers.Adam
    optimizer = relax_tf.RelaxOptimizer(adam(0.01), adam(0.01), control_variate_update_every=3)
    model.compile(optimizer, loss="mse", **mode)
    x, y = np.ones([4, 3], "float32"), np.full([4, 2], 0.3, "float32")
    model.train_on_batch(x, y)  # the first step, in which they learn
    phi = model.get_layer("b").estimator.trainable_variables
    changed, norms = [], []
    for _ in range(6):
        before = [variable.numpy() for variable in (model.get_layer("b").kernel, *phi)]
        model.reset_metrics()
        logs = model.train_on_batch(x, y, return_dict=True)
        after = [variable.numpy() for variable in (model.get_layer("b").kernel, *phi)]
        moved = [(a != b).any() for a, b in zip(before, after, strict=True)]
        assert moved[0]
        changed.append(any(moved[1:]))
        norms.append(logs["b_control_variate_norm"])
    assert changed == [False, False, True] * 2
    assert [norm > 0 for norm in norms] == changed
    assert int(optimizer.control_variate_optimizer.iterations) == 3
    assert int(optimizer.iterations) == 7


def test_config_keeps_how_often_control_variates_learn():
    optimizer = relax_tf.RelaxOptimizer("adam", control_variate_update_every=4)
    copy = relax_tf.RelaxOptimizer.from_config(optimizer.get_config())
    assert copy.control_variate_update_every == 4
