"""FAB: the fast adaptive boundary attack, which searches for the nearest misclassified image.

    attack = jax.jit(attacks.fab_targeted(threat.linf(8 / 255)))
    x_adv = attack(logits_fn, key, x, y)  # in the ball; x itself if nothing in the ball is misclassified
    x_min, distance = attacks.minimal_perturbation(ball)(logits_fn, key, x, y)  # at any distance

Croce & Hein (2020), "Minimally distorted adversarial examples with a fast adaptive boundary attack", as AutoAttack
runs it. The code serves any norm: `ball.norm` measures, and a hyperplane is nearest along `ball.steepest`.
"""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from l2ljax import losses
from l2ljax.attacks.ascent import finite
from l2ljax.attacks.entrance import enter, entered
from l2ljax.attacks.selection import from_rank, likeliest_wrong
from l2ljax.threat import Ball, choose, clip, rounded, spread
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn, fold_in
from l2ljax.values import Count, Natural, Range, Share, checked

__all__ = [
    "Nearest", "Overshoot", "Search", "approach", "fab", "fab_targeted", "minimal_perturbation", "move_onto_hyperplane",
    "nearest_boundary", "nearest_wrong", "shorten",
]  # fmt: skip


Overshoot = Annotated[float, Range(1)]


class Nearest(NamedTuple):
    """The nearest misclassified image of a search."""

    x: Array
    """The image [B, H, W, C] in [0, 1]; the clean image if the search failed."""
    distance: Array
    """Its distance from the clean image [B]: 0 if that is misclassified itself, infinite if the search failed."""


Search = Callable[[LogitsFn, Key, Array, Array], Nearest]
"""(logits_fn, key, x [B, H, W, C], y [B]) -> Nearest. Pure; jits."""


@checked
def fab(
    ball: Ball, *, steps: Count = 100, restarts: Count = 1, alpha_max: Share = 0.1, eta: Overshoot = 1.05,
    beta: Share = 0.9,
) -> Attack:  # fmt: skip
    """Run FAB towards the nearest of all classes: K - 1 backward passes a step. See `minimal_perturbation`.

    The attack returns per example the nearest misclassified image if it is in the ball, else the clean image.
    """
    search = minimal_perturbation(ball, steps=steps, restarts=restarts, alpha_max=alpha_max, eta=eta, beta=beta)
    return _within(ball, search)


@checked
def fab_targeted(
    ball: Ball, *, steps: Count = 100, target_classes: Count = 9, first: Natural = 0, restarts: Count = 1,
    alpha_max: Share = 0.1, eta: Overshoot = 1.05, beta: Share = 0.9,
) -> Attack:  # fmt: skip
    """Run AutoAttack's FAB-T: `fab` towards each of the `target_classes` most likely wrong classes, from rank `first`.

    Each step takes one backward pass. Any misclassified image on the way counts. `first` may be traced: targets tried
    one by one draw as they do together.
    """
    runs = functools.partial(minimal_perturbation, ball, target_classes=target_classes, first=first, restarts=restarts)
    return _within(ball, runs(steps=steps, alpha_max=alpha_max, eta=eta, beta=beta))


