"""APGD: gradient ascent that halves its own step size. Croce & Hein (2020), AutoAttack.

    attack = attacks.apgd(threat.linf(8 / 255))                    # on the cross-entropy; or loss="dlr"
    attack = attacks.apgd_targeted(threat.linf(8 / 255))           # APGD-T: towards each of nine classes
    x_adv = jax.jit(attack)(logits_fn, key, x, y)

`ascend_adaptively` is the ascent, one `lax.scan`; the two attacks run it from random starts until an example falls.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from l2ljax import losses
from l2ljax.attacks.ascent import Start, finite
from l2ljax.attacks.boundary import nearest_wrong
from l2ljax.attacks.entrance import entered
from l2ljax.attacks.gradient import PerExampleLoss, likeliest_wrong
from l2ljax.attacks.sparse_ascent import AdaptiveAscent, GradientFn, Point, Trace, ascend_in_l1
from l2ljax.threat import Ball, choose, spread
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn, example_keys, fold_in
from l2ljax.values import Count, Natural, Share, checked

__all__ = [
    "LOSSES", "Order", "apgd", "apgd_targeted", "ascend_adaptively", "checkpoints", "gradients", "surface",
]  # fmt: skip

Model = Callable[..., Array]  # logits_fn(x); for a stochastic model logits_fn(x, keys [B])
Order = Literal["likeliest", "nearest"]
"""The order of targets: by logit, or by linearized distance."""
LOSSES: dict[str, PerExampleLoss] = {"ce": losses.cross_entropy, "dlr": losses.dlr}


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


def gradients(loss: PerExampleLoss, logits_fn: Model, y: Array, keys: Key, eot: int = 1) -> GradientFn:
    """Return a `GradientFn` of `loss`: logits_fn is wrong where its argmax is not y or its logits are NaN.

    With eot > 1 (expectation over transformation, for stochastic models) the gradient is the mean over that many draws
    of logits_fn(x, keys), with keys folded from `keys` [B]. Losses and predictions come from the last draw, as in the
    released code.
    """

    def once(x: Array, *keys: Key) -> tuple[Array, Array, Array]:
        def forward(x: Array) -> tuple[Array, Array]:
            logits = logits_fn(x, *keys)
            return loss(logits, y), losses.accuracy(logits, y) == 0

        values, vjp, wrong = jax.vjp(forward, x, has_aux=True)
        return vjp(jnp.ones_like(values))[0], values, wrong

    def mean(x: Array, t: Array) -> tuple[Array, Array, Array]:
        def draw(total: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
            gradient, values, wrong = once(x, fold_in(keys, t * eot + i))
            return total + gradient, (values, wrong)

        total, (values, wrong) = jax.lax.scan(draw, jnp.zeros_like(x), jnp.arange(eot))
        return total / eot, values[-1], wrong[-1]

    return (lambda x, t: once(x)) if eot == 1 else mean


def surface(ball: Ball, key: Key, x0: Array) -> Array:
    """Start at distance eps from x0, then clip to [0, 1]: x0 + eps u / |u|, u uniform for linf and normal for l2.

    In l1, start at the projection of x0 + u, which changes few pixels.
    """
    draw = functools.partial(jax.random.uniform, minval=-1) if ball.name == "linf" else jax.random.normal
    u = jax.vmap(lambda k: draw(k, x0.shape[1:], x0.dtype))(example_keys(key, len(x0)))
    return ball.project(x0 + (u if ball.name == "l1" else ball.eps * _unit(ball, u)), x0)


@checked
def apgd(
    ball: Ball, *, steps: Count = 100, loss: str | PerExampleLoss = "ce", restarts: Count = 1, rho: Share = 0.75,
    eot: Count = 1, start: Start = surface,
) -> Attack:  # fmt: skip
    """Run `ascend_adaptively` from random starts. Croce & Hein (2020), APGD-CE and APGD-DLR.

    Returns the last misclassified iterate of the first run that has one. Returns the clean image if none has, or if it
    is misclassified itself. Remaining runs are skipped once the whole batch is misclassified.

    Args:
      ball: linf, l2, or l1, where `ascend_in_l1` runs.
      steps: of each run.
      loss: "ce", "dlr", or (logits [B, K], y [B]) -> losses [B] to ascend.
      restarts: number of runs.
      rho: the fraction of increases at or below which a step is halved.
      eot: draws of a stochastic model per gradient; above 1 the model is called as logits_fn(x, keys [B]).
      start: the first iterate of each run.

    Raises:
      L2LError: an unknown loss.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise L2LError(f"unknown loss {loss!r}: choose from {', '.join(LOSSES)}, or give a function of (logits, y)")
    ascended = LOSSES[loss] if isinstance(loss, str) else loss
    return _attack(ball, lambda logits_fn, x, clean, y: y[None], lambda _: ascended, steps, restarts, rho, eot, start)


