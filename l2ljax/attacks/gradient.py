"""Attacks along the input gradient: FGSM, PGD, momentum, line search, PGD on the margin; and random noise.

    attack = attacks.pgd(threat.linf(8 / 255), step_size=2 / 255, steps=10)
    x_adv = jax.jit(attack)(logits_fn, key, x, y)

A new first-order attack is a rule of about ten lines (an optax optimizer) and a call of `gradient_attack`.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from l2ljax import losses
from l2ljax.attacks import ascent
from l2ljax.attacks.ascent import LossFn, Start, clean, keep_best, larger, stop_at_success, uniform
from l2ljax.attacks.entrance import entered
from l2ljax.attacks.selection import strongest
from l2ljax.attacks.solver import Carry, Solver
from l2ljax.threat import Ball, spread
from l2ljax.types import Array, Attack, Key, LogitsFn, fold_in
from l2ljax.values import Count, NonNegative, Range, Share, checked

__all__ = [
    "Fraction", "Keep", "PerExampleLoss", "ascent_attack", "backtracking", "fgsm", "gradient_attack", "line_search",
    "momentum", "pgd", "random_noise", "random_signs", "steepest_ascent",
]  # fmt: skip

PerExampleLoss = Callable[[Array, Array], Array]
"""(logits [B, K], y [B]) -> losses [B] to ascend."""
Keep = Literal["last", "best", "first"]
Fraction = Annotated[float, Range(0, 1, above=True)]


@checked
def gradient_attack(
    ball: Ball, rule: optax.GradientTransformation, *, steps: Count, loss: PerExampleLoss = losses.cross_entropy,
    start: Start = uniform, keep: Keep = "last", unroll: int | bool = 1,
) -> Attack:  # fmt: skip
    """Return the attack that unrolls `rule` on `loss` for `steps` steps.

    Args:
      ball: the set that contains the iterates.
      rule: the optimizer of the input.
      steps: T.
      loss: (logits [B, K], y [B]) -> the losses [B] to ascend, not their mean. For one that needs the clean logits
        too see `ascent_attack`, whose objective is given x0 and y.
      start: the first iterate.
      keep: the iterate to return per example: "last", as in the papers' tables; "best", the one of largest loss (one
        more forward pass); "first", the first misclassified one, where an example stops, else the last.
      unroll: as in `lax.scan`.
    """

    def objective(logits_fn: LogitsFn, x0: Array, y: Array) -> LossFn:
        def loss_fn(x: Array) -> tuple[Array, Array]:
            logits = logits_fn(x)
            return loss(logits, y), losses.accuracy(logits, y) == 0

        return loss_fn

    return ascent_attack(objective, rule, ball, steps=steps, start=start, keep=keep, unroll=unroll)


def ascent_attack(
    objective: Callable[[LogitsFn, Array, Array], LossFn], rule: optax.GradientTransformation, ball: Ball, *,
    steps: int, start: Start = uniform, keep: Keep = "last", unroll: int | bool = 1,
) -> Attack:  # fmt: skip
    """Return `gradient_attack` on an objective that depends on the clean image: (logits_fn, x0, y) -> loss_fn.

    The auxiliary output of loss_fn is whether x is misclassified, bool [B].
    """
    rule = {"last": lambda rule: rule, "best": keep_best, "first": stop_at_success}[keep](rule)

    @entered
    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        loss_fn = objective(logits_fn, x, y)
        climb = ascent.ascend(loss_fn, rule, ball, key, x, steps=steps, start=start, unroll=unroll)
        if keep != "best":
            return climb.x
        return larger((climb.state.x, climb.state.loss), (climb.x, loss_fn(climb.x)[0]))[0]

    def init(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Carry:
        x_0, state = ascent.init(rule, ball, key, x, start)
        return Carry(x_0, jnp.zeros(len(x), bool), state)

    def advance(logits_fn: LogitsFn, key: Key, x: Array, y: Array, carry: Carry, n: int) -> Carry:
        climb = ascent.advance(objective(logits_fn, x, y), rule, ball, x, (carry.x, carry.state), n, unroll=unroll)
        return Carry(climb.x, climb.aux[-1], climb.state)  # a misclassified x_t stays, up to a projection's rounding

    if keep == "first":
        attack.solvers = (Solver(Partial(init), Partial(advance), steps),)  # type: ignore[attr-defined]
    return attack


def steepest_ascent(ball: Ball, step_size: float) -> optax.GradientTransformation:
    """Step by `step_size` in the ball's norm along its steepest direction (the sign, for linf)."""
    return optax.stateless(lambda g, _: -step_size * ball.steepest(g))


@checked
def fgsm(
    ball: Ball, *, loss: PerExampleLoss = losses.cross_entropy, start: Start = clean, keep: Keep = "last",
    unroll: int | bool = 1,
) -> Attack:  # fmt: skip
    """Take one step as long as the radius: x + eps sign(grad). Goodfellow et al. (2015), section 4."""
    rule = steepest_ascent(ball, ball.eps)
    return gradient_attack(ball, rule, steps=1, loss=loss, start=start, keep=keep, unroll=unroll)


