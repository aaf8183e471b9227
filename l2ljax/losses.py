"""Losses per example: logits [B, K] and integer labels [B] in, [B] out. The caller reduces.

All are losses that an attacker ascends.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from l2ljax.types import Array


def cross_entropy(logits: Array, y: Array) -> Array:
    """-log softmax(logits)_y, [B]. In float32 or wider, whatever the logits' type."""
    chex.assert_rank([logits, y], [2, 1])
    return optax.softmax_cross_entropy_with_integer_labels(_wide(logits), y)


def margin(logits: Array, y: Array, *, kappa: float = jnp.inf) -> Array:
    """max_{k != y} z_k - z_y, [B], cut at `kappa` from above: positive where the example is misclassified.

    Carlini & Wagner (2017), f_6, with the sign of an ascent. PGD on it with kappa = 50 is the "CW" of the
    MadryLab challenges.
    """
    logits = _wide(logits)
    true = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
    best_other = jnp.max(jnp.where(true, -jnp.inf, logits), axis=1)
    return jnp.minimum(best_other - jnp.sum(jnp.where(true, logits, 0), axis=1), kappa)


def kl(p_logits: Array, q_logits: Array) -> Array:
    """KL(softmax(p_logits) || softmax(q_logits)), [B]. Zhang et al. (2019), TRADES, with p at the clean image."""
    log_p, log_q = jax.nn.log_softmax(_wide(p_logits)), jax.nn.log_softmax(_wide(q_logits))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def accuracy(logits: Array, y: Array) -> Array:
    """1.0 where the largest logit is the label's, else 0.0, [B]. NaN logits count as wrong."""
    return ((jnp.argmax(logits, axis=1) == y) & ~jnp.isnan(logits).any(axis=1)).astype(jnp.float32)


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
