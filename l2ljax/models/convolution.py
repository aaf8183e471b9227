"""A 2-D convolution whose gradients are fast on XLA:CPU, inside `lax.scan` too.

XLA's own gradients of a convolution miss its fast path on CPU inside a loop, and often outside one: by a factor of 10
to 100 (jax-ml/jax issue 12868). This module builds on one trilinear form of images x, kernel k and output y, for given
strides and padding:

    T(x, k, y) = sum_{b, p, i, c, o}  x[b, s p + i - pad, c]  k[i, c, o]  y[b, p, o]

Its three partial derivatives are the convolution (by y), the gradient for the images, which is also the transposed
convolution (by x), and the gradient for the kernel (by k). Each is written so that the CPU compiler takes its fast
path, and the derivatives of each are the other two: reverse mode works to any order, and every order is fast.

    y = conv2d(x, kernel, strides=(2, 2), padding=1)
    with stock_convolution():            # forward mode: jax.jvp, jax.hessian
        jax.jvp(f, (x,), (v,))
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from l2ljax.models.correlation import DIMENSIONS, Padding, Pair, correlate, kernel_gradient
from l2ljax.types import Array

__all__ = ["conv2d", "conv_transpose2d", "stock_convolution"]

_force_stock = False


@contextlib.contextmanager
def stock_convolution() -> Iterator[None]:
    """Build convolutions with JAX's own derivative rules, which have a forward mode, in functions traced meanwhile."""
    global _force_stock
    before, _force_stock = _force_stock, True
    try:
        yield
    finally:
        _force_stock = before


def conv2d(x: Array, kernel: Array, *, strides: Pair = (1, 1), padding: int | Padding) -> Array:
    """Convolve (cross-correlate) images with a kernel, like torch's Conv2d.

    Args:
      x: images [B, H, W, C].
      kernel: [kh, kw, C, O].
      strides: step in height and width.
      padding: zeros around the image: one number, or (low, high) for height and width.

    Returns:
      [B, (H + low + high - kh) // stride + 1, same for W, O].
    """
    if kernel.shape[:2] == (1, 1) and padding == 0:
        x, strides = x[:, :: strides[0], :: strides[1]], (1, 1)
    geometry = _geometry(x.shape, kernel.shape, strides, padding)
    return (_stock if _use_stock() else _convolve)(x, kernel, geometry)


def conv_transpose2d(x: Array, kernel: Array, *, strides: Pair, padding: int) -> Array:
    """Apply the transpose of `conv2d`, like torch's ConvTranspose2d: kernel 4, stride 2, padding 1 doubles the size.

    y[b, s p + i - padding, o] += x[b, p, c] kernel[i, o, c], over positions p and offsets i.

    Args:
      x: images [B, H, W, C].
      kernel: [kh, kw, O, C], that of the convolution from O to C channels.
      strides: factors of upsampling.
      padding: rows and columns removed on each side.

    Returns:
      [B, (H - 1) * stride + kh - 2 * padding, same for W, O].
    """
    sizes = ((n - 1) * s + k - 2 * padding for n, s, k in zip(x.shape[1:3], strides, kernel.shape[:2], strict=True))
    geometry = _geometry((0, *sizes, 0), kernel.shape, strides, padding)
    return (_stock_transpose if _use_stock() else _pull_back_image)(x, kernel, geometry)


class _Geometry(NamedTuple):
    """The static sizes (height, width) of one convolution's image, kernel and output."""

    image: Pair
    kernel: Pair
    output: Pair
    strides: Pair
    padding: Padding


def _geometry(image: tuple[int, ...], kernel: tuple[int, ...], strides: Pair, padding: int | Padding) -> _Geometry:
    """Return the geometry from the shapes of images and kernel."""
    padding = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    ends = zip(image[1:3], padding, kernel, strides, strict=False)
    height, width = ((n + low + high - k) // s + 1 for n, (low, high), k, s in ends)
    return _Geometry((image[1], image[2]), (kernel[0], kernel[1]), (height, width), strides, padding)


def _use_stock() -> bool:
    return _force_stock or jax.default_backend() != "cpu"


def _stock(x: Array, kernel: Array, geo: _Geometry) -> Array:
    return lax.conv_general_dilated(x, kernel, geo.strides, geo.padding, dimension_numbers=DIMENSIONS)


def _stock_transpose(y: Array, kernel: Array, geo: _Geometry) -> Array:
    """Convolve y, dilated by the strides, with the flipped kernel, its channels swapped."""
    ends, spread = _opposite(geo), geo.strides
    return lax.conv_general_dilated(y, _flip(kernel), (1, 1), ends, lhs_dilation=spread, dimension_numbers=DIMENSIONS)


def _flip(kernel: Array) -> Array:
    # The barrier keeps the compiler from folding the flip into the convolution, which would leave its fast path.
    return lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))


