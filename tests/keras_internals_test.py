"""Which release of Keras changed what we use of it beside its public interface.

One test for each name of `relax_tf/keras_internals.py`, and a search for such names elsewhere.
"""

import ast
import importlib
import itertools
import pathlib
import pickle
import pkgutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import keras_internals as internals

PACKAGE = pathlib.Path(relax_tf.__file__).parent
RELEASE = f"Keras {keras.__version__} changed what relax_tf.keras_internals relies on"


def nested():
    """A layer in a layer in a functional model, with a generator in the innermost."""

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dropout(0.5)

        def call(self, x):
            return self.inner(x)

    inputs = keras.Input([3])
    outer = Outer()
    return keras.Model(inputs, keras.layers.Dense(2)(outer(inputs))), outer


def test_functional_is_the_class_of_functional_models():
    model, _ = nested()
    assert isinstance(model, internals.Functional), RELEASE
    assert not isinstance(keras.Sequential(), internals.Functional), RELEASE
    assert "fit" in vars(internals.Trainer), RELEASE
    assert not issubclass(internals.Trainer, keras.Layer), RELEASE


def test_bases_are_replaced_through_all_generations():
    class Base(keras.Model):
        pass

    class Twin(Base):
        pass

    class Child(Base):
        pass

    class Grandchild(Child):
        pass

    internals.replace_base(Grandchild, Base, Twin)
    assert Grandchild.__mro__[:4] == (Grandchild, Child, Twin, Base), RELEASE


def test_pickle_restores_a_model_without_a_name_of_its_class():
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, relax_tf.StochasticBinaryLayer(2)(inputs))
    assert callable(internals.unpickler(keras.Model)), RELEASE
    again = pickle.loads(pickle.dumps(model))
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_inside_layers_are_found():
    model, outer = nested()
    assert {model, outer, outer.inner} < {*internals.all_layers(model)}, RELEASE
    assert internals.inner_layers(outer) == [outer.inner], RELEASE
    assert outer.inner not in internals.inner_layers(model), RELEASE


def test_generators_are_found():
    _, outer = nested()
    assert internals.seed_generators(outer) == [], RELEASE
    assert internals.seed_generators(outer.inner) == [outer.inner.seed_generator], RELEASE


def test_a_layer_is_forgotten():
    layer = keras.layers.Layer()
    layer.inner = before = keras.layers.Dropout(0.5)
    internals.untrack(layer, before)
    layer.inner = after = keras.layers.Dropout(0.1)
    assert internals.inner_layers(layer) == [after], RELEASE


def test_nodes_say_what_was_called_on_what():
    model, outer = nested()
    nodes = internals.nodes(model)
    assert [type(node.operation) for node in nodes[1:]] == [type(outer), keras.layers.Dense]
    for earlier, later in itertools.pairwise(nodes):
        assert list(later.parent_nodes) == [earlier], RELEASE
    assert nodes[1].arguments.kwargs.get("output") is None, RELEASE


def test_masks_travel_with_tensors():
    masked = keras.layers.Masking()(tf.constant([[[1.0], [0.0]]]))
    np.testing.assert_array_equal(internals.mask_of(masked), [[True, False]], RELEASE)
    tensor = tf.ones([1, 2, 1])
    assert internals.mask_of(tensor) is None, RELEASE
    internals.attach_mask(tensor, tf.constant([[True, False]]))
    loss = keras.losses.MeanSquaredError()(tf.zeros([1, 2, 1]), 2 * tensor)
    assert float(loss) == 4, RELEASE  # a new tensor has no mask
    internals.attach_mask(doubled := 2 * tensor * [[[1.0], [5.0]]], internals.mask_of(tensor))
    assert float(keras.losses.MeanSquaredError()(tf.zeros([1, 2, 1]), doubled)) == 4, RELEASE


def compiled_model(**arguments):
    inputs = keras.Input([3])
    outputs = {name: keras.layers.Dense(2, name=name)(inputs) for name in "ab"}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", **arguments)
    return model