@checked
def pgd(
    ball: Ball, *, step_size: NonNegative, steps: Count, loss: PerExampleLoss = losses.cross_entropy,
    start: Start = uniform, keep: Keep = "last", unroll: int | bool = 1,
) -> Attack:  # fmt: skip
    """Project gradient steps: x_{t+1} = project(x_t + a steepest(grad L(x_t))). Madry et al. (2018), section 2.1.

    Args:
      ball: linf, l2 or l1.
      step_size: a, in the ball's norm.
      steps: T.
      loss: as in `gradient_attack`; `functools.partial(losses.margin, kappa=50)` gives the challenges' "CW".
      start: `uniform`, `clean` or `gaussian` of `attacks.ascent`.
      keep: the iterate to return, see `gradient_attack`.
      unroll: as in `lax.scan`.
    """
    rule = steepest_ascent(ball, step_size)
    return gradient_attack(ball, rule, steps=steps, loss=loss, start=start, keep=keep, unroll=unroll)


@checked
def momentum(
    ball: Ball, *, step_size: NonNegative, steps: Count, decay: NonNegative = 1.0,
    loss: PerExampleLoss = losses.cross_entropy, start: Start = clean, keep: Keep = "last", unroll: int | bool = 1,
) -> Attack:  # fmt: skip
    """Follow m = decay m + g / |g|_1: x = project(x + a steepest(m)). Dong et al. (2018), eq. 6 and 7 (MI-FGSM)."""

    def normalize(g: Array, _: Any) -> Array:
        return g / jnp.maximum(jnp.sum(jnp.abs(g), axis=range(1, g.ndim), keepdims=True), jnp.finfo(g.dtype).tiny)

    rule = optax.chain(optax.stateless(normalize), optax.trace(decay), steepest_ascent(ball, step_size))
    return gradient_attack(ball, rule, steps=steps, loss=loss, start=start, keep=keep, unroll=unroll)


@checked
def backtracking(
    *, max_step: NonNegative, rho: Fraction = 0.5, c: Share = 1e-4, halvings: Count = 10
) -> optax.GradientTransformationExtraArgs:
    """Step along p = grad L(x) by the largest a in {max_step rho^k} that ascends enough, per example.

        L(project(x + a p)) >= L(x) + c a p.p          RNN-Adv paper, eq. 4

    optax's own line searches choose one step for the whole batch. Three readings of the paper are fixed here. The
    projection is inside the test: the tested point is the next iterate. `max_step`, which the paper does not give, is
    in the ball's norm: the raw gradient p differs by orders of magnitude between examples, so the search starts at
    a = max_step / norm(p). If no a passes after `halvings`, the smallest is taken.
    """

    def update(
        grads: Array, state: optax.EmptyState, x: Array, *, x0: Array, losses: Array, loss_fn: LossFn, ball: Ball,
        **_: Any,
    ) -> tuple[Array, optax.EmptyState]:  # fmt: skip
        largest = jnp.abs(grads).max(axis=range(1, x.ndim), keepdims=True)
        d = -grads / jnp.maximum(largest, jnp.finfo(x.dtype).tiny)  # squares of p may underflow
        slope = jnp.sum(-grads * d, axis=range(1, x.ndim))
        first = max_step / jnp.maximum(ball.norm(d), 1e-12)

        def halve(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            a, done = carry

            def test(a: Array, done: Array) -> tuple[Array, Array]:
                reached = loss_fn(ball.project(x + spread(a, x) * d, x0))[0]
                done = done | (reached >= losses + c * a * slope)
                return jnp.where(done, a, rho * a), done

            return jax.lax.cond(done.all(), lambda a, done: (a, done), test, a, done), None

        a = jax.lax.scan(halve, (first, jnp.zeros(len(x), bool)), length=halvings)[0][0]
        return spread(a, x) * d, state

    return optax.GradientTransformationExtraArgs(lambda x: optax.EmptyState(), update)


@checked
def line_search(
    ball: Ball, *, max_step: NonNegative, steps: Count, rho: Fraction = 0.5, c: Share = 1e-4,
    loss: PerExampleLoss = losses.cross_entropy, start: Start = uniform, keep: Keep = "last", unroll: int | bool = 1,
) -> Attack:  # fmt: skip
    """Ascend along the raw gradient with step sizes from `backtracking`."""
    rule = backtracking(max_step=max_step, rho=rho, c=c)
    return gradient_attack(ball, rule, steps=steps, loss=loss, start=start, keep=keep, unroll=unroll)


@checked
def random_noise(ball: Ball, *, samples: Count) -> Attack:
    """Return per example the one of `samples` uniform draws from the ball with the largest margin loss."""

    @entered
    def attack(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        none = (x, jnp.full(len(x), -jnp.inf, x.dtype))
        return strongest(logits_fn, y, none, lambda i: ball.sample(fold_in(keys, i), x), jnp.arange(samples))

    return attack


@checked
def random_signs(ball: Ball) -> Attack:
    """Return x0 + eps times a random sign per pixel: the baseline for an attack's gain over noise."""

    @entered
    def attack(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        signs = jax.vmap(lambda k: jax.random.rademacher(k, x.shape[1:], x.dtype))(keys)
        return ball.project(x + ball.eps * signs, x)

    return attack
