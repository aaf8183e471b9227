"""Square: random search by logits alone, without gradients. Andriushchenko et al. (2020), one of AutoAttack's four.

    attack = attacks.square(threat.linf(8 / 255), queries=5000)
    x_adv = jax.jit(attack)(logits_fn, key, x, y)

`linf_moves` and `l2_moves` define the proposals, `halvings` the size of their windows, `accept` the acceptance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.attacks.entrance import entered
from l2ljax.attacks.gradient import Fraction
from l2ljax.attacks.selection import keep_stronger
from l2ljax.threat import Ball, choose
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn, fold_in
from l2ljax.values import Count, checked

__all__ = [
    "HALVED_AFTER", "MOVES", "Best", "Draw", "Moves", "accept", "bumps", "check_square", "halvings", "l2_moves",
    "linf_moves", "nothing", "propose", "queries_of", "square",
]  # fmt: skip

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The proposals, counted from 0, after which the window's area is halved; for the paper's 10,000 queries."""
SMALL = 1e-12  # keeps the directions of zero vectors finite

Best = tuple[Array, Array]
"""Images [B, H, W, C] and their margins [B]."""


class Draw(NamedTuple):
    """The random choices of one proposal for one example."""

    corner: Array
    """Row and column [2] of the window's corner."""
    second: Array
    """The corner of the window whose perturbation is removed; l2 only."""
    signs: Array
    """-1 or 1 for each channel [C]."""
    turned: Array
    """Whether the pattern is transposed; l2 only."""


class Moves(NamedTuple):
    """The proposed images for one example x [H, W, C]; they are projected onto the ball afterwards."""

    start: Callable[[Key, Array], Array]
    """(key, x) -> the first image."""
    place: Callable[[Draw, Array | int, Array, Array], Array]
    """(draw, halvings, x, the best image so far) -> the next image."""
    sides: np.ndarray
    """The window's side by the number of halvings."""


def halvings(queries: int, *, rescale: bool = False) -> np.ndarray:
    """Return the number of halvings of the window's area at proposal 0..queries-1. Section 3 and appendix of the paper.

    Args:
      queries: number of proposals.
      rescale: stretch the schedule, made for 10,000 queries, over `queries`. AutoAttack does not.
    """
    i = np.arange(queries)
    return np.searchsorted(HALVED_AFTER, (i / queries * 10_000).astype(int) if rescale else i)


def linf_moves(eps: float, p_init: float, shape: tuple[int, ...]) -> Moves:
    """Propose stripes, then squares of one color: each pixel moves by eps or -eps. Algorithm 2.

    Args:
      eps: the radius.
      p_init: the share of pixels in the first windows.
      shape: (H, W, C).
    """
    sides = np.maximum(_sides(p_init, shape), 1).clip(max=min(shape[:2]))

    def start(key: Key, x: Array) -> Array:
        return x + eps * jax.random.rademacher(key, (1, *x.shape[1:]), x.dtype)

    def place(draw: Draw, level: Array | int, x: Array, best: Array) -> Array:
        return jnp.where(_window(draw.corner, jnp.asarray(sides)[level], shape), x + eps * draw.signs, best)

    return Moves(start, place, sides)


