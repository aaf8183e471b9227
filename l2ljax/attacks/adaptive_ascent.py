"""APGD's ascent in linf and l2, which halves its own step size. Croce & Hein (2020), AutoAttack.

    climb = ascend_adaptively(gradient_fn, threat.linf(8 / 255), x, start, steps=100)

One `lax.scan`. `auto_pgd` runs it from random starts until an example falls; in an l1 ball it runs that of
`sparse_ascent`, which has the same types.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2ljax.attacks.ascent import finite
from l2ljax.threat import Ball, choose, spread
from l2ljax.types import Array

__all__ = ["AdaptiveAscent", "GradientFn", "Point", "Trace", "ascend_adaptively", "checkpoints", "unit"]

GradientFn = Callable[[Array, Array], tuple[Array, Array, Array]]
"""(x [B, H, W, C], step number) -> gradient of the losses [B, H, W, C], losses [B], misclassified [B]."""


class Trace(NamedTuple):
    """The ascent at x_0..x_T, stacked [T + 1, ...]."""

    x: Array  # the iterates [T + 1, B, H, W, C]
    losses: Array  # [T + 1, B]
    best_losses: Array  # the largest loss so far [T + 1, B]
    step_sizes: Array  # [T + 1, B]: of the step from x_t, after any halving at a checkpoint; the last is not used


class AdaptiveAscent(NamedTuple):
    """The result of T steps, per example."""

    adversarial: Array  # the last misclassified iterate [B, H, W, C]; the start if none
    fooled: Array  # whether any iterate is misclassified [B]
    best: Array  # the iterate of largest loss [B, H, W, C]
    best_loss: Array  # its loss [B]
    trace: Trace | None  # if requested


class Point(NamedTuple):
    """An iterate of an ascent, per example."""

    x: Array
    gradient: Array
    loss: Array


class _State(NamedTuple):
    x: Array
    x_before: Array
    adversarial: Array
    fooled: Array
    best: Point
    step_size: Array  # [B]
    rises: Array  # [B]: number of loss increases since the last checkpoint
    last_loss: Array
    checked_loss: Array  # the best loss at the last checkpoint
    halved: Array  # whether the step was halved there


def checkpoints(steps: int) -> list[tuple[int, int]]:
    """Return (t, window) pairs: the last `window` steps are judged after step t. Croce & Hein (2020), section 3.1.

    The first window is 0.22 T, each next one 0.03 T shorter, down to 0.06 T; all are rounded down, to at least 1, as in
    the released code (the paper rounds t up).
    """
    window, shrink, shortest = (max(int(fraction * steps), 1) for fraction in (0.22, 0.03, 0.06))
    t, schedule = window, []
    while t <= steps:
        schedule.append((t, window))
        window = max(window - shrink, shortest)
        t += window
    return schedule


def ascend_adaptively(
    gradient_fn: GradientFn, ball: Ball, x: Array, start: Array, *, steps: int, rho: float = 0.75, trace: bool = False
) -> AdaptiveAscent:
    """Take momentum steps, halving an example's step size when a window of steps gains too little.

        z = P(x_t + eta s(grad L(x_t))),  x_{t+1} = P(x_t + a (z - x_t) + (1 - a) (x_t - x_{t-1})),

    with eta = 2 eps at first, a = 0.75 (1 in the first step), and s the sign, or the gradient over its l2 norm + 1e-12.
    A checkpoint halves eta and returns to the best point if the loss rose in at most rho of the window's steps, or if
    the last checkpoint kept eta and the best loss has not grown since. Croce & Hein (2020), Algorithm 1, as released:
    the first step's loss counts as a rise if it is positive, not if it exceeds the start's. The first pass is step 0 of
    the scan, so that the network is compiled once.

    Args:
      gradient_fn: see `gradients`; called T + 1 times.
      ball: linf or l2.
      x: clean images [B, H, W, C] in [0, 1], the ball's center.
      start: x_0, in the ball.
      steps: T >= 1.
      rho: in (0, 1).
      trace: keep the iterates, losses and step sizes.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def step(state: _State, at: tuple[Array, Array]) -> tuple[_State, Trace | None]:
        t, window = at
        gradient, loss, wrong = gradient_fn(state.x, t)
        here = Point(state.x, finite(gradient), loss.astype(wide))
        best = choose(here.loss > state.best.loss, here, state.best)

        rises = state.rises + ((here.loss > state.last_loss) & (t > 0))
        stands_still = ~state.halved & (best.loss <= state.checked_loss)
        check = window > 0
        halve = check & ((rises <= rho * window) | stands_still)
        step_size = jnp.where(halve, state.step_size / 2, state.step_size)
        origin = choose(halve, best, here)

        a = jnp.where(t > 0, 0.75, 1).astype(x.dtype)
        target = ball.project(origin.x + spread(step_size, x) * _direction(ball, origin.gradient), x)
        moved = origin.x + a * (target - origin.x) + (1 - a) * (origin.x - state.x_before)
        after = _State(
            x=ball.project(moved, x),
            x_before=origin.x,
            adversarial=choose(wrong, here.x, state.adversarial),
            fooled=state.fooled | wrong,
            best=best,
            step_size=step_size,
            rises=jnp.where(check, 0, rises),
            last_loss=jnp.where(t > 0, here.loss, 0),
            checked_loss=jnp.where(check, best.loss, state.checked_loss),
            halved=jnp.where(check, halve, state.halved),
        )
        return after, Trace(here.x, here.loss, best.loss, step_size) if trace else None

    schedule = dict(checkpoints(steps))
    windows = jnp.array([schedule.get(t, 0) for t in range(steps + 1)])
    no, nowhere = jnp.zeros(len(x), bool), jnp.full(len(x), -jnp.inf, wide)
    first = _State(
        x=start, x_before=start, adversarial=start, fooled=no, best=Point(start, jnp.zeros_like(start), nowhere),
        step_size=jnp.full(len(x), 2 * ball.eps, x.dtype), rises=jnp.zeros(len(x), int),
        last_loss=jnp.zeros(len(x), wide), checked_loss=nowhere,
        halved=~no,  # the first checkpoint has nothing to compare with
    )  # fmt: skip
    last, seen = jax.lax.scan(step, first, (jnp.arange(steps + 1), windows))
    return AdaptiveAscent(last.adversarial, last.fooled, last.best.x, last.best.loss, seen)


def unit(ball: Ball, delta: Array) -> Array:
    """Return delta over its norm + 1e-12, per example."""
    return delta / (spread(ball.norm(delta), delta) + 1e-12)


def _direction(ball: Ball, gradient: Array) -> Array:
    """Return `ball.steepest` as AutoAttack computes it: in l2 it is short if the gradient is around 1e-12."""
    return jnp.sign(gradient) if ball.name == "linf" else unit(ball, gradient)
