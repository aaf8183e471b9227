"""Our networks as torch modules with our weights (extra `bench`).

    net = torch_networks.build("resnet20", variables)                           # evaluation mode, images [B, C, H, W]
    attacker = torch_networks.load(torch_networks.wide_attacker(module, 6, 3), params, batch_stats)

Layers have flax's names of ours, which map the weights to their places. This module imports torch: load it through
`rivals.package`, which says how to install it.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn

from l2ljax.models import CLASSIFIERS, attackers, cnn, resnet
from l2ljax.types import L2LError, Tree

__all__ = [
    "Block", "Function", "Normalize", "RecurrentOptimizer", "basic_block", "build", "generator_block", "load",
    "preact_block", "residual_network", "small_cnn", "wide_attacker",
]  # fmt: skip


def build(arch: str, variables: Tree) -> nn.Module:
    """Build the network of that name in evaluation mode.

    Raises:
      L2LError: the network has no copy in torch.
    """
    ours: Any = CLASSIFIERS[arch]() if arch in CLASSIFIERS else None
    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))
    if isinstance(ours, resnet.ResNet):
        net = residual_network(ours, *_ends(params, "Dense_0"))
    elif isinstance(ours, cnn.SmallCNN):
        net = small_cnn(*_ends(params, "Dense_2"))
    else:
        known = [name for name, make in CLASSIFIERS.items() if isinstance(make(), resnet.ResNet | cnn.SmallCNN)]
        raise L2LError(f"{arch} has no copy in torch: rivals take {', '.join(known)}")
    return load(net, params, stats).to(next(net.parameters()).dtype)


def _ends(params: Tree, last: str) -> tuple[int, int]:
    """Return (channels of the image, classes)."""
    return params["Conv_0"]["kernel"].shape[2], params[last]["bias"].size


_WEIGHTS: dict[type[nn.Module], Callable[[Tree], Any]] = {
    nn.Conv2d: lambda params: params["kernel"].transpose(3, 2, 0, 1),
    nn.Linear: lambda params: params["kernel"].T,
    nn.BatchNorm2d: lambda params: params.get("scale"),
    nn.PReLU: lambda params: params["slope"].reshape(1),
}
"""Layer -> our parameters -> torch's `weight`."""


def load(module: nn.Module, params: Tree, stats: Tree) -> nn.Module:
    """Copy our weights and running statistics into the module, and set evaluation mode."""
    tensor = lambda a: torch.from_numpy(np.array(a, order="C"))
    known = {**params, "weight": _WEIGHTS[type(module)](params)} if type(module) in _WEIGHTS else params
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = tensor(known[name])
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean, module.running_var = tensor(stats["mean"]), tensor(stats["var"])
    for name, child in module.named_children():
        of_child = (params, stats) if isinstance(child, nn.Sequential) else (params.get(name, {}), stats.get(name, {}))
        load(child, *of_child)
    return module.eval()


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


class Normalize(nn.Module):
    """Subtract a mean per channel and divide by a deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return (x - self.mean) / self.std


class Block(nn.Module):
    """after(branch(z) + shortcut(z)) with z = before(x); without a shortcut, x itself is added."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None, *, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, H / stride, W / stride]."""
        z = self.before(x)
        return self.after(self.branch(z) + (x if self.shortcut is None else self.shortcut(z)))


def _chain(**layers: nn.Module) -> nn.Sequential:
    """Chain named layers."""
    chain = nn.Sequential()
    for name, layer in layers.items():
        chain.add_module(name, layer)
    return chain


