"""TRPO: advantages against a slow loop, the Fisher product against the explicit matrix, the trust region's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from l2ljax.gail import environments, policy, rollout, trpo

RNG = np.random.RandomState(0)


def slow_gae(rewards, values, ends, discount, lam):
    """Episode by episode, the sum over all later steps of its definition."""
    advantages = np.zeros_like(rewards)
    for n in range(rewards.shape[1]):
        for t in range(len(rewards)):
            for later in range(t, len(rewards)):
                after = 0.0 if ends[later, n] else values[later + 1, n]
                delta = rewards[later, n] + discount * after - values[later, n]
                advantages[t, n] += (discount * lam) ** (later - t) * delta
                if ends[later, n]:
                    break
    return advantages


def sample(steps=12, columns=5):
    rewards, values = RNG.normal(size=(steps, columns)), RNG.normal(size=(steps + 1, columns))
    ends = RNG.random((steps, columns)) < 0.3
    ends[-1] = [True, False, True, False, False]  # some of the last episodes are cut
    return rewards, values, ends


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_equals_a_slow_loop(lam):
    rewards, values, ends = sample()
    ours = trpo.gae(jnp.array(rewards), jnp.array(values), jnp.array(ends), discount=0.9, lam=lam)
    np.testing.assert_allclose(ours, slow_gae(rewards, values, ends, 0.9, lam), atol=1e-5)


def test_gae_without_lambda_is_the_temporal_difference_and_with_1_the_return_less_the_value():
    rewards, values, ends = sample()
    zero = np.where(ends, 0, values[1:])
    td = trpo.gae(*map(jnp.array, (rewards, values, ends)), discount=0.9, lam=0.0)
    np.testing.assert_allclose(td, rewards + 0.9 * zero - values[:-1], atol=1e-5)
    mc = trpo.gae(*map(jnp.array, (rewards, values, ends)), discount=0.9, lam=1.0)
    returns = np.zeros_like(values)
    returns[-1] = values[-1]
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + 0.9 * np.where(ends[t], 0, returns[t + 1])
    np.testing.assert_allclose(mc, returns[:-1] - values[:-1], atol=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_fisher_product_is_that_of_the_explicit_matrix(kind):
    """F = E_s E_a [grad log p grad log p^T], in float64; the expectation over actions is exact."""
    with jax.enable_x64(True):
        p = policy.categorical(4, 2, (5,)) if kind == "categorical" else policy.gaussian(4, 2, (5,))
        start, unravel = ravel_pytree(p.init(jax.random.key(0)))
        flat = start + 0.3 * jax.random.normal(jax.random.key(1), start.shape)
        x = jax.random.normal(jax.random.key(2), (3, 4))

        def log_prob(flat, x, a):
            return p.log_prob(p.distribution(unravel(flat), x), a)

        def fisher_at(x):
            dist = p.distribution(unravel(flat), x)
            if kind == "categorical":
                actions, weights = jnp.arange(2), jax.nn.softmax(dist)
            else:  # Gauss-Hermite: exact for the polynomials of degree 4 that these are
                nodes, w = np.polynomial.hermite_e.hermegauss(5)
                grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
                weights = np.outer(w, w).reshape(-1) / w.sum() ** 2
                actions = p.act(policy.Gaussian(*(jnp.broadcast_to(a, grid.shape) for a in dist)), grid)
            scores = jax.vmap(lambda a: jax.grad(log_prob)(flat, x, a))(actions)
            return jnp.einsum("a,ai,aj->ij", jnp.asarray(weights), scores, scores)

        explicit = jax.jit(jax.vmap(fisher_at))(x).mean(axis=0) + 0.1 * jnp.eye(flat.size)
        old = p.distribution(unravel(flat), x)
        kl = lambda params: p.kl(old, p.distribution(params, x)).mean()
        v = jax.random.normal(jax.random.key(3), flat.shape)
        product = jax.jit(lambda v: trpo.fisher_product(kl, unravel(flat), damping=0.1)(unravel(v)))(v)
        np.testing.assert_allclose(ravel_pytree(product)[0], explicit @ v, rtol=1e-10, atol=1e-12)


def test_densities_and_divergences_are_those_of_numpy():
    logits, new = RNG.normal(size=(2, 6, 3))
    p, q = (np.exp(a) / np.exp(a).sum(-1, keepdims=True) for a in (logits, new))
    discrete = policy.categorical(1, 3)
    actions = RNG.randint(3, size=6)
    np.testing.assert_allclose(discrete.log_prob(logits, actions), np.log(p[np.arange(6), actions]), atol=1e-6)
    np.testing.assert_allclose(discrete.kl(logits, new), (p * np.log(p / q)).sum(-1), atol=1e-6)
    continuous = policy.gaussian(1, 2)
    old, new = (policy.Gaussian(*RNG.normal(size=(2, 6, 2))) for _ in range(2))
    a = RNG.normal(size=(6, 2))
    std = np.exp(old.log_std)
    density = np.exp(-(((a - old.mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(continuous.log_prob(old, a), np.log(density).sum(-1), rtol=1e-5)
    draws = old.mean + std * RNG.normal(size=(200000, 6, 2))
    log_ratio = continuous.log_prob(old, draws) - continuous.log_prob(new, draws)
    np.testing.assert_allclose(continuous.kl(old, new), log_ratio.mean(0), rtol=0.05)
    np.testing.assert_allclose(continuous.kl(old, old), 0, atol=1e-6)


def test_a_step_has_the_length_that_the_bound_allows():
    """KL = |x|^2 / 2 and a linear objective: without damping the step is sqrt(2 max_kl) along the gradient."""
    g = jnp.array([3.0, 4.0])
    s = trpo.Settings(max_kl=0.02, damping=0.0)
    params, metrics = trpo.trust_region_step(lambda x: g @ x, lambda x: x @ x / 2, jnp.zeros(2), settings=s)
    np.testing.assert_allclose(params, np.array([0.6, 0.8]) * np.sqrt(2 * 0.02), rtol=1e-5)
    np.testing.assert_allclose([metrics["kl"], metrics["gain"], metrics["accepted"]], [0.02, 5 * 0.2, 1], rtol=1e-5)


def test_the_wall_halves_steps_that_go_too_far():
    """A KL with a steep fourth power, which its curvature does not foresee."""
    kl = lambda x: x @ x / 2 + 1000 * (x @ x) ** 2
    s = trpo.Settings()
    params, metrics = trpo.trust_region_step(lambda x: x.sum(), kl, jnp.zeros(2), settings=s)
    assert 0 < metrics["kl"] <= 2 * s.max_kl and float(kl(params)) == pytest.approx(float(metrics["kl"]))
    assert kl(2 * params) > 2 * s.max_kl  # the step before was refused, and one halving was enough


@pytest.mark.parametrize("objective", [lambda x: 2 * jax.lax.stop_gradient(-x).sum() + x.sum(), lambda x: x.sum() * 0])
def test_a_refused_step_leaves_the_parameters_bit_identical(objective):
    """An objective that falls where its gradient says it rises, and one without a gradient."""
    start = jnp.array([0.1, 0.7, -1 / 3])
    kl = lambda x: ((x - start) ** 2).sum() / 2
    params, metrics = trpo.trust_region_step(objective, kl, start)
    np.testing.assert_array_equal(params, start)
    assert metrics["accepted"] == metrics["kl"] == metrics["gain"] == 0


@pytest.fixture(scope="module")
def acted():
    env = environments.create("CartPole-v0")
    nets = policy.networks(env.spec, (8,))
    agent = nets.init(jax.random.key(0), policy.Statistics(jnp.float32(1), jnp.zeros(4), jnp.ones(4)))
    collect = jax.jit(rollout.collect, static_argnames=("environment", "networks", "columns"))
    made = collect(env, env.params, nets, agent, jax.random.key(1), columns=4)
    improve = jax.jit(lambda key, agent, rewards: trpo.improve(key, nets, agent, made, rewards))
    return nets, agent, made, improve


def test_an_iteration_gains_within_the_bound_and_moves_all_parts(acted):
    nets, agent, made, improve = acted
    new, metrics = improve(jax.random.key(2), agent, made.rewards)
    assert metrics["accepted"] == 1 and 0 < metrics["kl"] <= 0.02 and metrics["gain"] > 0
    dist = lambda a: nets.distribution(a._replace(observations=agent.observations), made.observations[:-1])
    measured = nets.policy.kl(dist(agent), dist(new)).mean()
    assert float(measured) == pytest.approx(float(metrics["kl"]), rel=1e-3)  # it is the KL from old to new
    flat = np.asarray(made.observations[:-1]).reshape(-1, 4)
    together = np.concatenate([[[0, 0, 0, 0]], flat])  # the one sample of before had mean 0, variance 1
    np.testing.assert_allclose(new.observations.mean, together.mean(0), atol=1e-6)
    np.testing.assert_allclose(new.observations.var, together.var(0) + 1 / len(together), rtol=1e-4)
    again = new
    for i in range(20):  # the same rollout again and again: the value function learns it
        judged = agent._replace(value=again.value, returns=again.returns)
        again, metrics = improve(jax.random.key(i), judged, made.rewards)
    assert metrics["value_r2"] > 0.3


def test_without_rewards_the_policy_stays(acted):
    _, agent, made, improve = acted
    new, metrics = improve(jax.random.key(2), agent, 0 * made.rewards)
    jax.tree.map(np.testing.assert_array_equal, new.policy, agent.policy)
    assert metrics["kl"] == 0


def test_values_know_the_time_and_the_scale(acted):
    nets, agent, *_ = acted
    agent = agent._replace(returns=policy.Statistics(jnp.float32(9), jnp.array([7.0]), jnp.array([4.0])))
    at = lambda time: nets.value(agent, jnp.ones((1, 4)), jnp.array([time]))
    assert at(0) == at(50) == 7  # the last layer is 0 at the start
    last = {"w": jnp.ones_like(agent.value[-1]["w"]), "b": jnp.ones(1)}
    agent = agent._replace(value=[*agent.value[:-1], last])
    assert at(0) != at(50)
    np.testing.assert_allclose(nets.value_features(agent, jnp.ones((1, 4)), jnp.array([50]))[0, -1], 50 / 200)


def test_statistics_of_parts_are_those_of_the_whole():
    x = jnp.array(RNG.normal(3, 5, size=(40, 3)))
    merged = policy.merge(policy.statistics_of(x[:7]), policy.statistics_of(x[7:].reshape(11, 3, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), merged, policy.statistics_of(x))
    z = policy.normalize(merged, x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-5)
    constant = policy.statistics_of(jnp.zeros((5, 1)))
    np.testing.assert_array_equal(policy.normalize(constant, jnp.array([[0.0], [1.0]])), [[0], [policy.CLIP]])