def l2_moves(eps: float, p_init: float, shape: tuple[int, ...]) -> Moves:
    """Propose tiles with two bumps, then windows with two bumps that absorb another window's perturbation. Algorithm 3.

    In each channel, with nu the perturbation, W the window and V the other window, s = +-1 and eta from `bumps`,

        nu_W = (s eta + nu_W / |nu_W|) / |s eta + nu_W / |nu_W|| * sqrt(|nu_(W or V)|^2 + (eps^2 - |nu|^2) / C),

    nu_V = 0 outside W, and the result is scaled to the length eps. The arguments are those of `linf_moves`.
    """
    height, width, channels = shape
    sides = np.maximum(_sides(p_init, shape), 3)
    sides = (sides + (sides % 2 == 0)).clip(max=min(height, width))
    largest = sides.max()
    patterns = np.stack([np.pad(bumps(side), (0, largest - side)) for side in sides])

    def scaled(x: Array, delta: Array) -> Array:
        return x + eps * delta / (SMALL + jnp.sqrt(jnp.sum(delta**2)))

    def start(key: Key, x: Array) -> Array:
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        coins = jax.random.bernoulli(key, 0.5, (rows, 1, columns, 1, channels + 1))
        signs, turned = jnp.where(coins[..., 1:], 1, -1).astype(x.dtype), coins[..., :1]
        pattern = jnp.asarray(bumps(side), x.dtype)[None, :, None, :, None]
        tiles = signs * jnp.where(turned, pattern.swapaxes(1, 3), pattern)
        delta = tiles.reshape(rows * side, columns * side, channels)
        margins = [(rest // 2, rest - rest // 2) for rest in (height - rows * side, width - columns * side)]
        return scaled(x, jnp.pad(delta, [*margins, (0, 0)]))

    def place(draw: Draw, level: Array | int, x: Array, best: Array) -> Array:
        def norms(delta: Array) -> Array:
            return jnp.sqrt(jnp.sum(delta**2, axis=(0, 1)))

        delta, side = best - x, jnp.asarray(sides)[level]
        window, other = _window(draw.corner, side, shape), _window(draw.second, side, shape)
        pattern = jnp.asarray(patterns, x.dtype)[level]
        pattern = jnp.where(draw.turned, pattern.T, pattern)
        pattern = jnp.pad(pattern, ((0, height - largest), (0, width - largest)))
        eta = draw.signs * jnp.roll(pattern, draw.corner, axis=(0, 1))[..., None]  # no part of it leaves the image
        inside = delta * window
        direction = eta + inside / (SMALL + norms(inside))
        unused = jnp.maximum(eps**2 - jnp.sum(delta**2), 0) / channels
        length = jnp.sqrt(unused + norms(delta * (window | other)) ** 2)
        moved = direction * length / (SMALL + norms(direction))
        return scaled(x, jnp.where(window, moved, jnp.where(other, 0, delta)))

    return Moves(start, place, sides)


def bumps(side: int) -> np.ndarray:
    """Return the l2 pattern [side, side], of norm 1: a bump in the upper half and its negative in the lower half.

    A bump over a rectangle of h x w pixels is sum_{k=d}^{n} 1 / (k + 1)^2 with d the Chebyshev distance to the pixel
    (h // 2, w // 2) and n = max(h // 2, w // 2).
    """

    def bump(height: int, width: int) -> np.ndarray:
        rows, columns = abs(np.arange(height) - height // 2), abs(np.arange(width) - width // 2)
        terms = 1 / np.arange(1, max(height // 2, width // 2) + 2) ** 2
        values = terms[::-1].cumsum()[::-1][np.maximum(rows[:, None], columns[None])]
        return values / max(np.linalg.norm(values), SMALL)

    pattern = np.concatenate([bump(side // 2, side), -bump(side - side // 2, side)])
    return pattern / np.linalg.norm(pattern)


MOVES = {"linf": linf_moves, "l2": l2_moves}


def propose(moves: Moves, key: Key, level: Array | int, x: Array, best: Array) -> Array:
    """Propose the next image for one example x [H, W, C] from its best one so far. Every position may be drawn.

    AutoAttack's code leaves out the last row and column of positions, and shares the windows among examples.
    """
    room = jnp.array(x.shape[:2]) - jnp.asarray(moves.sides)[level] + 1
    u = jax.random.uniform(key, (5 + x.shape[2],))
    draw = Draw(
        corner=(u[:2] * room).astype(int),
        second=(u[2:4] * room).astype(int),
        signs=jnp.where(u[5:] < 0.5, -1, 1).astype(x.dtype),
        turned=u[4] < 0.5,
    )
    return moves.place(draw, level, x, best)


def accept(logits_fn: LogitsFn, y: Array, best: Best, candidate: Array) -> Best:
    """Take the candidate if it raises the margin of an example that is not misclassified yet; one pass."""
    fooled, new = best[1] > 0, keep_stronger(logits_fn, y, best, candidate)
    return choose(fooled, best, new)


@checked
def square(ball: Ball, *, queries: Count = 5000, p_init: Fraction = 0.8, rescale: bool = False) -> Attack:
    """Search at random for a positive margin max_{k != y} z_k - z_y, with one query per step and example.

    The start replaces the image. Each later proposal changes a window of the best image so far and stays if the margin
    rises. Andriushchenko et al. (2020), Algorithm 1. If nothing fools the model the clean image is returned.

    The loop ends when the whole batch is misclassified. Until then every example is evaluated, but finished ones stay
    as they are. An example draws from its own key. Proposals are as in AutoAttack's code except as `propose` says and
    for the tiles of the l2 start, which here fill images of any shape. That code does not count the start as a query.

    Args:
      ball: linf or l2.
      queries: the largest number of images tried per example, with the start, without the clean image.
      p_init: the share of pixels in the first windows.
      rescale: see `halvings`.

    Raises:
      L2LError: another ball; (when called) images that are not [B, H, W, C].
    """
    check_square(ball)

    @entered
    def attack(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        query = queries_of(logits_fn, ball, keys, x, y, queries=queries, p_init=p_init, rescale=rescale)

        def unfinished(state: tuple[Array, Best]) -> Array:
            return (state[0] <= queries) & (state[1][1] <= 0).any()

        def step(state: tuple[Array, Best]) -> tuple[Array, Best]:
            return state[0] + 1, query(*state)

        _, (best, margin) = jax.lax.while_loop(unfinished, step, (jnp.array(0), nothing(x)))
        return choose(margin > 0, best, x)

    return attack


def check_square(ball: Ball) -> None:
    """Raise an L2LError for a ball in whose norm Square has no moves."""
    if ball.name not in MOVES:
        raise L2LError(f"square does not support the ball {ball.name!r}: choose from {', '.join(MOVES)}")


def queries_of(
    logits_fn: LogitsFn, ball: Ball, keys: Key, x: Array, y: Array, *, queries: int, p_init: float, rescale: bool
) -> Callable[[Array, Best], Best]:
    """Return `square`'s query: (i, best) -> best. Query 0 tries the clean image, 1 the start, later ones proposals.

    Raises:
      L2LError: images that are not [B, H, W, C].
    """
    if x.ndim != 4:
        raise L2LError(f"images have the shape {list(x.shape)}: square changes windows of [B, H, W, C]")
    moves, levels = MOVES[ball.name](ball.eps, p_init, x.shape[1:]), jnp.asarray(halvings(queries, rescale=rescale))

    def clean(i: Array, best: Array) -> Array:
        return x

    def start(i: Array, best: Array) -> Array:
        return ball.project(jax.vmap(moves.start)(fold_in(keys, i), x), x)

    def proposal(i: Array, best: Array) -> Array:
        tried = jax.vmap(lambda k, x, best: propose(moves, k, levels[i - 2], x, best))(fold_in(keys, i), x, best)
        return ball.project(tried, x)

    def query(i: Array, best: Best) -> Best:
        # The clean image and the start take the same lines, so that the network is compiled once.
        image, margin = best
        candidate = jax.lax.switch(jnp.minimum(i, 2), [clean, start, proposal], i, image)
        margin = jnp.where((i < 2) & (margin <= 0), -jnp.inf, margin)  # the start need not beat the clean image
        return accept(logits_fn, y, (image, margin), candidate)

    return query


def nothing(x: Array) -> Best:
    """Return the images before query 0, with the margin -infinity."""
    return x, jnp.full(len(x), -jnp.inf, jnp.promote_types(x.dtype, jnp.float32))


def _sides(p_init: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return the side of a square with the share p_init / 2^k of the pixels, k = 0, 1, ..., rounded."""
    p = p_init / 2.0 ** np.arange(len(HALVED_AFTER) + 1)
    return np.rint(np.sqrt(p * shape[0] * shape[1])).astype(int)


def _window(corner: Array, side: Array, shape: tuple[int, ...]) -> Array:
    """Return whether each pixel is in the window, [H, W, 1]; a slice of a traced size has no static shape."""
    rows, columns = (jnp.arange(n) - first for n, first in zip(shape[:2], corner, strict=True))
    inside = [(offset >= 0) & (offset < side) for offset in (rows, columns)]
    return (inside[0][:, None] & inside[1][None])[..., None]
