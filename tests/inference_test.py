"""What layers emit outside training: samples, means, modes; and means as outputs of a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.enumeration import tiled, worst_z
from tests.further import further
from tests.problems import shake
from tests.small_models import Subclassed, data, small_model

pytestmark = pytest.mark.uncertified

BINARY, CATEGORICAL, NORMAL = (
    relax_tf.StochasticBinaryLayer,
    relax_tf.StochasticCategoricalLayer,
    relax_tf.StochasticNormalLayer,
)
SIZES = {BINARY: (2,), CATEGORICAL: (2, 3), NORMAL: (2,)}

# The mode.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_modes_are_the_most_probable_samples(dtype):
    theta = tf.constant(np.random.RandomState(0).normal(size=[4, 3]), dtype)
    for dist in (Bernoulli(theta, (-1, 1)), OneHotCategorical(theta[:, tf.newaxis])):
        states = dist.enumerate()[:, tf.newaxis]
        best = tf.argmax(dist.log_prob(states), 0)
        np.testing.assert_array_equal(dist.mode(), tf.gather(states[:, 0], best))
        assert dist.mode().dtype == dtype
    np.testing.assert_array_equal(Normal(theta, tf.exp(theta)).mode(), theta)


def test_modes_of_infinite_and_equal_logits():
    inf = np.inf
    modes = Bernoulli([[inf, -inf, 0.0]]).mode()
    np.testing.assert_array_equal(modes, [[1, 0, 0]])
    modes = OneHotCategorical([[[-inf, -5.0, -inf], [1.0, 1.0, 0.0]]]).mode()
    np.testing.assert_array_equal(modes, [[[0, 1, 0], [1, 0, 0]]])


@pytest.mark.parametrize("cls", SIZES)
@pytest.mark.parametrize("inference", ["mean", "mode"])
def test_layers_emit_means_and_modes_by_choice(cls, inference):
    layer = cls(*SIZES[cls], inference=inference)
    x = tf.constant(data()[0])
    np.testing.assert_array_equal(layer(x), getattr(layer.distribution(x), inference)())
    assert type(layer).from_config(layer.get_config()).inference == inference


def test_other_words_are_refused_and_change_nothing():
    layer = BINARY(2)
    for value in ("median", None, "Mode"):
        with pytest.raises(ValueError, match=r"\['sample', 'mean', 'mode'\]. Received: "):
            layer.inference = value
        with pytest.raises(ValueError, match="`inference`"):
            BINARY(2, inference=value)
    assert layer.inference == "sample"


@pytest.mark.parametrize("maker", [small_model, Subclassed])
def test_assignment_after_training_takes_effect_in_evaluate_and_predict(maker):
    model = maker()
    model.compile("adam", loss="mse")
    x, y = data()
    model.fit(x, y, verbose=0)
    layer = next(layer for layer in model.layers if isinstance(layer, BINARY))
    top = model.layers[-1]
    model.predict(x, verbose=0), model.evaluate(x, y, verbose=0)  # traced with samples
    for inference in ("mode", "mean", "mode"):
        layer.inference = inference
        expected = top(getattr(layer.distribution(tf.constant(x)), inference)())
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
        loss = model.evaluate(x, y, verbose=0)
        np.testing.assert_allclose(loss, np.mean((expected - y) ** 2), rtol=1e-5)
    layer.inference = "sample"
    assert (model.predict(x, verbose=0) != model.predict(x, verbose=0)).any()


def test_kl_where_the_mode_is_emitted():
    x = tf.constant(data()[0])
    layer = BINARY(3, "reinforce", prior="learned", kl="sampled", inference="mode")
    model = relax_tf.RelaxModel(inputs := keras.Input([3]), layer(inputs))
    model.compile("sgd")
    dist = layer.distribution(x)
    at_mode = dist.log_prob(dist.mode()) + 3 * np.log(2)
    np.testing.assert_allclose(model.evaluate(x, verbose=0), np.mean(at_mode), rtol=1e-5)


# Means as outputs.


def with_probabilities(estimator="relaxed_rebar"):
    """x -> b1 -> b2, and the means of both, of which the second reaches the output."""
    inputs = keras.Input([3])
    b1 = BINARY(2, estimator, (-1, 1), prior="learned", name="b1")
    b2 = BINARY(2, estimator, name="b2")
    first = b1(inputs)
    hidden = keras.layers.Concatenate()([first, b2(first), b2.mean(first)])
    outputs = {"y": keras.layers.Dense(2)(hidden), "p": b1.mean(inputs)}
    return relax_tf.RelaxModel(inputs, outputs)


@pytest.mark.parametrize("cls", SIZES)
def test_means_of_tensors_and_symbols(cls):
    layer = cls(*SIZES[cls], prior="learned")
    inputs = keras.Input([3])
    layer(inputs)
    symbol = layer.mean(inputs)
    assert symbol.shape == (None, *SIZES[cls])
    x = tf.constant(data()[0])
    expected = layer.distribution(x).mean()
    np.testing.assert_array_equal(layer.mean(x), expected)
    model = keras.Model(inputs, symbol)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    assert model.losses == []  # no KL
    gradients = []
    for mean in (layer.mean, lambda x: layer.distribution(x).mean()):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(mean(x) ** 2)
        gradients.append(tape.gradient(total, layer.kernel.value))
    np.testing.assert_allclose(*gradients, rtol=1e-6)
    assert np.abs(gradients[0]).max() > 0


def test_a_mean_is_no_call_of_the_layer_and_gradients_are_exact():
    model = with_probabilities()
    model.compile("sgd", loss={"y": "mse"}, run_eagerly=True)
    shake(model.trainable_variables, 0.7)
    x, y = data(2)
    x, y, _ = tiled(x, y, 100)
    assert set(model.estimate(x, {"y": y}).estimates) == {"b1", "b2"}
    assert worst_z(model, (x, {"y": y}, None)) < 4.5


def test_a_mean_leaves_parallel_samples_alone_in_replays():
    """Two branches, each with its mean: relaxing one must not recompute the other."""
    inputs = keras.Input([3])
    first, second = (BINARY(4, "rebar", name=name) for name in "ab")
    parts = [first(inputs), second(inputs), first.mean(inputs), second.mean(inputs)]
    model = relax_tf.RelaxModel(inputs, keras.layers.Concatenate()(parts))
    emitted = []
    model.compile("sgd", loss=lambda y, p: (emitted.append(p[:, :8]), keras.ops.sum(p, -1))[1])
    model.estimate(tf.ones([2, 3]), tf.ones([2, 1]))
    emitted.clear()  # the first time Keras builds the loss by a call
    model.estimate(tf.ones([2, 3]), tf.ones([2, 1]))
    hard, *replays = [p.numpy() for p in emitted]
    assert len(replays) == 2
    for p in replays:
        changed = [(p[:, k : k + 4] != hard[:, k : k + 4]).any() for k in (0, 4)]
        assert sorted(changed) == [False, True]


@pytest.mark.parametrize("copied", ["file", "clone", "config"])
def test_models_with_means_save_load_and_clone(copied, tmp_path):
    model = with_probabilities()
    model.compile("adam", loss={"y": "mse"}, run_eagerly=True)
    model.certify = False
    x, y = data()
    model.fit(x, {"y": y}, verbose=0)
    model.save(tmp_path / "model.keras")
    again = {
        "file": lambda: keras.models.load_model(tmp_path / "model.keras"),
        "clone": lambda: keras.models.clone_model(model),
        "config": lambda: type(model).from_config(model.get_config()),
    }[copied]()
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        again.predict(x, verbose=0)["p"], model.predict(x, verbose=0)["p"]
    )
    assert len(again.layers) == len(model.layers)
    again.compile("adam", loss={"y": "mse"}, run_eagerly=True)
    again.certify = False
    assert np.isfinite(again.fit(x, {"y": y}, verbose=0).history["loss"]).all()


# Teachers and target networks: in a training step too.


class Distilled(relax_tf.RelaxModel):
    """Its output shall be near a teacher's, which predicts."""

    teacher = None

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        near = tf.stop_gradient(self.teacher(x, training=False))
        return super().compute_cost(x, y, y_pred, latents, sample_weight) + tf.reduce_sum(
            (y_pred - near) ** 2, -1
        )


