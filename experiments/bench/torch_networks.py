"""Our networks as torch modules with our weights (extra `bench`).

    net = torch_networks.build("resnet20", variables)                           # evaluation mode, images [B, C, H, W]
    attacker = torch_networks.load(torch_networks.WideAttacker(module, 6, 3), params, batch_stats)

Modules have flax's names of ours, which map the weights to their places. This module imports torch: load it through
`rivals.package`, which says how to install it.
"""

from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from l2ljax.models import CLASSIFIERS, attackers, cnn, resnet
from l2ljax.types import L2LError, Tree

__all__ = [
    "BasicBlock", "GeneratorBlock", "PreActBlock", "RecurrentOptimizer", "ResNet", "SmallCNN", "WideAttacker",
    "build", "load",
]  # fmt: skip


def build(arch: str, variables: Tree) -> nn.Module:
    """Build the network of that name in evaluation mode.

    Raises:
      L2LError: the network has no copy in torch.
    """
    ours: Any = CLASSIFIERS[arch]() if arch in CLASSIFIERS else None
    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))
    if isinstance(ours, resnet.ResNet):
        net: nn.Module = ResNet(ours, *_ends(params, "Dense_0"))
    elif isinstance(ours, cnn.SmallCNN):
        net = SmallCNN(*_ends(params, "Dense_2"))
    else:
        known = [name for name, make in CLASSIFIERS.items() if isinstance(make(), resnet.ResNet | cnn.SmallCNN)]
        raise L2LError(f"{arch} has no copy in torch: rivals take {', '.join(known)}")
    load(net, params, stats)
    return net.to(next(net.parameters()).dtype)


def _ends(params: Tree, last: str) -> tuple[int, int]:
    """Return (channels of the image, classes)."""
    return params["Conv_0"]["kernel"].shape[2], params[last]["bias"].size


def load(module: nn.Module, params: Tree, stats: Tree) -> nn.Module:
    """Copy our weights and running statistics into the module, and set evaluation mode."""
    known = _renamed(module, params)
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = _tensor(known[name])
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean, module.running_var = _tensor(stats["mean"]), _tensor(stats["var"])
    for name, child in module.named_children():
        load(child, params.get(name, {}), stats.get(name, {}))
    return module.eval()


def _renamed(module: nn.Module, params: Tree) -> Tree:
    """Return the parameters of one layer under torch's names and in its layout."""
    if isinstance(module, nn.Conv2d):
        return {**params, "weight": params["kernel"].transpose(3, 2, 0, 1)}
    if isinstance(module, nn.Linear):
        return {**params, "weight": params["kernel"].T}
    if isinstance(module, nn.BatchNorm2d):
        return {**params, "weight": params.get("scale")}
    if isinstance(module, nn.PReLU):
        return {"weight": params["slope"].reshape(1)}
    return params


def _tensor(a: Any) -> Tensor:
    return torch.from_numpy(np.array(a, order="C"))


class BasicBlock(nn.Module):
    """See `models.resnet.BasicBlock`."""

    def __init__(self, channels: int, width: int, stride: int, zero_pad: bool = False) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.BatchNorm_0 = nn.BatchNorm2d(width)
        self.Conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.BatchNorm_1 = nn.BatchNorm2d(width)
        self.stride, self.new = stride, width - channels
        if (stride, channels) != (1, width) and not zero_pad:
            self.Conv_2 = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.BatchNorm_2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, H / stride, W / stride]."""
        y = functional.relu(self.BatchNorm_0(self.Conv_0(x)))
        y = self.BatchNorm_1(self.Conv_1(y))
        if hasattr(self, "Conv_2"):
            x = self.BatchNorm_2(self.Conv_2(x))
        elif self.new:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return functional.relu(y + x)


class PreActBlock(nn.Module):
    """See `models.resnet.PreActBlock`."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.BatchNorm_0 = nn.BatchNorm2d(channels)
        self.Conv_0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.BatchNorm_1 = nn.BatchNorm2d(width)
        self.Conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        if (stride, channels) != (1, width):
            self.Conv_2 = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, H / stride, W / stride]."""
        z = functional.relu(self.BatchNorm_0(x))
        y = self.Conv_1(functional.relu(self.BatchNorm_1(self.Conv_0(z))))
        return y + (self.Conv_2(z) if hasattr(self, "Conv_2") else x)


class ResNet(nn.Module):
    """See `models.resnet.ResNet`."""

    def __init__(self, ours: resnet.ResNet, channels: int, classes: int) -> None:
        super().__init__()
        kind: Any = getattr(ours.block, "func", ours.block)
        options = getattr(ours.block, "keywords", {})
        block: Any = PreActBlock if kind is resnet.PreActBlock else BasicBlock
        size, stride = (7, 2) if ours.stem_quarters else (3, 1)
        self.Conv_0 = nn.Conv2d(channels, ours.stem, size, stride, size // 2, bias=False)
        norms, width = iter(("BatchNorm_0", "BatchNorm_1")), ours.stem
        self.blocks: list[str] = []
        self.pools, self.stem_norm = ours.stem_quarters, next(norms) if ours.stem_norm else None
        for group, (wide, depth) in enumerate(zip(ours.widths, ours.depths, strict=True)):
            for i in range(depth):
                self.blocks.append(f"{kind.__name__}_{len(self.blocks)}")
                self.add_module(self.blocks[-1], block(width, wide, 2 if group > 0 and i == 0 else 1, **options))
                width = wide
        self.final_norm = next(norms) if ours.final_norm else None
        for norm, wide in ((self.stem_norm, ours.stem), (self.final_norm, width)):
            if norm:
                self.add_module(norm, nn.BatchNorm2d(wide))
        self.Dense_0 = nn.Linear(width, classes)
        self.normalizes = ours.mean is not None
        for name, value in (("mean", ours.mean or (0.0,)), ("std", ours.std or (1.0,))):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, K]."""
        if self.normalizes:
            x = (x - self.mean) / self.std
        x = self.Conv_0(x)
        if self.stem_norm:
            x = functional.relu(getattr(self, self.stem_norm)(x))
        if self.pools:
            x = functional.max_pool2d(x, 3, 2, 1)
        for name in self.blocks:
            x = getattr(self, name)(x)
        if self.final_norm:
            x = functional.relu(getattr(self, self.final_norm)(x))
        return self.Dense_0(x.mean((2, 3)))


