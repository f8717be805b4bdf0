"""Reinforcement learning with RELAX and LAX policy gradients against A2C (sections 6.3, 6.4).

    python -m examples.rl --config=configs/rl_cartpole.py --workdir=DIR --config.method=relax

walks one episode, makes one update of it, and so on until the task is solved or the episodes are
used up. `DIR/metrics.csv` has a row for each episode. The same command resumes, exactly.
"""

import csv
import json
import pathlib

import keras
import ml_collections
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_flags

from examples import figures
from examples.rl_agent import Agent
from examples.rl_episodes import (
    MEASUREMENT,
    RENDERING,
    TRAINING,
    Actor,
    Stopwatch,
    generator,
    make_environment,
    make_vector,
    sizes,
    walk,
    walk_many,
)
from examples.runs import Checkpoint, Workdir, read_metrics, replace_file

_CONFIG = config_flags.DEFINE_config_file("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)

WORK = ("environment", "acting", "update", "variance")
COLUMNS = ("step", "reward", "log_variance", "log_variance_reinforce", *WORK)
WINDOW = 100  # episodes whose mean reward decides


class Log:
    """`metrics.csv`: a row for each episode, in the file at every `flush`.

    `reward` is the episode's, undiscounted; `log_variance` the logarithm of the variance of the
    policy gradient summed over the policy's parameters, before the update, where it is measured;
    `log_variance_reinforce` that of plain REINFORCE on the same rollouts. The other columns are
    seconds of work so far.
    """

    def __init__(self, path: pathlib.Path, start_step: int):
        self.path = path
        self.rows = [row for row in read_metrics(path) if row["step"] <= start_step]

    def flush(self) -> None:
        replace_file(self.path, self._write)

    def _write(self, path: pathlib.Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def solved_at(rewards: list[float], threshold: float) -> int | None:
    """The first episode at which the mean of the last hundred is above the threshold."""
    if len(rewards) < WINDOW:
        return None
    means = np.convolve(rewards, np.full(WINDOW, 1 / WINDOW), mode="valid")
    above = np.flatnonzero(means > threshold)
    return int(above[0]) + WINDOW if above.size else None


def log_variances(agent: Agent, episodes: list) -> np.ndarray:
    """Of the agent's estimator and of REINFORCE, over episodes walked by the present policy."""
    gradients = np.stack([agent.gradients(*episode).numpy() for episode in episodes])
    variances = gradients.astype(np.float64).var(0, ddof=1).sum(-1)
    with np.errstate(divide="ignore"):
        return np.log(variances)


def train(config: ml_collections.ConfigDict, folder: Workdir) -> Log:
    """Trains an agent, or goes on training it."""
    env = make_environment(config.environment)
    states, actions, discrete = sizes(env)
    keras.utils.set_random_seed(config.seed)
    agent = Agent(config, states, actions, discrete)
    checkpoint = Checkpoint(folder.checkpoints / "agent.keras")
    checkpoint.set_model(agent)
    start_step = checkpoint.restore(agent)
    log = Log(folder.metrics, start_step)
    watch = Stopwatch({work: log.rows[-1][work] if log.rows else 0.0 for work in WORK})
    rewards = [row["reward"] for row in log.rows]
    envs = make_vector(config.environment, config.variance_rollouts)
    progress = keras.utils.Progbar(
        config.episodes, stateful_metrics=["mean_reward"], verbose=config.verbose
    )

    def actor() -> Actor:
        return Actor(agent.numpy_weights(), config.policy_activation, discrete)

    def rollouts(step: int) -> list:
        if envs is not None:
            return walk_many(envs, actor(), generator(config.seed, MEASUREMENT, step))
        return [
            walk(env, actor(), generator(config.seed, MEASUREMENT, step, k), Stopwatch())
            for k in range(config.variance_rollouts)
        ]

    for step in range(start_step + 1, config.episodes + 1):
        if config.stop and solved_at(rewards, config.thresholds[-1]):
            break
        variances = np.nan, np.nan
        if config.variance_every and (step - 1) % config.variance_every == 0:
            with watch.on("variance"):
                variances = log_variances(agent, rollouts(step))
        episode = walk(env, actor(), generator(config.seed, TRAINING, step), watch)
        with watch.on("update"):
            agent.update(*episode)
        rewards.append(float(episode.reward.sum(dtype=np.float64)))
        values = (round(rewards[-1], 2), *np.round(variances, 3))
        times = (round(watch[work], 2) for work in WORK)
        log.rows.append(dict(zip(COLUMNS, (step, *values, *times), strict=True)))
        if step % config.log_every == 0 or step == config.episodes:
            log.flush()
            checkpoint.on_epoch_end(step)
        progress.update(step, [("mean_reward", np.mean(rewards[-WINDOW:]))])
    log.flush()
    checkpoint.on_epoch_end(len(rewards))
    if config.render:
        render(config, actor(), folder)
    return log


def render(config: ml_collections.ConfigDict, actor: Actor, folder: Workdir) -> None:
    """`figures/agent.gif`: an episode of the trained agent, every fourth frame, at most 100."""
    env = make_environment(config.environment, render_mode="rgb_array")
    frames = []
    walk(env, actor, generator(config.seed, RENDERING), Stopwatch(), frames)
    figures.animation(folder.figures / "agent.gif", frames[::4][:100])


def summary(config: ml_collections.ConfigDict, log: Log) -> dict:
    """What a run came to: episodes until solved, mean log-variances, and the split of the time."""
    rewards = [row["reward"] for row in log.rows]
    result = {
        "method": config.method,
        "episodes": len(rewards),
        "solved": {str(t): solved_at(rewards, t) for t in config.thresholds},
        "mean_reward": round(float(np.mean(rewards[-WINDOW:])), 2),
    }
    for name in ("log_variance", "log_variance_reinforce"):
        values = [row[name] for row in log.rows if np.isfinite(row[name])]
        result[f"mean_{name}"] = round(float(np.mean(values)), 3) if values else None
    total = sum(log.rows[-1][work] for work in WORK)
    result["seconds"] = round(total, 1)
    result["share"] = {work: round(log.rows[-1][work] / total, 3) for work in WORK}
    return result


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict:
    """Trains, or goes on training, draws the curves, and returns the summary."""
    folder = Workdir(workdir, config)
    log = train(config, folder)
    result = summary(config, log)
    replace_file(
        folder.path / "summary.json", lambda path: path.write_text(json.dumps(result, indent=2))
    )
    figures.rewards(folder.figures / "curves.png", {config.method: [log.rows]}, config.thresholds)
    share = ", ".join(f"{work} {value:.0%}" for work, value in result["share"].items())
    solved = ", ".join(
        f"above {threshold} after {step or 'no number of'} episodes"
        for threshold, step in result["solved"].items()
    )
    print(
        f"{config.environment}, {config.method}: mean reward of the last {WINDOW} episodes "
        f"{result['mean_reward']} after {result['episodes']}; {solved}. "
        f"{result['seconds']} s: {share}. Results in {folder.path}"
    )
    return result


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    tf.config.threading.set_intra_op_parallelism_threads(config.threads)
    tf.config.threading.set_inter_op_parallelism_threads(config.threads)
    train_and_evaluate(config, _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
