"""Correlations of images with kernels that are fast on XLA:CPU; the choices among them were measured.

These are plain functions without derivative rules, which are in `convolution`.
"""

import jax.numpy as jnp
from jax import lax

from l2ljax import devices
from l2ljax.types import Array

__all__ = ["DIMENSIONS", "FEW", "PART", "Padding", "Pair", "compiled", "correlate", "kernel_gradient"]

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
FEW = 4
"""Up to this many output channels, one matrix product with shifted sums of its parts is up to five times faster."""
PART = 8
"""The number of images per part of a kernel's gradient."""


def correlate(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """Convolve. With few channels, neighbouring columns of the output become channels.

    Matrix products with few channels are too narrow for the compiler. A kernel with `block` copies of itself, each
    shifted by a column, fills them, at the price of products with zeros; the output has the same entries in the same
    order. This pays from or to an image's channels, and between layers of 16 channels if a device is one core (a third
    less time), but not if two cores share the work, as the compiler does not split it.
    """
    _, kw, c, o = kernel.shape
    if o <= FEW and strides == (1, 1) and x.dtype.itemsize >= 4:
        return _add_shifted(x, kernel, padding)
    if _fits_rows(x, kernel, strides):
        return _correlate_rows(x, kernel, padding)
    if max(c, o) > 16 or (min(c, o) > 4 and not devices.own_core()):
        return compiled(x, kernel, strides, padding)
    block = 4 if c * o <= 64 else 2  # measured
    shift = strides[1]
    copies = [jnp.pad(kernel, ((0, 0), (i * shift, (block - 1 - i) * shift), (0, 0), (0, 0))) for i in range(block)]
    left, right = padding[1]
    width = (x.shape[2] + left + right - kw) // shift + 1
    right += (-width % block) * shift  # whole blocks
    blocks, ends = lax.optimization_barrier(jnp.concatenate(copies, axis=3)), (padding[0], (left, right))
    y = lax.conv_general_dilated(x, blocks, (strides[0], block * shift), ends, dimension_numbers=DIMENSIONS)
    return y.reshape(*y.shape[:2], -1, o)[:, :, :width]


def compiled(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """Run the compiler's convolution; without padding, add a row of zeros, whose output is cropped.

    Otherwise a batch of more than about 32,000 pixels takes seven times as long (3x3, 32 channels), and three times as
    long for a kernel's gradient. A kernel of one pixel is a matrix product, and stays one.
    """
    if padding != ((0, 0), (0, 0)) or kernel.shape[:2] == (1, 1):
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)
    padding = ((0, strides[0]), (0, 0))
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)[:, :-1]


def _fits_rows(x: Array, kernel: Array, strides: Pair) -> bool:
    """Return whether `_correlate_rows` is faster than the convolution: measured for 16 to 640 channels on 2 cores.

    Split over two cores, the compiler's convolution reaches half of its speed with 64 channels and fewer, and less on
    images of a few pixels (resnet20 on 8x8: a third of the rows' speed); with 16 channels the rows' products are too
    narrow, too. The larger intermediate has to stay in the cache. A device with one core does not split. Half precision
    is left to the convolution, which sums all products before it rounds.
    """
    kh, kw, c, o = kernel.shape
    narrow = min(c, o) >= 32 and max(c, o) <= 64
    small = x.size <= 3e5 and x.dtype.itemsize >= 4
    return narrow and small and strides == (1, 1) and kh * kw > 1 and not devices.own_core()


def _correlate_rows(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolve without strides by kh matrix products, one per row of the kernel."""
    kh, kw, c, o = kernel.shape
    columns = _columns(x, kw, padding)
    height = columns.shape[1] - kh + 1
    products = [columns[:, i : i + height].reshape(-1, kw * c) @ kernel[i].reshape(kw * c, o) for i in range(kh)]
    return sum(products[1:], products[0]).reshape(len(x), height, -1, o)


def _columns(x: Array, kw: int, padding: Padding) -> Array:
    """Return the padded image with the kw columns under a kernel as channels, [B, H + padding, W', kw * C]."""
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*ends, 0) for ends in padding), (0, 0, 0)])
    x = lax.optimization_barrier(x)  # else x is recomputed for each of its copies
    width = x.shape[2] - kw + 1
    return jnp.concatenate([x[:, :, j : j + width] for j in range(kw)], axis=3)


def _add_shifted(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolve without strides by one matrix product with the whole kernel, adding its parts shifted."""
    kh, kw, c, o = kernel.shape
    (top, bottom), (left, right) = padding
    products = x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)
    products = lax.optimization_barrier(products).reshape(*x.shape[:3], kh, kw, o)
    zero = jnp.zeros((), x.dtype)

    def part(i: int, j: int) -> Array:
        rows, columns = (top - i, bottom + i - kh + 1, 0), (left - j, right + j - kw + 1, 0)
        return lax.pad(products[:, :, :, i, j], zero, [(0, 0, 0), rows, columns, (0, 0, 0)])

    parts = [part(i, j) for i in range(kh) for j in range(kw)]
    return sum(parts[1:], parts[0])


def kernel_gradient(x: Array, y: Array, kernel: Pair, padding: Padding) -> Array:
    """Return the gradient of a kernel, sum over images b and positions p of x[b, p + i - padding, c] y[b, p, o].

    Each row of the kernel is a matrix product of y with the columns of adjacent pixels, summed over parts of `PART`
    images, which stay in the cache. GFLOP/s at batch 128 on a processor with AVX-512, with a device per core on two
    cores / one device on both:

                              16 ch. 32x32   32 ch. 16x16   64 ch. 8x8   128 ch. 16x16
      these products             67 / 88        90 / 154     170 / 143      192 / 216
      the same, not in parts     16 / -         75 / -       157 / -        108 / -
      a convolution, batch
      and channels swapped       95 / 56        65 / 64      196 / 94       156 / 124

    With AVX2 that convolution reached 15, 30 and 43. The narrower side makes the columns: with 64 channels and 3, the
    products take 12 ms, and 65 ms the other way round.

    Args:
      x: images [B, H, W, C].
      y: [B, H', W', O], of an output's shape.
      kernel: its height and width.
      padding: zeros around the image, (low, high) for height and width.

    Returns:
      [kh, kw, C, O], summed in float32 or wider.
    """
    if x.shape[3] > y.shape[3]:  # with images y and outputs x, every offset is reversed
        ends = zip(kernel, padding, y.shape[1:3], x.shape[1:3], strict=False)
        opposite = [(k - 1 - low, n - m + low) for k, (low, _), m, n in ends]
        return kernel_gradient(y, x, kernel, (opposite[0], opposite[1]))[::-1, ::-1].swapaxes(2, 3)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def products(x: Array, y: Array) -> Array:
        columns, y = _columns(x, kernel[1], padding), y.reshape(-1, y.shape[3])
        height = len(y) // (len(x) * columns.shape[2])
        rows = [columns[:, i : i + height].reshape(len(y), -1) for i in range(kernel[0])]
        return jnp.stack([jnp.matmul(row.T, y, preferred_element_type=wide) for row in rows])

    whole = len(x) - len(x) % PART
    parts = [a[:whole].reshape(-1, PART, *a.shape[1:]) for a in (x, y)]
    zero = jnp.zeros((kernel[0], kernel[1] * x.shape[3], y.shape[3]), wide)
    total, _ = lax.scan(lambda total, part: (total + products(*part), None), zero, parts)
    if whole < len(x):
        total += products(x[whole:], y[whole:])
    return total.reshape(*kernel, x.shape[3], y.shape[3]).astype(x.dtype)