def student(teacher, estimator="rloo"):
    pupil = small_model(estimator)
    model = Distilled(pupil.input, pupil.output)
    model.teacher = teacher
    model.compile("sgd", loss="mse")
    return model


@pytest.mark.parametrize("inference", ["mode", "mean"])
@pytest.mark.parametrize("certify", [True, *further(False)])
def test_a_copy_for_inference_teaches(inference, certify):
    """Its layer has the name of the student's, is no latent and has no part in the estimates."""
    original = small_model("relax")
    x, y = data()
    model = student(original.for_inference(inference))
    model.certify = certify
    estimate = model.estimate(x, y)
    assert list(estimate.estimates) == ["b"]
    b = tf.cast(estimate.estimates["b"].sample[0], tf.float32)
    top, layer = original.get_layer("outputs"), original.get_layer("b")
    near = top(getattr(layer.distribution(tf.constant(x)), inference)())
    y_pred = model.get_layer("outputs")(b)
    expected = tf.reduce_mean((y_pred - y) ** 2, -1) + tf.reduce_sum((y_pred - near) ** 2, -1)
    loss = float(tf.reduce_mean(expected))
    assert float(estimate.surrogate) == pytest.approx(loss, rel=1e-5)
    model.fit(x, y, verbose=0)
    assert np.isfinite(model.evaluate(x, y, verbose=0))


