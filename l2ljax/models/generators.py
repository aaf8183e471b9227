"""Generators of perturbations: L2L-DA's U-Net, and the encoder-decoder of AdvGAN and GAP with its discriminator.

Generators map an attacker's inputs, [B, H, W, C'], to (-1, 1)^[B, H, W, channels] (`attacks.learned.convolutional`).
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import normal

from l2ljax.models.attackers import check_multiple, xavier
from l2ljax.models.layers import BatchNorm, Conv, ConvTranspose
from l2ljax.types import Array, L2LError

__all__ = ["ConditionalBatchNorm", "Discriminator", "EncoderDecoder", "UNet"]


class ConditionalBatchNorm(nn.Module):
    """BatchNorm whose scale and shift depend on the class: gamma = gamma_y + gamma_shared, and beta likewise.

    As in L2L-DA's released code: epsilon 1e-10, momentum 0.9, gamma_y ~ N(0, 0.02), gamma_shared ~ N(1, 0.02), beta 0.
    With `num_classes=0` only the shared row remains.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, y: Array, train: bool, axis_name: str | None = None) -> Array:
        """Map x [B, H, W, C], y [B] to [B, H, W, C]."""
        norm = BatchNorm(not train, axis_name, epsilon=1e-10, use_bias=False, use_scale=False)
        c = x.shape[-1]
        scale = self.param("scale", lambda key, shape: 1 + normal(0.02)(key, shape), (c,))
        shift = self.param("shift", nn.initializers.zeros, (c,))
        if self.num_classes:
            scale = scale + self.param("class_scale", normal(0.02), (self.num_classes, c))[y][:, None, None]
            shift = shift + self.param("class_shift", nn.initializers.zeros, (self.num_classes, c))[y][:, None, None]
        return norm(x) * scale + shift


class UNet(nn.Module):
    """L2L-DA's generator: two levels down, two up, the latent at the first three layers, the label in the BatchNorms.

    The released code's layers, all convolutions without bias: 3x3; 4x4 stride 2, CBN; 4x4 stride 2 (each after the
    encoded latent is tiled and concatenated, each followed by a leaky ReLU); transposed 4x4 stride 2, CBN, ReLU, twice,
    each joined by the layer of its size on the way down; 3x3, tanh. 500,944 parameters for CIFAR-10 with image,
    gradient and delta as inputs, 495,184 for MNIST.

    Attributes:
      width: channels of the first convolution.
      latent: size of z; 0 for a deterministic generator.
      num_classes: K, or 0 for a generator without labels.
    """

    width: int = 64
    latent: int = 8
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array, *, channels: int, train: bool, y: Any, z: Any, axis_name: str | None = None) -> Array:
        """Map x [B, H, W, C'], H and W multiples of 4, y [B] and z [B, latent] to [B, H, W, channels] in (-1, 1)."""
        check_multiple(x, 4)
        conv = functools.partial(Conv, use_bias=False, padding=1, kernel_init=normal(0.02), dtype=x.dtype)
        up = functools.partial(ConvTranspose, kernel_init=normal(0.02), dtype=x.dtype)

        norm = lambda a: ConditionalBatchNorm(self.num_classes)(a, y, train, axis_name)
        leaky = functools.partial(nn.leaky_relu, negative_slope=0.2)
        code = z
        if self.latent:
            for _ in range(2):
                code = nn.relu(nn.Dense(self.latent, kernel_init=xavier)(code))

        def with_code(a: Array) -> Array:
            tiled = jnp.broadcast_to(code[:, None, None].astype(a.dtype), (*a.shape[:3], code.shape[-1]))
            return jnp.concatenate([a, tiled], axis=-1)

        down0 = leaky(conv(self.width)(with_code(x)))
        down1 = leaky(norm(conv(self.width, 4, strides=2)(with_code(down0))))
        down2 = leaky(conv(2 * self.width, 4, strides=2)(with_code(down1)))
        up2 = nn.relu(norm(up(self.width)(down2)))
        up1 = nn.relu(norm(up(self.width)(jnp.concatenate([up2, down1], axis=-1))))
        return jnp.tanh(conv(channels)(jnp.concatenate([up1, down0], axis=-1)))


class EncoderDecoder(nn.Module):
    """AdvGAN's and GAP's generator: down twice, residual blocks, up twice (Johnson et al., 2016; Xiao et al., 2018).

    Convolutions of w, 2w and 4w channels (the last two of stride 2), `blocks` residual blocks, transposed
    convolutions of 2w and w channels, and one convolution to the image; BatchNorm and ReLU between.

    Attributes:
      width: w, 8 in AdvGAN.
      blocks: number of blocks of two convolutions, 4 in AdvGAN.
    """

    width: int = 8
    blocks: int = 4

    @nn.compact
    def __call__(self, x: Array, *, channels: int, train: bool, axis_name: str | None = None, **unused: Any) -> Array:
        """Map x [B, H, W, C'], H and W multiples of 4, to [B, H, W, channels] in (-1, 1)."""
        check_multiple(x, 4)
        conv = functools.partial(Conv, padding=1, use_bias=False, dtype=x.dtype)
        norm = functools.partial(BatchNorm, not train, axis_name)
        a = nn.relu(norm()(conv(self.width)(x)))
        for features in (2 * self.width, 4 * self.width):
            a = nn.relu(norm()(conv(features, strides=2)(a)))
        for _ in range(self.blocks):
            b = nn.relu(norm()(conv(4 * self.width)(a)))
            a = a + norm()(conv(4 * self.width)(b))
        for features in (2 * self.width, self.width):
            a = nn.relu(norm()(ConvTranspose(features, dtype=x.dtype)(a)))
        return jnp.tanh(Conv(channels, padding=1, dtype=x.dtype)(a))


class Discriminator(nn.Module):
    """AdvGAN's discriminator: three convolutions of stride 2 with leaky ReLUs, mean over the image, linear."""

    width: int = 8

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map images [B, H, W, C], H and W of 8 or more, to logits [B], large for clean images."""
        if min(x.shape[1:3]) < 8:
            raise L2LError(f"images of {x.shape[1]} x {x.shape[2]} are too small for AdvGAN: give 8 x 8 or larger")
        for features in (self.width, 2 * self.width, 4 * self.width):
            x = nn.leaky_relu(Conv(features, 4, strides=2, padding=1, dtype=x.dtype)(x), 0.2)
        return nn.Dense(1, dtype=x.dtype)(x.mean((1, 2)))[:, 0]
