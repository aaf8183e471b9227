"""gymnasium's own environments: rollouts in any with discrete actions or a box, and final scores.

    env = GymEnvironments("Acrobot-v1", columns=10, sign=-1)
    nets = policy.networks(env.spec)
    run = iterations(env, nets, learn, columns=10, length=25)
    acted = rollout_of("CartPole-v1", nets, agent, key, episodes=50)

gymnasium's vector environments reset in the step that ends an episode (SAME_STEP): every transition is real.
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.gail import rollout
from l2ljax.gail.environments import Box, Discrete, Environment, Spec
from l2ljax.gail.policy import Agent, Networks
from l2ljax.gail.rollout import Iterations, Learn, Rollout
from l2ljax.types import Array, Key, L2LError, Tree

__all__ = ["GymEnvironments", "horizon", "iterations", "rollout_of"]


class GymEnvironments:
    """`columns` copies of gymnasium's environment `name`, side by side; `sign` as in `Spec`.

    An expert may have any return, and all steps of its trajectories are kept.

    Raises:
      L2LError: no such environment, unsupported observations or actions, or no limit on an episode's steps.
    """

    params = None
    potential = None

    def __init__(self, name: str, *, columns: int, sign: int) -> None:
        import gymnasium

        steps = horizon(name)
        kwargs = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # an older version is requested knowingly
                self.envs = gymnasium.make_vec(name, columns, vectorization_mode="sync", vector_kwargs=kwargs)
        except (gymnasium.error.Error, ImportError) as error:
            reason = str(error).strip()
            raise L2LError(f"gymnasium cannot make {name} ({reason}): see gymnasium.pprint_registry()") from error
        space = self.envs.single_observation_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise L2LError(f"{name} observes {space}: choose an environment that observes vectors")
        action: Discrete | Box
        match self.envs.single_action_space:
            case gymnasium.spaces.Discrete(n=n, start=0):
                action = Discrete(int(n))
            case gymnasium.spaces.Box(shape=(size,)):
                action = Box(size)
            case other:
                raise L2LError(f"actions {other} are not supported: use 0..n-1 or a vector")
        self.spec = Spec(name, name, space.shape[0], action, steps, sign, solved=-np.inf, stride=1)

    def collect(self, networks: Networks, agent: Agent, key: Key) -> Rollout:
        """Return a rollout of `horizon` steps, see `Rollout`."""
        k_reset, key = jax.random.split(key)
        observation, _ = self.envs.reset(seed=int(jax.random.randint(k_reset, (), 0, 2**31 - 1)))
        space: Any = self.envs.single_action_space
        time = np.zeros(len(observation), np.int32)
        rows: list[tuple[np.ndarray, ...]] = []
        for step_key in jax.random.split(key, self.spec.horizon):
            actions = np.asarray(_act(networks, agent, step_key, jnp.asarray(observation, jnp.float32)))
            sent = actions.clip(space.low, space.high) if isinstance(self.spec.action, Box) else actions
            after, rewards, terminated, truncated, _ = self.envs.step(sent)
            end = terminated | truncated
            rows.append((observation, time, actions, np.asarray(rewards, np.float32), end))
            observation, time = after, np.where(end, 0, time + 1).astype(np.int32)
        observations, times, *others = (np.stack(column) for column in zip(*rows, strict=True))
        observations = np.concatenate([observations, observation[None]]).astype(np.float32)
        return Rollout(*map(jnp.asarray, (observations, np.concatenate([times, time[None]]), *others)))


def horizon(name: str) -> int:
    """Return the limit on an episode's steps in gymnasium's environment.

    Raises:
      L2LError: no such environment, or it has no limit.
    """
    import gymnasium

    try:
        limit = gymnasium.spec(name).max_episode_steps
    except gymnasium.error.Error as error:
        raise L2LError(f"gymnasium has no {name} ({str(error).strip()}): see gymnasium.pprint_registry()") from error
    if not limit:
        raise L2LError(f"{name} has no limit on the steps of an episode: register it with max_episode_steps")
    return limit


def iterations(
    environment: Environment | GymEnvironments, networks: Networks, learn: Learn, *, columns: int, length: int
) -> Iterations:
    """Return `rollout.iterations`; in gymnasium, act on the host, one seed after the other, and jit the learning."""
    if not isinstance(environment, GymEnvironments):
        return rollout.iterations(environment, networks, learn, columns=columns, length=length)

    split = jax.jit(jax.vmap(lambda key: tuple(jax.random.split(key, 3))))
    step = jax.jit(jax.vmap(learn, in_axes=(0, 0, 0, None)), donate_argnums=1)

    def run(params: Tree, states: Any, data: Any) -> tuple[Any, dict[str, Array]]:
        del params
        metrics = []
        for _ in range(length):
            key, k_act, k_learn = split(states.key)
            agents = [jax.tree.map(lambda a, i=i: a[i], states.agent) for i in range(len(key))]
            rollouts = [environment.collect(networks, agent, k) for agent, k in zip(agents, k_act, strict=True)]
            stacked = jax.tree.map(lambda *a: jnp.stack(a), *rollouts)
            states, row = step(k_learn, states._replace(key=key), stacked, data)
            metrics.append(row)
        return states, jax.tree.map(lambda *a: jnp.stack(a, axis=1), *metrics)

    return run


def rollout_of(name: str, networks: Networks, agent: Agent, key: Key, *, episodes: int = 50) -> Rollout:
    """Act in `episodes` columns of gymnasium's environment, with actions drawn as in training."""
    environments = GymEnvironments(name, columns=episodes, sign=1)
    acted = environments.collect(networks, agent, key)
    environments.envs.close()
    return acted


@partial(jax.jit, static_argnums=0)
def _act(networks: Networks, agent: Agent, key: Key, observations: Array) -> Array:
    noise = networks.policy.draw(key, observations.shape[:1])
    return networks.policy.act(networks.distribution(agent, observations), noise)
