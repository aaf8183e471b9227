"""Plain convolutional networks: `SmallCNN` and `LeNet5` for MNIST, `VGG16` for CIFAR, `DigitsCNN` for 8x8.

Each maps images [B, H, W, C] in [0, 1] to (logits [B, K], penultimate features [B, D]), and takes one key per example
[B] for training.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers

from l2ljax.models import layers
from l2ljax.types import Array, Key

__all__ = ["VGG16", "DigitsCNN", "LeNet5", "Network", "SmallCNN"]


class Network(nn.Module):
    """The fields that all networks here have."""

    num_classes: int = 10
    dtype: Any = jnp.float32
    train: bool = False
    axis_name: str | None = None


class DigitsCNN(Network):
    """Three 3x3 convolutions, 32, 64 (stride 2) and 64 channels, then linear: 65,994 parameters."""

    image_shape: ClassVar = (8, 8, 1)

    @nn.compact
    def __call__(self, x: Array, keys: Key | None = None) -> tuple[Array, Array]:
        """Map [B, 8, 8, 1] to [B, K], [B, 1024]."""
        conv = functools.partial(layers.Conv, padding=1, dtype=self.dtype)
        x = nn.relu(conv(32)(x))
        x = nn.relu(conv(64, strides=2)(x))
        x = nn.relu(conv(64)(x))
        x = x.reshape(len(x), -1)
        return layers.Dense(self.num_classes, dtype=self.dtype)(x), x


class SmallCNN(Network):
    """The four-convolution MNIST network of Carlini and Wagner, as in TRADES' code: 312,202 parameters.

    The last layer starts at zero. Dropout is active in training only.

    Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy (2019), code.
    """

    image_shape: ClassVar = (28, 28, 1)

    @nn.compact
    def __call__(self, x: Array, keys: Key | None = None) -> tuple[Array, Array]:
        """Map [B, 28, 28, 1] to [B, K], [B, 200]; with dropout if there are keys [B]."""
        zeros = initializers.zeros
        conv = functools.partial(layers.Conv, kernel_init=layers.kaiming_fan_in, bias_init=zeros, dtype=self.dtype)
        dense = functools.partial(layers.Dense, dtype=self.dtype)
        for width in (32, 64):
            x = nn.relu(conv(width)(x))
            x = layers.max_pool(nn.relu(conv(width)(x)))
        x = nn.relu(dense(200)(x.reshape(len(x), -1)))
        if keys is not None:
            x = layers.dropout(keys, x, rate=0.5)
        x = nn.relu(dense(200)(x))
        return dense(self.num_classes, kernel_init=zeros)(x), x


class LeNet5(Network):
    """LeNet-5 with ReLU and max pooling, as in L2L-DA's code: 61,706 parameters.

    It returns logits; the code's network ends in a log-softmax (which cross-entropy ignores).
    """

    image_shape: ClassVar = (28, 28, 1)

    @nn.compact
    def __call__(self, x: Array, keys: Key | None = None) -> tuple[Array, Array]:
        """Map [B, 28, 28, 1] to [B, K], [B, 84]."""
        small, zeros = initializers.normal(0.02), initializers.zeros
        conv = functools.partial(layers.Conv, kernel_size=5, kernel_init=small, bias_init=zeros, dtype=self.dtype)
        dense = functools.partial(layers.Dense, kernel_init=initializers.xavier_uniform(), dtype=self.dtype)
        x = layers.max_pool(nn.relu(conv(6, padding=2)(x)))
        x = layers.max_pool(nn.relu(conv(16)(x)))
        x = nn.relu(conv(120)(x))
        x = nn.relu(dense(84)(x.reshape(len(x), -1)))
        return dense(self.num_classes)(x), x


class VGG16(Network):
    """VGG-16 with BatchNorm for 32x32 images, as in RNN-Adv's experiments: 14,728,266 parameters.

    Thirteen 3x3 convolutions (with bias), 2x2 max pooling after each group, and one linear layer.
    """

    image_shape: ClassVar = (32, 32, None)

    @nn.compact
    def __call__(self, x: Array, keys: Key | None = None) -> tuple[Array, Array]:
        """Map [B, 32, 32, C] to [B, K], [B, 512]."""
        norm = functools.partial(layers.BatchNorm, not self.train, self.axis_name, dtype=self.dtype)
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                x = nn.relu(norm()(layers.Conv(width, padding=1, dtype=self.dtype)(x)))
            x = layers.max_pool(x)
        x = x.mean((1, 2))
        return layers.Dense(self.num_classes, dtype=self.dtype)(x), x
