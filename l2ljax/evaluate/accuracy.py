"""Evaluation: attacks x data -> rows, on the host, in batches of one shape.

result = evaluate(logits_fn, dataset.test, {"pgd20": attacks.create("pgd20", ball)}, key=key)
result.clean_acc, result.attacks["pgd20"].robust_acc, result.worst_case_acc
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import cost, devices, losses
from l2ljax.attacks.gradient import Stopping
from l2ljax.data import Split, batches
from l2ljax.evaluate.rounds import UNCHANGED, in_rounds
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn

__all__ = ["AttackRow", "Evaluation", "as_tree", "check_batch", "check_logits", "evaluate", "losses_of_draws"]


class AttackRow(NamedTuple):
    """What one attack did to a split of N examples."""

    robust_acc: float
    """Fraction of the N that is classified correctly, before and after the attack."""
    seconds: float
    """Of the attack on all N, compilation apart."""
    passes: float
    """Forward and input-gradient passes through the classifier per batch, counted in the program (see `cost`); of an
    attack that stops at success, the mean of those that were taken (see `rounds`)."""
    correct: np.ndarray
    """bool [N], which examples are classified correctly before and after."""


class Evaluation(NamedTuple):
    """What a list of attacks did to a split."""

    clean_acc: float
    classes_predicted: int
    """How many classes are predicted for some clean image: fewer than there are mean a collapsed model."""
    attacks: dict[str, AttackRow]
    worst_case_acc: float
    """Fraction that none of the attacks fools."""


def evaluate(
    logits_fn: LogitsFn,
    split: Split,
    attacks: Mapping[str, Attack],
    *,
    key: Key,
    batch_size: int = 250,
    progress: Callable[[str], None] = lambda name: None,
) -> Evaluation:
    """Attack every example of a split; those that stop at success (`+first`) on the examples that stand (see `rounds`).

    Example i draws from fold_in(key, i) with i its position in the split, so the result does not depend on the batch
    size (an attack that looks across the batch, like L2L's with its batch-wide gradient maximum, excepted).

    Args:
      logits_fn: images -> logits in evaluation mode. A `jax.tree_util.Partial` over the weights compiles an attack
        once for all weights.
      split: images uint8 [N, H, W, C] and labels int32 [N].
      attacks: name -> attack.
      key: one key.
      batch_size: examples at a time, in equal parts on all local devices; the last batch is filled up with copies.
      progress: called with "clean" and each attack's name before it runs.

    Raises:
      L2LError: no examples, labels that the classifier does not have, probabilities instead of logits, an attack that
        leaves [0, 1] or returns NaN.
    """
    n = len(split.labels)
    if split.images.dtype != np.uint8:
        raise L2LError(
            f"the split's images are {split.images.dtype}: give uint8, like (255 * x).round().astype('uint8')"
        )
    if n == 0:
        raise L2LError("there are no examples to evaluate on: give --eval-size 1 or more")
    batch_size = devices.round_up(min(batch_size, n))
    logits_fn = devices.copied(as_tree(logits_fn))

    progress("clean")
    logits = np.concatenate([
        np.asarray(_predict(logits_fn, devices.spread(b.x)))[: b.valid] for b in batches(split, batch_size)
    ])  # fmt: skip
    check_logits(logits, split.labels)
    predicted = logits.argmax(axis=1)
    clean = predicted == split.labels
    rows = {}
    for name, attack in attacks.items():
        progress(name)
        rows[name] = _attack_row(logits_fn, split, attack, key, batch_size, clean)
    worst = np.logical_and.reduce([clean, *(row.correct for row in rows.values())])
    return Evaluation(float(clean.mean()), len(np.unique(predicted)), rows, float(worst.mean()))


def _attack_row(
    logits_fn: LogitsFn, split: Split, attack: Attack, key: Key, batch_size: int, clean: np.ndarray
) -> AttackRow:
    attack = as_tree(attack)
    placed = devices.copied(attack)
    correct = np.zeros(len(split.labels), bool)
    seconds, passes = 0.0, []
    for batch in batches(split, batch_size):
        x, y = devices.spread((batch.x, batch.y))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.start + jnp.arange(len(x)))
        if isinstance(attack.func, Stopping):
            done = in_rounds(attack.func, logits_fn, keys, batch.x, batch.y)
            placed, x, seconds = UNCHANGED, devices.spread(done.x_adv), seconds + done.seconds
            passes.append(done.passes)
        args = (placed, logits_fn, devices.spread(keys), x, y)
        leaves, treedef = jax.tree.flatten(args)
        run = _compiled(treedef, tuple(map(devices.placed, leaves)))
        began = time.perf_counter()
        survived, valid = jax.block_until_ready(run(*args))
        seconds += time.perf_counter() - began
        if not valid.all():
            raise L2LError(
                f"the attack left [0, 1] or returned NaN in the batch from example {batch.start} on: "
                "check the model's logits and the attack's projection"
            )
        correct[batch.start : batch.start + batch.valid] = survived[: batch.valid]
    correct &= clean
    counted = float(np.mean(passes)) if passes else cost.passes(attack, logits_fn, x, y)
    return AttackRow(float(correct.mean()), seconds, counted, correct)


def losses_of_draws(
    logits_fn: LogitsFn, split: Split, attack: Attack, *, key: Key, draws: int, batch_size: int = 250
) -> np.ndarray:
    """The cross-entropies that an attack reaches on a split, each draw with another key.

    Returns:
      [draws, T, N], of an attack that returns its path x_1..x_T [T, B, H, W, C]; T is 1 for all others.
    """
    args = as_tree(attack), as_tree(logits_fn), jax.random.split(key, draws)
    found = [
        _batch_of_draws(*args, b.start, b.x, b.y)[..., : b.valid]
        for b in batches(split, min(batch_size, len(split.labels)))
    ]
    return np.concatenate(found, axis=2)


@jax.jit
def _batch_of_draws(attack: Attack, logits_fn: LogitsFn, keys: Key, start: Array, x: Array, y: Array) -> Array:
    def draw(key: Key) -> Array:
        own = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(len(x)))
        path = attack(logits_fn, own, x, y).reshape(-1, *x.shape)
        return jax.lax.map(lambda x_t: losses.cross_entropy(logits_fn(x_t), y), path)

    return jax.lax.map(draw, keys)


@jax.jit
def _predict(logits_fn: LogitsFn, x: Array) -> Array:
    return devices.on_each(lambda f, x: f(x))(logits_fn, x)


@functools.lru_cache(maxsize=32)
def _compiled(treedef: Any, shapes: tuple[Any, ...]) -> Callable[..., tuple[Array, Array]]:
    """The program that attacks a batch, compiled ahead: so that no compilation is timed, and none is done twice."""

    def run(attack: Attack, logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> tuple[Array, Array]:
        x_adv = attack(logits_fn, keys, x, y)
        valid = ((x_adv >= 0) & (x_adv <= 1)).all(axis=range(1, x.ndim))  # NaN compares as false
        return losses.accuracy(logits_fn(x_adv), y) > 0, valid

    return jax.jit(devices.on_each(run, whole=2)).lower(*jax.tree.unflatten(treedef, shapes)).compile()


def as_tree(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """The function as a pytree that jit takes as an argument: a Partial over arrays keeps them traced."""
    return function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)


def check_batch(x: Array | np.ndarray, y: Array | np.ndarray, num_classes: int | None = None) -> None:
    """Look whether images and labels are what attacks take. Runs on the host: not under jit.

    Raises:
      L2LError: x is not float [B, H, W, C] in [0, 1], or y not integers [B] in 0..K-1.
    """
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(x.dtype, np.floating):
        raise L2LError(f"images are {x.dtype}: give floats in [0, 1], like images.astype('float32') / 255")
    if x.ndim != 4:
        raise L2LError(f"images have the shape {list(x.shape)}: give [B, H, W, C]")
    if np.isnan(x).any():
        raise L2LError("images hold NaN: clean the data first")
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise L2LError(
            f"images reach from {x.min():.3g} to {x.max():.3g}: scale them to [0, 1] and put normalization in the model"
        )
    if y.ndim != 1:
        raise L2LError(f"labels have the shape {list(y.shape)}: give integers [B], for one-hot ones y.argmax(axis=1)")
    if not np.issubdtype(y.dtype, np.integer):
        raise L2LError(f"labels are {y.dtype}: give integers")
    if len(y) != len(x):
        raise L2LError(f"{len(x)} images and {len(y)} labels: give one label per image")
    if y.size and (y.min() < 0 or (num_classes is not None and y.max() >= num_classes)):
        raise L2LError(f"labels reach from {y.min()} to {y.max()}: the classes are 0..{(num_classes or 0) - 1}")


def check_logits(logits: Array | np.ndarray, y: Array | np.ndarray) -> None:
    """Look whether a model returned logits [B, K] for labels y.

    Raises:
      L2LError: another shape, labels >= K, NaN, or rows that are probabilities.
    """
    logits, y = np.asarray(logits), np.asarray(y)
    if logits.ndim != 2 or len(logits) != len(y):
        raise L2LError(f"the model returned {list(logits.shape)} for {len(y)} images: logits are [B, K]")
    if np.isnan(logits).any():
        raise L2LError("the model returned NaN logits: its training diverged, or its input is wrong")
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise L2LError(f"labels reach from {y.min()} to {y.max()}, the model has the classes 0..{logits.shape[1] - 1}")
    if (logits >= -1e-6).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-4):
        raise L2LError("the model returns probabilities: give its logits (before the softmax), or attacks fail")