@checked
def minimal_perturbation(
    ball: Ball, *, steps: Count = 100, restarts: Count = 1, alpha_max: Share = 0.1, eta: Overshoot = 1.05,
    beta: Share = 0.9, target_classes: Natural = 0, first: Natural = 0, final_search: Natural = 0,
) -> Search:  # fmt: skip
    """Return the search behind `fab`, for the misclassified image at the least distance.

    Each step takes the decision boundary to be the hyperplane pi of `nearest_boundary`, and crosses it:

        x' = clip((1 - a) (x_t + eta d) + a (x_0 + eta d_0), 0, 1)       d, d_0: the moves from x_t and x_0 onto pi
        a = min(|d| / (|d| + |d_0|), alpha_max)
        x_{t+1} = x_0 + beta (x' - x_0) where x' is misclassified, else x'

    Croce & Hein (2020), section 2. The first run starts at the clean image. Further runs start at a draw from the ball
    shrunk to half of its radius, or to half of the least distance so far if that is smaller. Unlike AutoAttack's, runs
    do not end with the first success in the ball: the same examples fall, at smaller distances. Small gradients count:
    AutoAttack takes an entry below 1e-8 for 0 in l2.

    Args:
      ball: gives the norm; its radius serves the random starts alone.
      steps: T of each run.
      restarts: number of runs (towards each class).
      alpha_max: the largest weight of the move from the clean image, which biases the path towards it.
      eta: overshoot beyond the hyperplane.
      beta: fraction of the distance kept after a success.
      target_classes: number of most likely wrong classes to run towards (FAB-T; or as many as there are); 0 for the
        nearest of all classes at each step.
      first: the rank of the first of these classes, 0 the most likely.
      final_search: steps of `shorten` at the end. The paper has 3, AutoAttack none.

    Raises:
      L2LError: an l1 ball, where hyperplanes are nearest along one pixel at a time.
    """
    if ball.name == "l1":
        raise L2LError("fab has no moves in an l1 ball: use apgd or pgd")

    def search(logits_fn: LogitsFn, key: Key, x0: Array, y: Array) -> Nearest:
        logits_fn, keys, x, y = enter(logits_fn, key, x0, y)
        logits = logits_fn(x)
        rivals = _rivals(logits, y, target_classes, first)
        runs = len(rivals) * restarts

        def run(best: Nearest, job: tuple[Array, Array, Array]) -> tuple[Nearest, None]:
            i, restart, classes = job

            def step(carry: tuple[Array, Nearest], _: None) -> tuple[tuple[Array, Nearest], None]:
                x_t, best = carry
                value, w = nearest_boundary(logits_fn, ball, x_t, y, classes)
                moved = approach(ball, x_t, x, value, w, alpha_max=alpha_max, eta=eta)
                wrong = losses.accuracy(logits_fn(moved), y) == 0
                best = _nearer(best, moved, jnp.where(wrong, ball.norm(moved - x), jnp.inf))
                return (choose(wrong, x + beta * (moved - x), moved), best), None

            # A draw scaled about its center is a draw from the smaller ball, and in [0, 1] as both ends are.
            radius = jnp.where(best.distance < ball.eps, best.distance / ball.eps, 1) / 2
            drawn = x + spread(radius, x) * (ball.sample(fold_in(keys, i), x) - x)
            start = jnp.where(restart > 0, drawn, x)
            return jax.lax.scan(step, (start, best), length=steps)[0][1], None

        clean = Nearest(x, jnp.where(losses.accuracy(logits, y) == 0, 0, jnp.inf).astype(x.dtype))
        i = jnp.arange(runs)
        jobs = (first * restarts + i, i % restarts, jnp.repeat(rivals, restarts, axis=0))
        best = jax.lax.scan(run, clean, jobs)[0]
        best = shorten(logits_fn, ball, x, y, best, steps=final_search)
        return Nearest(rounded(best.x, x0), best.distance)

    return search


def nearest_boundary(logits_fn: LogitsFn, ball: Ball, x: Array, y: Array, classes: Array) -> tuple[Array, Array]:
    """Return the linearized boundary between y and `classes` that is nearest to x.

    f_k(z) = z_k - z_y is f_k(x) + <w_k, z - x> near x, with w_k = grad f_k(x). Without bounds its zero set is at the
    distance |f_k(x)| / |w_k|_*, in the dual norm |w|_* = <w, ball.steepest(w)>. Croce & Hein (2020).

    Args:
      logits_fn: the classifier.
      ball: the norm.
      x: [B, H, W, C].
      y: the labels [B].
      classes: other classes [M, B]. Each takes a backward pass, one after the other: memory does not grow with M.

    Returns:
      f_k(x) [B] and w_k [B, H, W, C] (see `finite`) of the nearest, the first in a tie; w_k is 0 if all are.
    """
    model = jax.vjp(logits_fn, x)

    def compare(nearest: tuple[Array, Array, Array], k: Array) -> tuple[tuple[Array, Array, Array], None]:
        distance, value, w = nearest
        distance_k, value_k, w_k = _boundary(model, ball, y, k)
        nearer = distance_k < distance  # false if NaN
        distance, value = jnp.where(nearer, distance_k, distance), jnp.where(nearer, value_k, value)
        return (distance, value, choose(nearer, w_k, w)), None

    none = jnp.zeros(len(x), x.dtype)
    return jax.lax.scan(compare, (none + jnp.inf, none, jnp.zeros_like(x)), classes)[0][1:]