class SmallCNN(nn.Module):
    """See `models.cnn.SmallCNN`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.Conv_0, self.Conv_1 = nn.Conv2d(channels, 32, 3), nn.Conv2d(32, 32, 3)
        self.Conv_2, self.Conv_3 = nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3)
        self.Dense_0, self.Dense_1, self.Dense_2 = nn.Linear(1024, 200), nn.Linear(200, 200), nn.Linear(200, classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 28, 28] to [B, K]."""
        x = functional.relu(self.Conv_1(functional.relu(self.Conv_0(x))))
        x = functional.max_pool2d(x, 2)
        x = functional.relu(self.Conv_3(functional.relu(self.Conv_2(x))))
        x = functional.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)  # our order of features, free in channels_last
        x = self.dropout(functional.relu(self.Dense_0(x)))
        return self.Dense_2(functional.relu(self.Dense_1(x)))


class GeneratorBlock(nn.Module):
    """See `models.attackers.GeneratorBlock`."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.BatchNorm_0, self.PReLU_0 = nn.BatchNorm2d(channels, affine=False), nn.PReLU()
        self.Conv_0 = nn.Conv2d(channels, features, 3, 1, 1)
        self.BatchNorm_1, self.PReLU_1 = nn.BatchNorm2d(features, affine=False), nn.PReLU()
        self.Conv_1 = nn.Conv2d(features, features, 3, 1, 1)
        if channels != features:
            self.Conv_2 = nn.Conv2d(channels, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, features, H, W]."""
        y = self.Conv_0(self.PReLU_0(self.BatchNorm_0(x)))
        y = self.Conv_1(self.PReLU_1(self.BatchNorm_1(y)))
        return y + (self.Conv_2(x) if hasattr(self, "Conv_2") else x)


class WideAttacker(nn.Module):
    """See `models.attackers.WideAttacker`."""

    def __init__(self, ours: attackers.WideAttacker, channels: int, image_channels: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, ours.first, 3, 1, 1, bias=False)
        self.BatchNorm_0 = nn.BatchNorm2d(ours.first, eps=1e-3)
        widths = (ours.first, *ours.blocks)
        self.blocks = [f"GeneratorBlock_{i}" for i in range(len(ours.blocks))]
        for name, before, after in zip(self.blocks, widths, widths[1:], strict=False):
            self.add_module(name, GeneratorBlock(before, after))
        if ours.last_norm:
            self.BatchNorm_1 = nn.BatchNorm2d(widths[-1], affine=False)
        self.Conv_1 = nn.Conv2d(widths[-1], image_channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C', H, W] to [B, C, H, W] in (-1, 1)."""
        x = functional.relu(self.BatchNorm_0(self.Conv_0(x)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        if hasattr(self, "BatchNorm_1"):
            x = self.BatchNorm_1(x)
        return torch.tanh(self.Conv_1(x))


class RecurrentOptimizer(nn.Module):
    """See `models.attackers.RecurrentOptimizer`, without biases."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.U, self.V = nn.Parameter(torch.empty(hidden)), nn.Parameter(torch.empty(hidden))
        self.W = nn.Parameter(torch.empty(hidden, hidden))

    def forward(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Map g [B, C, H, W], h [hidden, g.numel()] to (delta [B, C, H, W] in (-1, 1), h)."""
        last = g.permute(0, 2, 3, 1)  # this is channels_last's memory layout: nothing below copies
        h = torch.tanh(torch.addmm(self.U[:, None] * last.reshape(1, -1), self.W, h))
        return torch.tanh(self.V @ h).view(last.shape).permute(0, 3, 1, 2), h