def copied(model, tmp_path):
    model.save(tmp_path / "model.keras")
    yield keras.models.load_model(tmp_path / "model.keras")
    yield keras.models.clone_model(model)


def in_a_graph(cls, estimator, name):
    inputs = keras.Input([3])
    b = BINARY(4, estimator, name=name)(inputs)
    return cls(inputs, keras.layers.Dense(2, name="outputs")(b))


def test_a_teacher_in_a_graph_stays_one_in_files_and_clones(tmp_path):
    teacher = in_a_graph(relax_tf.RelaxModel, "rloo", "teacher").for_inference("mode")
    teacher.trainable = False
    inputs = keras.Input([3])
    both = [BINARY(4, "rloo", name="b")(inputs), teacher(inputs)]
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(both)))
    model.compile("sgd", loss="mse")
    for one in (model, *copied(model, tmp_path)):
        one.compile("sgd", loss="mse")
        assert list(one.estimate(*data()).estimates) == ["b"]
        assert len(one.trainable_variables) == 4
        logs = one.fit(*data(), verbose=0).history
        assert logs["b_second_moment"][0] > 0 and "teacher_second_moment" not in logs


def with_a_teacher():
    """A model whose output is its teacher's, and its teacher; the sample has no weight."""
    inputs = keras.Input([3])
    teacher = in_a_graph(relax_tf.RelaxModel, "rloo", "teacher").for_inference("mode")
    teacher.trainable = False
    b = BINARY(4, "rloo", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Add()([teacher(inputs), 0.0 * b[:, :2]]))
    model.compile("sgd", loss="mse")
    return model, teacher


def emits(teacher, inference, x):
    """Tells a teacher what to emit, and returns its output then."""
    layer, top = teacher.get_layer("teacher"), teacher.get_layer("outputs")
    layer.inference = inference
    return top(getattr(layer.distribution(tf.constant(x)), inference)())


def test_what_a_teacher_is_told_to_emit_later_takes_effect_in_evaluate():
    model, teacher = with_a_teacher()
    x, _ = data()
    for inference in ("mode", "mean", "mode"):
        expected = emits(teacher, inference, x)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
        assert model.evaluate(x, expected, verbose=0) == pytest.approx(0, abs=1e-10)


def test_what_a_teacher_is_told_to_emit_later_takes_effect_in_fit():
    """The cost that is logged is that of what it emits now."""
    model, teacher = with_a_teacher()
    x, y = data()
    for inference in ("mode", "mean", "mode"):
        expected = float(tf.reduce_mean((emits(teacher, inference, x) - y) ** 2))
        assert model.fit(x, y, verbose=0).history["loss"] == pytest.approx([expected], rel=1e-4)
        assert model.train_on_batch(x, y) == pytest.approx(expected, rel=1e-4)
    traced = model.train_function
    model.fit(x, y, verbose=0)
    assert model.train_function is traced


class Around(relax_tf.RelaxModel):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x)


