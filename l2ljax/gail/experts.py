"""Experts: trained with TRPO on the environment's rewards, kept only if good, their trajectories saved and loaded.

agent = train(key, environment, networks)              # the best of several seeds
check(environment.spec, returns)                       # an L2LError where they are too low
expert = record(key, environment, networks, agent)     # Trajectories
save(path, expert); expert = load(path, environment.spec)
demonstrations = subsample(key, expert, stride=10)
"""

import io
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.files import write_files
from l2ljax.gail import gym_adapter, rollout, trpo
from l2ljax.gail.environments import Environment, Spec
from l2ljax.gail.gym_adapter import GymEnvironments
from l2ljax.gail.imitate import Demonstrations
from l2ljax.gail.policy import Agent, Networks, Statistics, statistics_of
from l2ljax.gail.rollout import Learn, Rollout, episode_returns
from l2ljax.types import Array, Key, L2LError

__all__ = [
    "SHAPING", "VALUE_STEPS", "ExpertState", "Trajectories", "act", "check", "init", "learner", "load", "save",
    "shaped", "shuffled", "subsample", "train", "trajectories",
]  # fmt: skip

VALUE_STEPS = 5
"""Of the value function per iteration; Ho and Ermon's 1 needs more iterations."""
SHAPING = 20.0
"""How much a potential counts."""


class Trajectories(NamedTuple):
    """Whole episodes one after the other, M steps in all."""

    observations: np.ndarray
    """[M, O]."""
    actions: np.ndarray
    """[M, ...]."""
    lengths: np.ndarray
    """[episodes], which sum to M."""
    returns: np.ndarray
    """[episodes]."""


class ExpertState(NamedTuple):
    """What a training iteration changes."""

    agent: Agent
    key: Key


def init(key: Key, networks: Networks, size: int) -> ExpertState:
    """The state before the first iteration: observations not normalized yet."""
    k_agent, key = jax.random.split(key)
    return ExpertState(networks.init(k_agent, Statistics(jnp.float32(1), jnp.zeros(size), jnp.ones(size))), key)


def learner(networks: Networks, environment: Environment | None = None) -> Learn:
    """One iteration of TRPO on the environment's rewards, see `rollout.Learn`; no data.

    With an environment that has a potential, rewards are `shaped`.
    """
    settings = trpo.Settings(value_steps=VALUE_STEPS)

    def learn(key: Key, state: ExpertState, rollout: Rollout, data: None) -> tuple[ExpertState, dict[str, Array]]:
        rewards = rollout.rewards
        if environment and environment.potential:
            phi = environment.potential(environment.params, rollout.observations)
            rewards = shaped(rewards, phi, rollout.ends, discount=settings.discount)
        agent, metrics = trpo.improve(key, networks, state.agent, rollout, rewards, settings)
        return state._replace(agent=agent), {"return": episode_returns(rollout).mean(), **metrics}

    return learn


def shaped(rewards: Array, phi: Array, ends: Array, *, discount: float) -> Array:
    """r_t + 20 (discount Phi_{t+1} - Phi_t), Phi 0 after an end: [T, N] from the potential `phi` [T + 1, N].

    It changes no policy's advantages (Ng, Harada and Russell, 1999), and shows the way where all returns are equal at
    first, as on MountainCar.
    """
    return rewards + SHAPING * (discount * jnp.where(ends, 0, phi[1:]) - phi[:-1])


def train(
    key: Key,
    environment: Environment | GymEnvironments,
    networks: Networks,
    *,
    columns: int,
    seeds: int = 4,
    iterations: int = 100,
) -> Agent:
    """The best of several seeds by the mean return of the last ten iterations.

    Where the environment has a potential, as many iterations on shaped rewards come first.
    """
    spec = environment.spec
    states = jax.vmap(lambda k: init(k, networks, spec.observation_size))(jax.random.split(key, seeds))
    if isinstance(environment, GymEnvironments):
        run = gym_adapter.iterations(environment, networks, learner(networks), length=iterations)
        states, metrics = run(None, states, None)
    else:
        for shaped in (True, False) if environment.potential else (False,):
            learn = learner(networks, environment if shaped else None)
            run = rollout.iterations(environment, networks, learn, columns=columns, length=iterations)
            states, metrics = run(environment.params, states, None)
    best = metrics["return"][:, -10:].mean(axis=1).argmax()
    return jax.tree.map(lambda a: a[best], states.agent)