def nearest_wrong(logits_fn: LogitsFn, ball: Ball, x: Array, y: Array, n: int, first: int | Array = 0) -> Array:
    """Return the n nearest of the nine likeliest wrong classes, from rank `first` on, see `from_rank`: [n, B].

    They are ranked by the distance of `nearest_boundary`, |f_k(x)| / |grad f_k(x)|_*, for a backward pass each. MALT
    (Melamed et al., 2024, arXiv:2407.02240) ranks targets so, by the l2 norm of the gradient in every ball.
    """
    model = jax.vjp(logits_fn, x)
    classes = likeliest_wrong(model[0], y, 9)
    distances = jax.lax.map(lambda k: _boundary(model, ball, y, k)[0], classes)
    return from_rank(jnp.take_along_axis(classes, jnp.argsort(distances, axis=0), axis=0), n, first)


def _boundary(
    model: tuple[Array, Callable[[Array], tuple[Array]]], ball: Ball, y: Array, k: Array
) -> tuple[Array, Array, Array]:
    """Return the distance [B] to the linearized boundary between y and k, f_k [B], w_k [B, H, W, C]; from jax.vjp's."""
    (logits, vjp), rows = model, jnp.arange(len(y))
    n = logits.shape[1]
    (w,) = vjp(jax.nn.one_hot(k, n, dtype=logits.dtype) - jax.nn.one_hot(y, n, dtype=logits.dtype))
    w = finite(w)
    value = (logits[rows, k] - logits[rows, y]).astype(w.dtype)
    return jnp.abs(value) / jnp.maximum(_inner(w, ball.steepest(w)), jnp.finfo(w.dtype).tiny), value, w


def approach(ball: Ball, x: Array, x0: Array, value: Array, w: Array, *, alpha_max: float, eta: float) -> Array:
    """Return x' of `minimal_perturbation`: past the hyperplane value + <w, z - x> = 0, from x and in part x0."""
    values = jnp.concatenate([value, value + _inner(w, x0 - x)])
    d, d0 = jnp.split(move_onto_hyperplane(ball, jnp.concatenate([x, x0]), values, jnp.concatenate([w, w])), 2)
    length, length0 = (jnp.maximum(ball.norm(move), 1e-8) for move in (d, d0))
    alpha = spread(jnp.minimum(length / (length + length0), alpha_max), x)
    return clip((1 - alpha) * (x + eta * d) + alpha * (x0 + eta * d0), 0, 1)


def move_onto_hyperplane(ball: Ball, x: Array, value: Array, w: Array) -> Array:
    """Return the shortest d with value + <w, d> = 0 and x + d in [0, 1]; if none exists, d as far as [0, 1] reaches.

    All coordinates leave x at once, with the speed |s_i|, s = ball.steepest(w). Coordinate i stops at its bound at
    t_i = (distance to the bound) / |s_i|. At time t

        d_i = -sign(value) s_i min(t, t_i),      sum_i |w_i s_i| min(t, t_i) = |value|

    These are the optimality conditions of the problem in Croce & Hein (2020), section 2: in linf all |s_i| are 1, in l2
    they are |w_i| / |w|. The sum on the left is concave, increasing, and linear between the t_i. d is 0 where `value`
    or w is.

    Args:
      ball: the norm.
      x: [B, H, W, C] in [0, 1].
      value: the linear function at x, [B].
      w: its gradient [B, H, W, C].
    """
    s = jnp.where(spread(value, w) < 0, 1, -1) * ball.steepest(w)
    moves = jnp.abs(s) > jnp.finfo(x.dtype).tiny  # such small weights do not matter, and dividing by them overflows
    s, speed = jnp.where(moves, s, 0), jnp.where(moves, jnp.abs(s), 1)
    ends = jnp.where(moves, jnp.maximum(jnp.where(s > 0, 1 - x, x), 0) / speed, 0)
    t = _reach(jnp.abs(w * s).reshape(len(x), -1), ends.reshape(len(x), -1), jnp.abs(value))
    return s * jnp.minimum(spread(t, x), ends)