@checked
def apgd_targeted(
    ball: Ball, *, steps: Count = 100, target_classes: Count = 9, first: Natural = 0, order: Order = "likeliest",
    restarts: Count = 1, rho: Share = 0.75, eot: Count = 1, start: Start = surface,
) -> Attack:  # fmt: skip
    """Run `apgd` on the targeted DLR loss, once per target (APGD-T). Croce & Hein (2020), section 4.2.

    The targets are the wrong classes of largest logit at the clean image, in that order, or in that of `nearest_wrong`:
    `target_classes` of them, or as many as there are, from rank `first` on, which may be traced. Targets tried one by
    one draw as they do together. The rest is as in `apgd`. Fewer than four classes, and a rank that none has, raise an
    L2LError.
    """

    def targets(logits_fn: LogitsFn, x: Array, clean: Array, y: Array) -> Array:
        if order == "nearest":
            return nearest_wrong(logits_fn, ball, x, y, target_classes, first)
        return likeliest_wrong(clean, y, target_classes, first)

    def towards(target: Array) -> PerExampleLoss:
        return lambda logits, y: losses.dlr_targeted(logits, y, target)

    return _attack(ball, targets, towards, steps, restarts, rho, eot, start, first * restarts)


def _attack(
    ball: Ball, goals_of: Callable[..., Array], loss_of: Callable[[Array], PerExampleLoss], steps: int, restarts: int,
    rho: float, eot: int, start: Start, done: int | Array = 0,
) -> Attack:  # fmt: skip
    """Make `restarts` runs per goal on the examples that are not fooled yet; `done` runs came before.

    `goals_of` is (logits_fn, x, clean logits [B, K], y [B]) -> goals [runs, B], `loss_of` the loss of one goal [B].
    """

    ascend = ascend_in_l1 if ball.name == "l1" else functools.partial(ascend_adaptively, rho=rho)

    @entered
    def attack(logits_fn: Model, keys: Key, x: Array, y: Array) -> Array:
        model = logits_fn if eot == 1 else lambda x: logits_fn(x, fold_in(keys, 0))
        clean = model(x)
        goals = jnp.repeat(goals_of(model, x, clean, y), restarts, axis=0)

        def run(reached: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            i, goal = at
            k_start, k_model = (fold_in(fold_in(keys, i), stream) for stream in range(2))

            def again(x_adv: Array, fooled: Array) -> tuple[Array, Array]:
                gradient_fn = gradients(loss_of(goal), logits_fn, y, k_model, eot)
                climb = ascend(gradient_fn, ball, x, start(ball, k_start, x), steps=steps)
                return choose(climb.fooled & ~fooled, climb.adversarial, x_adv), fooled | climb.fooled

            return jax.lax.cond(reached[1].all(), lambda *same: same, again, *reached), None

        first = (x, losses.accuracy(clean, y) == 0)
        return jax.lax.scan(run, first, (1 + done + jnp.arange(len(goals)), goals))[0][0]

    return attack


def _unit(ball: Ball, delta: Array) -> Array:
    return delta / (spread(ball.norm(delta), delta) + 1e-12)


def _direction(ball: Ball, gradient: Array) -> Array:
    """Return `ball.steepest` as AutoAttack computes it: in l2 it is short if the gradient is around 1e-12."""
    return jnp.sign(gradient) if ball.name == "linf" else _unit(ball, gradient)
