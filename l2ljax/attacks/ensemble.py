"""Combinators: attacks made of attacks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from l2ljax import losses
from l2ljax.attacks.gradient import keep_stronger
from l2ljax.types import Array, Attack, Key, LogitsFn, example_keys, fold_in


def best_of(attacks: Sequence[Attack]) -> Attack:
    """Per example the result of largest margin loss: misclassified if any of the attacks makes it so."""

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))
        best, best_margin = x, losses.margin(logits_fn(x), y)
        for i, member in enumerate(attacks):
            best, best_margin = keep_stronger(
                logits_fn, y, (best, best_margin), member(logits_fn, fold_in(keys, i), x, y)
            )
        return best

    return attack


def restarts(attack: Attack, n: int) -> Attack:
    """`attack` n times with different keys, per example the result of largest margin loss."""

    def restarted(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))

        def again(best: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            return keep_stronger(logits_fn, y, best, attack(logits_fn, fold_in(keys, i), x, y)), None

        first = (x, losses.margin(logits_fn(x), y))
        return jax.lax.scan(again, first, jnp.arange(n))[0][0]

    return restarted
