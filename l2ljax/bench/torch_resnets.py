"""Our residual networks as torch modules with our weights (extra `bench`), for other libraries' attacks.

net = torch_resnets.build("resnet20", variables)      # evaluation mode, images [B, C, H, W]
"""

import functools
import importlib
from typing import Any

import jax
import numpy as np

from l2ljax.models import CLASSIFIERS
from l2ljax.models.resnet import PreActBlock, ResNet
from l2ljax.types import L2LError, Tree


def build(arch: str, variables: Tree) -> Any:
    """The network of that name as a torch module in evaluation mode.

    Raises:
      L2LError: it is no residual network, or torch is not installed.
    """
    ours: Any = CLASSIFIERS[arch]() if arch in CLASSIFIERS else None
    if not isinstance(ours, ResNet):
        known = [name for name, make in CLASSIFIERS.items() if isinstance(make(), ResNet)]
        raise L2LError(f"{arch} has no copy in torch: rivals attack {', '.join(known)}")
    torch = package("torch")
    nn: Any = torch.nn
    functional = nn.functional
    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))
    kind = getattr(ours.block, "func", ours.block)
    zero_pad = getattr(ours.block, "keywords", {}).get("zero_pad", False)

    # Modules bear the names that flax gave ours, by which the weights find their place.
    class Basic(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            self.Conv_0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.BatchNorm_0 = nn.BatchNorm2d(width)
            self.Conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.BatchNorm_1 = nn.BatchNorm2d(width)
            self.stride, self.new = stride, width - channels
            if (stride, channels) != (1, width) and not zero_pad:
                self.Conv_2 = nn.Conv2d(channels, width, 1, stride, bias=False)
                self.BatchNorm_2 = nn.BatchNorm2d(width)

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.BatchNorm_0(self.Conv_0(x)))
            y = self.BatchNorm_1(self.Conv_1(y))
            if hasattr(self, "Conv_2"):
                x = self.BatchNorm_2(self.Conv_2(x))
            elif self.new:
                x = x[:, :, :: self.stride, :: self.stride]
                x = functional.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
            return functional.relu(y + x)

    class PreAct(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            self.BatchNorm_0 = nn.BatchNorm2d(channels)
            self.Conv_0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.BatchNorm_1 = nn.BatchNorm2d(width)
            self.Conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            if (stride, channels) != (1, width):
                self.Conv_2 = nn.Conv2d(channels, width, 1, stride, bias=False)

        def forward(self, x: Any) -> Any:
            z = functional.relu(self.BatchNorm_0(x))
            y = self.Conv_1(functional.relu(self.BatchNorm_1(self.Conv_0(z))))
            return y + (self.Conv_2(z) if hasattr(self, "Conv_2") else x)

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            stem = params["Conv_0"]["kernel"]
            size, stride = (7, 2) if ours.stem_quarters else (3, 1)
            self.Conv_0 = nn.Conv2d(stem.shape[2], ours.stem, size, stride, size // 2, bias=False)
            channels, norms = ours.stem, iter(("BatchNorm_0", "BatchNorm_1"))
            self.blocks: list[str] = []
            self.stem_norm = next(norms) if ours.stem_norm else None
            for group, (width, depth) in enumerate(zip(ours.widths, ours.depths, strict=True)):
                for i in range(depth):
                    name = f"{kind.__name__}_{len(self.blocks)}"
                    block = PreAct if kind is PreActBlock else Basic
                    self.add_module(name, block(channels, width, 2 if group > 0 and i == 0 else 1))
                    self.blocks.append(name)
                    channels = width
            self.final_norm = next(norms) if ours.final_norm else None
            for norm, width in ((self.stem_norm, ours.stem), (self.final_norm, channels)):
                if norm:
                    self.add_module(norm, nn.BatchNorm2d(width))
            self.Dense_0 = nn.Linear(channels, params["Dense_0"]["bias"].size)
            for name, value in (("mean", ours.mean or (0.0,)), ("std", ours.std or (1.0,))):
                self.register_buffer(name, torch.tensor(value).view(1, -1, 1, 1))

        def forward(self, x: Any) -> Any:
            if ours.mean is not None:
                x = (x - self.mean) / self.std
            x = self.Conv_0(x)
            if self.stem_norm:
                x = functional.relu(getattr(self, self.stem_norm)(x))
            if ours.stem_quarters:
                x = functional.max_pool2d(x, 3, 2, 1)
            for name in self.blocks:
                x = getattr(self, name)(x)
            if self.final_norm:
                x = functional.relu(getattr(self, self.final_norm)(x))
            return self.Dense_0(x.mean((2, 3)))

    def tensor(a: np.ndarray) -> Any:
        return torch.from_numpy(np.array(a, order="C"))

    def copy(module: Any, params: Tree, stats: Tree) -> None:
        for name, child in module.named_children():
            known = params[name]
            if isinstance(child, nn.Conv2d):
                child.weight.data = tensor(known["kernel"].transpose(3, 2, 0, 1))
            elif isinstance(child, nn.BatchNorm2d):
                child.weight.data, child.bias.data = tensor(known["scale"]), tensor(known["bias"])
                child.running_mean, child.running_var = tensor(stats[name]["mean"]), tensor(stats[name]["var"])
            elif isinstance(child, nn.Linear):
                child.weight.data, child.bias.data = tensor(known["kernel"].T), tensor(known["bias"])
            else:
                copy(child, known, stats[name])

    net = Network().eval()
    copy(net, params, stats)
    return net


@functools.cache
def package(name: str) -> Any:
    """The module of that name; an L2LError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise L2LError(f"{name} is not installed: pip install '.[bench]'") from error
