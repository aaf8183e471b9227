"""Carlini & Wagner's attack in the variants that papers use under that name.

    attack = attacks.l2l_da_cw(threat.linf(0.3), steps=100)       # the CW100 column of L2L-DA and RNN-Adv
    attack = attacks.l2l_cw(threat.linf(0.031), steps=100)        # the CW column of L2L
    attack = attacks.cw_l2()                                      # the original: the least change in l2
    attack = attacks.cw_l2(threat.l2(0.5))                        # where it is at most 0.5

The last two search: each example goes through its own rounds of Adam, and the loop ends with the slowest. They descend
in w, x' = (tanh(w) + 1) / 2, which keeps x' in [0, 1] without a projection.

All three follow their authors' code, with Adam's 1e-8 added to the gradient's scale: on a model with gradients below
about 1e-8, like one with tiny logits, the image hardly moves. PGD's steps do not depend on that scale.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2ljax import losses
from l2ljax.attacks.ascent import LossFn, clean, finite
from l2ljax.attacks.entrance import check_losses, entered
from l2ljax.attacks.gradient import Keep, PerExampleLoss, ascent_attack
from l2ljax.threat import Ball, choose, spread
from l2ljax.types import Array, Attack, Key, LogitsFn, Tree
from l2ljax.values import Count, NonNegative, Positive, checked

__all__ = ["CONSTANTS", "SMALLEST_TAU", "cw_l2", "l2l_cw", "l2l_da_cw", "margin_within"]


def margin_within(margin: Array, x: Array, x0: Array, tau: float) -> Array:
    """Return min(margin, 0) - max(|x - x0|_inf - tau, 0), [B]: the objective that `l2l_da_cw` ascends."""
    distance = jnp.abs(x - x0).max(axis=range(1, x.ndim))
    return jnp.minimum(margin, 0) - jnp.maximum(distance - tau, 0)


@checked
def l2l_da_cw(
    ball: Ball, *, steps: Count = 100, learning_rate: NonNegative = 1e-3, tau: NonNegative = 8 / 255,
    loss: PerExampleLoss = losses.margin, keep: Keep = "last",
) -> Attack:  # fmt: skip
    """Ascend the margin by Adam from the clean image, in the ball; last iterate. L2L-DA's and RNN-Adv's "CW100".

    The variant of mister_ed, which L2L-DA's released code runs. There tau is 8/255 on MNIST too, so that the distance
    term pulls back from the ball's edge; a pixel moves at most about steps * learning_rate. That code's search over the
    weight of the margin has no effect (ten identical rounds from the same start): this is one round. Its stop after
    step 100, when the batch's loss stands still, is left out: it depends on an example's neighbours.

    Args:
      ball: the set that contains the iterates.
      steps: of Adam.
      learning_rate: Adam's.
      tau: the largest change without a penalty.
      loss: the margin, positive once the attack has succeeded.
      keep: the iterate to return, see `gradient.ascent_attack`.
    """

    def objective(logits_fn: LogitsFn, x0: Array, y: Array) -> LossFn:
        def loss_fn(x: Array) -> tuple[Array, Array]:
            margin = loss(logits_fn(x), y)
            return margin_within(margin, x, x0, tau), margin > 0

        return loss_fn

    return ascent_attack(objective, optax.adam(learning_rate), ball, steps=steps, start=clean, keep=keep)


CONSTANTS = 10.0 ** np.arange(-5, 2)
"""The weights of the margin that `l2l_cw` tries."""
SMALLEST_TAU = 1 / 256
"""The search gives up at this bound on the largest change."""


class _Descent(NamedTuple):
    """The state of Adam for each example in tanh space."""

    w: Array  # [B, H, W, C]
    adam: Tree  # every leaf [B, ...]


class _TauSearch(NamedTuple):
    """The state of `l2l_cw` for each example [B]."""

    descent: _Descent
    tau: Array
    exponent: Array  # of the constant, in CONSTANTS
    step: Array  # with this constant
    busy: Array
    result: Array  # [B, H, W, C]


@checked
def l2l_cw(
    ball: Ball, *, steps: Count = 100, learning_rate: NonNegative = 5e-3, loss: PerExampleLoss = losses.margin
) -> Attack:
    """Shrink the largest change, in tanh space, below eps. Learning to Defend by Learning to Attack, "CW".

        minimize  c max(z_y - max_{k != y} z_k, 0) + sum_i max(|x'_i - x_i| - tau, 0)

    Carlini & Wagner (2017), section VI.C, as in L2L's released code. Adam runs with c = 1e-5, 1e-4, ..., 10, at most
    `steps` each, from tau = 1, and carries on from one c to the next. A misclassified x' with |x' - x|_inf < eps is
    returned at once. A loss below 1e-4 c ends the round: tau becomes 0.9 min(tau, |x' - x|_inf), and a new Adam starts
    from x' with the same c. When c or tau is exhausted (tau <= 1/256), or if x is already misclassified, the clean
    image is returned.

    The released code attacks one image at a time. This attacks the whole batch, in the time of its slowest example: at
    most 59 * `steps` passes forward and backward (7 constants, of which the last ends it, and 52 values of tau).

    Args:
      ball: linf. In another ball tau still bounds the largest change, and the result is in that ball.
      steps: with one c; the paper says 100, the released file 50.
      learning_rate: Adam's, in tanh space.
      loss: the margin, positive once the attack has succeeded.
    """
    rule = optax.adam(learning_rate)

    @entered
    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        def begin(x: Array) -> _Descent:
            return _begin(rule, x, shrink=0.9999)

        def step(s: _TauSearch) -> _TauSearch:
            const = jnp.asarray(CONSTANTS, s.tau.dtype)[s.exponent]

            def loss_fn(x_new: Array) -> tuple[Array, Array]:
                margin = loss(logits_fn(x_new), y)
                excess = jax.nn.relu(jnp.abs(x_new - x) - spread(s.tau, x))
                return const * jax.nn.relu(-margin) + _per_example(jnp.sum, excess), margin

            descent, x_new, value, margin = _descend(rule, loss_fn, s.descent)
            distance = _per_example(jnp.max, jnp.abs(x_new - x))
            wrong = s.busy & ~(margin <= 0)
            hit = wrong & (ball.norm(x_new - x) < ball.eps)
            solved = wrong & ~hit & (value < 1e-4 * const)
            spent = ~solved & (s.step + 1 == steps)
            tau = jnp.where(solved, 0.9 * jnp.minimum(s.tau, distance), s.tau)
            exponent = s.exponent + spent
            return _TauSearch(
                descent=choose(solved, begin(x_new), descent),
                tau=tau,
                exponent=exponent,
                step=jnp.where(solved | spent, 0, s.step + 1),
                busy=s.busy & ~hit & (tau > SMALLEST_TAU) & (exponent < len(CONSTANTS)),
                result=choose(hit, x_new, s.result),
            )

        tau = jnp.ones(len(x), jnp.promote_types(x.dtype, jnp.float32))
        none = jnp.zeros(len(x), int)
        busy = loss(logits_fn(x), y) <= 0
        first = _TauSearch(begin(x), tau, exponent=none, step=none, busy=busy, result=x)
        return jax.lax.while_loop(lambda s: s.busy.any(), step, first).result

    return attack


class _ConstSearch(NamedTuple):
    """The state of `cw_l2` for each example [B]."""

    descent: _Descent
    const: Array
    lower: Array
    upper: Array
    fooled: Array  # whether this constant fooled the model
    checked: Array  # the loss at the last check
    round: Array
    step: Array
    best: Array  # [B, H, W, C]
    distance: Array  # its squared distance


@checked
def cw_l2(
    ball: Ball | None = None, *, steps: Count = 1000, learning_rate: NonNegative = 1e-2, initial_const: Positive = 1e-3,
    search_steps: Count = 9, confidence: NonNegative = 0.0, abort_early: bool = True,
    loss: PerExampleLoss = losses.margin,
) -> Attack:  # fmt: skip
    """Return the misclassified image of least l2 distance. Carlini & Wagner (2017), section VI.A.

        minimize  |x' - x|_2^2 + c max(z_y - max_{k != y} z_k + confidence, 0)

    Adam runs from x for each c. The next c is ten times the last until one fools the model, then the mean of the
    largest that failed and the smallest that succeeded. Returns the best image of all steps; the clean image if none
    fools the model or if it is already misclassified by more than `confidence`. Takes at most `search_steps` * `steps`
    passes forward and backward.

    Args:
      ball: if given, results outside it are replaced by the clean image. The search is unchanged and minimizes the l2
        distance, so l2 is the ball to use.
      steps: with one c.
      learning_rate: Adam's, in tanh space. Its first step moves a mid-gray pixel by half of it, for any c: if that
        alone fools the model, c keeps shrinking and the result is about that step, not the least change.
      initial_const: the first c.
      search_steps: number of constants c.
      confidence: the margin max_{k != y} z_k - z_y must exceed it to count as misclassified.
      abort_early: go to the next c when a tenth of the steps lowered the loss by less than 0.01 %. Per example; the
        authors' code looks at the whole batch.
      loss: the margin, positive once the attack has succeeded.
    """
    rule = optax.adam(learning_rate)

    @entered
    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        fresh = _begin(rule, x, shrink=0.999999)

        def step(s: _ConstSearch) -> _ConstSearch:
            def loss_fn(x_new: Array) -> tuple[Array, tuple[Array, Array]]:
                margin = loss(logits_fn(x_new), y)
                distance = _per_example(jnp.sum, (x_new - x) ** 2)
                return distance + s.const * jax.nn.relu(confidence - margin), (distance, margin)

            descent, x_new, value, (distance, margin) = _descend(rule, loss_fn, s.descent)
            value = value.astype(s.checked.dtype)  # logits may be wider than images
            wrong = ~(margin <= confidence)
            better = wrong & (distance < s.distance) & (s.round < search_steps)
            fooled = s.fooled | wrong

            look = s.step % max(steps // 10, 1) == 0
            stalls = look & (value > 0.9999 * s.checked) & abort_early
            over = stalls | (s.step + 1 == steps)
            upper = jnp.where(over & fooled, jnp.minimum(s.upper, s.const), s.upper)
            lower = jnp.where(over & ~fooled, jnp.maximum(s.lower, s.const), s.lower)
            const = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, 10 * s.const)
            return _ConstSearch(
                descent=choose(over, fresh, descent),
                const=jnp.where(over, const, s.const),
                lower=lower,
                upper=upper,
                fooled=fooled & ~over,
                checked=jnp.where(over, jnp.inf, jnp.where(look, value, s.checked)),
                round=s.round + over,
                step=jnp.where(over, 0, s.step + 1),
                best=choose(better, x_new, s.best),
                distance=jnp.where(better, distance, s.distance),
            )

        wrong = ~(loss(logits_fn(x), y) <= confidence)
        zero = jnp.zeros(len(x), jnp.promote_types(x.dtype, jnp.float32))
        first = _ConstSearch(
            descent=fresh, const=zero + initial_const, lower=zero, upper=zero + jnp.inf, fooled=wrong,
            checked=zero + jnp.inf, round=jnp.where(wrong, search_steps, 0), step=jnp.zeros(len(x), int), best=x,
            distance=jnp.where(wrong, 0, zero + jnp.inf),
        )  # fmt: skip
        best = jax.lax.while_loop(lambda s: (s.round < search_steps).any(), step, first).best
        return best if ball is None else choose(ball.norm(best - x) <= ball.eps, best, x)

    return attack


def _begin(rule: optax.GradientTransformation, x: Array, shrink: float) -> _Descent:
    """Start at x, shrunk towards middle gray so that black and white have a finite w."""
    return _Descent(jnp.arctanh(shrink * (2 * x - 1)), jax.vmap(rule.init)(x))


def _descend(rule: optax.GradientTransformation, loss_fn: LossFn, at: _Descent) -> tuple[_Descent, Array, Array, Any]:
    """Take one step on loss_fn(x') -> (losses [B], aux). Return the new state, and x', losses and aux before it."""

    x, pull_back = jax.vjp(lambda w: (jnp.tanh(w) + 1) / 2, at.w)
    values, vjp, aux = jax.vjp(loss_fn, x, has_aux=True)
    (gradient,) = pull_back(finite(*vjp(jnp.ones_like(check_losses(values, len(x))))))
    updates, adam = jax.vmap(rule.update)(gradient, at.adam)
    return _Descent(at.w + updates, adam), x, values, aux


def _per_example(reduce: Callable[..., Array], values: Array) -> Array:
    return reduce(values, axis=range(1, values.ndim))
