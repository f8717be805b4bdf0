"""The benchmarks run, on tiny models; the comparator computes what it claims to."""

import csv
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import charts, growth, memory, models, recipe, step_time, timing
from tests.further import further
from tests.problems import shake, z_scores

pytestmark = pytest.mark.uncertified

TINY = {"jit_compile": False, "steps_per_execution": 2}
SMALL = {"units": 3, "pixels": 4, "hidden_units": (5,)}


def test_every_binary_estimator_takes_part_and_the_floor_comes_first():
    names = models.binary_estimators()
    assert names[0] == "straight_through"
    assert {"relax", "relaxed_rebar", "rebar", "reinforce", "rloo", "vimco", "disarm"} < set(names)
    assert not {"lax", "reparameterization"} & set(names)


def test_step_time_table_csv_and_chart(tmp_path, capsys):
    rows = step_time.times("linear1", 2, ["straight_through", "relax"], TINY, rounds=2, steps=4)
    assert [row["estimator"] for row in rows] == ["straight_through", "relax"]
    assert rows[0]["ratio"] == 1 and all(row["ms"] > 0 and row["compile_s"] > 0 for row in rows)
    assert rows[1]["ratio"] == pytest.approx(rows[1]["ms"] / rows[0]["ms"])
    timing.print_table(rows)
    assert len(capsys.readouterr().out.splitlines()) == 3
    keys = ("architecture", "batch", "xla", "estimator")
    path = tmp_path / "new" / "step_time.csv"
    timing.merge_csv(path, rows, keys)
    merged = timing.merge_csv(path, [{**rows[1], "ms": 7.0}], keys)
    assert [row["ms"] for row in merged] == [f"{rows[0]['ms']:.3f}", "7.000"]
    assert list(csv.DictReader(path.open())) == merged
    charts.ratios(tmp_path / "chart.png", merged)
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_race_takes_turns_and_reports_medians():
    class Recorder(keras.Model):
        def __init__(self, name):
            super().__init__(name=name)

        def fit(self, dataset, callbacks, steps_per_epoch, **arguments):
            order.append(self.name)
            callbacks[0].seconds = next(seconds)

    order, seconds = [], iter([9.0, 5.0, 1.0, 2.0, 3.0, 2.0, 2.0, 5.0])
    result = timing.race({n: Recorder(n) for n in "ab"}, models.data(2, 4), rounds=3, steps=10)
    assert order == list("ab" * 4)
    assert result == {"a": (200.0, 7.0), "b": (200.0, 3.0)}


@pytest.mark.slow
def test_without_metrics_trains_alike():
    def weights_after_training(silent):
        keras.utils.set_random_seed(0)
        model = models.compiled("relaxed_rebar", **TINY, **SMALL)
        if silent:
            models.without_metrics(model)
        history = model.fit(models.data(2, 4), steps_per_epoch=4, verbose=0, shuffle=False)
        return model.get_weights(), history.history

    loud, history = weights_after_training(silent=False)
    silent, _ = weights_after_training(silent=True)
    assert "loss" in history
    for a, b in zip(loud[:5], silent[:5], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("sweep", ["layers", *further("samples", "units")])
def test_growth(sweep, tmp_path):
    _, estimators, _ = growth.SWEEPS[sweep]
    fields = {k: v for k, v in SMALL.items() if sweep != "units" or k != "units"}
    rows = growth.times(sweep, estimators[:1], [2, 3], 1, 2, setting=TINY, **fields)
    assert [row["size"] for row in rows] == [2, 3] and rows[0]["per_size"] == 1
    rows = timing.merge_csv(tmp_path / "growth.csv", rows, ("sweep", "estimator", "size"))
    charts.growth(tmp_path / "growth.png", rows, "ms", "ms/step")


def test_chain_has_as_many_layers_as_asked():
    model = models.compiled("relax", "chain", layers=3, **TINY, **SMALL)
    estimates = model.estimate(*next(iter(models.data(2, 4)))).estimates
    assert list(estimates) == ["b1", "b2", "b3"]


@pytest.mark.slow
def test_memory_of_a_child_process():
    mib = memory.measure({"estimator": "relax", "batch_size": 2, "jit_compile": True, **SMALL})
    floats = 4 * (3 * 4 + 3 * 4)  # at least the weights of the model
    assert floats / 2**20 < mib["buffers"] < 1
    assert mib["peak"] > 1


def exact_gradients(model, x):
    """Of the expected cost, by enumeration."""
    units = model.encoder.units
    with tf.GradientTape() as tape:
        theta = model(x)
        expected = 0.0
        for bits in itertools.product([0.0, 1.0], repeat=units):
            b = tf.tile([bits], [len(x), 1])
            expected += tf.exp(recipe._log_prob(b, theta)) * model.cost(x, b, theta)
        expected = tf.reduce_mean(expected)
    return tape.gradient(expected, model.model_variables)


def test_textbook_is_unbiased():
    model = recipe.TextbookVAE(np.full(4, 0.3, "f"), 3, (5,))
    shake(model.trainable_variables)
    x = tf.constant([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    many = tf.repeat(x, 500, 0)
    step = tf.function(lambda: model.gradients(many)[0])
    draws = [step() for _ in range(300)]
    for samples, exact in zip(zip(*draws, strict=True), exact_gradients(model, x), strict=True):
        assert np.abs(z_scores(samples, exact)).max() < 4.5


def test_textbook_descends_its_second_moment_in_phi():
    model = recipe.TextbookVAE(np.full(4, 0.3, "f"), 3, (5,))
    shake(model.trainable_variables)
    x = tf.repeat(tf.constant([[0.0, 1.0, 1.0, 0.0]]), 500, 0)
    state = model.noise.state.numpy()

    def second_moment():
        model.noise.state.assign(state)
        return model.gradients(x)

    _, of_phi, _, _ = second_moment()
    for variable, gradient in zip(model.phi, of_phi, strict=True):
        direction = np.asarray(gradient) / max(np.linalg.norm(gradient), 1e-9)
        before, step = variable.numpy(), 1e-2
        variable.assign(before + step * direction)
        above = second_moment()[-1]
        variable.assign(before - step * direction)
        below = second_moment()[-1]
        variable.assign(before)
        slope = float(above - below) / (2 * step)
        assert slope == pytest.approx(float(np.linalg.norm(gradient)), rel=0.1, abs=2e-2)


@pytest.mark.slow
def test_textbook_trains_through_fit():
    keras.utils.set_random_seed(1)
    model = recipe.TextbookVAE(np.full(4, 0.3, "f"), 3, (5,))
    model.compile("adam")
    history = model.fit(models.data(20, 4), steps_per_epoch=300, epochs=2, verbose=0)
    first, last = history.history["loss"]
    assert last < first
