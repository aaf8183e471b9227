"""Losses per example: [B] from logits [B, K] and integer labels [B]. The caller reduces.

Labels may also be distributions [B, K], of label smoothing or CutMix; but for the cross-entropy, the likeliest class
of one counts.

Logits or labels of another shape or type raise an L2LError. Attackers ascend all of them but the cosine distance.
"""

import jax
import jax.numpy as jnp
import optax

from l2ljax.types import Array, L2LError

__all__ = [
    "accuracy", "classes", "cosine_distance", "cross_entropy", "dlr", "dlr_targeted", "kl", "log_cross_entropy",
    "margin",
]  # fmt: skip
__dir__ = lambda: __all__


def cross_entropy(logits: Array, y: Array) -> Array:
    """Return -log softmax(logits)_y, [B], in float32 or wider for any type of logits.

    Of a distribution p [B, K] of labels it is -sum_k p_k log softmax(logits)_k.
    """
    if y.ndim == 2:
        return optax.softmax_cross_entropy(_checked(logits, y), y)
    return optax.softmax_cross_entropy_with_integer_labels(_checked(logits, y), y)


def log_cross_entropy(logits: Array, y: Array) -> Array:
    """Return log(-log softmax(logits)_y), [B], exact where cross-entropy rounds to 0. Poursaeed et al. (2018).

    With m = log sum_{k != y} exp(z_k) - z_y the cross-entropy is softplus(m), whose logarithm tends to m.
    """
    own, others = _split(logits, y)
    m = jax.nn.logsumexp(others, axis=1) - own
    return jnp.where(m < -15, m, jnp.log(jax.nn.softplus(jnp.maximum(m, -15))))


def margin(logits: Array, y: Array, *, kappa: float = jnp.inf) -> Array:
    """Return max_{k != y} z_k - z_y, [B], clipped at `kappa` from above: positive if misclassified, else negative.

    The sign is that of `accuracy` in ties too, where the first of the largest logits decides: a tie gives the smallest
    number of that sign (that of float32, in wider logits too), and NaN infinity of it. Carlini & Wagner (2017), f_6,
    with the sign for an ascent. PGD on it with kappa = 50 is the "CW" of the MadryLab challenges.
    """
    own, others = _split(logits, y)
    least = max(float(jnp.finfo(kind).tiny) for kind in (logits.dtype, jnp.float32))
    gap, sign = jnp.max(others, axis=1) - own, 1 - 2 * accuracy(logits, y)
    gap = gap + jnp.where(gap == 0, sign * least, 0)
    return jnp.minimum(jnp.where(jnp.isnan(gap), sign * jnp.inf, gap), kappa)


def dlr(logits: Array, y: Array) -> Array:
    """Return the difference of logits ratio, [B], >= -1; positive if misclassified. Croce & Hein (2020), eq. 6.

        -(z_y - max_{k != y} z_k) / (z_p1 - z_p3 + 1e-12),  z_p1 >= z_p2 >= ... the sorted logits

    The loss is invariant to scaling and shifting all logits, so a confident model does not hide its gradients. Fewer
    than three classes raise an L2LError.
    """
    logits = _checked(logits, y, 3, "dlr", "ascend the cross-entropy or the margin instead")
    (first, second, third), order = (a.T for a in jax.lax.top_k(logits, 3))
    best_other = jnp.where(order[0] == classes(y), second, first)
    return -(_at(logits, y) - best_other) / (first - third + 1e-12)


def dlr_targeted(logits: Array, y: Array, target: Array) -> Array:
    """Return the ratio towards a class `target` [B], [B]: it grows with z_t - z_y. Croce & Hein (2020), eq. 7.

        -(z_y - z_t) / (z_p1 - (z_p3 + z_p4) / 2 + 1e-12)

    Fewer than four classes raise an L2LError.
    """
    logits = _checked(_checked(logits, y), target, 4, "dlr_targeted", "use dlr or the cross-entropy instead")
    first, _, third, fourth = jax.lax.top_k(logits, 4)[0].T
    return -(_at(logits, y) - _at(logits, target)) / (first - 0.5 * (third + fourth) + 1e-12)


def kl(p_logits: Array, q_logits: Array) -> Array:
    """Return KL(softmax(p_logits) || softmax(q_logits)), [B]. Zhang et al. (2019), TRADES: p at the clean image."""
    log_p, log_q = jax.nn.log_softmax(_wide(p_logits)), jax.nn.log_softmax(_wide(q_logits))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def classes(y: Array) -> Array:
    """Return integer labels [B], of distributions [B, K] the likeliest classes."""
    return y.argmax(axis=1) if y.ndim == 2 else y


def cosine_distance(a: Array, b: Array) -> Array:
    """Return 1 - cos(a, b) for features [B, D], [B], in [0, 2]. Norms below 1e-6 count as 1e-6."""
    return optax.losses.cosine_distance(_wide(a), _wide(b), epsilon=1e-12)  # of the squared norm


def accuracy(logits: Array, y: Array) -> Array:
    """Return 1.0 if the largest logit is the label's, else 0.0, [B]. NaN logits count as wrong."""
    return ((jnp.argmax(logits, axis=1) == classes(y)) & ~jnp.isnan(logits).any(axis=1)).astype(jnp.float32)


def _checked(logits: Array, y: Array, classes: int = 1, name: str = "", fix: str = "") -> Array:
    """Return the logits in float32 or wider; check shapes and types, while tracing too."""
    if logits.ndim != 2:
        raise L2LError(f"logits have the shape {list(logits.shape)}: the model should return [B, K]")
    if y.ndim not in (1, 2) or not jnp.issubdtype(y.dtype, (jnp.integer, jnp.floating)[y.ndim - 1]):
        raise L2LError(f"labels are {y.dtype} {list(y.shape)}: give integers [B], or distributions [B, K]")
    if y.ndim == 2 and y.shape[1] != logits.shape[1]:
        raise L2LError(f"labels are {list(y.shape)}, and logits {list(logits.shape)}: give a number per class")
    if len(y) != len(logits):
        raise L2LError(f"{len(logits)} rows of logits and {len(y)} labels: give one label per image")
    if logits.shape[1] < classes:
        raise L2LError(f"{name} needs {classes} classes and the model has {logits.shape[1]}: {fix}")
    return _wide(logits)


def _split(logits: Array, y: Array) -> tuple[Array, Array]:
    """Return z_y [B], and the logits [B, K] with -inf in its place."""
    logits = _checked(logits, y)
    true = jax.nn.one_hot(classes(y), logits.shape[1], dtype=bool)
    return jnp.sum(jnp.where(true, logits, 0), axis=1), jnp.where(true, -jnp.inf, logits)


def _at(logits: Array, y: Array) -> Array:
    """Return z_y, [B]."""
    return jnp.take_along_axis(logits, classes(y)[:, None], axis=1)[:, 0]


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
