"""Evaluation: attacks x data -> rows, on the host, in batches of one shape.

result = evaluate(logits_fn, dataset.test, {"pgd20": attacks.create("pgd20", ball)}, key=key)
result.clean_acc, result.attacks["pgd20"].robust_acc, result.worst_case_acc
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from l2ljax import cost, losses
from l2ljax.attacks.solver import as_tree, solvers
from l2ljax.data import Split
from l2ljax.evaluate.loop import (
    STANDS,
    Job,
    Progress,
    Turn,
    attack_in_turn,
    clean_logits,
    job_of,
    named_attacks,
    over,
)  # fmt: skip
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Key, LogitsFn, one_key
from l2ljax.values import Count, checked

__all__ = ["AttackRow", "Evaluation", "evaluate", "losses_of_draws"]


class AttackRow(NamedTuple):
    """The result of one attack on a split of N examples."""

    robust_acc: float
    """Fraction of the N classified correctly, before and after the attack."""
    seconds: float
    """Seconds of the attack on all N, without compilation."""
    passes: float | None
    """Forward and input-gradient passes through the classifier per batch, counted in the program (see `cost`); for an
    attack that stops at success, the mean of those until an image is fooled, in rounds of 10; None if its program does
    not hold their number."""
    correct: np.ndarray
    """bool [N], whether each example is classified correctly before and after."""


class Evaluation(NamedTuple):
    """The result of several attacks on a split."""

    clean_acc: float
    classes_predicted: int
    """Number of classes predicted for the clean images: fewer than there are mean a collapsed model."""
    attacks: dict[str, AttackRow]
    worst_case_acc: float
    """Fraction of examples that no attack fools."""


@checked
def evaluate(
    logits_fn: LogitsFn, split: Split | tuple[Any, Any], attacks: Mapping[str, Attack], *, key: Key,
    ball: Ball | None = None, batch_size: Count = 250, progress: Callable[[str], None] = lambda name: None,
) -> Evaluation:  # fmt: skip
    """Attack every example of a split; attacks that stop at success (`+first`) skip finished examples (see `loop`).

    Example i draws from fold_in(key, i), with i its position in the split, so the result does not depend on the batch
    size (except for an attack that looks across the batch, like L2L's with its batch-wide gradient maximum).

    Args:
      logits_fn: images -> logits in evaluation mode. With a `jax.tree_util.Partial` over the weights, an attack
        compiles once for all weights.
      split: images [N, H, W, C], uint8 or floats in [0, 1] (in half precision taken as float32), and integer labels
        [N].
      attacks: name -> attack.
      key: one key.
      ball: the ball that no attack may leave, if they share one.
      batch_size: examples per batch, split evenly over all local devices; copies fill the last batch.
      progress: called with "clean" and with each attack's name before it runs.

    Raises:
      L2LError: no examples, labels that the classifier lacks, probabilities instead of logits, logits that are not
        finite, an attack that leaves [0, 1] or the ball or returns NaN.
    """
    progress("clean")
    job = job_of(logits_fn, split, batch_size=batch_size, ball=ball)
    predicted = clean_logits(job, key).argmax(axis=1)
    clean = predicted == job.labels
    rows = {}
    for name, attack in named_attacks(attacks):
        progress(name)
        rows[name] = _row(job, name, attack, key, clean)
    worst = np.logical_and.reduce([clean, *(row.correct for row in rows.values())])
    return Evaluation(float(clean.mean()), len(np.unique(predicted)), rows, float(worst.mean()))


def _row(job: Job, name: str, attack: Attack, key: Key, clean: np.ndarray) -> AttackRow:
    todo = [Turn(name, solver, key) for solver in solvers(attack)]
    state = Progress(None, np.full(len(clean), STANDS), np.zeros(2, int), np.zeros((len(todo), 2)))
    attack_in_turn(job, todo, state)
    correct = clean & (state.fooled_by == STANDS)
    seconds, steps = state.spent.sum(axis=0)
    whole = sum(turn.solver.steps for turn in todo) * len(clean)
    _, x, y = job.batch(key, np.resize(np.arange(len(clean)), job.batch_size))
    passes = cost.passes(attack, job.logits_fn, x, y)
    taken = passes if passes is None else float(passes * (steps / whole if whole else 1.0))
    return AttackRow(float(correct.mean()), float(seconds), taken, correct)


@checked
def losses_of_draws(
    logits_fn: LogitsFn, split: Split, attack: Attack, *, key: Key, draws: Count, batch_size: Count = 250
) -> np.ndarray:
    """Return the cross-entropies that an attack reaches on a split, each draw with another key.

    Returns:
      [draws, T, N] for an attack that returns its path x_1..x_T [T, B, H, W, C]; T is 1 for all others.
    """
    job = job_of(logits_fn, split, batch_size=batch_size)
    keys = jax.random.split(one_key(key), draws)
    reached = [over(job, jax.tree_util.Partial(_reached, as_tree(attack)), k) for k in keys]
    return np.stack(reached).swapaxes(1, 2)


def _reached(attack: Attack, logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
    path = attack(logits_fn, keys, x, y).reshape(-1, *x.shape)
    return jax.lax.map(lambda x_t: losses.cross_entropy(logits_fn(x_t), y), path).T
