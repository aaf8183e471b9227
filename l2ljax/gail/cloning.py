"""Behavioral cloning: the policy of largest likelihood for the expert's actions, GAIL's baseline.

agent = clone(key, networks, demonstrations)
"""

import jax
import jax.numpy as jnp
import optax

from l2ljax.gail.imitate import Demonstrations
from l2ljax.gail.policy import Agent, Networks, normalize
from l2ljax.types import Array, Key, Tree

__all__ = ["clone"]


def clone(
    key: Key, networks: Networks, demonstrations: Demonstrations, *, steps: int = 2000, lr: float = 1e-3,
    batch_size: int = 128, held_out: float = 0.3,
) -> Agent:  # fmt: skip
    """Maximize the likelihood by Adam, in batches drawn with replacement; the value function stays untrained.

    The parameters with the highest likelihood of the fraction `held_out` of pairs are kept (as Ho and Ermon do).
    """
    k_agent, k_split, k_batches = jax.random.split(key, 3)
    agent = networks.init(k_agent, demonstrations.statistics)
    x = normalize(demonstrations.statistics, demonstrations.observations)
    order = jax.random.permutation(k_split, len(x))
    cut = round(held_out * len(x))
    val, train = order[: max(cut, 1)], order[cut:]  # one pair serves as both

    def loss(params: Tree, chosen: Array) -> Array:
        dist = networks.policy.distribution(params, x[chosen])
        return -networks.policy.log_prob(dist, demonstrations.actions[chosen]).mean()

    optimizer = optax.adam(lr)

    def step(carry: tuple[Tree, Tree, Tree, Array], key: Key) -> tuple[tuple[Tree, Tree, Tree, Array], None]:
        params, state, best, lowest = carry
        batch = train[jax.random.randint(key, (batch_size,), 0, len(train))]
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        params = optax.apply_updates(params, updates)
        now = loss(params, val)
        best = jax.tree.map(lambda a, b: jnp.where(now < lowest, a, b), params, best)
        return (params, state, best, jnp.minimum(now, lowest)), None

    start = (agent.policy, optimizer.init(agent.policy), agent.policy, jnp.float32(jnp.inf))
    (_, _, best, _), _ = jax.lax.scan(step, start, jax.random.split(k_batches, steps))
    return agent._replace(policy=best)
