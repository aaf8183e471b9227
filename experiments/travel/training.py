"""The meta-training: one set of `annealed`'s parameters climbs on many classifiers in turn.

    params = learn(preys, estimate=evolution, steps=200, batch_size=16, seed=0)

`evolution` and `by_gradient` estimate the derivative of `gain`. The second is the papers' way: exact if the gradients
along the path were constants. The first is a finite difference, of which only the noise is wrong. The attacks that they
train are equally strong within a percent (results/traveller.json).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient

from l2ljax import losses, threat
from l2ljax.attacks.ascent import LossFn, ascend
from l2ljax.attacks.travelling import annealed
from l2ljax.types import Array, Key, LogitsFn, Tree

__all__ = [
    "HORIZONS", "Prey", "by_gradient", "drawn", "evolution", "gain", "learn", "linear", "strong",
]  # fmt: skip

HORIZONS = (10, 20)
"""The attacks' lengths, in turn."""
Gain = Callable[[Array], Array]
"""Flat parameters -> a scalar."""


class Prey(NamedTuple):
    """A classifier, its threat and images to attack it on."""

    name: str
    logits_fn: LogitsFn
    eps: float
    x: np.ndarray
    y: np.ndarray


def drawn(seed: int) -> Tree:
    """Return the parameters before training."""
    return annealed(horizon=HORIZONS[0]).init(jax.random.key(seed), jnp.zeros((1, 1, 1, 1)))[0]


def strong(values: Array) -> Array:
    """Return log mean CE + log mean (1 - p_y) of losses [B]: no victim's scale makes it dominate.

    The first is the loss that the attack is judged by, the second a smooth rate of errors.
    """
    return jnp.log(values.mean() + 1e-6) + jnp.log(-jnp.expm1(-values).mean() + 1e-6)


def linear(loss_fn: LossFn, x: Array) -> Array:
    """Return the losses [B] at x with a constant gradient, as `ascend` has them along its path."""
    center = stop_gradient(x)
    value, vjp, _ = jax.vjp(loss_fn, center, has_aux=True)
    (gradient,) = vjp(jnp.ones_like(value))
    return stop_gradient(value) + jnp.sum(stop_gradient(gradient) * (x - center), axis=range(1, x.ndim))


def gain(params: Tree, horizon: int, logits_fn: LogitsFn, eps: float, key: Key, x: Array, y: Array) -> Array:
    """Return `strong` of the losses at x_T."""
    loss_fn = lambda x: (losses.cross_entropy(logits_fn(x), y), ())
    rule = annealed(horizon=horizon).rule(params, {}, None, None)
    return strong(linear(loss_fn, ascend(loss_fn, rule, threat.linf(eps), key, x, steps=horizon).x))


def by_gradient(gain: Gain, key: Key, at: Array) -> Array:
    """Return the derivative by back-propagation through `ascend`."""
    return jax.grad(gain)(at)


def evolution(gain: Gain, key: Key, at: Array, *, pairs: int = 6, deviation: float = 0.05) -> Array:
    """Return sum_i (gain(at + d_i) - gain(at - d_i)) d_i / (2 deviation^2 pairs), d_i ~ N(0, deviation^2 I).

    All see the same images from the same start. Salimans et al. (2017), section 2.1, with antithetic pairs.
    """
    d = deviation * jax.random.normal(key, (pairs, at.size))
    values = jax.lax.map(gain, jnp.concatenate([at + d, at - d]))
    return (values[:pairs] - values[pairs:]) @ d / (2 * deviation**2 * pairs)


def learn(
    preys: Sequence[Prey], *, estimate: Callable[[Gain, Key, Array], Array], steps: int, batch_size: int, seed: int
) -> Tree:
    """Return the parameters after `steps` of Adam, each on random images of a random victim, the lengths in turn."""
    at, tree_of = ravel_pytree(drawn(seed))
    mover = optax.adam(optax.cosine_decay_schedule(5e-3, steps), b2=0.99)
    state, rng, key = mover.init(at), np.random.RandomState(seed), jax.random.key(seed)

    @functools.partial(jax.jit, static_argnums=2)
    def step(at: Array, state: Tree, horizon: int, key: Key, *example: Any) -> tuple[Array, Tree]:
        k_start, k_pairs = jax.random.split(key)
        logits_fn, eps, x, y = example
        climbed = lambda at: gain(tree_of(at), horizon, logits_fn, eps, k_start, x, y)
        updates, state = mover.update(-estimate(climbed, k_pairs, at), state)
        return at + updates, state

    for i in range(steps):
        prey = preys[rng.randint(len(preys))]
        rows, each = rng.randint(len(prey.y), size=batch_size), jax.random.fold_in(key, i)
        at, state = step(at, state, HORIZONS[i % 2], each, prey.logits_fn, prey.eps, prey.x[rows], prey.y[rows])
        if i % 50 == 49:
            print(f"step {i + 1} of {steps}", flush=True)
    return tree_of(at)
