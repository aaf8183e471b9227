"""Policies, the value function, and running statistics of observations.

policy = categorical(4, 2)
dist = policy.distribution(policy.init(key), x)         # x: normalized observations [..., O]
actions = policy.act(dist, policy.draw(key, (n,)))      # noise 0 gives the likeliest action
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2ljax.gail.environments import Box, Discrete, Spec
from l2ljax.types import Array, Key, Tree

__all__ = [
    "CLIP", "Agent", "Gaussian", "Networks", "Policy", "Statistics", "apply_mlp", "categorical", "deviation",
    "gaussian", "init_mlp", "merge", "networks", "normalize", "statistics_of",
]  # fmt: skip

CLIP = 10.0
"""Normalized observations are clipped to +-10: unseen ones may lie far out."""
MIN_DEVIATION = 1e-3


class Policy(NamedTuple):
    """A distribution of actions given observations, with any number of leading axes."""

    init: Callable[[Key], Tree]
    """key -> params."""
    distribution: Callable[[Tree, Array], Tree]
    """(params, normalized observations [..., O]) -> the parameters of the action's distribution."""
    draw: Callable[[Key, tuple[int, ...]], Array]
    """(key, leading shape) -> the noise for `act`; drawn separately so that a rollout draws all of it at once."""
    act: Callable[[Tree, Array], Array]
    """(distribution, noise) -> actions, int32 [...] or float [..., size]."""
    log_prob: Callable[[Tree, Array], Array]
    """(distribution, actions) -> log-probabilities or log-densities [...]."""
    kl: Callable[[Tree, Tree], Array]
    """(old, new) -> KL(old || new) [...]."""


def categorical(observation_size: int, actions: int, hidden: Sequence[int] = (64, 32)) -> Policy:
    """Return a policy over actions 0..actions-1: a tanh network of logits, uniform at the start."""

    def kl(old: Array, new: Array) -> Array:
        p, q = jax.nn.log_softmax(old), jax.nn.log_softmax(new)
        return (jnp.exp(p) * (p - q)).sum(axis=-1)

    return Policy(
        init=lambda key: init_mlp(key, (observation_size, *hidden, actions)),
        distribution=apply_mlp,
        draw=lambda key, shape: jax.random.gumbel(key, (*shape, actions)),
        act=lambda logits, noise: jnp.argmax(logits + noise, axis=-1).astype(jnp.int32),
        log_prob=lambda logits, a: jnp.take_along_axis(jax.nn.log_softmax(logits), a[..., None], axis=-1)[..., 0],
        kl=kl,
    )


class Gaussian(NamedTuple):
    """Independent normal distributions: means and log standard deviations, each [..., size]."""

    mean: Array
    log_std: Array


def gaussian(observation_size: int, size: int, hidden: Sequence[int] = (64, 32)) -> Policy:
    """Return a policy over vectors: a tanh network of means, initially 0, and free deviations, initially 1."""

    def init(key: Key) -> Tree:
        return {"mean": init_mlp(key, (observation_size, *hidden, size)), "log_std": jnp.zeros(size)}

    def distribution(params: Tree, x: Array) -> Gaussian:
        mean = apply_mlp(params["mean"], x)
        return Gaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))

    def log_prob(dist: Gaussian, action: Array) -> Array:
        z = (action - dist.mean) * jnp.exp(-dist.log_std)
        return (-(z**2) / 2 - dist.log_std - math.log(2 * math.pi) / 2).sum(axis=-1)

    def kl(old: Gaussian, new: Gaussian) -> Array:
        ratio = jnp.exp(2 * (old.log_std - new.log_std))
        distance = ((old.mean - new.mean) * jnp.exp(-new.log_std)) ** 2
        return ((ratio + distance - 1) / 2 + new.log_std - old.log_std).sum(axis=-1)

    return Policy(
        init=init,
        distribution=distribution,
        draw=lambda key, shape: jax.random.normal(key, (*shape, size)),
        act=lambda dist, noise: dist.mean + jnp.exp(dist.log_std) * noise,
        log_prob=log_prob,
        kl=kl,
    )


