"""Trust region policy optimization (Schulman et al., 2015) as small pure functions, with Ho and Ermon's settings.

    agent, metrics = improve(key, networks, agent, rollout, rewards)        # policy, then value function

`trust_region_step` ascends any objective within a bound on any KL divergence. It serves the policy with the surrogate,
and the value function, as a normal distribution of deviation 1 around its output, with minus the squared error.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from l2ljax.gail.policy import Agent, Networks, apply_mlp, deviation, merge, statistics_of
from l2ljax.gail.rollout import Rollout, pairs
from l2ljax.types import Array, Key, Tree

__all__ = ["HO_ERMON", "ScalarFn", "Settings", "fisher_product", "gae", "improve", "trust_region_step"]

ScalarFn = Callable[[Tree], Array]
"""Parameters -> a scalar."""


class Settings(NamedTuple):
    """The defaults are Ho and Ermon's, from their released code."""

    discount: float = 0.995
    gae_lambda: float = 0.97
    max_kl: float = 0.01
    damping: float = 0.1
    cg_iterations: int = 10
    fisher_fraction: float = 0.1  # of the steps, drawn anew each time, which estimate the Fisher matrix
    halvings: int = 10  # the number of step sizes in the line search
    accept_ratio: float = 0.1  # the required fraction of the gain that the gradient predicts
    value_steps: int = 1  # of the value function per iteration


HO_ERMON = Settings()


def gae(rewards: Array, values: Array, ends: Array, *, discount: float, lam: float) -> Array:
    """Return generalized advantage estimates [T, N] (Schulman et al., 2016, eq. 16), within episodes.

        delta_t = r_t + discount V_{t+1} - V_t,    A_t = delta_t + discount lam A_{t+1}

    After an end both V_{t+1} and A_{t+1} are 0, whether the episode terminated or reached its limit (Ho and Ermon; the
    value function knows the time). V_T alone stands for the cut part of an episode. `rewards` and bool `ends` are
    [T, N], `values` [T + 1, N]; `lam` 1 gives discounted rewards minus V, 0 the deltas.
    """
    go_on = 1.0 - ends
    deltas = rewards + discount * go_on * values[1:] - values[:-1]

    def step(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        advantage = now[0] + now[1] * later
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(deltas[0]), (deltas, discount * lam * go_on), reverse=True)[1]


def fisher_product(kl: ScalarFn, params: Tree, damping: float) -> Callable[[Tree], Tree]:
    """Return v -> (F + damping) v, F the Hessian of `kl` at `params`, where its gradient is 0: the Fisher matrix."""
    _, hessian_product = jax.linearize(jax.grad(kl), params)
    return lambda v: jax.tree.map(lambda h, x: h + damping * x, hessian_product(v), v)


def trust_region_step(
    objective: ScalarFn, kl: ScalarFn, params: Tree, sampled_kl: ScalarFn | None = None, settings: Settings = HO_ERMON
) -> tuple[Tree, dict[str, Array]]:
    """Ascend `objective` along the natural gradient, within the bound on `kl`.

    The step (F + damping)^-1 g, scaled to a predicted KL of max_kl, is halved until the objective gains accept_ratio of
    the gain predicted by g and kl <= 2 max_kl. If no size passes, the parameters are unchanged (Ho and Ermon's code
    takes the last, tiny step).

    Args:
      objective: params -> the scalar to ascend.
      kl: params -> KL(old || new), 0 at `params`.
      params: any tree of floats.
      sampled_kl: for the Fisher matrix, possibly from fewer samples; `kl` by default.
      settings: see `Settings`.

    Returns:
      Parameters, and metrics: kl, gain (of the objective), accepted (1 or 0).
    """
    s = settings
    before, g = jax.value_and_grad(objective)(params)
    product = fisher_product(sampled_kl or kl, params, s.damping)
    direction, _ = cg(product, g, maxiter=s.cg_iterations)
    length = optax.tree.vdot(direction, product(direction))  # twice the predicted KL
    scale = jnp.where(length > 0, jnp.sqrt(2 * s.max_kl / jnp.where(length > 0, length, 1)), 0)
    promised = scale * optax.tree.vdot(g, direction)

    def at(fraction: Array) -> Tree:
        return jax.tree.map(lambda p, d: p + fraction * scale * d, params, direction)

    Search = tuple[Array, Array, Array, Array]  # halvings so far, whether the last was accepted, its gain and KL

    def look(search: Search) -> Search:
        fraction = 0.5 ** search[0]
        new = at(fraction)
        gain, distance = objective(new) - before, kl(new)
        good = (gain > s.accept_ratio * fraction * promised) & (distance <= 2 * s.max_kl)
        return search[0] + 1, good, gain, distance

    zero = jnp.zeros_like(before)
    tried, good, gain, distance = jax.lax.while_loop(
        lambda search: ~search[1] & (search[0] < s.halvings), look, (zero, jnp.array(False), zero, zero)
    )
    moved = jax.tree.map(lambda a, b: jnp.where(good, a, b), at(0.5 ** (tried - 1)), params)
    metrics = {"kl": jnp.where(good, distance, 0.0), "gain": jnp.where(good, gain, 0.0)}
    return moved, metrics | {"accepted": good.astype(before.dtype)}


