"""The layers of all networks, with the conventions of torch, in which the papers' code is written.

`Conv` and `ConvTranspose` (explicit padding; gradients that are fast on CPU, see `convolution`), `BatchNorm` (torch's
momentum and epsilon), `PReLU`, `dropout` (one mask per example) and initializers.

    y = Conv(64, 3, strides=2, padding=1, use_bias=False)(x)     # in a linen module
    y = BatchNorm(use_running_average=not train, axis_name=axis_name)(y)
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling

from l2ljax.models.convolution import conv2d, conv_transpose2d
from l2ljax.models.normalization import normalize
from l2ljax.types import Array, Key

__all__ = [
    "BatchNorm", "Conv", "ConvTranspose", "Dense", "PReLU", "dropout", "kaiming_fan_in", "kaiming_fan_out", "max_pool",
    "torch_uniform",
]  # fmt: skip

torch_uniform = variance_scaling(1 / 3, "fan_in", "uniform")
"""torch's default for weights: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
kaiming_fan_in = variance_scaling(2.0, "fan_in", "normal")
"""N(0, 2 / fan_in): torch's `kaiming_normal_`."""
kaiming_fan_out = variance_scaling(2.0, "fan_out", "normal")
"""N(0, 2 / fan_out), as in Wide ResNets."""


class BatchNorm(nn.Module):
    """Normalize each channel, with torch's defaults (torch writes momentum 0.9 as 0.1).

    y = scale (x - mean) / sqrt(var + epsilon) + bias, with the statistics of the batch (over all devices along
    `axis_name`), or with the running ones. The running variance averages the biased batch variance; torch's is
    unbiased, n / (n - 1) times it. In training mode the derivative is `normalize`'s.
    """

    use_running_average: bool
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, ..., C] to the same shape."""
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", nn.initializers.ones, (channels,)) if self.use_scale else jnp.ones(channels)
        bias = self.param("bias", nn.initializers.zeros, (channels,)) if self.use_bias else jnp.zeros(channels)
        if self.use_running_average:
            y = (x - mean.value) * (jax.lax.rsqrt(var.value + self.epsilon) * scale) + bias
        elif self.is_initializing():  # outside pmap, where no axis has that name
            y = x
        else:
            y, *seen = normalize(x, scale, bias, self.epsilon, self.axis_name)
            for running, value in zip((mean, var), seen, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        return y.astype(self.dtype or jnp.result_type(x, scale))


Dense = functools.partial(nn.Dense, kernel_init=torch_uniform)
"""`nn.Dense` with torch's default weights; the bias starts at zero (torch's is uniform like the weights)."""


class Conv(nn.Module):
    """torch's Conv2d: a square kernel, explicit zero padding, torch's default initialization.

    `bias_init=None` is torch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, H, W, C] to [B, (H + 2 padding - kernel_size) // strides + 1, same for W, features]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), strides=(self.strides,) * 2, padding=self.padding)
        if not self.use_bias:
            return y
        bound = 1 / math.sqrt(math.prod(shape[:3]))  # torch's
        bias_init = self.bias_init or functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        return y + self.param("bias", bias_init, (self.features,)).astype(self.dtype)


class ConvTranspose(nn.Module):
    """torch's ConvTranspose2d of 4 x 4, strides of 2, padding of 1, without bias: it doubles height and width.

    The kernel is [4, 4, features, C], so that its fan-in is torch's: 16 * features.
    """

    features: int
    kernel_init: Initializer = variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, H, W, C] to [B, 2 H, 2 W, features]."""
        kernel = self.param("kernel", self.kernel_init, (4, 4, self.features, x.shape[-1]))
        return conv_transpose2d(x.astype(self.dtype), kernel.astype(self.dtype), strides=(2, 2), padding=1)


class PReLU(nn.Module):
    """max(x, 0) + a min(x, 0) with one learned slope a, initially 0.25: torch's default."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map any shape to the same."""
        slope = self.param("slope", nn.initializers.constant(0.25), ())
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


def max_pool(x: Array) -> Array:
    """Pool by 2x2 maxima with stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C].

    In a tie the first entry (in rows, then columns) takes the gradient, as in torch: on MNIST's flat background that
    decides the gradient. This uses comparisons, because XLA:CPU's own pooling gradient is slow.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]

    def larger(a: Array, b: Array) -> Array:
        return jnp.where(a >= b, a, b)

    top, bottom = x[:, ::2], x[:, 1::2]
    return larger(larger(top[:, :, ::2], top[:, :, 1::2]), larger(bottom[:, :, ::2], bottom[:, :, 1::2]))


def dropout(keys: Key, x: Array, rate: float) -> Array:
    """Zero entries of x [B, ...] with probability `rate` in [0, 1), scale the others by 1 / (1 - rate).

    Example i draws from keys[i] alone (see `types.example_keys`), so its mask depends neither on its neighbours nor on
    the split of the batch over devices.
    """
    keep = jax.vmap(lambda key, row: jax.random.bernoulli(key, 1 - rate, row.shape))(keys, x)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