class Statistics(NamedTuple):
    """The number, mean and variance per feature of all samples seen."""

    seen: Array
    mean: Array
    var: Array


def statistics_of(x: Array) -> Statistics:
    """Return the statistics of samples [..., F], over all leading axes."""
    axes = tuple(range(x.ndim - 1))
    return Statistics(jnp.float32(x.size // x.shape[-1]), x.mean(axes), x.var(axes))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics of both sets of samples together (Chan, Golub and LeVeque)."""
    seen = a.seen + b.seen
    share = b.seen / seen
    between = (b.mean - a.mean) ** 2 * share * (1 - share)
    return Statistics(seen, a.mean + (b.mean - a.mean) * share, a.var * (1 - share) + b.var * share + between)


def deviation(statistics: Statistics) -> Array:
    """Return standard deviations, at least 1e-3: a constant feature must not be divided by 0."""
    return jnp.maximum(jnp.sqrt(statistics.var), MIN_DEVIATION)


def normalize(statistics: Statistics, x: Array) -> Array:
    """Scale samples [..., F] to mean 0 and deviation 1, clipped to +-10."""
    return jnp.clip((x - statistics.mean) / deviation(statistics), -CLIP, CLIP)


class Agent(NamedTuple):
    """The state of policy optimization between steps."""

    policy: Tree
    value: Tree
    observations: Statistics
    returns: Statistics
    """Statistics of the value function's targets [..., 1]."""


class Networks(NamedTuple):
    """The functions of an agent for one environment."""

    policy: Policy
    value_init: Callable[[Key], Tree]
    horizon: int

    def init(self, key: Key, observations: Statistics) -> Agent:
        """Return a new agent with initial statistics: an expert's, or those of a random rollout."""
        k_policy, k_value = jax.random.split(key)
        unit = Statistics(jnp.float32(1), jnp.zeros(1), jnp.ones(1))
        return Agent(self.policy.init(k_policy), self.value_init(k_value), observations, unit)

    def distribution(self, agent: Agent, observations: Array) -> Tree:
        """Return the policy's distribution at raw observations [..., O]."""
        return self.policy.distribution(agent.policy, normalize(agent.observations, observations))

    def value_features(self, agent: Agent, observations: Array, times: Array) -> Array:
        """Append the time t/horizon to normalized observations, since the value at the limit is 0: [..., O + 1]."""
        x = normalize(agent.observations, observations)
        return jnp.concatenate([x, times[..., None] / self.horizon], axis=-1)

    def value(self, agent: Agent, observations: Array, times: Array) -> Array:
        """Return expected discounted rewards [...] to the end of the episode, from its step `times` [...] on."""
        out = apply_mlp(agent.value, self.value_features(agent, observations, times))[..., 0]
        return agent.returns.mean[0] + deviation(agent.returns)[0] * out


def networks(spec: Spec, hidden: Sequence[int] = (64, 32)) -> Networks:
    """Return policy and value function for an environment, each a tanh network with these hidden layers."""
    size = spec.observation_size
    match spec.action:
        case Discrete(n):
            policy = categorical(size, n, hidden)
        case Box(dimension):
            policy = gaussian(size, dimension, hidden)
    return Networks(policy, lambda key: init_mlp(key, (size + 1, *hidden, 1)), spec.horizon)


def init_mlp(key: Key, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Return Glorot-uniform weights, zero biases, and a last layer of zeros (Ho and Ermon)."""
    layers = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        limit = 0.0 if i == len(sizes) - 2 else math.sqrt(6 / (n_in + n_out))
        w = jax.random.uniform(jax.random.fold_in(key, i), (n_in, n_out), minval=-1.0) * limit
        layers.append({"w": w, "b": jnp.zeros(n_out)})
    return layers


def apply_mlp(layers: list[dict[str, Array]], x: Array) -> Array:
    """Apply layers with tanh after each but the last: [..., n_in] -> [..., n_out]."""
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]
