"""Normalization by a batch's statistics, with its derivative in closed form.

Differentiated operation by operation, it keeps several arrays as large as x for the backward pass and reads each again;
this function keeps x alone. A joint step of L2L with its convolutional attacker took 0.93 of the time (resnet20,
batch 128, attacker of width 16, on two cores with AVX-512).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from l2ljax.types import Array

__all__ = ["normalize"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Return scale (x - mean) / sqrt(var + epsilon) + bias. Ioffe and Szegedy (2015), Algorithm 1.

    With u = (x - mean) / sqrt(var + epsilon) and means over the batch, the derivative along dy is

        dx = scale / sqrt(var + epsilon) (dy - mean(dy) - u mean(u dy)),  dscale = sum(u dy),  dbias = sum(dy).

    It has no forward mode (`jax.jvp`). The variance is mean(x^2) - mean(x)^2, in one pass over x: with a relative error
    of about 1e-7 mean(x)^2 / var, so that channels whose mean is 1,000 times their deviation lose most of its digits.

    Args:
      x: [B, ..., C].
      scale, bias: [C].
      epsilon: added to the variance.
      axis_name: the axis of the devices that share the batch, or None. dscale and dbias are each device's own.

    Returns:
      y, of x's shape, in float32 or wider; mean and biased variance [C], which are constants in derivatives.
    """
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _means(a: Array, b: Array, axis_name: str | None) -> Array:
    """Average over all but the channels and over the devices, [2, C]."""
    axes = tuple(range(a.ndim - 1))
    means = jnp.stack([a.mean(axes), b.mean(axes)])
    return means if axis_name is None else lax.pmean(means, axis_name)


def _forward(x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None) -> tuple:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, square = _means(wide, wide * wide, axis_name)
    var = jnp.maximum(square - mean * mean, 0)
    inverse = lax.rsqrt(var + epsilon)
    return ((wide - mean) * (inverse * scale) + bias, mean, var), (x, scale, mean, inverse)


def _backward(epsilon: float, axis_name: str | None, kept: tuple, cotangents: tuple) -> tuple[Array, Array, Array]:
    (x, scale, mean, inverse), (dy, _, _) = kept, cotangents
    axes = tuple(range(x.ndim - 1))
    unit = (x - mean) * inverse
    sums = jnp.stack([dy.sum(axes), (unit * dy).sum(axes)])
    a, b = (sums if axis_name is None else lax.pmean(sums, axis_name)) / (x.size // x.shape[-1])
    return ((inverse * scale) * (dy - a - unit * b)).astype(x.dtype), sums[1], sums[0]


normalize.defvjp(_forward, _backward)
