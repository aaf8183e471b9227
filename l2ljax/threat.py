"""Threats: the changes allowed to an attacker. A threat is a ball around the image, cut with the pixels' [0, 1].

ball = threat.linf(8 / 255)
x_adv = ball.project(x + delta, x)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2ljax.types import Array, Key, L2LError, Tree, example_keys
from l2ljax.values import EXAMPLES, NonNegative, Positive, check, parse, plain

__all__ = ["BALLS", "Ball", "choose", "clip", "l2", "linf", "parse_eps", "rounded", "spread", "widened"]
__dir__ = lambda: __all__


class Ball(NamedTuple):
    """All images within `eps` of x0 [B, H, W, C] in a norm, and in [0, 1]. Half precision is computed in float32."""

    eps: float
    project: Callable[[Array, Array], Array]
    """(x, x0) -> the projection of x onto the ball around x0, cut with [0, 1]."""
    sample: Callable[[Key, Array], Array]
    """(key, x0) -> a uniform draw from the ball around x0, then clipped to [0, 1]."""
    steepest: Callable[[Array], Array]
    """(g) -> the direction d of norm 1 that maximizes <g, d> per example (0 if g is 0)."""
    norm: Callable[[Array], Array]
    """(delta) -> its norm per example [B]."""
    name: str = ""
    """The norm: linf or l2."""


EXAMPLES[Ball] = "threat.linf(8/255) or another ball"


def clip(x: Array, low: Array | float, high: Array | float) -> Array:
    """Clip x to [low, high] with PyTorch's derivative: 1 inside *and at the bounds*, 0 outside.

    At a bound, `jnp.clip` passes half of the gradient and `lax.clamp` none. On MNIST's black background, or for a
    perturbation of exactly eps, this decides what a learned attacker can learn.
    """
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def linf(eps: float) -> Ball:
    """Return the ball max_i |x_i - x0_i| <= eps, eps in [0, 1] (pixel units)."""
    eps = check(NonNegative, eps, "eps")
    if not isinstance(eps, jax.core.Tracer) and eps > 1:
        raise L2LError(f"eps={eps} is larger than the pixel range [0, 1]: did you mean {eps:g}/255?")

    def project(x: Array, x0: Array) -> Array:
        center = widened(x0)
        return rounded(clip(widened(x), jnp.maximum(center - eps, 0), jnp.minimum(center + eps, 1)), x0)

    def sample(key: Key, x0: Array) -> Array:
        center = widened(x0)
        noise = _per_example(lambda k: jax.random.uniform(k, x0.shape[1:], center.dtype, -eps, eps), key, x0)
        return project(center + noise, x0)

    return Ball(eps, project, sample, jnp.sign, lambda delta: jnp.abs(_flat(delta)).max(axis=1), "linf")


def l2(eps: float) -> Ball:
    """Return the ball sqrt(sum_i (x_i - x0_i)^2) <= eps, eps >= 0.

    `project` clips to [0, 1] after the radial projection: the result lies in both sets (moving towards x0's own range
    only shortens the distance), but is not always their nearest point. This is common practice.
    """
    eps = check(NonNegative, eps, "eps")

    def norm(delta: Array) -> Array:
        square = jnp.sum(_flat(widened(delta)) ** 2, axis=1)
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # derivative 0 at 0, not NaN

    def project(x: Array, x0: Array) -> Array:
        center = widened(x0)
        delta = widened(x) - center
        length = spread(norm(delta), delta)
        inside = center + delta * jnp.where(length > eps, eps / jnp.where(length > 0, length, 1), 1)
        return rounded(clip(inside, 0, 1), x0)

    def sample(key: Key, x0: Array) -> Array:
        center, size = widened(x0), x0[0].size

        def draw(k: Key) -> Array:
            k_direction, k_radius = jax.random.split(k)
            direction = jax.random.normal(k_direction, x0.shape[1:], center.dtype)
            radius = eps * jax.random.uniform(k_radius, (), center.dtype) ** (1 / size)
            return radius * direction / jnp.linalg.norm(direction)

        return project(center + _per_example(draw, key, x0), x0)

    def steepest(g: Array) -> Array:
        # Divide by the largest entry first: squares of a confident model's gradients underflow.
        wide = widened(g)
        unit = wide / jnp.maximum(spread(jnp.abs(_flat(wide)).max(axis=1), g), jnp.finfo(wide.dtype).tiny)
        return (unit / jnp.maximum(spread(norm(unit), g), 1e-12)).astype(g.dtype)

    return Ball(eps, project, sample, steepest, norm, "l2")


BALLS = {"linf": linf, "l2": l2}


def parse_eps(text: str | float) -> float:
    """Return the eps of "8/255", "0.031" or 0.031 as a float; raise an L2LError for what is no radius."""
    text = plain(text)
    try:
        if not isinstance(text, str):
            return float(check(NonNegative, text, ""))
        above, slash, below = text.partition("/")
        whole, parts = parse(NonNegative, above, ""), parse(Positive, below, "") if slash else 1.0
        return check(Positive if whole else NonNegative, whole / parts, "")
    except L2LError:
        raise L2LError(f"eps={text!r} is no radius: give a number of 0 or more, like 8/255 or 0.031") from None


def widened(x: Array) -> Array:
    """Return x in float32 or wider."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rounded(x: Array, x0: Array) -> Array:
    """Return x in the type of x0, each pixel rounded towards that of x0: an image in a ball around x0 stays inside.

    The derivative is 1.
    """
    x0 = jnp.asarray(x0)
    if x.dtype == x0.dtype:
        return x
    nearest, center = x.astype(x0.dtype), widened(x0)
    fixed = jax.lax.stop_gradient(nearest)
    beyond = jnp.abs(widened(fixed) - center) > jnp.abs(x - center)
    return nearest + jnp.where(beyond, jnp.nextafter(fixed, x0) - fixed, 0)


def _per_example(draw: Callable[[Key], Array], key: Key, x0: Array) -> Array:
    return jax.vmap(draw)(example_keys(key, len(x0)))


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def spread(values: Array, like: Array) -> Array:
    """Reshape [B] to [B, 1, ...], to broadcast with `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def choose(mask: Array, a: Tree, b: Tree) -> Tree:
    """Take per example the leaves of a [B, ...] if `mask` [B] is set, else those of b."""
    return jax.tree.map(lambda a, b: jnp.where(spread(mask, a), a, b), a, b)
