"""GAIL: the discriminator moves, then the policy improves on its new reward.

    learn = imitate.learner(networks, disc, updater, sign=env.spec.sign)
    states = imitate.init(keys, networks, disc, updater, demonstrations)
    run = rollout.iterations(env, networks, learn, columns=10, length=25)
    states, metrics = run(env.params, states, demonstrations)

The discriminator comes first in both papers (Ho and Ermon, Algorithm 1; Learning to Defend by Learning to Attack,
Algorithm 3); in Ho and Ermon's code the policy comes first.
"""

from typing import Any, NamedTuple

import jax

from l2ljax.gail import discriminator, trpo
from l2ljax.gail.discriminator import Discriminator
from l2ljax.gail.policy import Agent, Networks, Statistics, normalize
from l2ljax.gail.rollout import Learn, Rollout, episode_returns, pairs
from l2ljax.gail.updaters import Updater
from l2ljax.types import Array, Key, Tree

__all__ = ["Demonstrations", "GailState", "init", "learner"]


class Demonstrations(NamedTuple):
    """The expert's data: M state-action pairs, and the statistics of all its observations."""

    observations: Array
    """[M, O], raw."""
    actions: Array
    """[M, ...]."""
    statistics: Statistics


class GailState(NamedTuple):
    """The state of imitation between iterations."""

    agent: Agent
    discriminator: Tree
    updater: Any
    key: Key


def init(
    keys: Key, networks: Networks, disc: Discriminator, updater: Updater, demonstrations: Demonstrations
) -> GailState:
    """Return the states before the first iteration, one per key [S]; observations are scaled as the expert's."""

    def one(key: Key) -> GailState:
        k_agent, k_disc, k_updater, key = jax.random.split(key, 4)
        params = disc.init(k_disc)
        agent = networks.init(k_agent, demonstrations.statistics)
        return GailState(agent, params, updater.init(k_updater, params), key)

    return jax.jit(jax.vmap(one))(keys)


def learner(networks: Networks, disc: Discriminator, updater: Updater, *, sign: int, entropy: float = 1e-3) -> Learn:
    """Return one iteration's learning, see `rollout.Learn`; its data are `Demonstrations`.

    The discriminator, whose observations are normalized as the policy's, makes one step on all pairs of the rollout and
    as many of the expert's, drawn with replacement. `sign` is that of `discriminator.reward`, `entropy` the weight of
    `discriminator.objective`.

    Metrics: return (the environment's, over first episodes), accuracy and objective of the discriminator before its
    step, imitation_reward (mean per step), max_abs of its parameters after it, and those of `trpo.improve`.
    """

    def learn(key: Key, state: GailState, rollout: Rollout, data: Demonstrations) -> tuple[GailState, dict[str, Array]]:
        k_expert, k_improve = jax.random.split(key)
        observations, actions = pairs(rollout)
        chosen = jax.random.randint(k_expert, (len(actions),), 0, len(data.actions))
        see = lambda x: normalize(state.agent.observations, x)
        policy_batch = (see(observations), actions)
        expert_batch = (see(data.observations)[chosen], data.actions[chosen])

        def objective(params: Tree) -> Array:
            return discriminator.objective(disc, params, policy_batch, expert_batch, entropy=entropy)

        accuracy = discriminator.accuracy(disc, state.discriminator, policy_batch, expert_batch)
        params, updater_state, moved = updater.step(state.updater, state.discriminator, objective)
        rewards = discriminator.reward(disc.logits(params, *policy_batch), sign).reshape(rollout.rewards.shape)
        agent, improved = trpo.improve(k_improve, networks, state.agent, rollout, rewards)
        metrics = {"return": episode_returns(rollout).mean(), "accuracy": accuracy, "imitation_reward": rewards.mean()}
        return GailState(agent, params, updater_state, state.key), metrics | moved | improved

    return learn
