"""Other libraries' attacks on the same network with the same weights, for benchmarks (extra `bench`)."""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from l2ljax.types import Array, Batch, Classifier, L2LError, Tree


def torch_resnet20(variables: Tree) -> Any:
    """resnet20 as a torch module in evaluation mode (NCHW), with our variables."""
    torch = _package("torch")
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


class PGD(NamedTuple):
    """What every rival runs: PGD in linf from a uniform start, last iterate."""

    eps: float
    step_size: float
    steps: int


Rival = Callable[[Classifier, Tree, Batch, PGD], dict[str, Callable[[], Any]]]
"""(classifier, variables, batch, settings) -> name with versions -> program."""


def torchattacks_pgd(classifier: Classifier, variables: Tree, batch: Batch, pgd: PGD) -> dict[str, Callable[[], Any]]:
    """torchattacks on the torch network."""
    torchattacks = _package("torchattacks")
    net, x, y = same_network(classifier, variables, batch)
    attack = torchattacks.PGD(net, eps=pgd.eps, alpha=pgd.step_size, steps=pgd.steps)
    return {_named("torchattacks", "torch"): lambda: attack(x, y)}


def torch_loop_pgd(classifier: Classifier, variables: Tree, batch: Batch, pgd: PGD) -> dict[str, Callable[[], Any]]:
    """What a torch user writes by hand, in channels_last with frozen weights: the best that torch does on this CPU."""
    torch = _package("torch")
    net, x, y = same_network(classifier, variables, batch)
    net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)

    def program() -> Any:
        moved = (x + torch.empty_like(x).uniform_(-pgd.eps, pgd.eps)).clamp(0, 1)
        for _ in range(pgd.steps):
            moved.requires_grad_()
            loss = torch.nn.functional.cross_entropy(net(moved), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + pgd.step_size * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, x - pgd.eps), x + pgd.eps).clamp(0, 1)
        return moved

    return {f"a loop, {_named('torch')}, channels_last": program}


def foolbox_pgd(classifier: Classifier, variables: Tree, batch: Batch, pgd: PGD) -> dict[str, Callable[[], Any]]:
    """foolbox on the torch network, and on ours with the network jitted (the attack itself does not jit)."""
    foolbox, eagerpy = _package("foolbox"), _package("eagerpy")
    net, x, y = same_network(classifier, variables, batch)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=pgd.step_size, steps=pgd.steps)
    on_torch = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    logits = jax.jit(functools.partial(classifier.logits, variables))
    on_jax = foolbox.JAXModel(logits, bounds=(0, 1), data_format="channels_last")
    x_jax, y_jax = eagerpy.astensor(jax.numpy.asarray(batch.x)), eagerpy.astensor(jax.numpy.asarray(batch.y))

    def program_jax() -> Any:
        return jax.block_until_ready(attack(on_jax, x_jax, y_jax, epsilons=pgd.eps)[1].raw)

    return {
        _named("foolbox", "torch"): lambda: attack(on_torch, x, y, epsilons=pgd.eps),
        f"{_named('foolbox')}, JAX, jitted network": program_jax,
    }


def art_pgd(classifier: Classifier, variables: Tree, batch: Batch, pgd: PGD) -> dict[str, Callable[[], Any]]:
    """The Adversarial Robustness Toolbox on the torch network."""
    torch = _package("torch")
    _package("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    net, x, y = same_network(classifier, variables, batch)
    estimator = PyTorchClassifier(
        net, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        estimator, eps=pgd.eps, eps_step=pgd.step_size, max_iter=pgd.steps, num_random_init=1, batch_size=len(y),
        verbose=False,
    )  # fmt: skip
    name = f"ART {importlib.metadata.version('adversarial-robustness-toolbox')}, {_named('torch')}"
    return {name: lambda: attack.generate(x.numpy(), y.numpy())}


RIVALS: dict[str, Rival] = {
    "torchattacks": torchattacks_pgd,
    "torch": torch_loop_pgd,
    "foolbox": foolbox_pgd,
    "art": art_pgd,
}
"""Name -> PGD on our resnet20 in another library, after a look at its logits.

Raises:
  L2LError: the library is not installed, or the logits differ from ours.
"""


def pgd_programs(
    names: str, classifier: Classifier, variables: Tree, batch: Batch, pgd: PGD
) -> dict[str, Callable[[], Any]]:
    """The programs of the rivals of these names, separated by commas.

    Raises:
      L2LError: an unknown name, a library that is not installed, logits that differ from ours.
    """
    chosen = [name for name in names.split(",") if name]
    if unknown := set(chosen) - set(RIVALS):
        raise L2LError(f"unknown rival {', '.join(sorted(unknown))}: choose of {', '.join(RIVALS)}")
    return {k: v for name in chosen for k, v in RIVALS[name](classifier, variables, batch, pgd).items()}


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
    pyautoattack, torch = _package("pyautoattack"), _package("torch")
    net, x, y = same_network(classifier, variables, batch)

    def program() -> np.ndarray:
        evaluation = pyautoattack.AutoAttack(net, norm="Linf", eps=eps, version="standard", seed=seed)
        evaluation.attacks_to_run = list(attacks)
        x_adv = evaluation.run_standard_evaluation(x, y, batch_size=batch_size)[0]
        with torch.no_grad():
            return (net(x_adv).argmax(1) == y).numpy()

    return _named("pyautoattack", "torch"), program


def same_network(classifier: Classifier, variables: Tree, batch: Batch) -> tuple[Any, Any, Any]:
    """The torch module with frozen weights and the batch as torch's tensors.

    Raises:
      L2LError: its logits differ from ours.
    """
    torch = _package("torch")
    net = torch_resnet20(variables).requires_grad_(False)
    x = torch.from_numpy(np.asarray(batch.x).transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(np.asarray(batch.y).astype(np.int64))
    ours: Array = jax.jit(classifier.logits)(variables, batch.x)
    gap = float(np.abs(net(x).detach().numpy() - np.asarray(ours)).max())
    if gap > 1e-3:
        raise L2LError(f"torch's logits differ from ours by {gap:.2g}: the weights are not converted right")
    return net, x, y


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise L2LError(f"{name} is not installed: pip install '.[bench]'") from error


def _named(*packages: str) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
