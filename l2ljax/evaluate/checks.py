"""Checks before every evaluation, on the host: bad images, labels and logits are refused before anything runs."""

import jax.numpy as jnp
import numpy as np

from l2ljax.attacks.entrance import check_output, reach
from l2ljax.data.arrays import check_examples, pixels
from l2ljax.types import Array, L2LError

__all__ = ["check_batch", "check_logits"]


def check_batch(x: Array | np.ndarray, y: Array | np.ndarray, num_classes: int | None = None) -> None:
    """Check that images and labels are valid inputs of attacks. Runs on the host: not under jit.

    Raises:
      L2LError: x is not float [B, H, W, C] in [0, 1], or y not integers [B] in 0..K-1.
    """
    x, y = np.asarray(x), np.asarray(y)
    if not jnp.issubdtype(x.dtype, jnp.floating):  # NumPy does not count bfloat16
        raise L2LError(f"images are {x.dtype}: give floats in [0, 1], like images.astype('float32') / 255")
    check_examples(pixels(x), y, num_classes)


def check_logits(logits: Array | np.ndarray, y: Array | np.ndarray) -> None:
    """Check that a model returned logits [B, K] for labels y.

    Raises:
      L2LError: another shape, labels >= K, NaN or infinity, or rows that are probabilities.
    """
    logits, y = np.asarray(logits), np.asarray(y)
    check_output(logits, len(y), reach(y))
    if not np.isfinite(logits).all():
        raise L2LError(
            "the model returned NaN logits or infinite ones: its training diverged, or its input is wrong; "
            "give a class that is ruled out a finite logit, like -1e9"
        )
    if (logits >= -1e-6).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-4):
        raise L2LError("the model returns probabilities: give its logits (before the softmax), or attacks fail")
