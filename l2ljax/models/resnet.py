"""Residual networks: one `ResNet`, two blocks, and six networks as partials of it.

For small images `resnet20` (zero-padding shortcuts, input normalization inside), `resnet18`, `preact_resnet18`,
`wrn_28_10`, `wrn_34_10`; for large images `resnet18_imagenet`. All take images of any size, and of any number of
channels but `resnet20`, of 1 or 3.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from l2ljax.models import layers
from l2ljax.types import Array, Key, L2LError

__all__ = [
    "RESNETS", "BasicBlock", "PreActBlock", "ResNet", "preact_resnet18", "resnet18", "resnet18_imagenet", "resnet20",
    "wrn_28_10", "wrn_34_10",
]  # fmt: skip


class BasicBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)) (He et al., 2015).

    If the shape changes, the shortcut is a 1x1 convolution and BatchNorm (their option B), or, with `zero_pad`, every
    second pixel and zeros for the new channels (option A).
    """

    width: int
    strides: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    zero_pad: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), width]."""
        y = self.conv(self.width, 3, strides=self.strides, padding=1)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.width, 3, padding=1)(y)
        y = self.norm()(y)
        if y.shape != x.shape:
            if self.zero_pad:
                new = self.width - x.shape[-1]
                x = x[:, :: self.strides, :: self.strides]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
            else:
                x = self.norm()(self.conv(self.width, 1, strides=self.strides)(x))
        return nn.relu(y + x)


class PreActBlock(nn.Module):
    """conv(relu(BN(conv(z)))) + shortcut, z = relu(BN(x)) (He et al., 2016).

    The shortcut is x, or a 1x1 convolution of z if the shape changes.
    """

    width: int
    strides: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), width]."""
        z = nn.relu(self.norm()(x))
        y = self.conv(self.width, 3, strides=self.strides, padding=1)(z)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.width, 3, padding=1)(y)
        if y.shape != x.shape:
            x = self.conv(self.width, 1, strides=self.strides)(z)
        return y + x


class ResNet(nn.Module):
    """A stem, groups of blocks (each but the first halves the size), average pooling, linear.

    Attributes:
      widths: channels in each group.
      depths: blocks in each group.
      block: `BasicBlock` or `PreActBlock`.
      stem: channels of the first convolution.
      stem_quarters: use ImageNet's first convolution, 7x7 with stride 2, followed by 3x3 max pooling with stride 2,
        instead of 3x3 with stride 1 and no pooling.
      stem_norm: BatchNorm and ReLU after the first convolution.
      final_norm: BatchNorm and ReLU before the pooling.
      mean, std: input normalization per channel, or None; it turns a grey image into three equal channels.
      remat: keep each block's input alone, and recompute the block in the backward pass.
      conv_init, dense_init: initializers of the kernels; biases start at zero.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block: Callable[..., nn.Module]
    stem: int
    stem_quarters: bool = False
    stem_norm: bool = False
    final_norm: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    conv_init: Initializer = layers.torch_uniform
    dense_init: Initializer = layers.torch_uniform
    num_classes: int = 10
    dtype: Any = jnp.float32
    remat: bool = False
    train: bool = False
    axis_name: str | None = None
    image_shape: ClassVar = (None, None, None)

    @nn.compact
    def __call__(self, x: Array, keys: Key | None = None) -> tuple[Array, Array]:
        """Map [B, H, W, C] to [B, K], [B, widths[-1]]; `keys` are not used."""
        conv = functools.partial(layers.Conv, use_bias=False, kernel_init=self.conv_init, dtype=self.dtype)
        norm = functools.partial(layers.BatchNorm, not self.train, self.axis_name, dtype=self.dtype)
        if self.mean is not None:
            if x.shape[-1] not in (1, n := len(self.mean)):
                raise L2LError(f"resnet20 normalizes {n} channels, and images have {x.shape[-1]}: use resnet18")
            x = (x - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        size, strides = (7, 2) if self.stem_quarters else (3, 1)
        x = conv(self.stem, size, strides=strides, padding=size // 2)(x)
        if self.stem_norm:
            x = nn.relu(norm()(x))
        if self.stem_quarters:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pads with -inf
        kind, options = getattr(self.block, "func", self.block), getattr(self.block, "keywords", {})
        block = nn.remat(kind) if self.remat else kind
        names = (f"{kind.__name__}_{i}" for i in itertools.count())  # flax's own, which remat would change
        for group, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for i in range(depth):
                strides = 2 if group > 0 and i == 0 else 1
                x = block(width, strides, conv, norm, **options, name=next(names))(x)
        if self.final_norm:
            x = nn.relu(norm()(x))
        x = x.mean((1, 2))
        return layers.Dense(self.num_classes, kernel_init=self.dense_init, dtype=self.dtype)(x), x


resnet20 = functools.partial(
    ResNet, widths=(16, 32, 64), depths=(3, 3, 3), block=functools.partial(BasicBlock, zero_pad=True), stem=16,
    stem_norm=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), conv_init=layers.kaiming_fan_in,
    dense_init=layers.kaiming_fan_in,
)  # fmt: skip
"""CIFAR's ResNet-20 with option A shortcuts, L2L-DA's classifier: 269,722 parameters."""

resnet18 = functools.partial(
    ResNet, widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), block=BasicBlock, stem=64, stem_norm=True
)
"""ResNet-18 with a 3x3 stem: 11,173,962 parameters."""

resnet18_imagenet = functools.partial(resnet18, stem_quarters=True, conv_init=layers.kaiming_fan_out)
"""ResNet-18 with ImageNet's stem: 11,689,512 parameters for 1,000 classes, torchvision's number."""

preact_resnet18 = functools.partial(ResNet, widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), block=PreActBlock, stem=64)
"""PreActResNet-18 as widely used on CIFAR, with no BatchNorm before the pooling: 11,171,146 parameters."""

_wide = functools.partial(
    ResNet, widths=(160, 320, 640), block=PreActBlock, stem=16, final_norm=True, conv_init=layers.kaiming_fan_out
)
wrn_28_10 = functools.partial(_wide, depths=(4, 4, 4))
"""Wide ResNet 28-10 without dropout: 36,479,194 parameters."""

wrn_34_10 = functools.partial(_wide, depths=(5, 5, 5))
"""Wide ResNet 34-10 without dropout, the classifier of L2L and TRADES: 46,160,474 parameters."""

RESNETS = {
    "resnet20": resnet20, "resnet18": resnet18, "resnet18_imagenet": resnet18_imagenet,
    "preact_resnet18": preact_resnet18, "wrn_28_10": wrn_28_10, "wrn_34_10": wrn_34_10,
}  # fmt: skip
"""Name -> network, with ten classes unless `num_classes` differs."""
