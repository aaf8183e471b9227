"""The objective of every defense with an unrolled attack; a defense is an attacker and a criterion.

    theta descends  E end(theta, x_T),    phi ascends  E sum_t w_t inner(x_t) + bonus,    x_t made by phi.

One scalar and one backward pass give both gradients: inside the attack theta is behind `stop_gradient`, and at x_T the
attacker gets the end's gradient, scaled to that of w_T inner.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient

from l2ljax import losses
from l2ljax.attacks.ascent import Ascent, LossFn, Start, ascend, uniform
from l2ljax.attacks.gradient import PerExampleLoss
from l2ljax.attacks.learned import Attacker
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Batch, Classifier, Defense, Key, LogitsFn, Players, Tree, example_keys, fold_in
from l2ljax.values import Range

__all__ = [
    "Climb", "Criterion", "Forward", "Outcome", "Shift", "Steps", "Width", "adversarial",
    "in_place", "mixture", "step_weights", "trades", "trained", "unrolled", "without_attacker",
]  # fmt: skip

Steps = Annotated[int, Range(1, 10_000)]
"""The length of an unrolled attack."""
Width = Annotated[int, Range(1, 4096)]
"""Channels or units of a layer of an attacker."""
Outcome = tuple[Array, tuple[Players, dict[str, Array]]]
"""The value of `Defense.objective`."""
Forward = Callable[[Tree, Array], tuple[Array, Tree]]
"""(batch_stats, x) -> (logits, batch_stats), in the mode of the moving player."""
Shift = Callable[[Callable[[Tree], Array], Tree], Tree]
"""(the end's loss as a function of the weights, theta) -> the weights at which the end is taken."""
Climb = Callable[[LossFn, optax.GradientTransformation, Key, Array, int], Ascent]
"""(loss_fn, rule, keys [B], x, steps) -> `ascend` with the defense's ball and start."""


class Criterion(NamedTuple):
    """The losses of the two players."""

    inner: Callable[[LogitsFn, Batch], Callable[[Array, Array], Array]]
    """(eval-mode logits function, batch) -> the attack's loss: (x, logits [B, K] at x) -> [B]."""
    end: Callable[[Forward, Tree, Batch, Array], tuple[Array, Array, Tree]]
    """(forward, batch_stats, batch, x_T) -> (losses [B], logits at x_T, batch_stats)."""
    weight: float
    """The share of the mean inner loss in the mean of the end's loss."""


def adversarial(loss: PerExampleLoss = losses.cross_entropy) -> Criterion:
    """Take the loss at the adversarial images alone; with cross-entropy, Madry et al. (2018), eq. 2.1."""

    def end(forward: Forward, stats: Tree, batch: Batch, x_adv: Array) -> tuple[Array, Array, Tree]:
        logits, stats = forward(stats, x_adv)
        return loss(logits, batch.y), logits, stats

    return Criterion(lambda logits_fn, batch: lambda x, logits: loss(logits, batch.y), end, 1.0)


def mixture(clean: float) -> Criterion:
    """Take clean CE(f(x)) + (1 - clean) CE(f(x_adv)), `clean` in [0, 1); 1/2 in L2L's released code for PGM."""

    def end(forward: Forward, stats: Tree, batch: Batch, x_adv: Array) -> tuple[Array, Array, Tree]:
        at_x, stats = forward(stats, batch.x)
        logits, stats = forward(stats, x_adv)
        value = clean * losses.cross_entropy(at_x, batch.y) + (1 - clean) * losses.cross_entropy(logits, batch.y)
        return value, logits, stats

    return Criterion(adversarial().inner, end, 1 - clean)


def trades(beta: float) -> Criterion:
    """Take CE(f(x), y) + beta KL(f(x) || f(x_adv)); the attack ascends the KL. Zhang et al. (2019), eq. 5.

    The gradient flows through both arguments of the KL. The released code runs three training-mode passes (it repeats
    the clean one); here the clean logits serve both terms, so BatchNorm's running statistics move twice.
    """

    def inner(logits_fn: LogitsFn, batch: Batch) -> Callable[[Array, Array], Array]:
        clean = logits_fn(batch.x)
        return lambda x, logits: losses.kl(clean, logits)

    def end(forward: Forward, stats: Tree, batch: Batch, x_adv: Array) -> tuple[Array, Array, Tree]:
        clean, stats = forward(stats, batch.x)
        logits, stats = forward(stats, x_adv)
        return losses.cross_entropy(clean, batch.y) + beta * losses.kl(clean, logits), logits, stats

    return Criterion(inner, end, beta)


def step_weights(name: str, steps: int) -> list[float]:
    """Return w_1..w_T of RNN-Adv's eq. 10: "t" (w_t = t) or "final" (w_T alone)."""
    return [float(t) if name == "t" else float(t == steps) for t in range(1, steps + 1)]


def unrolled(
    classifier: Classifier, attacker: Attacker, ball: Ball, criterion: Criterion, *, steps: int,
    start: Start = uniform, weights: Sequence[float] | None = None, draws: int = 1,
    bonus: Callable[[Tree, Batch, Ascent, Array], Array] | None = None,
    penalty: Callable[[Forward, Tree, Key, Batch], Array] | None = None, query: Literal["eval", "train"] = "eval",
    unroll: int | bool = 1, axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Return the defense that trains `classifier` on the images that `attacker` reaches in `steps` steps.

    Args:
      classifier: the network to defend.
      attacker: `attacks.learned.recurrent`, `convolutional`, or `fixed(rule)`, which has no parameters.
      ball: the threat.
      criterion: `adversarial()`, `trades(beta)` or your own.
      steps: T, the attack's length.
      start: of the attack.
      weights: w_1..w_T of the losses along the attack in the attacker's objective; by default the last alone.
      draws: attacks per example, with different keys; the criterion's batch then repeats the examples `draws` times,
        one draw after the other.
      bonus: (attacker's parameters, the criterion's batch, the attack, the end's losses as constants) -> a scalar to
        ascend besides the losses.
      penalty: (forward, batch_stats, keys [B], the criterion's batch) -> a term [B] of the classifier's loss that no
        attack moves; its passes do not move the running statistics.
      query: BatchNorm mode of the gradient passes when the classifier moves alone (schedule "alternating"): "train" in
        the released L2L code, where the running statistics include these passes.
      unroll: of the attack's loop, as in `lax.scan`.
      axis_name: the pmapped axis, in training.

    BatchNorm otherwise: the attack uses the classifier in evaluation mode. The pass at x_T is in training mode if the
    classifier moves; the attacker is in training mode if it moves. So under "joint" the attacker's last loss comes from
    the training-mode pass that trains the classifier (the papers' code runs one more in evaluation mode).
    """
    weights = [0.0] * (steps - 1) + [1.0] if weights is None else weights

    def climb(loss_fn: LossFn, rule: optax.GradientTransformation, keys: Key, x: Array, steps: int) -> Ascent:
        return ascend(loss_fn, rule, ball, keys, x, steps=steps, start=start, unroll=unroll)

    def objective(
        params: Players, stats: Players, key: Key, batch: Batch, mode: str, shift: Shift = in_place
    ) -> Outcome:
        keys = example_keys(key, len(batch.x))
        attack_keys = _repeat_keys(fold_in(keys, 0), draws)
        batch = Batch(*(jnp.concatenate([a] * draws) for a in batch))
        constant = stop_gradient(params.classifier)
        frozen = {"params": constant, "batch_stats": stats.classifier}
        inner = criterion.inner(lambda x: classifier.logits(frozen, x), batch)

        counted = query == "train" and mode == "classifier"

        def look(batch_stats: Tree, x: Array) -> tuple[Array, Tree]:
            variables = {"params": constant, "batch_stats": batch_stats}
            if counted:
                return classifier.train(variables, x, _repeat_keys(fold_in(keys, 1), draws), axis_name)
            return classifier.logits(variables, x), {}

        def loss_fn(x: Array) -> tuple[Array, Any]:
            logits, seen = look(stats.classifier, x)
            return inner(x, logits), (seen, losses.accuracy(logits, batch.y).mean())

        labels, moves = losses.classes(batch.y), mode != "classifier"
        rule = attacker.rule(params.attacker, stats.attacker, fold_in(attack_keys, 0), labels, moves, axis_name)
        ascent = climb(loss_fn, rule, attack_keys, batch.x, steps)
        seen, accuracy = ascent.aux

        batch_stats = stats.classifier
        if counted:
            batch_stats = _one_after_the_other(lambda r: look(r, batch.x)[1], batch_stats, seen)

        def ended(theta: Tree, x_last: Array) -> tuple[Array, Array, Tree]:
            streams = itertools.count(2)  # each pass of the criterion draws its own dropout masks, as in torch

            def forward(batch_stats: Tree, x: Array) -> tuple[Array, Tree]:
                variables = {"params": theta, "batch_stats": batch_stats}
                if mode == "attacker":
                    return classifier.logits(variables, x), batch_stats
                stream = fold_in(keys, next(streams))
                return classifier.train(variables, x, _repeat_keys(stream, len(x) // len(keys)), axis_name)

            values, logits, updated = criterion.end(forward, batch_stats, batch, x_last)
            if penalty is not None:
                values += penalty(forward, batch_stats, _repeat_keys(fold_in(keys, next(streams)), draws), batch)
            return values, logits, updated

        shifted = shift(lambda theta: ended(theta, stop_gradient(ascent.x))[0].mean(), params.classifier)
        x_last = _scale_gradient(ascent.x, weights[-1] / criterion.weight)
        end, logits, batch_stats = ended(shifted, x_last)
        value = end.mean()
        if any(weights[:-1]):  # else the path's losses cost unneeded passes
            value += jnp.array(weights[:-1]) @ ascent.losses[1:].mean(axis=1)
        if bonus is not None:
            value += bonus(params.attacker, batch, ascent, stop_gradient(end))
        metrics = {
            "loss": end.mean(),
            "accuracy": accuracy[0],
            "robust_accuracy": losses.accuracy(logits, batch.y).mean(),
        }
        return value, (Players(batch_stats, attacker.batch_stats(ascent.state)), metrics)

    return Defense(attacker.init, objective, trained(attacker, climb, steps))


def without_attacker(
    classifier: Classifier, criterion: Criterion, moved: Callable[[Key, Array], Array], *, axis_name: str | None = None
) -> Defense:  # fmt: skip
    """Return the defense that trains on the images moved(keys [B], x), which no attacker makes.

    `moved` may draw from fold_in(keys, 0). The passes of a criterion share their dropout masks.
    """

    def objective(
        params: Players, stats: Players, key: Key, batch: Batch, mode: str, shift: Shift = in_place
    ) -> Outcome:
        keys = example_keys(key, len(batch.x))
        x = moved(keys, batch.x)

        def ended(theta: Tree) -> tuple[Array, Array, Tree]:
            def forward(batch_stats: Tree, x: Array) -> tuple[Array, Tree]:
                variables = {"params": theta, "batch_stats": batch_stats}
                return classifier.train(variables, x, fold_in(keys, 1), axis_name)

            return criterion.end(forward, stats.classifier, batch, x)

        values, logits, batch_stats = ended(shift(lambda theta: ended(theta)[0].mean(), params.classifier))
        if mode == "attacker":
            batch_stats = stats.classifier
        metrics = {"loss": values.mean(), "accuracy": losses.accuracy(logits, batch.y).mean()}
        return values.mean(), (Players(batch_stats, stats.attacker), metrics)

    return Defense(lambda key, x: ({}, {}), objective, lambda params, batch_stats, steps=None, path=False: None)


def in_place(loss: Callable[[Tree], Array], theta: Tree) -> Tree:
    """Take the end at theta itself."""
    return theta


def trained(attacker: Attacker, climb: Climb, steps: int) -> Callable[..., Attack | None]:
    """Make `Defense.attack`: the trained attacker ascends the cross-entropy, whatever its training objective.

    Return (params, batch_stats, steps=steps, path=False) -> Attack, or None without parameters.
    """

    @functools.cache  # one function for all weights: programs are kept by it
    def of(steps: int, path: bool) -> Callable[..., Array]:
        def own(params: Tree, batch_stats: Tree, logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
            keys = example_keys(key, len(x))
            rule = attacker.rule(params, batch_stats, fold_in(keys, 0), y)
            ascent = climb(lambda x: (losses.cross_entropy(logits_fn(x), y), ()), rule, keys, x, steps)
            return ascent.path if path else ascent.x

        return own

    def attack(params: Tree, batch_stats: Tree, steps: int = steps, path: bool = False) -> Attack | None:
        if not jax.tree.leaves(params):
            return None
        return jax.tree_util.Partial(of(steps, path), params, batch_stats)

    return attack


def _repeat_keys(keys: Key, times: int) -> Key:
    """Return the keys of a batch that repeats the examples, one repetition after the other."""
    return keys if times == 1 else jnp.concatenate([fold_in(keys, i) for i in range(times)])


def _scale_gradient(x: Array, factor: float) -> Array:
    """Return x, with its derivative times `factor`."""
    return stop_gradient(x) + factor * (x - stop_gradient(x))


def _one_after_the_other(one_pass: Callable[[Tree], Tree], first: Tree, updated: Tree) -> Tree:
    """Return the running statistics after T passes, given those that each pass alone makes from `first` [T, ...].

    A pass turns r into m r + (1 - m) b. The momentum m of each layer is the derivative of any pass in r. Passes from
    the same r are chained by r_{t+1} = updated_t + m (r_t - first). Integers count passes, so m is 1.
    """
    is_count = lambda r: not jnp.issubdtype(r.dtype, jnp.inexact)
    ones = jax.tree.map(lambda r: np.zeros(r.shape, jax.dtypes.float0) if is_count(r) else jnp.ones_like(r), first)
    # The compiler removes the pass itself. Outside jit, our convolutions have no forward-mode derivative.
    momentum = jax.jit(lambda r: jax.jvp(one_pass, (r,), (ones,))[1])(first)

    def chain(r0: Array, rows: Array, m: Array) -> Array:
        r = r0
        for row in rows:
            r = row + (r - r0 if is_count(r0) else m * (r - r0))
        return r

    return jax.tree.map(chain, first, updated, momentum)