def test_compiled_losses_are_found_and_replaced():
    model = compiled_model(loss={"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 3.0})
    y = {name: tf.zeros([4, 2]) for name in "ab"}
    y_pred = {name: tf.ones([4, 2]) for name in "ab"}
    compiled = internals.compile_loss(model)
    scalar = float(compiled(y, y_pred))
    assert scalar == 4, RELEASE
    before = [metric.result().numpy() for metric in compiled.metrics]
    assert [item.loss_weights for item in internals.flat_losses(compiled)] == [1.0, 3.0], RELEASE
    with internals.replaced_losses(
        compiled, lambda loss: lambda y, p, w: tf.reduce_mean(loss.call(y, p), -1)
    ):
        assert float(compiled(y, y_pred)) == 4, RELEASE
    assert [metric.result().numpy() for metric in compiled.metrics] == before, RELEASE
    assert float(compiled(y, y_pred)) == scalar, RELEASE
    assert internals.compile_loss(keras.Sequential()) is None, RELEASE


def test_compiled_metrics_can_be_made_from_shapes():
    """They are what the first step would make."""
    model, _ = nested()
    assert internals.compile_metrics(model) is None, RELEASE
    model.compile("sgd", loss="mse", metrics=["accuracy", "mae"])
    metrics = internals.compile_metrics(model)
    assert not metrics.built, RELEASE
    metrics.build(tf.zeros([4, 2]), keras.KerasTensor([4, 2]))
    assert metrics.built, RELEASE
    names = [metric.name for metric in metrics.metrics]
    assert names == ["accuracy", "mae"], RELEASE
    model.train_on_batch(np.zeros([4, 3]), np.zeros([4, 2]))
    assert [metric.name for metric in metrics.metrics] == names, RELEASE


def test_the_loss_metric_is_the_one_in_the_logs():
    model = compiled_model(loss={"a": "mse", "b": "mae"})
    internals.loss_tracker(model).update_state(7.0)
    assert model.get_metrics_result()["loss"] == 7, RELEASE


def test_keras_asks_a_model_about_its_logs():
    asked = []

    class Model(internals.TrainerHooks, keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def _logs_without_names(self, logs):
            asked.append("names")
            return {"loss": logs["loss"]}

        def _logs_of_epoch(self, logs):
            asked.append("epoch")
            return {**super()._logs_of_epoch(logs), "more": 1.0}

    model = Model()
    model.compile("sgd", loss="mse", metrics=["mae"])
    x = np.ones([4, 1])
    assert model.fit(x, x, verbose=0).history["more"] == [1.0], RELEASE
    assert np.ndim(model.evaluate(x, x, verbose=0)) == 0, RELEASE
    assert {*asked} == {"epoch", "names"}, RELEASE


def test_the_outermost_call_keeps_notes():
    seen = []

    class Note(keras.layers.Layer):
        def call(self, x):
            notes = internals.current_call().get_value("relax_tf_test", [])
            notes.append(self)
            internals.current_call().set_value("relax_tf_test", notes)
            seen.append(len(notes))
            return x

    model = keras.Sequential([Note(), Note()])
    model(tf.ones([1, 1]))
    model(tf.ones([1, 1]))
    assert seen[-4:] == [1, 2, 1, 2], RELEASE
    assert internals.current_call() is None, RELEASE


def test_an_optimizer_says_what_it_was_built_for():
    optimizer, known = keras.optimizers.Adam(), [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer.build(known)
    assert [*map(id, internals.variables_of(optimizer))] == [*map(id, known)], RELEASE
    internals.refuse_unknown(optimizer, known)
    with pytest.raises(ValueError, match="Unknown variable"):
        internals.refuse_unknown(optimizer, [keras.Variable([3.0])])


def test_a_schedule_is_replaced_for_a_while():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.1)
    optimizer = keras.optimizers.SGD(schedule)
    with internals.schedule_replaced(optimizer, 0.25) as own:
        assert own is schedule, RELEASE
        assert optimizer.get_config()["learning_rate"] in (0.25, 0.5), RELEASE  # no dict
    np.testing.assert_allclose(optimizer.learning_rate, 0.5, err_msg=RELEASE)
    with internals.schedule_replaced(keras.optimizers.SGD(0.125), 0.25) as own:
        assert own is None, RELEASE


def test_exclusions_from_weight_decay_are_copied():
    source, target = keras.optimizers.SGD(1e-6, weight_decay=1e5), keras.optimizers.SGD(1e-6)
    target.weight_decay = 1e5
    source.exclude_from_weight_decay(var_names=["kept"])
    internals.copy_exclusions(source, target)
    variables = [keras.Variable([1.0], name=name) for name in ("kept", "decayed")]
    target.build(variables)
    target.apply([tf.zeros([1]), tf.zeros([1])])
    np.testing.assert_allclose([float(v[0]) for v in variables], [1.0, 0.9], err_msg=RELEASE)


def test_a_layer_s_own_variables_are_not_those_of_inner_layers():
    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(1)
            self.own = self.add_weight(shape=())
            self.count = self.add_weight(shape=(), trainable=False)

    outer = Outer()
    outer.inner.build([None, 2])
    assert len(outer.weights) == 4
    found = {id(variable) for variable in internals.own_variables(outer)}
    assert found == {id(outer.own), id(outer.count)}, RELEASE


def test_averages_are_where_the_callback_looks():
    class Optimizer(internals.SwappedAverages, keras.optimizers.MultiOptimizer):
        def _optimizers_of_averages(self):
            return [(self.optimizers[0], variable) for variable in internals.variables_of(self)]

    side = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].set_weights([np.ones([1, 1])])
    optimizer = Optimizer(keras.optimizers.OptimizerMap(side))
    optimizer.build(model.trainable_variables)
    for _ in range(2):  # the first average is the first value
        optimizer.apply([tf.constant([[2.0]])], model.trainable_variables)
    (average,) = optimizer._model_variables_moving_average
    callback = keras.callbacks.SwapEMAWeights()
    model.compile(optimizer)
    optimizer.use_ema = True
    callback.set_model(model)
    expected, trained = average.numpy(), model.get_weights()[0]
    callback._swap_variables()
    np.testing.assert_array_equal(model.get_weights()[0], expected, RELEASE)
    np.testing.assert_array_equal(average, trained, RELEASE)
    assert (expected != trained).any()


# No other file.

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "keras_internals.py"]
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def names_of_our_own():
    """What any file of the package defines or assigns."""
    own = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
    return own | set(relax_tf.distributions.Draw._fields) | {"_replace", "_fields"}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_no_other_file_reads_a_private_name_that_is_not_ours(path):
    own = names_of_our_own() - private_names_of_internals()
    foreign = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            foreign.add(node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras.src"):
            foreign.add(node.module)
        if isinstance(node, ast.Constant) and node.value in private_names_of_internals():
            foreign.add(node.value)
    assert not foreign


def private_names_of_internals():
    """Those of Keras."""
    tree = TREES[PACKAGE / "keras_internals.py"]
    found = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} | {"_keras_mask"}
    found |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    return {n for n in found if is_private(n)} - {
        "_replace",
        "_logs_without_names",
        "_logs_of_epoch",
        "_optimizers_of_averages",
    }


def test_no_class_overrides_a_private_name_of_keras():
    for info in pkgutil.walk_packages(relax_tf.__path__, "relax_tf."):
        importlib.import_module(info.name)
    keras_classes = (keras.Layer, keras.optimizers.Optimizer, keras.losses.Loss)
    pending, seen = [*keras_classes, keras.callbacks.Callback], set()
    while pending:
        cls = pending.pop()
        pending += [child for child in cls.__subclasses__() if child not in seen]
        seen.add(cls)
    for cls in seen:
        if not cls.__module__.startswith("relax_tf"):
            continue
        ours = [base for base in cls.__mro__ if base.__module__.startswith("relax_tf")]
        theirs = [base for base in cls.__mro__ if base.__module__.startswith("keras")]
        for base in ours:
            if base.__module__ == internals.__name__:
                continue
            names = filter(is_private, vars(base))
            overridden = [n for n in names if any(n in vars(parent) for parent in theirs)]
            overridden = [n for n in overridden if not n.startswith("_abc_")]
            assert overridden == [], f"{base.__name__} overrides private names of Keras"
