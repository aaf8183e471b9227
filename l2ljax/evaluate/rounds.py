"""Attacks that stop at success, in rounds of a few steps on those examples of a batch that still stand.

done = in_rounds(attacks.create("pgd100+first", ball), logits_fn, keys, x, y)
done.x_adv, done.passes          # the same images as the attack at once; fewer passes

Of a model that is 50 % robust, PGD-100 takes a little more than half of the passes.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from l2ljax.attacks.gradient import Stopping
from l2ljax.types import Array, Key, LogitsFn, Tree

__all__ = ["ROUND", "UNCHANGED", "Done", "in_rounds"]

ROUND = 10
"""Steps after which fooled examples are dropped."""


class Done(NamedTuple):
    """What an attack in rounds did to a batch."""

    x_adv: Array
    """[B, H, W, C]."""
    passes: float
    """Passes through the classifier, in units of the batch; those of examples that fill up a batch count too."""
    seconds: float
    """Compilation apart."""


def in_rounds(attack: Stopping, logits_fn: LogitsFn, keys: Key, x: Array | np.ndarray, y: Array | np.ndarray) -> Done:
    """The attack on one batch, whose fooled examples are dropped every ten steps. Runs on the host, on one device.

    Those that stand are packed into a batch of a multiple of an eighth of the first one, so that few programs compile.
    Each example takes the steps that it takes in the attack at once; so the images are the same but for rounding in
    the classifier's gradient, where that depends on the size of the batch.

    Args:
      attack: of `gradient_attack(keep="first")`, like "pgd100+first".
      logits_fn: a `jax.tree_util.Partial`, whose weights do not compile anew.
      keys: one per example [B].
      x: clean images [B, H, W, C].
      y: labels [B].
    """
    n, unit = len(x), max(len(x) // 8, 1)
    reached = jax.jit(attack.begin)(keys, x)
    standing, passes, seconds = np.arange(n), 0.0, 0.0
    for done in range(0, attack.steps, ROUND):
        steps = min(ROUND, attack.steps - done)
        rows = np.resize(standing, min(-(-len(standing) // unit) * unit, n))
        args = jax.device_put((logits_fn, x, y, reached, rows), jax.local_devices()[0])
        leaves, treedef = jax.tree.flatten(args)
        run = _compiled(attack.go_on, steps, treedef, tuple(map(jax.typeof, leaves)))
        began = time.perf_counter()
        reached, fooled = jax.block_until_ready(run(*args))
        seconds += time.perf_counter() - began
        passes += steps * len(rows) / n
        standing = standing[~np.asarray(fooled)[: len(standing)]]
        if not len(standing):
            break
    return Done(reached[0], passes, seconds)


@functools.lru_cache(maxsize=32)
def _compiled(go_on: Callable[..., Any], steps: int, treedef: Any, shapes: tuple[Any, ...]) -> Callable[..., Any]:
    """The program that takes so many steps on some rows of the batch, compiled ahead."""

    def run(logits_fn: LogitsFn, x: Array, y: Array, reached: Tree, rows: Array) -> tuple[Tree, Array]:
        def of_batch(a: Array) -> bool:  # else the rule has it for all examples together, like a count of steps
            return a.ndim > 0 and len(a) == len(x)

        part = jax.tree.map(lambda a: a[rows] if of_batch(a) else a, reached)
        part, fooled = go_on(logits_fn, x[rows], y[rows], part, steps)
        return jax.tree.map(lambda a, b: a.at[rows].set(b) if of_batch(a) else b, reached, part), fooled

    example = [jax.ShapeDtypeStruct(shape.shape, shape.dtype) for shape in shapes]
    return jax.jit(run).lower(*jax.tree.unflatten(treedef, example)).compile()


def _unchanged(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
    return x


UNCHANGED = jax.tree_util.Partial(_unchanged)
"""The attack that does nothing, for images that are attacked already."""
