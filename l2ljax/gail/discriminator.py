"""The discriminator of GAIL: its network, the objective it ascends, and the reward that it gives the policy.

    disc = discriminator.create(observation_size=4, actions=2)
    params = disc.init(key)
    value = objective(disc, params, policy_batch=(s, a), expert_batch=(expert_s, expert_a))
    r = reward(disc.logits(params, s, a), sign=1)

Signs. The papers' D(s, a) is the probability that (s, a) comes from the *policy*. Here the network gives the logit l of
"expert", as in Ho & Ermon's released code, so D = sigmoid(-l), log D = -softplus(l) and log(1 - D) = -softplus(-l):
nothing takes the logarithm of a sigmoid, and all is finite for any finite l.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from l2ljax.types import Array, Key, L2LError, Tree
from l2ljax.values import Count, check, checked

__all__ = ["Discriminator", "Pairs", "accuracy", "bernoulli_entropy", "create", "objective", "reward"]

Pairs = tuple[Array, Array]
"""Observations s [N, observation_size] and actions a, see `Discriminator.logits`."""


class Discriminator(NamedTuple):
    """A classifier of the expert's against the policy's state-action pairs, as pure functions."""

    init: Callable[[Key], Tree]
    """key -> params."""
    logits: Callable[[Tree, Array, Array], Array]
    """(params, s, a) -> l [N], the logit of "expert": positive if (s, a) resembles the expert's.

    s is [N, observation_size]. Discrete actions a are integers [N] in 0..actions-1, which become one-hot, continuous
    ones floats [N, actions]. Other shapes raise an L2LError. Nothing is scaled (Ho & Ermon's code standardizes it)."""


@checked
def create(observation_size: Count, actions: Count, *, hidden: Sequence[int] = (64, 32)) -> Discriminator:
    """Return a perceptron on [s, a] with tanh between its layers and one output.

    The paper's (appendix C.2) has the hidden sizes 64 and 32. Ho & Ermon's code has 100 and 100, gives one score per
    discrete action instead of reading the action, and starts the output layer at zero; here all weights start
    Glorot-uniform, so that an untrained discriminator is a random reward, not a constant one. `actions` is the number
    of discrete actions, or the size of continuous ones.
    """
    layers = [nn.Dense(size, kernel_init=nn.initializers.glorot_uniform()) for size in (*hidden, 1)]
    network = nn.Sequential([f for layer in layers for f in (layer, nn.tanh)][:-1])

    def init(key: Key) -> Tree:
        return network.init(key, jnp.zeros((1, observation_size + actions)))["params"]

    def logits(params: Tree, s: Array, a: Array) -> Array:
        if s.ndim != 2 or s.shape[1] != observation_size:
            raise L2LError(f"observations have the shape {list(s.shape)}: give [N, {observation_size}]")
        discrete = jnp.issubdtype(a.dtype, jnp.integer)
        if a.shape != (s.shape[:1] if discrete else (len(s), actions)):
            raise L2LError(
                f"actions are {a.dtype} {list(a.shape)} for {len(s)} observations: "
                f"give integers [{len(s)}] or floats [{len(s)}, {actions}]"
            )
        features = jax.nn.one_hot(a, actions, dtype=s.dtype) if discrete else a
        return cast("Array", network.apply({"params": params}, jnp.concatenate([s, features], axis=1)))[:, 0]

    return Discriminator(init, logits)


def objective(
    disc: Discriminator, params: Tree, policy_batch: Pairs, expert_batch: Pairs, *, entropy: float = 1e-3
) -> Array:
    """Return the discriminator's objective to ascend, a scalar.

        mean_policy log D + mean_expert log(1 - D) + entropy (mean_policy H(D) + mean_expert H(D))

    Learning to Defend by Learning to Attack, eq. 4, without -lambda H(pi), which belongs to the policy. H(D) is the
    entropy of the prediction in nats: the regularizer of Ho & Ermon's code, in neither paper. The two batches have
    equal weight, whatever their sizes. If policy and expert agree, the optimum is D = 1/2: -2 log 2, and `entropy`
    times 2 log 2.
    """
    policy, expert = disc.logits(params, *policy_batch), disc.logits(params, *expert_batch)
    uncertainty = jnp.mean(bernoulli_entropy(policy)) + jnp.mean(bernoulli_entropy(expert))
    return -jnp.mean(jax.nn.softplus(policy)) - jnp.mean(jax.nn.softplus(-expert)) + entropy * uncertainty


def bernoulli_entropy(logits: Array) -> Array:
    """Return -p log p - (1 - p) log(1 - p) of p = sigmoid(logits), in nats, elementwise: between 0 and log 2."""
    return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)


def accuracy(disc: Discriminator, params: Tree, policy_batch: Pairs, expert_batch: Pairs) -> Array:
    """Return the fraction of correct predictions in [0, 1], with equal weight on both batches; l > 0 means "expert"."""
    policy, expert = disc.logits(params, *policy_batch), disc.logits(params, *expert_batch)
    return 0.5 * (jnp.mean(policy <= 0) + jnp.mean(expert > 0))


def reward(logits: Array, sign: int) -> Array:
    """Return the policy's reward sign * softplus(sign * l), elementwise; it grows with l for either sign.

    +1: softplus(l) = -log D >= 0, the papers' reward. It pays for staying alive, so it suits tasks that end by failure
        (CartPole).
    -1: -softplus(-l) = log(1 - D) <= 0. It charges for every step, so it suits tasks that end by success (MountainCar).
        No paper states it; Ho & Ermon's code switches like this.

    By itself +1 favours long episodes and -1 short ones, whatever D has learned, so show an untrained discriminator
    (`updaters.frozen`) beside a result. If all episodes are equally long, both signs work.
    """
    sign = check(Literal[1, -1], sign, "sign")
    return sign * jax.nn.softplus(sign * logits)
