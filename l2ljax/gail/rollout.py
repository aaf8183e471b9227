"""Rollouts of a policy in columns of episodes, and loops of "act, then learn".

    rollout = collect(env, env.params, networks, agent, key, columns=10)        # Rollout of [horizon, 10] steps
    run = iterations(env, networks, learn, columns=10, length=25)               # one jitted scan, vmapped over seeds
    states, metrics = run(env.params, states, data)

A column starts a new episode and has as many steps as an episode can have, so its first episode is complete. The next
episode starts in the step that ends one: every transition is real. The last may be cut: the value function stands for
the rest. (Ho and Ermon sample complete episodes, with a varying number of steps.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2ljax.gail.environments import Environment
from l2ljax.gail.policy import Agent, Networks
from l2ljax.types import Array, Key, Tree

__all__ = ["Iterations", "Learn", "Rollout", "collect", "episode_returns", "iterations", "pairs"]


class Rollout(NamedTuple):
    """T steps in N columns. Row t + 1 of the first two follows step t, unless an episode ended there."""

    observations: Array
    """[T + 1, N, O], raw. An end is followed by the first observation of the next episode."""
    times: Array
    """int32 [T + 1, N]: steps since the start of the episode."""
    actions: Array
    """int32 [T, N] or float [T, N, size]."""
    rewards: Array
    """[T, N], the environment's own."""
    ends: Array
    """bool [T, N]: the episode ended with this step, because it terminated or reached the horizon."""


Learn = Callable[[Key, Any, Rollout, Any], tuple[Any, dict[str, Array]]]
"""(key, state, rollout of its agent, data) -> (state, metrics: scalars); a state is a NamedTuple with agent and key."""
Iterations = Callable[[Tree, Any, Any], tuple[Any, dict[str, Array]]]
"""(params of the environment, states [S, ...], data shared by all seeds) -> (states, metrics [S, length])."""


def collect(
    environment: Environment, params: Tree, networks: Networks, agent: Agent, key: Key, *, columns: int
) -> Rollout:
    """Act by the agent's policy for `horizon` steps in `columns` environments side by side.

    The environment's `params` are a separate argument, because they may be traced. All random numbers are drawn
    beforehand.
    """
    spec, policy = environment.spec, networks.policy
    k_start, k_noise = jax.random.split(key)
    keys = jax.random.split(k_start, (spec.horizon + 1, columns))
    starts = jax.vmap(jax.vmap(partial(environment.reset, params)))(keys)
    noise = policy.draw(k_noise, (spec.horizon, columns))
    observe = jax.vmap(environment.observe)

    def step(carry: tuple[Tree, Array], drawn: tuple[Tree, Array]) -> tuple[tuple[Tree, Array], tuple[Array, ...]]:
        state, time = carry
        start, noise = drawn
        observation = observe(state)
        action = policy.act(networks.distribution(agent, observation), noise)
        new, reward, terminated = jax.vmap(partial(environment.step, params))(state, action)
        end = terminated | (time + 1 == spec.horizon)
        new = jax.vmap(lambda end, start, new: jax.tree.map(partial(jnp.where, end), start, new))(end, start, new)
        return (new, jnp.where(end, 0, time + 1)), (observation, time, action, reward, end)

    first = jax.tree.map(lambda a: a[0], starts)
    rest = jax.tree.map(lambda a: a[1:], starts)
    carry = (first, jnp.zeros(columns, jnp.int32))
    (last, time), (observations, times, actions, rewards, ends) = jax.lax.scan(step, carry, (rest, noise))
    observations = jnp.concatenate([observations, observe(last)[None]])
    return Rollout(observations, jnp.concatenate([times, time[None]]), actions, rewards, ends)


def episode_returns(rollout: Rollout) -> Array:
    """Return the sum of rewards of each column's first episode [N].

    These are complete and unbiased: of the later episodes, long ones are cut more often.
    """
    first = jnp.cumsum(rollout.ends, axis=0) - rollout.ends == 0
    return (rollout.rewards * first).sum(axis=0)


def pairs(rollout: Rollout) -> tuple[Array, Array]:
    """Return all (observation, action): [T * N, O] and [T * N, ...]."""
    n = rollout.ends.size
    return rollout.observations[:-1].reshape(n, -1), rollout.actions.reshape(n, *rollout.actions.shape[2:])


def iterations(environment: Environment, networks: Networks, learn: Learn, *, columns: int, length: int) -> Iterations:
    """Return `length` times "act, then learn" as one jitted scan, for several seeds side by side.

    The given states are donated: do not use them again.
    """

    def once(params: Tree, data: Any, state: Any) -> tuple[Any, dict[str, Array]]:
        key, k_act, k_learn = jax.random.split(state.key, 3)
        rollout = collect(environment, params, networks, state.agent, k_act, columns=columns)
        return learn(k_learn, state._replace(key=key), rollout, data)

    def chunk(params: Tree, state: Any, data: Any) -> tuple[Any, dict[str, Array]]:
        return jax.lax.scan(lambda state, _: once(params, data, state), state, length=length)

    return jax.jit(jax.vmap(chunk, in_axes=(None, 0, None)), donate_argnums=1)
