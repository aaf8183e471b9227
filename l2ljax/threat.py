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

__all__ = [
    "BALLS", "Ball", "choose", "clip", "create", "l1", "l2", "largest", "linf", "parse_eps", "resized", "rounded",
    "spread", "widened",
]  # fmt: skip
__dir__ = lambda: __all__


class Ball(NamedTuple):
    """All images within `eps` of x0 [B, H, W, C] in a norm, and in [0, 1]. Half precision is computed in float32."""

    eps: float
    project: Callable[[Array, Array], Array]
    """(x, x0) -> the projection of x onto the ball around x0, cut with [0, 1]."""
    sample: Callable[[Key, Array], Array]
    """(key, x0) -> a uniform draw from the ball around x0, then clipped to [0, 1]."""
    steepest: Callable[[Array], Array]
    """(g) -> the direction d of norm 1 that maximizes <g, d> per example (0 if g is 0); see `l1` for sparse ones."""
    norm: Callable[[Array], Array]
    """(delta) -> its norm per example [B]."""
    name: str = ""
    """The norm: linf, l2 or l1."""

    def __repr__(self) -> str:
        """Return the norm and the radius, without the functions."""
        return f"{self.name or type(self).__name__}({self.eps})"


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


def l1(eps: float) -> Ball:
    """Return the ball sum_i |x_i - x0_i| <= eps, eps >= 0.

    `project` returns the nearest point that is in the ball and in [0, 1]: with u = x - x0 and b_i the room to the bound
    that u_i points to,

        x0_i + sign(u_i) min(max(|u_i| - t, 0), b_i),   t >= 0 the least with a norm of eps or less.

    Croce & Hein (2021), "Mind the box", Proposition 2.1, who sort to find t. `steepest` moves the twentieth of the
    entries with the largest |g|, rounded up, equally far: it maximizes <g, d> among directions of norm 1 without larger
    entries, as in SLIDE (Tramèr & Boneh, 2019). The largest entry alone would change one pixel a step.
    """
    eps = check(NonNegative, eps, "eps")

    def project(x: Array, x0: Array) -> Array:
        center = widened(x0)
        delta = widened(x) - center
        room = jnp.where(delta > 0, 1 - center, center)
        t = spread(_cut(jnp.abs(_flat(delta)), _flat(room), eps), delta)
        cut = clip(center + jnp.where(t > 0, delta - clip(delta, -t, t), delta), 0, 1) - center
        size = jnp.abs(_flat(cut)).sum(axis=1)  # beyond eps only where |u| is so large that t is rounded
        over = size > (1 + 1e-5) * eps
        return rounded(center + cut * spread(jnp.where(over, eps / jnp.where(over, size, 1), 1), cut), x0)

    def sample(key: Key, x0: Array) -> Array:
        center, shape = widened(x0), x0.shape[1:]

        def draw(k: Key) -> Array:
            k_signs, k_sizes = jax.random.split(k)
            sizes = jax.random.exponential(k_sizes, (x0[0].size + 1,), center.dtype)
            return eps * jax.random.rademacher(k_signs, shape, center.dtype) * (sizes[1:] / sizes.sum()).reshape(shape)

        return project(center + _per_example(draw, key, x0), x0)

    def steepest(g: Array) -> Array:
        return largest(g, jnp.full(len(g), -(-g[0].size // 20)))

    return Ball(eps, project, sample, steepest, lambda delta: jnp.abs(_flat(widened(delta))).sum(axis=1), "l1")


def largest(g: Array, n: Array) -> Array:
    """Return the signs of each example's n [B] entries of largest |g| (more if they tie), over their number; else 0."""
    sizes = jnp.abs(_flat(g))
    order = jnp.sort(sizes, axis=1, descending=True)
    least = jnp.take_along_axis(order, jnp.clip(n.astype(int) - 1, 0, sizes.shape[1] - 1)[:, None], axis=1)
    signs = jnp.where(sizes >= least, jnp.sign(_flat(g)), 0)
    return (signs / jnp.maximum(jnp.abs(signs).sum(axis=1, keepdims=True), 1)).reshape(g.shape)


def _cut(sizes: Array, room: Array, eps: float) -> Array:
    """Return the least t >= 0 [B] with sum_i min(max(sizes_i - t, 0), room_i) <= eps, for sizes and room [B, D].

    The sum falls linearly between the ends sizes_i and sizes_i - room_i. Bisection narrows t down to one piece, on
    which it is solved.
    """

    def total(t: Array, sizes: Array, room: Array) -> Array:
        return clip(sizes - t[:, None], 0, room).sum(axis=1)

    fixed = jax.lax.stop_gradient((sizes, room))

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        over = total(middle, *fixed) > eps
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    zero = jnp.zeros(len(sizes), sizes.dtype)
    _, t = jax.lax.fori_loop(0, 30, halve, (zero, fixed[0].max(axis=1)))
    full, ended = (fixed[0] - fixed[1] >= t[:, None]), fixed[0] <= t[:, None]
    height = jnp.where(full, room, jnp.where(ended, 0, sizes)).sum(axis=1) - eps
    slope = jnp.sum(~full & ~ended, axis=1)
    solved = jnp.where(slope > 0, height / jnp.maximum(slope, 1), t)
    return jnp.where(total(zero, *fixed) > eps, jnp.maximum(solved, 0), 0)


BALLS = {"linf": linf, "l2": l2, "l1": l1}


def create(norm: str, eps: str | float) -> Ball:
    """Return the ball of a norm in `BALLS` and the radius that `parse_eps` reads; others are an L2LError."""
    if norm not in BALLS:
        raise L2LError(f"norm={norm}: give {' or '.join(BALLS)}")
    return BALLS[norm](parse_eps(eps))


def resized(ball: Ball, eps: float | Array) -> Ball:
    """Return the ball of the same norm and another radius; a ball that is not one of `BALLS` raises an L2LError."""
    if ball.name not in BALLS:
        fix = f"name it after its norm, ball._replace(name=...), one of {', '.join(BALLS)}"
        raise L2LError(f"a ball named {ball.name!r} has no other radius: {fix}")
    return BALLS[ball.name](eps)  # type: ignore[arg-type]


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
