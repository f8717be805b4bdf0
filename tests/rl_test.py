"""The reinforcement-learning example as a user runs it, in small."""

import json
import signal
import time

import ml_collections
import numpy as np
import pytest

from examples import rl_results
from examples.metrics import read_metrics
from tests import programs
from tests.further import further

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra: rl)")

TINY = [
    *("--config.episodes=40", "--config.log_every=5", "--config.variance_every=20"),
    *("--config.variance_rollouts=3", "--config.verbose=0"),
]


def start(config, workdir, *overrides):
    return programs.start("rl", config, workdir, *TINY, *overrides)


def run(*arguments):
    return programs.finish(start(*arguments))


def without_times(path):
    work = ("environment", "acting", "update", "variance")
    return [{k: v for k, v in row.items() if k not in work} for row in read_metrics(path)]


@pytest.mark.parametrize("signal_of", ["step", *further("episode")])
def test_relax_writes_its_results(tmp_path, signal_of):
    output = run("rl_cartpole", tmp_path, f"--config.signal={signal_of}")
    assert "above 195.0 after no number of episodes" in output
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert all(8 <= row["reward"] <= 500 for row in rows)
    measured = [row["step"] for row in rows if np.isfinite(row["log_variance_relax"])]
    assert measured == [1, 21]
    for name in ("a2c", "relax"):  # 0 before the first update: REINFORCE
        assert rows[0][f"log_variance_{name}"] == rows[0]["log_variance_reinforce"]
        assert rows[20][f"log_variance_{name}"] != rows[20]["log_variance_reinforce"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["episodes"] == 40
    assert abs(sum(summary["share"].values()) - 1) < 0.01
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 5_000


@pytest.mark.slow
def test_killed_run_resumes_as_if_nothing_had_happened(tmp_path):
    run("rl_cartpole", tmp_path / "whole")
    program = start("rl_cartpole", tmp_path / "killed")
    while program.poll() is None and len(read_metrics(tmp_path / "killed" / "metrics.csv")) < 10:
        time.sleep(0.005)
    program.kill()
    assert program.poll() == -signal.SIGKILL
    run("rl_cartpole", tmp_path / "killed")
    whole, killed = (without_times(tmp_path / n / "metrics.csv") for n in ("whole", "killed"))
    assert len(whole) == len(killed) == 40
    for a, b in zip(whole, killed, strict=True):
        np.testing.assert_equal(a, b)


@pytest.mark.parametrize("method", ["lax", "a2c"])
def test_continuous_actions(tmp_path, method):
    pytest.importorskip("mujoco", reason="mujoco is not installed (extra: rl)")
    overrides = ["--config.episodes=10", f"--config.method={method}"]
    run("rl_inverted_pendulum", tmp_path, *overrides)
    assert len(read_metrics(tmp_path / "metrics.csv")) == 10


def test_lunar_lander(tmp_path):
    pytest.importorskip("Box2D", reason="box2d is not installed (extra: rl)")
    run("rl_lunarlander", tmp_path, "--config.episodes=3", "--config.render=True")
    assert read_metrics(tmp_path / "metrics.csv")[-1]["reward"] < 100
    assert (tmp_path / "figures" / "agent.gif").stat().st_size > 5_000


def test_method_that_the_actions_do_not_have_is_named(tmp_path):
    program = start("rl_cartpole", tmp_path, "--config.method=lax")
    message = "must be one of ('reinforce', 'a2c', 'relax') in CartPole-v1. Received: 'lax'"
    assert message in program.output()
    assert program.poll() == 1


def test_solved_is_a_mean_over_a_hundred_episodes():
    from examples.rl_log import solved_at

    assert solved_at([500.0] * 99, 195) is None
    assert solved_at([500.0] * 100, 195) == 100
    assert solved_at([0.0] * 100 + [500.0] * 100, 195) == 140  # 39 * 5 is not above
    assert solved_at([195.0] * 300, 195) is None


def test_acting_follows_the_policy():
    from configs import rl_cartpole, rl_inverted_pendulum
    from examples.rl_agent import Agent
    from examples.rl_episodes import Actor

    random = np.random.RandomState(0)
    for module, sizes in ((rl_cartpole, (4, 2, True)), (rl_inverted_pendulum, (4, 1, False))):
        config = ml_collections.ConfigDict(module.get_config())
        agent = Agent(config, *sizes)
        for variable in agent.policy_variables:
            variable.assign(random.normal(size=variable.shape))
        actor = Actor(agent.numpy_weights(), config.policy_activation, sizes[2])
        state = random.normal(size=[20, 4]).astype("f")
        noise = random.normal(size=[20, sizes[1]]).astype("f")
        z = agent.policy(state).from_noise(noise).z
        np.testing.assert_allclose(actor.z(state, noise), z, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(actor.z(state[3], noise[3]), z[3], rtol=1e-4, atol=1e-4)


def test_vector_of_environments_walks_whole_episodes():
    from examples.rl_episodes import Actor, generator, make_vector, walk_many

    weights = [np.zeros([4, 2], "f"), np.zeros(2, "f")]
    actor = Actor(weights, "relu", discrete=True)
    envs = make_vector("CartPole-v1", 50)
    first, again = (walk_many(envs, actor, generator(0, 1, 2)) for _ in range(2))
    lengths = [len(episode.reward) for episode in first]
    assert len(first) == 50
    assert min(lengths) >= 8 and 15 < np.mean(lengths) < 30  # a random policy's: about 22
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.z, b.z)
        np.testing.assert_array_equal(a.reward, np.ones(len(a.state)))
    assert make_vector("InvertedPendulum-v5", 3) is None


def test_branches_start_where_they_are_told():
    from examples.rl_episodes import Actor, generator, make_vector
    from examples.rl_floor import returns_after, shares

    actor = Actor([np.zeros([4, 2], "f"), np.zeros(2, "f")], "relu", discrete=True)
    upright, leaving = [0.0, 0.0, 0.0, 0.0], [2.399, 5.0, 0.0, 0.0]
    states = np.array([upright, upright, leaving])
    returns = returns_after(
        make_vector("CartPole-v1", 3),
        actor,
        states,
        np.array([0, 1, 1]),
        elapsed=np.array([0, 498, 0]),
        discount=0.5,
        random=generator(0),
    )
    assert 1.9 < returns[0] <= 2.0
    np.testing.assert_array_equal(returns[1:], [1.5, 1.0])  # the limit of 500, and the edge
    result = shares(actor, 0.99, 0)
    assert 15 < result["mean length"] < 30
    assert 0.02 < result["removable share"] < 0.2


def test_results_can_be_regenerated(tmp_path):
    for method in ("relax", "a2c"):
        workdir = tmp_path / "runs" / "rl_cartpole" / f"{method}-0"
        run("rl_cartpole", workdir, f"--config.method={method}", "--config.episodes=21")
    results = tmp_path / "results"
    collect = f"--collect={tmp_path / 'runs'}"
    programs.finish(programs.Program("examples.rl_results", f"--results={results}", collect))
    table = (results / "rl_cartpole" / "table.md").read_text()
    assert "| a2c | 1 | never in 21" in table
    assert "| relax-0 | never | never | 21 |" in table
    assert "--config.method=relax" in table
    figure = results / "rl_cartpole" / "rl.png"
    assert figure.stat().st_size > 10_000
    figure.unlink()
    rl_results.regenerate(results / "rl_cartpole")  # from what is stored alone
    assert figure.exists()
    stored = read_metrics(results / "rl_cartpole" / "a2c-0.csv")
    whole = read_metrics(tmp_path / "runs" / "rl_cartpole" / "a2c-0" / "metrics.csv")
    assert [row["reward"] for row in stored] == [row["reward"] for row in whole]
