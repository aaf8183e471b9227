"""The attackers' networks: RNN-Adv's recurrent optimizer, the convolutional attackers of L2L and FGSM-SDI, LAS-AT's.

`create(name, width)` makes the convolutional ones by name; `attacks.learned` turns them into optimizers of the input.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from l2ljax.models.layers import BatchNorm, Conv, ConvTranspose, Dense, PReLU
from l2ljax.types import Array, L2LError
from l2ljax.values import Count, checked

__all__ = [
    "ATTACKERS", "AttackerName", "GeneratorBlock", "RecurrentOptimizer", "SlimAttacker", "StrategyNetwork",
    "WideAttacker", "check_multiple", "create", "xavier", "xavier_sqrt2",
]  # fmt: skip

xavier = variance_scaling(1.0, "fan_avg", "uniform")
xavier_sqrt2 = variance_scaling(2.0, "fan_avg", "uniform")
"""Xavier uniform with gain sqrt(2)."""


class RecurrentOptimizer(nn.Module):
    """h' = tanh(U g + W h), delta = tanh(V h'), for each coordinate separately: 120 parameters at hidden = 10.

    Improved Adversarial Training via Learned Optimizer, eq. 6 and 7 (see `attacks.learned.recurrent`).
    The state is flat, hidden units first: products along one long axis of coordinates take half the time of products
    over the images' own axes.
    """

    hidden: int = 10
    use_bias: bool = False

    def initial_state(self, x: Array) -> Array:
        """Return zeros [hidden, x.size]."""
        return jnp.zeros((self.hidden, x.size), x.dtype)

    @nn.compact
    def __call__(self, g: Array, h: Array, place: Array | None = None) -> tuple[Array, Array]:
        """Map g [...], h [hidden, g.size] to (delta [...] in (-1, 1), h); `place` [...] is a further input, P place."""
        init = nn.initializers.normal(self.hidden**-0.5)
        u = self.param("U", init, (self.hidden,)).astype(g.dtype)
        w = self.param("W", init, (self.hidden, self.hidden)).astype(g.dtype)
        v = self.param("V", init, (self.hidden,)).astype(g.dtype)
        drive = u[:, None] * g.reshape(-1) + w @ h
        if place is not None:
            drive += self.param("P", init, (self.hidden,)).astype(g.dtype)[:, None] * place.reshape(-1)
        if not self.use_bias:
            h = jnp.tanh(drive)
            return jnp.tanh(v @ h).reshape(g.shape), h
        b_1 = self.param("b_1", nn.initializers.zeros, ()).astype(g.dtype)
        b_2 = self.param("b_2", nn.initializers.zeros, (self.hidden,)).astype(g.dtype)
        h = jnp.tanh(drive + b_2[:, None])
        return jnp.tanh(v @ h + b_1).reshape(g.shape), h


class GeneratorBlock(nn.Module):
    """BN - PReLU - conv - BN - PReLU - conv, plus a shortcut: SNGAN's generator block without upsampling.

    As in L2L's released code: BatchNorm without affine parameters, one PReLU slope each, a 1x1 shortcut if the number
    of channels changes.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, norm: Callable[..., BatchNorm]) -> Array:
        """Map [B, H, W, C] to [B, H, W, features]."""
        plain_norm = functools.partial(norm, use_bias=False, use_scale=False)
        conv = functools.partial(Conv, self.features, dtype=x.dtype)
        y = PReLU()(plain_norm()(x))
        y = conv(padding=1, kernel_init=xavier_sqrt2)(y)
        y = PReLU()(plain_norm()(y))
        y = conv(padding=1, kernel_init=xavier_sqrt2)(y)
        if x.shape[-1] != self.features:
            x = conv(kernel_size=1, kernel_init=xavier)(x)
        return x + y


class WideAttacker(nn.Module):
    """L2L's attacker of the main tables: conv - generator blocks - BN - conv - tanh.

    Learning to Defend by Learning to Attack, Table 1, lists three blocks and no BatchNorm before the last convolution;
    the released code has four blocks and one.

    Attributes:
      blocks: channels of each block.
      first: the channels of the first convolution.
      last_norm: whether a BatchNorm (without affine parameters) precedes the last convolution.
    """

    blocks: tuple[int, ...] = (128, 256, 128, 64)
    first: int = 64
    last_norm: bool = True

    @nn.compact
    def __call__(self, x: Array, *, channels: int, train: bool, axis_name: str | None = None, **_: Any) -> Array:
        """Map [B, H, W, C'] to [B, H, W, channels] in (-1, 1)."""
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=axis_name)
        y = Conv(self.first, padding=1, use_bias=False, dtype=x.dtype)(x)
        y = nn.relu(norm(epsilon=1e-3)(y))
        for features in self.blocks:
            y = GeneratorBlock(features)(y, norm)
        if self.last_norm:
            y = norm(use_bias=False, use_scale=False)(y)
        return jnp.tanh(Conv(channels, padding=1, dtype=x.dtype)(y))


