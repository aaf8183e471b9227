"""gymnasium's own environments: rollouts in any with discrete actions or a box, and final scores.

    env = GymEnvironments("Acrobot-v1", columns=10, sign=-1)
    nets = policy.networks(env.spec)
    run = iterations(env, nets, learn, length=25)      # like rollout.iterations, acting on the host
    rollout = rollout_of("CartPole-v1", nets, agent, key, episodes=50)

gymnasium's vector environments reset in the step that ends an episode (SAME_STEP): every transition is real.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.gail.environments import Box, Discrete, Spec
from l2ljax.gail.policy import Agent, Networks
from l2ljax.gail.rollout import Iterations, Learn, Rollout
from l2ljax.types import Array, Key, L2LError, Tree

__all__ = ["GymEnvironments", "horizon", "iterations", "rollout_of"]


class GymEnvironments:
    """`columns` copies of one of gymnasium's environments, side by side.

    Args:
      name: gymnasium's id.
      columns: number of copies.
      sign: of the imitation reward, +1 if longer episodes are better, -1 if an episode ends on success.
      solved: the return that an expert must reach; any by default.
      stride: keep every `stride`-th step of an expert's trajectory.

    Raises:
      L2LError: no such environment, unsupported observations or actions, or no limit on an episode's steps.
    """

    def __init__(self, name: str, *, columns: int, sign: int, solved: float = -np.inf, stride: int = 1) -> None:
        import gymnasium

        steps = horizon(name)
        kwargs = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # an older version is requested knowingly
                self.envs = gymnasium.make_vec(name, columns, vectorization_mode="sync", vector_kwargs=kwargs)
        except (gymnasium.error.Error, ImportError) as error:
            raise L2LError(
                f"gymnasium cannot make {name} ({str(error).strip()}): see gymnasium.pprint_registry()"
            ) from error
        space = self.envs.single_observation_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise L2LError(f"{name} observes {space}: choose an environment that observes vectors")
        self.columns = columns
        self.spec = Spec(name, name, space.shape[0], self._action(), steps, sign, solved, stride)

    def _action(self) -> Discrete | Box:
        import gymnasium

        match self.envs.single_action_space:
            case gymnasium.spaces.Discrete(n=n, start=start) if start == 0:
                return Discrete(int(n))
            case gymnasium.spaces.Box(shape=(size,)):
                return Box(size)
        raise L2LError(f"actions {self.envs.single_action_space} are not supported: use 0..n-1 or a vector")

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return observations [N, O] (after an end the next episode's first), rewards [N], ends [N]. Clips boxes."""
        sent = actions
        if isinstance(self.spec.action, Box):
            space: Any = self.envs.single_action_space
            sent = sent.clip(space.low, space.high)
        observations, rewards, terminated, truncated, _ = self.envs.step(sent)
        return observations, np.asarray(rewards, np.float32), terminated | truncated

    def collect(self, act: Callable[[Key, Array], Array], key: Key) -> Rollout:
        """Return a rollout of `horizon` steps, see `Rollout`; `act` is (key, observations [N, O]) -> actions."""
        k_reset, key = jax.random.split(key)
        observation, _ = self.envs.reset(seed=int(jax.random.randint(k_reset, (), 0, 2**31 - 1)))
        time = np.zeros(self.columns, np.int32)
        rows: list[tuple[np.ndarray, ...]] = []
        for step_key in jax.random.split(key, self.spec.horizon):
            actions = np.asarray(act(step_key, jnp.asarray(observation, jnp.float32)))
            after, reward, end = self.step(actions)
            rows.append((observation, time, actions, reward, end))
            observation, time = after, np.where(end, 0, time + 1).astype(np.int32)
        observations, times, actions, rewards, ends = (np.stack(column) for column in zip(*rows, strict=True))
        return Rollout(
            jnp.asarray(np.concatenate([observations, observation[None]]), jnp.float32),
            jnp.asarray(np.concatenate([times, time[None]])),
            jnp.asarray(actions),
            jnp.asarray(rewards),
            jnp.asarray(ends),
        )


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


def iterations(environments: GymEnvironments, networks: Networks, learn: Learn, *, length: int) -> Iterations:
    """Run like `rollout.iterations`, acting on the host, one seed after the other; learning is jitted.

    The first argument of the returned function, an environment's parameters, is not used.
    """

    @jax.jit
    @jax.vmap
    def split(key: Key) -> tuple[Key, Key, Key]:
        return tuple(jax.random.split(key, 3))

    step = jax.jit(jax.vmap(learn, in_axes=(0, 0, 0, None)), donate_argnums=1)

    def run(params: Tree, states: Any, data: Any) -> tuple[Any, dict[str, Array]]:
        del params
        metrics = []
        for _ in range(length):
            key, k_act, k_learn = split(states.key)
            agents = [jax.tree.map(lambda a, i=i: a[i], states.agent) for i in range(len(key))]
            rollouts = [
                environments.collect(partial(_act, networks, agent), k) for agent, k in zip(agents, k_act, strict=True)
            ]
            stacked = jax.tree.map(lambda *a: jnp.stack(a), *rollouts)
            states, row = step(k_learn, states._replace(key=key), stacked, data)
            metrics.append(row)
        return states, jax.tree.map(lambda *a: jnp.stack(a, axis=1), *metrics)

    return run


def rollout_of(name: str, networks: Networks, agent: Agent, key: Key, *, episodes: int = 50) -> Rollout:
    """Act in `episodes` columns of gymnasium's environment, with actions drawn as in training."""
    environments = GymEnvironments(name, columns=episodes, sign=1)
    rollout = environments.collect(partial(_act, networks, agent), key)
    environments.envs.close()
    return rollout


@partial(jax.jit, static_argnums=0)
def _act(networks: Networks, agent: Agent, key: Key, observations: Array) -> Array:
    noise = networks.policy.draw(key, observations.shape[:1])
    return networks.policy.act(networks.distribution(agent, observations), noise)
