"""APGD and APGD-T. Croce & Hein (2020), AutoAttack.

    attack = attacks.apgd(threat.linf(8 / 255))                    # on the cross-entropy; or loss="dlr"
    attack = attacks.apgd_targeted(threat.linf(8 / 255))           # APGD-T: towards each of nine classes
    x_adv = jax.jit(attack)(logits_fn, key, x, y)

The two attacks run `adaptive_ascent`, in an l1 ball `sparse_ascent`, from random starts until an example falls.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from l2ljax import losses
from l2ljax.attacks.adaptive_ascent import GradientFn, ascend_adaptively, unit
from l2ljax.attacks.ascent import Start
from l2ljax.attacks.boundary import nearest_wrong
from l2ljax.attacks.entrance import check_losses, entered
from l2ljax.attacks.gradient import PerExampleLoss
from l2ljax.attacks.selection import likeliest_wrong
from l2ljax.attacks.sparse_ascent import ascend_in_l1
from l2ljax.threat import Ball, choose, resized
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn, example_keys, fold_in
from l2ljax.values import Count, Natural, Share, checked

__all__ = [
    "LOSSES", "Order", "apgd", "apgd_targeted", "gradients", "surface",
]  # fmt: skip

Model = Callable[..., Array]  # logits_fn(x); for a stochastic model logits_fn(x, keys [B])
Order = Literal["likeliest", "nearest"]
"""The order of targets: by logit, or by linearized distance."""
LOSSES: dict[str, PerExampleLoss] = {"ce": losses.cross_entropy, "dlr": losses.dlr}


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
        return vjp(jnp.ones_like(check_losses(values, len(x))))[0], values, wrong

    def mean(x: Array, t: Array) -> tuple[Array, Array, Array]:
        def draw(total: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
            gradient, values, wrong = once(x, fold_in(keys, t * eot + i))
            return total + gradient, (values, wrong)

        total, (values, wrong) = jax.lax.scan(draw, jnp.zeros_like(x), jnp.arange(eot))
        return total / eot, values[-1], wrong[-1]

    return (lambda x, t: once(x)) if eot == 1 else mean


def surface(ball: Ball, key: Key, x0: Array) -> Array:
    """Start at distance eps from x0, then clip to [0, 1]: x0 + eps u / |u|, u uniform for linf and normal for l2.

    In l1, start at the projection of x0 + u, which changes few pixels; `apgd` gives it the ball of 3 eps there.
    """
    draw = functools.partial(jax.random.uniform, minval=-1) if ball.name == "linf" else jax.random.normal
    u = jax.vmap(lambda k: draw(k, x0.shape[1:], x0.dtype))(example_keys(key, len(x0)))
    return ball.project(x0 + (u if ball.name == "l1" else ball.eps * unit(ball, u)), x0)


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

    The targets are the wrong classes of largest logit at the clean image, in that order, or in that of `nearest_wrong`,
    which ranks nine of them: `target_classes` of them, or as many as there are, from rank `first` on, which may be
    traced. Targets tried one by one draw as they do together. The rest is as in `apgd`. Fewer than four classes, and a
    rank that none has, raise an L2LError.
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

    in_l1 = ball.name == "l1"
    ascend = ascend_in_l1 if in_l1 else functools.partial(ascend_adaptively, rho=rho)
    around = resized(ball, 3 * ball.eps) if in_l1 else ball  # the first of its balls

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
                climb = ascend(gradient_fn, ball, x, start(around, k_start, x), steps=steps)
                return choose(climb.fooled & ~fooled, climb.adversarial, x_adv), fooled | climb.fooled

            return jax.lax.cond(reached[1].all(), lambda *same: same, again, *reached), None

        first = (x, losses.accuracy(clean, y) == 0)
        return jax.lax.scan(run, first, (1 + done + jnp.arange(len(goals)), goals))[0][0]

    return attack
