"""Experts: trained with TRPO on the environment's rewards, kept if good enough, with trajectories saved and loaded.

agent = train(key, environment, networks, columns=10)             # the best of several seeds
acted = act(key, environment, networks, agent, episodes=50)
check(environment.spec, episode_returns(acted))                   # raises an L2LError if they are too low
expert = trajectories(acted)
save(path, expert, environment.spec)
demonstrations = subsample(key, load(path, environment.spec), stride=10)
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.files import write_files
from l2ljax.gail import gym_adapter, rollout, trpo
from l2ljax.gail.environments import Box, Environment, Spec
from l2ljax.gail.gym_adapter import GymEnvironments
from l2ljax.gail.imitate import Demonstrations
from l2ljax.gail.policy import Agent, Networks, Statistics, statistics_of
from l2ljax.gail.rollout import Learn, Rollout, episode_returns
from l2ljax.types import Array, Key, L2LError, one_line

__all__ = [
    "SHAPING", "VALUE_STEPS", "ExpertState", "Trajectories", "act", "check", "learner", "load", "save", "shaped",
    "shuffled", "subsample", "train", "trajectories",
]  # fmt: skip

VALUE_STEPS = 5
"""Steps of the value function per iteration; Ho and Ermon's 1 needs more iterations."""
SHAPING = 20.0
"""The weight of a potential."""


class Trajectories(NamedTuple):
    """Complete episodes one after the other, M steps in all."""

    observations: np.ndarray
    """[M, O]."""
    actions: np.ndarray
    """[M, ...]."""
    lengths: np.ndarray
    """[episodes], with sum M."""
    returns: np.ndarray
    """[episodes]."""


class ExpertState(NamedTuple):
    """The state of training between iterations."""

    agent: Agent
    key: Key


def learner(networks: Networks, environment: Any = None) -> Learn:
    """Return one iteration of TRPO on rewards, `shaped` by the environment if given. See `rollout.Learn`; no data."""
    settings = trpo.Settings(value_steps=VALUE_STEPS)

    def learn(key: Key, state: ExpertState, rollout: Rollout, data: None) -> tuple[ExpertState, dict[str, Array]]:
        rewards = rollout.rewards
        if environment:
            phi = environment.potential(environment.params, rollout.observations)
            rewards = shaped(rewards, phi, rollout.ends, discount=settings.discount)
        agent, metrics = trpo.improve(key, networks, state.agent, rollout, rewards, settings)
        return state._replace(agent=agent), {"return": episode_returns(rollout).mean(), **metrics}

    return learn


def shaped(rewards: Array, phi: Array, ends: Array, *, discount: float) -> Array:
    """Return r_t + 20 (discount Phi_{t+1} - Phi_t), Phi 0 after an end: [T, N] from the potential `phi` [T + 1, N].

    Shaping changes no policy's advantages (Ng, Harada and Russell, 1999), and guides learning if all returns are equal
    at first, as on MountainCar.
    """
    return rewards + SHAPING * (discount * jnp.where(ends, 0, phi[1:]) - phi[:-1])


def train(
    key: Key, environment: Environment | GymEnvironments, networks: Networks, *, columns: int, seeds: int = 4,
    iterations: int = 100,
) -> Agent:  # fmt: skip
    """Train several seeds and return the best by the mean return of the last ten iterations.

    In an environment with a potential, as many iterations on shaped rewards come first.
    """
    size = environment.spec.observation_size
    raw = Statistics(jnp.float32(1), jnp.zeros(size), jnp.ones(size))  # without normalization of observations
    k_agents, keys = jax.vmap(jax.random.split, out_axes=1)(jax.random.split(key, seeds))
    states = ExpertState(jax.vmap(lambda k: networks.init(k, raw))(k_agents), keys)
    for shaping in (environment, None) if environment.potential else (None,):
        learn = learner(networks, shaping)
        run = gym_adapter.iterations(environment, networks, learn, columns=columns, length=iterations)
        states, metrics = run(environment.params, states, None)
    best = metrics["return"][:, -10:].mean(axis=1).argmax()
    return jax.tree.map(lambda a: a[best], states.agent)


