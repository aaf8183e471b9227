"""APGD in an l1 ball: sparse steps, in balls that shrink. Croce & Hein (2021), "Mind the box", l1-APGD.

    climb = ascend_in_l1(gradient_fn, threat.l1(12.0), x, start, steps=100)

`apgd` and `apgd_targeted` run it for an l1 ball; it is not for other attacks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2ljax.attacks.adaptive_ascent import AdaptiveAscent, GradientFn, Point
from l2ljax.attacks.ascent import finite
from l2ljax.threat import Ball, choose, l1, largest, spread
from l2ljax.types import Array

__all__ = ["ascend_in_l1", "ascend_sparsely"]


class _State(NamedTuple):
    x: Array
    adversarial: Array
    fooled: Array
    best: Point
    step_size: Array  # [B], in the l1 norm
    moved: Array  # [B]: the number of entries that a step moves
    support: Array  # [B]: the number of changed entries at the last checkpoint


def ascend_in_l1(gradient_fn: GradientFn, ball: Ball, x: Array, start: Array, *, steps: int) -> AdaptiveAscent:
    """Run `ascend_sparsely` in balls of 3 eps, 2 eps and eps: 30 %, 30 % and 40 % of the steps; the last one counts.

    Each phase begins at the best point of the one before, projected. Croce & Hein (2021), section 3, with the first two
    shares rounded down: the released code rounds them up, and leaves none of two steps to the last.

    Args:
      gradient_fn: called T + 3 times.
      ball: an l1 ball.
      x: clean images [B, H, W, C] in [0, 1], the ball's center.
      start: the first iterate.
      steps: T, of all phases.
    """

    def phase(factor: float, begun: int, count: int, point: Array) -> AdaptiveAscent:
        wide = l1(factor * ball.eps)
        return ascend_sparsely(lambda x, t: gradient_fn(x, begun + t), wide, x, wide.project(point, x), count)

    few = int(0.3 * steps)
    point = phase(3, 0, few, start).best
    point = phase(2, few + 1, few, point).best
    return phase(1, 2 * few + 2, steps - 2 * few, point)


def ascend_sparsely(gradient_fn: GradientFn, ball: Ball, x: Array, start: Array, steps: int) -> AdaptiveAscent:
    """Take steps of a size eta in l1, each along the entries of largest gradient. Algorithm 1, as released.

        x_{t+1} = P(x_t + eta s_t / |s_t|_1),   s_t: the signs of the m entries of largest |grad L(x_t)|, 0 elsewhere

    Every max(0.04 T, 1) steps, m is set to the number of entries that the best point changes, over 1.5. If that number
    fell by more than 5 % since the last time, eta is eps again and the ascent goes on from the best point; else eta
    falls by 1.5, down to eps / 10.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    window = max(int(0.04 * steps), 1)

    def support(point: Array) -> Array:
        rounding = 4 * jnp.finfo(x.dtype).eps  # the released code counts what a projection's last bit changes, too
        return jnp.sum(jnp.abs(point - x) > rounding, axis=range(1, x.ndim)).astype(wide)

    def step(state: _State, t: Array) -> tuple[_State, None]:
        gradient, loss, wrong = gradient_fn(state.x, t)
        here = Point(state.x, finite(gradient), loss.astype(wide))
        best = choose(here.loss > state.best.loss, here, state.best)
        check, changed = (t > 0) & (t % window == 0), support(best.x)
        sparser = check & (changed < 0.95 * state.support)
        shorter = jnp.maximum(state.step_size / 1.5, ball.eps / 10)
        step_size = jnp.where(sparser, ball.eps, jnp.where(check, shorter, state.step_size))
        moved = jnp.where(check, jnp.ceil(changed / 1.5), state.moved)
        origin = choose(sparser, best, here)
        signs = largest(origin.gradient, moved)
        after = _State(
            x=ball.project(origin.x + spread(step_size, x) * signs, x),
            adversarial=choose(wrong, here.x, state.adversarial),
            fooled=state.fooled | wrong,
            best=best,
            step_size=step_size,
            moved=moved,
            support=jnp.where(check, changed, state.support),
        )
        return after, None

    begun = support(start)
    first = _State(
        x=start, adversarial=start, fooled=jnp.zeros(len(x), bool),
        best=Point(start, jnp.zeros_like(start), jnp.full(len(x), -jnp.inf, wide)),
        step_size=jnp.full(len(x), ball.eps, wide), moved=jnp.ceil(begun / 1.5), support=begun,
    )  # fmt: skip
    last, _ = jax.lax.scan(step, first, jnp.arange(steps + 1))
    return AdaptiveAscent(last.adversarial, last.fooled, last.best.x, last.best.loss, None)
