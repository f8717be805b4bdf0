"""Reinforcement learning with RELAX and LAX policy gradients against A2C (sections 6.3, 6.4).

    python -m examples.rl --config=configs/rl_cartpole.py --workdir=DIR --config.method=relax

walks one episode, makes one update of it, and so on until the task is solved or the episodes are
used up. `DIR/metrics.csv` has a row for each episode. The same command resumes, exactly.
"""

import json
import sys

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from examples import figures
from examples.checkpoints import Checkpoint
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
from examples.rl_log import WINDOW, Log, solved_at, summary
from examples.runs import Workdir, commit, replace_file, start


def log_variances(agent: Agent, episodes: list) -> np.ndarray:
    """Of each of the agent's estimators, over episodes walked by the present policy.

    The logarithm of the variance of an episode's policy gradient, summed over the parameters.
    """
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
    log = Log(folder.metrics, tuple(agent.estimators), start_step)
    watch = Stopwatch(log.seconds())
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
        if config.stop and solved_at(log.rewards, config.thresholds[-1]):
            break
        variances = [np.nan] * len(agent.estimators)
        if config.variance_every and (step - 1) % config.variance_every == 0:
            with watch.on("variance"):
                variances = log_variances(agent, rollouts(step))
        episode = walk(env, actor(), generator(config.seed, TRAINING, step), watch)
        with watch.on("update"):
            agent.update(*episode)
        log.append(episode.reward.sum(dtype=np.float64), variances, watch)
        if step % config.log_every == 0 or step == config.episodes:
            log.flush()
            checkpoint.on_epoch_end(step)
        progress.update(step, [("mean_reward", np.mean(log.rewards[-WINDOW:]))])
    log.flush()
    checkpoint.on_epoch_end(len(log.rewards))
    if config.render:
        render(config, actor(), folder)
    return log


def render(config: ml_collections.ConfigDict, actor: Actor, folder: Workdir) -> None:
    """`figures/agent.gif`: an episode of the trained agent, every fourth frame, at most 100."""
    env = make_environment(config.environment, render_mode="rgb_array")
    frames = []
    walk(env, actor, generator(config.seed, RENDERING), Stopwatch(), frames)
    figures.animation(folder.figures / "agent.gif", frames[::4][:100])


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict:
    """Trains, or goes on training, draws the curves, and returns the summary."""
    folder = Workdir(workdir, config)
    log = train(config, folder)
    result = {
        "command": " ".join(["python -m examples.rl", *sys.argv[1:]]).replace(workdir, "DIR"),
        "commit": commit(),
        **summary(log, config.method, config.seed, config.thresholds),
    }
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


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(config.threads)
    tf.config.threading.set_inter_op_parallelism_threads(config.threads)
    train_and_evaluate(config, workdir)


if __name__ == "__main__":
    start(main)