def _reach(slopes: Array, ends: Array, height: Array) -> Array:
    """Return the least t >= 0 [B] with sum_i slopes_i min(t, ends_i) = height; the largest of `ends` if none exists.

    Newton's method from t = 0 on a concave, piecewise linear function never overshoots. Each step leaves a piece for
    good, and on the last piece it is exact and stays there: an example ignores its neighbours' further steps. This
    takes a handful of steps, and less time than sorting the ends.
    """
    last = ends.max(axis=1)

    def newton(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        t, _ = carry
        ended = ends <= t[:, None]
        reached = jnp.sum(jnp.where(ended, slopes * ends, 0), axis=1)
        slope = jnp.sum(jnp.where(ended, 0, slopes), axis=1)
        ahead = jnp.where(slope > 0, (height - reached) / jnp.where(slope > 0, slope, 1), t)
        ahead = jnp.clip(ahead, t, last)
        return ahead, jnp.any(ahead > t)

    return jax.lax.while_loop(lambda carry: carry[1], newton, (jnp.zeros_like(height), jnp.array(True)))[0]


def shorten(logits_fn: LogitsFn, ball: Ball, x: Array, y: Array, nearest: Nearest, *, steps: int) -> Nearest:
    """Search the segment from x [B, H, W, C] to `nearest` for its first misclassified point: regula falsi.

    Each of `steps` tests the point where the line through the margins at the segment's ends is 0, moved 1 % outwards
    because rounding decides exactly on the boundary. It cuts off the part beyond that point if it is misclassified,
    else the part before it. The final search of Croce & Hein (2020).
    """
    if steps == 0:
        return nearest

    def judge(image: Array) -> tuple[Array, Array]:
        logits = logits_fn(image)
        return losses.accuracy(logits, y) == 0, losses.margin(logits, y).astype(x.dtype)

    def cut(carry: tuple[Array, Array, Array, Array, Nearest], _: None) -> tuple[tuple, None]:
        right, right_margin, wrong, wrong_margin, best = carry
        rise = wrong_margin - right_margin
        back = jnp.where(rise > 0, wrong_margin / jnp.where(rise > 0, rise, 1), 0)
        point = wrong + 0.99 * spread(back, x) * (right - wrong)
        fooled, point_margin = judge(point)
        best = _nearer(best, point, jnp.where(fooled, ball.norm(point - x), jnp.inf))
        right, right_margin = choose(fooled, right, point), jnp.where(fooled, right_margin, point_margin)
        wrong, wrong_margin = choose(fooled, point, wrong), jnp.where(fooled, point_margin, wrong_margin)
        return (right, right_margin, wrong, wrong_margin, best), None

    return jax.lax.scan(cut, (x, judge(x)[1], nearest.x, judge(nearest.x)[1], nearest), length=steps)[0][-1]


def _within(ball: Ball, search: Search) -> Attack:
    @entered
    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        nearest = search(logits_fn, key, x, y)
        return choose(nearest.distance <= ball.eps, nearest.x, x)

    return attack


def _rivals(logits: Array, y: Array, target_classes: int, first: int | Array) -> Array:
    """Return the classes each run may go to [R, M, B]: all M = K - 1 wrong ones, or one of the likeliest."""
    k = logits.shape[1]
    if target_classes == 0:
        others = jnp.arange(k - 1)[:, None]
        return (others + (others >= y))[None]
    return likeliest_wrong(logits, y, target_classes, first)[:, None]


def _nearer(best: Nearest, x: Array, distance: Array) -> Nearest:
    nearer = distance < best.distance
    return Nearest(choose(nearer, x, best.x), jnp.where(nearer, distance, best.distance))


def _inner(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=range(1, a.ndim))
