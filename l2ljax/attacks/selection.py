"""Choices that attacks share: the stronger of two images, and the wrong classes to go to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from l2ljax import losses
from l2ljax.attacks.ascent import larger
from l2ljax.attacks.entrance import sound
from l2ljax.types import Array, L2LError, LogitsFn

__all__ = ["from_rank", "keep_stronger", "likeliest_wrong", "strongest"]


def keep_stronger(logits_fn: LogitsFn, y: Array, best: tuple[Array, Array], candidate: Array) -> tuple[Array, Array]:
    """Return per example the image of larger margin loss, `best` or `candidate`; see `entrance` for NaN."""
    candidate = sound(candidate, best[0])
    return larger(best, (candidate, losses.margin(logits_fn(candidate), y).astype(best[1].dtype)))


def strongest(
    logits_fn: LogitsFn, y: Array, best: tuple[Array, Array], tried: Callable[[Any], Array], items: Any
) -> Array:
    """Return per example the image of largest margin loss: `best`, or tried(item) for an item along the first axis."""
    return jax.lax.scan(lambda best, item: (keep_stronger(logits_fn, y, best, tried(item)), None), best, items)[0][0]


def likeliest_wrong(logits: Array, y: Array, n: int, first: int | Array = 0) -> Array:
    """Return the n wrong classes of largest logit, from rank `first` on, see `from_rank`: [B, K], [B] -> [n, B]."""
    true = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
    order = jnp.argsort(jnp.where(true, jnp.inf, logits), axis=1, descending=True)
    return from_rank(order[:, 1:].T, n, first)


def from_rank(classes: Array, n: int, first: int | Array = 0) -> Array:
    """Return n of the ranked wrong classes [M, B], from rank `first` on: [n, B].

    There are fewer than n if M - first is smaller. After a traced `first` the last class fills their places.
    """
    wrong = len(classes)
    if not isinstance(first, jax.core.Tracer):
        if first >= wrong:
            raise L2LError(f"first={first}: {wrong} wrong classes are ranked, from 0 to {wrong - 1}")
        n = min(n, wrong - int(first))
    return classes[jnp.minimum(first + jnp.arange(min(n, wrong)), wrong - 1)]
