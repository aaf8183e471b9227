"""Other libraries' attacks on the same network with the same weights, for benchmarks (extra `bench`)."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from l2ljax.types import Array, Batch, Classifier, L2LError, Tree


def torch_resnet20(variables: Tree) -> Any:
    """resnet20 as a torch module in evaluation mode (NCHW), with our variables."""
    torch = _torch()
    nn: Any = torch.nn
    functional = nn.functional

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.stride, self.new = stride, width - channels

        def forward(self, x: Any) -> Any:
            y = self.bn1(self.conv1(functional.relu(self.bn0(self.conv0(x)))))
            if self.new:
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new // 2))
            return functional.relu(y + x)

    class ResNet20(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
            self.conv0, self.bn0 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            widths = [16] * 3 + [32] * 3 + [64] * 3
            self.blocks = nn.Sequential(
                *[Block(i, o, 1 if i == o else 2) for i, o in zip([16, *widths[:-1]], widths, strict=True)]
            )
            self.dense = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = functional.relu(self.bn0(self.conv0((x - self.mean) / self.std)))
            return self.dense(self.blocks(x).mean((2, 3)))

    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))

    def tensor(a: np.ndarray) -> Any:
        return torch.from_numpy(np.array(a, order="C"))

    def copy(module: Any, params: Tree, stats: Tree) -> None:
        for i in (0, 1):
            if hasattr(module, f"conv{i}"):
                getattr(module, f"conv{i}").weight.data = tensor(params[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1))
                norm, name = getattr(module, f"bn{i}"), f"BatchNorm_{i}"
                norm.weight.data, norm.bias.data = tensor(params[name]["scale"]), tensor(params[name]["bias"])
                norm.running_mean, norm.running_var = tensor(stats[name]["mean"]), tensor(stats[name]["var"])

    net = ResNet20().eval()
    copy(net, params, stats)
    for i, block in enumerate(net.blocks):
        copy(block, params[f"BasicBlock_{i}"], stats[f"BasicBlock_{i}"])
    net.dense.weight.data = tensor(params["Dense_0"]["kernel"].T)
    net.dense.bias.data = tensor(params["Dense_0"]["bias"])
    return net


def torchattacks_pgd(
    classifier: Classifier, variables: Tree, batch: Batch, *, eps: float, step_size: float, steps: int
) -> tuple[str, Callable[[], Any]]:
    """PGD of torchattacks on our resnet20: (name with version, program), after a look at its logits.

    Raises:
      L2LError: torch or torchattacks are not installed, or the logits differ from ours.
    """
    try:
        import torchattacks
    except ImportError as error:
        raise L2LError("torchattacks is not installed: pip install '.[bench]'") from error
    torch = _torch()
    net, x, y = _same_network(classifier, variables, batch)
    attack = torchattacks.PGD(net, eps=eps, alpha=step_size, steps=steps)
    name = f"torchattacks {torchattacks.__version__}, torch {torch.__version__}"
    return name, lambda: attack(x, y)


def pyautoattack_standard(
    classifier: Classifier,
    variables: Tree,
    batch: Batch,
    *,
    eps: float,
    attacks: tuple[str, ...],
    batch_size: int,
    seed: int,
) -> tuple[str, Callable[[], np.ndarray]]:
    """pyautoattack on our resnet20, linf: (name with version, program -> robust bool [B]).

    Args:
      classifier: a resnet20.
      variables: its weights.
      batch: what to attack.
      eps: the radius.
      attacks: of apgd-ce, apgd-t, fab-t, square, in the order of its version "standard".
      batch_size: images at a time.
      seed: of its random starts.

    Raises:
      L2LError: torch or pyautoattack are not installed, or the logits differ from ours.
    """
    try:
        import pyautoattack
    except ImportError as error:
        raise L2LError("pyautoattack is not installed: pip install '.[bench]'") from error
    torch = _torch()
    net, x, y = _same_network(classifier, variables, batch)

    def program() -> np.ndarray:
        evaluation = pyautoattack.AutoAttack(net, norm="Linf", eps=eps, version="standard", seed=seed)
        evaluation.attacks_to_run = list(attacks)
        x_adv = evaluation.run_standard_evaluation(x, y, batch_size=batch_size)[0]
        with torch.no_grad():
            return (net(x_adv).argmax(1) == y).numpy()

    return f"pyautoattack {importlib.metadata.version('pyautoattack')}, torch {torch.__version__}", program


def _same_network(classifier: Classifier, variables: Tree, batch: Batch) -> tuple[Any, Any, Any]:
    """The torch module and the batch as torch's tensors, after a look at its logits."""
    torch = _torch()
    net = torch_resnet20(variables)
    x = torch.from_numpy(np.asarray(batch.x).transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(np.asarray(batch.y).astype(np.int64))
    ours: Array = jax.jit(classifier.logits)(variables, batch.x)
    gap = float(np.abs(net(x).detach().numpy() - np.asarray(ours)).max())
    if gap > 1e-3:
        raise L2LError(f"torch's logits differ from ours by {gap:.2g}: the weights are not converted right")
    return net, x, y


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise L2LError("torch is not installed: pip install '.[bench]'") from error
    return torch