def act(
    key: Key, environment: Environment | GymEnvironments, networks: Networks, agent: Agent, *, episodes: int
) -> Rollout:
    """A rollout of as many columns, whose first episodes count; in gymnasium itself where it has the environment."""
    if environment.spec.gymnasium:
        return gym_adapter.rollout_of(environment.spec.gymnasium, networks, agent, key, episodes=episodes)
    assert not isinstance(environment, GymEnvironments)
    collect = jax.jit(rollout.collect, static_argnames=("environment", "networks", "columns"))
    return collect(environment, environment.params, networks, agent, key, columns=episodes)


def check(spec: Spec, returns: np.ndarray) -> None:
    """Refuse an expert that has not solved its task: imitating it would fail without a word.

    Raises:
      L2LError: the mean of `returns` is below `spec.solved`.
    """
    if not returns.mean() >= spec.solved:
        raise L2LError(
            f"the expert on {spec.name} returns {returns.mean():.1f}, less than {spec.solved:g}: "
            "train it longer, with more seeds or another one"
        )


def trajectories(rollout: Rollout, count: int) -> Trajectories:
    """The first episodes of the first `count` columns."""
    ends = np.asarray(rollout.ends)[:, :count]
    lengths = ends.argmax(axis=0) + 1
    whole = lambda a: np.concatenate([np.asarray(a)[:n, i] for i, n in enumerate(lengths)])
    returns = np.asarray(episode_returns(rollout))[:count]
    return Trajectories(whole(rollout.observations), whole(rollout.actions), lengths, returns)


def subsample(key: Key, expert: Trajectories, *, stride: int, count: int | None = None) -> Demonstrations:
    """Every `stride`-th step of the first `count` trajectories, each from a random start below `stride` (Ho and Ermon).

    Raises:
      L2LError: there are not as many trajectories.
    """
    count = len(expert.lengths) if count is None else count
    if not 1 <= count <= len(expert.lengths):
        raise L2LError(f"{count} trajectories asked for: the expert has {len(expert.lengths)}")
    starts = np.asarray(jax.random.randint(key, (count,), 0, stride))
    offsets = np.cumsum([0, *expert.lengths])
    chosen = np.concatenate([np.arange(offsets[i] + starts[i], offsets[i + 1], stride) for i in range(count)])
    seen = statistics_of(jnp.asarray(expert.observations[: offsets[count]]))
    return Demonstrations(jnp.asarray(expert.observations[chosen]), jnp.asarray(expert.actions[chosen]), seen)


def shuffled(key: Key, demonstrations: Demonstrations) -> Demonstrations:
    """A control: the same observations and the same actions, but which action belongs to which observation is lost."""
    return demonstrations._replace(actions=jax.random.permutation(key, demonstrations.actions))


def save(path: Path, expert: Trajectories, spec: Spec) -> None:
    """Write an .npz file with the fields of `Trajectories` and the environment's name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, environment=np.array(spec.name), **expert._asdict())
    write_files({path: buffer.getvalue()})


def load(path: Path, spec: Spec) -> Trajectories:
    """Read what `save` wrote.

    Raises:
      L2LError: no such file, another environment's, a damaged one, or an expert that has not solved its task.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in (*Trajectories._fields, "environment")}
    except (OSError, ValueError, KeyError) as error:
        raise L2LError(f"cannot read expert trajectories from {path} ({error}): give a file that a run left") from error
    name = str(fields.pop("environment"))
    expert = Trajectories(**fields)
    if name != spec.name:
        raise L2LError(f"{path} holds trajectories on {name}, not {spec.name}: choose another --expert")
    if expert.observations.shape != (expert.lengths.sum(), spec.observation_size):
        raise L2LError(f"{path} is damaged: its arrays do not fit together; delete it to train an expert anew")
    check(spec, expert.returns)
    return expert