def improve(
    key: Key, networks: Networks, agent: Agent, rollout: Rollout, rewards: Array, settings: Settings = HO_ERMON
) -> tuple[Agent, dict[str, Array]]:
    """Take one iteration of TRPO: advantages from the current value function, a policy step, then a value step.

    Args:
      key: for the steps in the Fisher matrices.
      networks: the agent's functions.
      agent: the one that acted in the rollout.
      rollout: see `Rollout`.
      rewards: [T, N], the environment's or a discriminator's.
      settings: see `Settings`.

    Returns:
      The agent, with statistics that include the rollout, and metrics: kl, gain, accepted; value_r2, of the value
      function behind the advantages.
    """
    s = settings
    n = rewards.size
    values = networks.value(agent, rollout.observations, rollout.times)
    advantages = gae(rewards, values, rollout.ends, discount=s.discount, lam=s.gae_lambda).reshape(n)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    targets = (gae(rewards, values, rollout.ends, discount=s.discount, lam=1.0) + values[:-1]).reshape(n)
    k_policy, k_value = jax.random.split(key)

    observations, actions = pairs(rollout)
    policy, metrics = _policy_step(k_policy, networks, agent, observations, actions, advantages, s)
    error = targets - values[:-1].reshape(n)
    metrics["value_r2"] = 1 - error.var() / (targets.var() + 1e-8)

    agent = agent._replace(returns=merge(agent.returns, statistics_of(targets[:, None])))
    features = networks.value_features(agent, observations, rollout.times[:-1].reshape(n))
    goal = (targets - agent.returns.mean[0]) / deviation(agent.returns)[0]
    value = agent.value
    for i in range(s.value_steps):
        value = _value_step(jax.random.fold_in(k_value, i), value, features, goal, s)
    seen = merge(agent.observations, statistics_of(observations))
    return agent._replace(policy=policy, value=value, observations=seen), metrics


def _policy_step(
    key: Key, networks: Networks, agent: Agent, observations: Array, actions: Array, advantages: Array, s: Settings
) -> tuple[Tree, dict[str, Array]]:
    policy, n = networks.policy, len(advantages)

    def distribution(params: Tree, observations: Array) -> Tree:
        return networks.distribution(agent._replace(policy=params), observations)

    old = distribution(agent.policy, observations)
    old_log_prob = policy.log_prob(old, actions)
    sampled = observations[_sample(key, n, s)]
    old_sampled = distribution(agent.policy, sampled)

    def surrogate(params: Tree) -> Array:
        ratio = jnp.exp(policy.log_prob(distribution(params, observations), actions) - old_log_prob)
        return (ratio * advantages).mean()

    kl = lambda params: policy.kl(old, distribution(params, observations)).mean()
    sampled_kl = lambda params: policy.kl(old_sampled, distribution(params, sampled)).mean()
    return trust_region_step(surrogate, kl, agent.policy, sampled_kl, s)


def _value_step(key: Key, params: Tree, features: Array, goal: Array, s: Settings) -> Tree:
    old = apply_mlp(params, features)[:, 0]
    chosen = _sample(key, len(goal), s)
    few, old_few = features[chosen], old[chosen]
    objective = lambda p: -((apply_mlp(p, features)[:, 0] - goal) ** 2).mean() / 2
    kl = lambda p: ((apply_mlp(p, features)[:, 0] - old) ** 2).mean() / 2
    sampled_kl = lambda p: ((apply_mlp(p, few)[:, 0] - old_few) ** 2).mean() / 2
    return trust_region_step(objective, kl, params, sampled_kl, s)[0]


def _sample(key: Key, n: int, s: Settings) -> Array:
    return jax.random.randint(key, (max(1, round(s.fisher_fraction * n)),), 0, n)