def _opposite(geo: _Geometry) -> Padding:
    """Return the padding with which y, dilated, gives x."""
    (top, _), (left, _) = geo.padding
    height, width = ((n - 1) * s + 1 for n, s in zip(geo.output, geo.strides, strict=True))
    return (
        (geo.kernel[0] - 1 - top, geo.image[0] - height + top),
        (geo.kernel[1] - 1 - left, geo.image[1] - width + left),
    )


# A convolution with strides s equals one without strides on blocks: the s x s pixels of a block are its channels (and
# the padding is part of the image), and offset i in the kernel is offset a = i mod s in block i div s.


def _taps(geo: _Geometry) -> Pair:
    """Return the kernel's size in blocks."""
    return -(-geo.kernel[0] // geo.strides[0]), -(-geo.kernel[1] // geo.strides[1])


def _image_to_blocks(x: Array, geo: _Geometry) -> Array:
    """Map [B, H, W, C] to [B, H' + taps - 1, W' + taps - 1, sh * sw * C]."""
    (sh, sw), (m, n) = geo.strides, ((o + t - 1) for o, t in zip(geo.output, _taps(geo), strict=True))
    (top, _), (left, _) = geo.padding
    ends = ((top, m * sh - top - x.shape[1]), (left, n * sw - left - x.shape[2]))  # negative: cropped
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*end, 0) for end in ends), (0, 0, 0)])
    return x.reshape(len(x), m, sh, n, sw * x.shape[3]).swapaxes(2, 3).reshape(len(x), m, n, -1)


def _blocks_to_image(blocks: Array, geo: _Geometry) -> Array:
    """Invert `_image_to_blocks`, with zeros where it cropped."""
    b, m, n, channels = blocks.shape
    sh, sw = geo.strides
    x = blocks.reshape(b, m, n, sh, channels // sh).swapaxes(2, 3).reshape(b, m * sh, n * sw, channels // (sh * sw))
    (top, _), (left, _) = geo.padding
    ends = ((-top, geo.image[0] + top - m * sh), (-left, geo.image[1] + left - n * sw))
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*end, 0) for end in ends), (0, 0, 0)])


def _kernel_to_blocks(kernel: Array, geo: _Geometry) -> Array:
    """Map [kh, kw, C, O] to [taps, taps, sh * sw * C, O]."""
    (sh, sw), (th, tw) = geo.strides, _taps(geo)
    kh, kw, c, o = kernel.shape
    kernel = jnp.pad(kernel, ((0, th * sh - kh), (0, tw * sw - kw), (0, 0), (0, 0)))
    return kernel.reshape(th, sh, tw, sw * c, o).swapaxes(1, 2).reshape(th, tw, sh * sw * c, o)


def _blocks_to_kernel(blocks: Array, geo: _Geometry) -> Array:
    """Invert `_kernel_to_blocks`."""
    (th, tw), (sh, sw), o = _taps(geo), geo.strides, blocks.shape[-1]
    kernel = blocks.reshape(th, tw, sh, -1, o).swapaxes(1, 2).reshape(th * sh, tw * sw, -1, o)
    return kernel[: geo.kernel[0], : geo.kernel[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, geo: _Geometry) -> Array:
    """Compute dT/dy: [B, H, W, C], [kh, kw, C, O] -> [B, H', W', O]."""
    return correlate(x, kernel, geo.strides, geo.padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pull_back_image(y: Array, kernel: Array, geo: _Geometry) -> Array:
    """Compute dT/dx: [B, H', W', O], [kh, kw, C, O] -> [B, H, W, C]."""
    if geo.strides == (1, 1):
        return correlate(y, _flip(kernel), (1, 1), _opposite(geo))
    th, tw = _taps(geo)
    everywhere = ((th - 1, th - 1), (tw - 1, tw - 1))
    return _blocks_to_image(correlate(y, _flip(_kernel_to_blocks(kernel, geo)), (1, 1), everywhere), geo)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pull_back_kernel(x: Array, y: Array, geo: _Geometry) -> Array:
    """Compute dT/dk: [B, H, W, C], [B, H', W', O] -> [kh, kw, C, O]."""
    if geo.strides == (1, 1):
        return kernel_gradient(x, y, geo.kernel, geo.padding)
    return _blocks_to_kernel(kernel_gradient(_image_to_blocks(x, geo), y, _taps(geo), ((0, 0), (0, 0))), geo)


_convolve.defvjp(
    lambda x, k, geo: (_convolve(x, k, geo), (x, k)),
    lambda geo, xk, y: (_pull_back_image(y, xk[1], geo), _pull_back_kernel(xk[0], y, geo)),
)
_pull_back_image.defvjp(
    lambda y, k, geo: (_pull_back_image(y, k, geo), (y, k)),
    lambda geo, yk, x: (_convolve(x, yk[1], geo), _pull_back_kernel(x, yk[0], geo)),
)
_pull_back_kernel.defvjp(
    lambda x, y, geo: (_pull_back_kernel(x, y, geo), (x, y)),
    lambda geo, xy, k: (_pull_back_image(xy[1], k, geo), _convolve(xy[0], k, geo)),
)