@pytest.mark.parametrize("graph", [True, False])
def test_a_teacher_emits_the_same_in_a_copy_for_inference(graph):
    model, teacher = with_a_teacher()
    x, _ = data()
    expected = teacher.predict(x, verbose=0)
    if not graph:
        model = Around(model)
        model(x)
    plain = model.for_inference("mean")
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_students_may_have_a_bound_and_the_names_of_their_teachers():
    teacher = in_a_graph(relax_tf.RelaxModel, "rloo", "b").for_inference("mean")
    model = student(teacher, relax_tf.estimators.Vimco(num_samples=3))
    assert model.fit(*data(), verbose=0).history["b_second_moment"][0] > 0


@pytest.mark.parametrize("estimator", ["rloo", "relax"])
def test_a_frozen_layer_stays_frozen_in_files_and_clones(estimator, tmp_path):
    model = in_a_graph(relax_tf.RelaxModel, estimator, "b")
    model.get_layer("b").trainable = False
    model.compile("sgd", loss="mse")
    for one in copied(model, tmp_path):
        one.compile("sgd", loss="mse")
        kernel = one.get_layer("b").kernel.numpy()
        one.fit(*data(), verbose=0)
        assert len(one.trainable_variables) == 2
        np.testing.assert_array_equal(one.get_layer("b").kernel, kernel)
        one.get_layer("b").trainable = True
        model.get_layer("b").trainable = True
        assert len(one.trainable_variables) == len(model.trainable_variables)
        model.get_layer("b").trainable = False


@pytest.mark.parametrize("assigned", [False, True])
def test_all_of_a_layer_is_frozen_that_was_made_so(assigned):
    layer = BINARY(4, "rloo" if assigned else "relax", trainable=False)
    if assigned:
        layer.estimator = "relax"
    layer(tf.zeros([2, 3]))
    assert layer.estimator.variables
    assert not any(variable.trainable for variable in (*layer.dense.variables, *layer.variables))


def test_models_that_nest_plain_ones_have_copies_for_inference():
    inputs = keras.Input([3])
    inner = in_a_graph(keras.Model, "rloo", "inner")
    both = [inner(inputs), BINARY(2, "rloo", name="b")(inputs)]
    model = relax_tf.RelaxModel(inputs, keras.layers.Concatenate()(both))
    x, _ = data()
    expected = inner.get_layer("outputs")(inner.get_layer("inner").mean(x))
    np.testing.assert_allclose(model.for_inference("mean")(x)[:, :2], expected, rtol=1e-5)


class WithTeacher(relax_tf.RelaxModel):
    """Samples of another model, for inference, join its own."""

    def __init__(self, other, cut):
        super().__init__()
        self.below, self.other, self.cut = keras.layers.Dense(3), other, cut
        self.b, self.top = BINARY(2, "rloo", name="b"), keras.layers.Dense(2)

    def call(self, x):
        seen = self.other(self.below(x))
        seen = tf.stop_gradient(seen) if self.cut else seen
        return self.top(tf.concat([self.b(x), seen], -1))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_gradient_through_samples_for_inference_is_refused_in_a_step(frozen):
    """No estimator would see them: it would be missing, of what is below a frozen layer too."""
    original = Subclassed("rloo")
    original(data()[0])
    original.b.name = "other"
    plain = original.for_inference("sample")
    plain.trainable = not frozen
    for cut in (False, True):
        model = WithTeacher(plain, cut)
        model.compile("sgd", loss="mse")
        model.certify = True
        if cut:
            model.fit(*data(), verbose=0)
        else:
            with pytest.raises(ValueError, match="'other' was drawn for inference inside a train"):
                model.fit(*data(), verbose=0)


@pytest.mark.parametrize("setting", ["kl", "support"])
def test_another_setting_shows_in_the_next_fit(setting):
    def fitted(later):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        b = BINARY(4, "rloo", prior="learned", name="b", seed=1)
        model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b(inputs)))
        model.compile("sgd", loss="mse")
        losses = []
        for settings in ({}, later):
            for name, value in settings.items():
                setattr(b, name, value)
            b.seed_generator.state.assign([3, 4])
            losses.append(model.fit(*data(), verbose=0).history["loss"][0])
            losses.append(model.evaluate(*data(), verbose=0))
        return losses

    other = {"kl": "sampled"} if setting == "kl" else {"support": (-1, 1)}
    changed, unchanged = fitted(other), fitted({})
    assert changed[:2] == unchanged[:2]
    assert (np.abs(np.subtract(changed[2:], unchanged[2:])) > 1e-4).all()