def act(
    key: Key, environment: Environment | GymEnvironments, networks: Networks, agent: Agent, *, episodes: int
) -> Rollout:
    """Act in one column per episode, of which the first episode counts; in gymnasium if it has the environment."""
    if environment.spec.gymnasium:
        return gym_adapter.rollout_of(environment.spec.gymnasium, networks, agent, key, episodes=episodes)
    assert not isinstance(environment, GymEnvironments)
    collect = jax.jit(rollout.collect, static_argnames=("environment", "networks", "columns"))
    return collect(environment, environment.params, networks, agent, key, columns=episodes)


def check(spec: Spec, returns: np.ndarray) -> None:
    """Raise an L2LError if the mean of `returns` is below `spec.solved`: imitating that expert would fail silently."""
    if not (mean := returns.mean()) >= spec.solved:
        below = f"the expert on {spec.name} returns {mean:.1f}, less than {spec.solved:g}"
        raise L2LError(f"{below}: train it longer, with more seeds or another one")


def trajectories(rollout: Rollout) -> Trajectories:
    """Return the first episode of each column."""
    lengths = np.asarray(rollout.ends).argmax(axis=0) + 1
    whole = lambda a: np.concatenate([np.asarray(a)[:n, i] for i, n in enumerate(lengths)])
    returns = np.asarray(episode_returns(rollout))
    return Trajectories(whole(rollout.observations), whole(rollout.actions), lengths, returns)


def subsample(key: Key, expert: Trajectories, *, stride: int, count: int | None = None) -> Demonstrations:
    """Keep every `stride`-th step of the first `count` trajectories, from random starts below `stride` (Ho and Ermon).

    Fewer trajectories raise an L2LError.
    """
    count = len(expert.lengths) if count is None else count
    if not 1 <= count <= len(expert.lengths):
        raise L2LError(f"{count} trajectories requested: the expert has {len(expert.lengths)}")
    starts = np.asarray(jax.random.randint(key, (count,), 0, stride))
    offsets = np.cumsum([0, *expert.lengths])
    chosen = np.concatenate([np.arange(offsets[i] + starts[i], offsets[i + 1], stride) for i in range(count)])
    seen = statistics_of(jnp.asarray(expert.observations[: offsets[count]]))
    return Demonstrations(jnp.asarray(expert.observations[chosen]), jnp.asarray(expert.actions[chosen]), seen)


def shuffled(key: Key, demonstrations: Demonstrations) -> Demonstrations:
    """Shuffle the actions among the observations, as a control."""
    return demonstrations._replace(actions=jax.random.permutation(key, demonstrations.actions))


def save(path: Path, expert: Trajectories, spec: Spec) -> None:
    """Write an .npz file with the trajectories and the environment's name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, environment=np.array(spec.name), **expert._asdict())
    write_files({path: buffer.getvalue()})


def load(path: Path, spec: Spec) -> Trajectories:
    """Read a file of `save`.

    Raises:
      L2LError: no such file, a damaged one, one of another environment, or an expert that has not solved its task.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            fields = {name: file[name] for name in (*Trajectories._fields, "environment")}
    except Exception as error:  # NumPy's, zipfile's and zlib's for a file that is no or a damaged one
        fix = "give a file of a run, or delete it to train an expert anew"
        raise L2LError(f"cannot read expert trajectories from {path} ({one_line(error)}): {fix}") from error
    name = str(fields.pop("environment"))
    expert = Trajectories(**fields)
    if name != spec.name:
        raise L2LError(f"{path} holds trajectories on {name}, not {spec.name}: choose another --expert")
    if not _fits(expert, spec):
        raise L2LError(f"{path} is damaged: its arrays do not fit together; delete it to train an expert anew")
    check(spec, expert.returns)
    return expert


def _fits(expert: Trajectories, spec: Spec) -> bool:
    """Return whether the arrays have the shapes, types and actions of complete episodes in the environment."""
    observations, actions, lengths, returns = expert
    episodes = lengths.dtype.kind in "iu" and lengths.ndim == 1 and lengths.size > 0 and lengths.min() > 0
    if not episodes or observations.shape != (lengths.sum(), spec.observation_size) or returns.shape != lengths.shape:
        return False
    if isinstance(spec.action, Box):
        return actions.shape == (len(observations), spec.action.size) and actions.dtype.kind == "f"
    known = actions.shape == (len(observations),) and actions.dtype.kind in "iu"
    return bool(known and actions.min() >= 0 and actions.max() < spec.action.n)
