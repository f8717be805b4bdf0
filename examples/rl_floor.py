"""How much variance of CartPole's policy gradient any control variate of the action can remove.

    python -m examples.rl_floor --workdir=DIR

of a run of `examples.rl` on CartPole, at its last checkpoint. A control variate sees the state and
the action of its step. What comes after is noise to it: with the score of that step,

    E[(R - V(s))^2 |score|^2] = E[(Q(s, a) - V(s))^2 |score|^2] + E[(R - Q(s, a))^2 |score|^2]

where the left is A2C with a perfect value function, the first term at the right is what a perfect
control variate removes besides, and the last is what nobody removes. Both are measured here by
branching: from states that the policy visits, either action, then the policy's own many times over.
"""

import json
import pathlib

import gymnasium
import ml_collections
import numpy as np
from absl import app, flags

from examples.checkpoints import Checkpoint
from examples.rl_agent import Agent
from examples.rl_episodes import Actor, generator, make_vector, walk_many

flags.DEFINE_string("workdir", None, "Folder of a run of examples.rl on CartPole.", required=True)
STATES, BRANCHES = 200, 40
ANALYSIS = 3  # purpose of the random numbers, after those of rl_episodes


def returns_after(
    envs: gymnasium.vector.VectorEnv,
    actor: Actor,
    state: np.ndarray,
    action: np.ndarray,
    elapsed: np.ndarray,
    discount: float,
    random: np.random.Generator,
) -> np.ndarray:
    """Returns-to-go, `[n]`, of n environments set to a state and made to begin with an action."""
    envs.reset(seed=int(random.integers(2**31)))
    envs.unwrapped.state = state.T.astype(np.float64)
    envs.unwrapped.steps = elapsed.copy()
    running, weight, total = np.ones(len(state), bool), 1.0, np.zeros(len(state))
    while running.any():
        state, reward, terminated, truncated, _ = envs.step(action)
        total += weight * reward * running
        running = running & ~(terminated | truncated)
        weight *= discount
        state = state.astype(np.float32)
        action = actor.action(actor.z(state, actor.noise(random, (len(state), 2))))
    return total


def shares(actor: Actor, discount: float, seed: int) -> dict[str, float]:
    """The terms of the equation above, per step, at the states of 100 episodes."""
    random = generator(seed, ANALYSIS)
    episodes = walk_many(make_vector("CartPole-v1", 100), actor, random)
    states = np.concatenate([episode.state for episode in episodes])
    elapsed = np.concatenate([np.arange(len(episode.state)) for episode in episodes])
    chosen = random.choice(len(states), STATES)
    logits = actor.z(states[chosen], np.zeros([STATES, 2], np.float32))
    p = np.exp(logits)
    envs = make_vector("CartPole-v1", STATES * 2 * BRANCHES)
    returns = returns_after(
        envs,
        actor,
        np.repeat(states[chosen], 2 * BRANCHES, 0),
        np.tile(np.repeat([0, 1], BRANCHES), STATES),
        np.repeat(elapsed[chosen], 2 * BRANCHES),
        discount,
        random,
    ).reshape(STATES, 2, BRANCHES)
    # Squares of means are made of two independent halves: no noise of the branches in them.
    first, second = returns[..., ::2].mean(-1), returns[..., 1::2].mean(-1)
    advantages = [q - (p * q).sum(-1, keepdims=True) for q in (first, second)]
    score = 2 * (1 - p) ** 2  # |onehot(a) - p|^2 with two actions
    by_action = (p * score * advantages[0] * advantages[1]).sum(-1)
    by_future = (p * score * returns.var(-1, ddof=1)).sum(-1)
    return {
        "mean length": float(np.mean([len(episode.reward) for episode in episodes])),
        "removable": float(by_action.mean()),
        "noise of the future": float(by_future.mean()),
        "removable share": float(by_action.mean() / (by_action.mean() + by_future.mean())),
    }


def main(argv):
    del argv
    workdir = pathlib.Path(flags.FLAGS.workdir)
    config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    agent = Agent(config, states=4, actions=2, discrete=True)
    episodes = Checkpoint(workdir / "checkpoints" / "agent.keras").restore(agent)
    actor = Actor(agent.numpy_weights(), config.policy_activation, discrete=True)
    result = shares(actor, config.discount, config.seed)
    print(f"after {episodes} episodes: " + ", ".join(f"{k} {v:.4g}" for k, v in result.items()))


if __name__ == "__main__":
    app.run(main)
