"""Episodes: environments, acting with a numpy copy of the policy, and where the time goes.

The randomness of an episode, the environment's and the policy's, is a pure function of
`(seed, purpose, episode)`, so that a resumed run goes on exactly as if it had not been stopped.
"""

import contextlib
import time
from collections import Counter
from typing import NamedTuple

import gymnasium
import numpy as np

TRAINING, MEASUREMENT, RENDERING = range(3)


class Episode(NamedTuple):
    """What happened in `T` steps, float32."""

    state: np.ndarray  # [T, states]
    z: np.ndarray  # [T, actions], the action is its argmax, or itself
    reward: np.ndarray  # [T]


class Stopwatch(Counter):
    """Seconds spent on each of a few kinds of work."""

    @contextlib.contextmanager
    def on(self, work: str):
        start = time.perf_counter()
        yield
        self[work] += time.perf_counter() - start


class Actor:
    """A numpy copy of a policy: about ten microseconds a step, a compiled call takes hundreds.

    Args:
        weights: `Agent.numpy_weights()`.
        activation: `"relu"` or `"tanh"`.
        discrete: whether the outputs are logits or means.
    """

    def __init__(self, weights: list[np.ndarray], activation: str, discrete: bool):
        self.activation = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[activation]
        self.discrete = discrete
        if not discrete:
            *weights, self.scale = weights
        *hidden, self.output = zip(weights[::2], weights[1::2], strict=True)
        self.hidden = hidden

    def z(self, state: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """`log pi + Gumbel`, or `mean + scale * normal`, `[..., actions]`."""
        x = state
        for kernel, bias in self.hidden:
            x = self.activation(x @ kernel + bias)
        kernel, bias = self.output
        x = x @ kernel + bias
        if not self.discrete:
            return x + self.scale * noise
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True)) + noise

    def noise(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.gumbel(size=shape) if self.discrete else random.normal(size=shape)
        return noise.astype(np.float32)

    def action(self, z: np.ndarray) -> np.ndarray:
        return z.argmax(-1) if self.discrete else z


def generator(*key: int) -> np.random.Generator:
    """A generator for each key of integers, `(seed, purpose, episode, ...)`."""
    return np.random.default_rng(key)


def make_environment(name: str, **arguments) -> gymnasium.Env:
    """The environment without gymnasium's checks of every step, which cost more than the step."""
    return gymnasium.make(name, disable_env_checker=True, **arguments)


def sizes(env: gymnasium.Env | gymnasium.vector.VectorEnv) -> tuple[int, int, bool]:
    """The size of states and of actions, and whether the actions are discrete."""
    space = getattr(env, "single_action_space", env.action_space)
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    actions = int(space.n) if discrete else space.shape[0]
    return env.observation_space.shape[-1], actions, discrete


def walk(
    env: gymnasium.Env,
    actor: Actor,
    random: np.random.Generator,
    watch: Stopwatch,
    frames: list[np.ndarray] | None = None,
) -> Episode:
    """One episode, to its end or the environment's limit; rendered into `frames` if asked for."""
    states, zs, rewards, done = [], [], [], False
    clock = time.perf_counter
    start = clock()
    state, _ = env.reset(seed=int(random.integers(2**31)))
    noise = iter(actor.noise(random, (env.spec.max_episode_steps, sizes(env)[1])))
    watch["environment"] += clock() - start
    while not done:
        t0 = clock()
        state = np.asarray(state, np.float32)
        z = actor.z(state, next(noise))
        action = actor.action(z)
        t1 = clock()
        states.append(state)
        zs.append(z)
        if frames is not None:
            frames.append(env.render())
        state, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        done = terminated or truncated
        t2 = clock()
        watch["acting"] += t1 - t0
        watch["environment"] += t2 - t1
    return Episode(np.array(states), np.array(zs, np.float32), np.array(rewards, np.float32))


def walk_many(
    envs: gymnasium.vector.VectorEnv, actor: Actor, random: np.random.Generator
) -> list[Episode]:
    """The first episode of each of many environments that step together."""
    state, _ = envs.reset(seed=int(random.integers(2**31)))
    running = np.ones(envs.num_envs, bool)
    shape = (envs.num_envs, sizes(envs)[1])
    states, zs, rewards, alive = [], [], [], []
    while running.any():
        state = np.asarray(state, np.float32)
        z = actor.z(state, actor.noise(random, shape))
        states.append(state)
        zs.append(z)
        alive.append(running)
        state, reward, terminated, truncated, _ = envs.step(actor.action(z))
        rewards.append(reward)
        running = running & ~(terminated | truncated)
    lengths = np.sum(alive, 0)
    columns = [np.array(x, np.float32).swapaxes(0, 1) for x in (states, zs, rewards)]
    return [Episode(*(x[i, :n] for x in columns)) for i, n in enumerate(lengths)]


def make_vector(name: str, number: int) -> gymnasium.vector.VectorEnv | None:
    """Many environments in one where numpy steps them at once, or None."""
    if gymnasium.spec(name).vector_entry_point is None:
        return None
    return gymnasium.make_vec(name, num_envs=number, vectorization_mode="vector_entry_point")