def _convolution(channels: int, width: int, size: int = 3, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, width, size, stride, size // 2, bias=bias)


def basic_block(channels: int, width: int, stride: int, zero_pad: bool = False) -> Block:
    """See `models.resnet.BasicBlock`."""
    norm, new, shortcut = nn.BatchNorm2d, width - channels, None
    if (stride, channels) != (1, width):
        padding = (0, 0, 0, 0, new // 2, new - new // 2)
        projection = _chain(Conv_2=_convolution(channels, width, 1, stride), BatchNorm_2=norm(width))
        pad = Function(lambda x: nn.functional.pad(x[:, :, ::stride, ::stride], padding))
        shortcut = pad if zero_pad else projection
    branch = _chain(
        Conv_0=_convolution(channels, width, 3, stride), BatchNorm_0=norm(width), relu=nn.ReLU(),
        Conv_1=_convolution(width, width), BatchNorm_1=norm(width),
    )  # fmt: skip
    return Block(branch, shortcut, after=nn.ReLU())


def preact_block(channels: int, width: int, stride: int) -> Block:
    """See `models.resnet.PreActBlock`."""
    same = (stride, channels) == (1, width)
    branch = _chain(
        Conv_0=_convolution(channels, width, 3, stride), BatchNorm_1=nn.BatchNorm2d(width), relu=nn.ReLU(),
        Conv_1=_convolution(width, width),
    )  # fmt: skip
    shortcut = None if same else _chain(Conv_2=_convolution(channels, width, 1, stride))
    return Block(branch, shortcut, before=_chain(BatchNorm_0=nn.BatchNorm2d(channels), relu=nn.ReLU()))


def residual_network(ours: resnet.ResNet, channels: int, classes: int) -> nn.Sequential:
    """See `models.resnet.ResNet`: [B, C, H, W] -> [B, K]."""
    kind: Any = getattr(ours.block, "func", ours.block)
    block: Any = preact_block if kind is resnet.PreActBlock else basic_block
    norms, number, width = iter(("BatchNorm_0", "BatchNorm_1")), itertools.count(), ours.stem
    layers: dict[str, nn.Module] = {}
    if ours.mean is not None:
        layers["normalize"] = Normalize(ours.mean, ours.std or (1.0,))
    layers["Conv_0"] = _convolution(channels, width, *((7, 2) if ours.stem_quarters else (3, 1)))
    if ours.stem_norm:
        layers |= {next(norms): nn.BatchNorm2d(width), "stem_relu": nn.ReLU()}
    if ours.stem_quarters:
        layers["stem_pool"] = nn.MaxPool2d(3, 2, 1)
    for group, (wide, depth) in enumerate(zip(ours.widths, ours.depths, strict=True)):
        for i in range(depth):
            stride, options = 2 if group > 0 and i == 0 else 1, getattr(ours.block, "keywords", {})
            layers[f"{kind.__name__}_{next(number)}"] = block(width, wide, stride, **options)
            width = wide
    if ours.final_norm:
        layers |= {next(norms): nn.BatchNorm2d(width), "final_relu": nn.ReLU()}
    return _chain(**layers, pool=Function(lambda x: x.mean((2, 3))), Dense_0=nn.Linear(width, classes))


def small_cnn(channels: int, classes: int) -> nn.Sequential:
    """See `models.cnn.SmallCNN`: [B, C, 28, 28] -> [B, K]."""
    ours = Function(lambda x: x.permute(0, 2, 3, 1).flatten(1))  # our order of features, free in channels_last
    return _chain(
        Conv_0=nn.Conv2d(channels, 32, 3), relu_0=nn.ReLU(), Conv_1=nn.Conv2d(32, 32, 3), relu_1=nn.ReLU(),
        pool_0=nn.MaxPool2d(2), Conv_2=nn.Conv2d(32, 64, 3), relu_2=nn.ReLU(), Conv_3=nn.Conv2d(64, 64, 3),
        relu_3=nn.ReLU(), pool_1=nn.MaxPool2d(2), flat=ours, Dense_0=nn.Linear(1024, 200), relu_4=nn.ReLU(),
        dropout=nn.Dropout(0.5), Dense_1=nn.Linear(200, 200), relu_5=nn.ReLU(), Dense_2=nn.Linear(200, classes),
    )  # fmt: skip


def generator_block(channels: int, features: int) -> Block:
    """See `models.attackers.GeneratorBlock`."""
    norm, convolution = functools.partial(nn.BatchNorm2d, affine=False), functools.partial(_convolution, bias=True)
    branch = _chain(
        BatchNorm_0=norm(channels), PReLU_0=nn.PReLU(), Conv_0=convolution(channels, features),
        BatchNorm_1=norm(features), PReLU_1=nn.PReLU(), Conv_1=convolution(features, features),
    )  # fmt: skip
    return Block(branch, None if channels == features else _chain(Conv_2=convolution(channels, features, 1)))


def wide_attacker(ours: attackers.WideAttacker, channels: int, image_channels: int) -> nn.Sequential:
    """See `models.attackers.WideAttacker`: [B, C', H, W] -> [B, C, H, W] in (-1, 1)."""
    widths = (ours.first, *ours.blocks)
    pairs = enumerate(itertools.pairwise(widths))
    blocks: dict[str, nn.Module] = {f"GeneratorBlock_{i}": generator_block(*pair) for i, pair in pairs}
    if ours.last_norm:
        blocks["BatchNorm_1"] = nn.BatchNorm2d(widths[-1], affine=False)
    return _chain(
        Conv_0=_convolution(channels, ours.first), BatchNorm_0=nn.BatchNorm2d(ours.first, eps=1e-3), relu=nn.ReLU(),
        **blocks, Conv_1=_convolution(widths[-1], image_channels, bias=True), tanh=nn.Tanh(),
    )  # fmt: skip


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