class SlimAttacker(nn.Module):
    """L2L's smaller attacker (appendix B): half the resolution inside, and a learned scale before the tanh.

    As in the released code, the first convolution has stride 2 (Table 7 prints 1).

    Attributes:
      width: channels of the first convolution; the blocks have 2 and 1 times as many, the upsampling an eighth.
      skip: whether the last convolution also gets the attacker's input.
    """

    width: int = 128
    skip: bool = True

    @nn.compact
    def __call__(self, x: Array, *, channels: int, train: bool, axis_name: str | None = None, **_: Any) -> Array:
        """Map [B, H, W, C'], H and W even, to [B, H, W, channels] in (-1, 1)."""
        check_multiple(x, 2)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=axis_name)
        y = Conv(self.width, strides=2, padding=1, use_bias=False, dtype=x.dtype)(x)
        y = nn.relu(norm(epsilon=1e-3)(y))
        for features in (2 * self.width, self.width):
            y = GeneratorBlock(features)(y, norm)
        y = norm(use_bias=False, use_scale=False)(y)
        y = nn.relu(norm(epsilon=1e-3)(ConvTranspose(max(self.width // 8, 1), dtype=x.dtype)(y)))
        if self.skip:
            y = jnp.concatenate([y, x], axis=-1)
        scale = self.param("scale", nn.initializers.constant(5.0), ())
        return jnp.tanh(scale * Conv(channels, padding=1, use_bias=False, dtype=x.dtype)(y))


class StrategyNetwork(nn.Module):
    """A distribution over the choices of each of several parameters, for each image; uniform before training.

    Three convolutions of stride 2 without BatchNorm, a mean over the pixels, a linear layer for each parameter. In
    LAS-AT's released code it is a ResNet-18.

    Attributes:
      choices: the number of values of each parameter.
      width: channels of the first convolution; the others have 2 and 4 times as many.
    """

    choices: tuple[int, ...]
    width: int = 16

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """Map [B, H, W, C] to logits [B, n] for each n of `choices`."""
        for factor in (1, 2, 4):
            x = nn.relu(Conv(factor * self.width, strides=2, padding=1, dtype=x.dtype)(x))
        x = x.mean(axis=(1, 2))
        return [Dense(n, kernel_init=nn.initializers.zeros, dtype=x.dtype)(x) for n in self.choices]


AttackerName = Literal["wide", "wide_paper", "one_block", "slim", "slim_no_skip"]
ATTACKERS: dict[AttackerName, tuple[int, Callable[[int], Any]]] = {
    "wide": (64, lambda width: WideAttacker((2 * width, 4 * width, 2 * width, width), width)),
    "wide_paper": (64, lambda width: WideAttacker((2 * width, 4 * width, 2 * width), width, last_norm=False)),
    "one_block": (64, lambda width: WideAttacker((width,), width)),
    "slim": (128, lambda width: SlimAttacker(width)),
    "slim_no_skip": (128, lambda width: SlimAttacker(width, skip=False)),
}
"""Name -> (the papers' width, network of a given width). All are L2L's but one_block, which is FGSM-SDI's."""


def check_multiple(x: Array, n: int) -> None:
    """Raise an L2LError unless the height and the width of x [B, H, W, C] are multiples of n."""
    if x.shape[1] % n or x.shape[2] % n:
        fix = "pad them, or choose another"
        raise L2LError(f"images are {x.shape[1]} x {x.shape[2]}: this attacker needs multiples of {n}: {fix}")


@checked
def create(name: str, *, width: Count | None = None) -> nn.Module:
    """Return a convolutional attacker, a name of `ATTACKERS`; an L2LError for any other name.

    `width` is the number of channels of the first convolution, by default the papers' (64 wide and one_block, 128
    slim).
    """
    if name not in ATTACKERS:
        raise L2LError(f"unknown attacker {name!r}: choose one of {', '.join(ATTACKERS)}")
    default, build = ATTACKERS[name]  # type: ignore[index]
    return build(width or default)
