"""Other libraries' attacks on the same network with the same weights, for benchmarks (extra `bench`).

`torch_training` has the rivals of training steps.

    programs = rivals.programs("torchattacks,torch_compile", task)     # name with versions -> program

All run in torch: on its GPU if it has one, else on the CPU. Every program returns once its work is done.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from l2ljax import devices, models
from l2ljax.types import Array, Batch, L2LError, Tree

__all__ = [
    "RIVALS", "Programs", "Task", "Unavailable", "art_attack", "foolbox_attack", "named", "package", "programs",
    "pyautoattack_apgd", "pyautoattack_standard", "same_network", "split", "torch_compiled_loop", "torch_loop",
    "torchattacks_attack",
]  # fmt: skip


class Task(NamedTuple):
    """The task of every rival: an attack in linf on one batch."""

    arch: str
    """A network in `torch_networks`."""
    variables: Tree
    batch: Batch
    family: str
    """pgd, from a uniform start to the last iterate, or apgd on the cross-entropy."""
    eps: float
    steps: int = 0
    step_size: float | None = None
    """Step size of pgd."""
    dtype: str = "float32"
    """bfloat16 is torch's autocast."""


Programs = dict[str, Callable[[], Any]]
"""Name with versions -> program."""


class Unavailable(L2LError):
    """This machine lacks something that a rival needs besides its packages."""


def torchattacks_attack(task: Task) -> Programs:
    """Run torchattacks."""
    torchattacks, (net, x, y) = package("torchattacks"), same_network(task)
    size, steps = {"alpha": task.step_size} if task.family == "pgd" else {}, task.steps
    attack = getattr(torchattacks, task.family.upper())(net, eps=task.eps, steps=steps, **size)
    return {named("torchattacks", "torch"): lambda: attack(x, y)}


def torch_loop(task: Task) -> Programs:
    """Run a typical torch loop by hand, in channels_last with frozen weights."""
    return {f"a loop, {named('torch')}, channels_last": _loop(task, lambda net: net)}


def torch_compiled_loop(task: Task) -> Programs:
    """Run that loop with the network compiled by `torch.compile`; `Unavailable` if torch has no compiler for it."""
    compiled = _loop(task, package("torch").compile)
    try:
        compiled()
    except Exception as error:
        raise Unavailable(f"torch.compile fails here: {str(error).splitlines()[0]}") from error
    return {f"a loop, {named('torch')}, channels_last, compiled": compiled}


def _loop(task: Task, transform: Callable[[Any], Any]) -> Callable[[], Any]:
    torch = package("torch")
    net, x, y = same_network(task)
    net, x = transform(net.to(memory_format=torch.channels_last)), x.contiguous(memory_format=torch.channels_last)

    def program() -> Any:
        moved = (x + torch.empty_like(x).uniform_(-task.eps, task.eps)).clamp(0, 1)
        for _ in range(task.steps):
            moved.requires_grad_()
            loss = torch.nn.functional.cross_entropy(net(moved), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + task.step_size * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, x - task.eps), x + task.eps).clamp(0, 1)
        return moved

    return program


def foolbox_attack(task: Task) -> Programs:
    """Run foolbox on the torch network, and on ours, jitted and sharded over all devices; the attack does not jit."""
    foolbox, eagerpy = package("foolbox"), package("eagerpy")
    net, x, y = same_network(task)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=task.step_size, steps=task.steps)
    on_torch = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device)
    classifier, variables = models.create(task.arch, dtype=task.dtype), devices.replicate(task.variables)
    network = jax.jit(functools.partial(classifier.logits, variables))

    def logits(x: Array) -> Array:
        return jax.device_put(network(devices.shard(x)), jax.local_devices()[0])

    on_jax = foolbox.JAXModel(logits, bounds=(0, 1), data_format="channels_last")
    x_jax, y_jax = (eagerpy.astensor(jax.device_put(a, jax.local_devices()[0])) for a in task.batch)

    def program_jax() -> Any:
        return jax.block_until_ready(attack(on_jax, x_jax, y_jax, epsilons=task.eps)[1].raw)

    return {
        named("foolbox", "torch"): lambda: attack(on_torch, x, y, epsilons=task.eps),
        f"{named('foolbox')}, JAX, jitted network": program_jax,
    }


def art_attack(task: Task) -> Programs:
    """Run the Adversarial Robustness Toolbox on the torch network."""
    evasion, classification = package("art.attacks.evasion"), package("art.estimators.classification")
    (net, x, y), device = same_network(task), "gpu" if package("torch").cuda.is_available() else "cpu"
    loss, shape = package("torch").nn.CrossEntropyLoss(), tuple(x.shape[1:])
    estimator = classification.PyTorchClassifier(net, loss, shape, 10, clip_values=(0.0, 1.0), device_type=device)
    sizes = {"eps": task.eps, "eps_step": task.step_size, "max_iter": task.steps, "batch_size": len(y)}
    attack = evasion.ProjectedGradientDescent(estimator, **sizes, num_random_init=1, verbose=False)
    name = f"ART {importlib.metadata.version('adversarial-robustness-toolbox')}, {named('torch')}"
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    return {name: lambda: attack.generate(images, labels)}


def pyautoattack_apgd(task: Task) -> Programs:
    """Run pyautoattack's APGD-CE, with one start."""
    net, x, y = same_network(task)
    evaluation = package("pyautoattack").AutoAttack(net, eps=task.eps, seed=0, device=x.device)
    evaluation.apgd.n_iter, evaluation.apgd.loss, evaluation.apgd.seed = task.steps, "ce", 0
    return {named("pyautoattack", "torch"): lambda: evaluation.apgd.perturb(x, y)}


RIVALS: dict[str, dict[str, Callable[[Task], Programs]]] = {
    "torchattacks": {"pgd": torchattacks_attack, "apgd": torchattacks_attack},
    "torch": {"pgd": torch_loop},
    "torch_compile": {"pgd": torch_compiled_loop},
    "foolbox": {"pgd": foolbox_attack},
    "art": {"pgd": art_attack},
    "pyautoattack": {"apgd": pyautoattack_apgd},
}
"""Name -> family of attacks -> the attack in another library, after comparing the network's logits there.

Raises:
  L2LError: the library is missing, the logits differ from ours, or the network has no copy in torch.
"""


def split(names: str) -> list[str]:
    """Return names separated by commas; raise an L2LError for one that `RIVALS` lacks."""
    chosen = [name for name in names.split(",") if name]
    if unknown := set(chosen) - set(RIVALS):
        raise L2LError(f"unknown rival {', '.join(sorted(unknown))}: choose from {', '.join(RIVALS)}")
    return chosen


def programs(names: str, task: Task) -> Programs:
    """Return the programs of these rivals, separated by commas, that have the task's attack.

    Raises:
      L2LError: an unknown name, or an error of `RIVALS`.
    """
    makers = [RIVALS[name][task.family] for name in split(names) if task.family in RIVALS[name]]
    return {name: _finished(program) for make in makers for name, program in make(task).items()}


def pyautoattack_standard(
    arch: str, variables: Tree, batch: Batch, *, eps: float, attacks: tuple[str, ...], batch_size: int, seed: int
) -> tuple[str, Callable[[], np.ndarray]]:
    """Return pyautoattack on one of our residual networks, linf: (name with version, program -> robust bool [B]).

    `attacks` are of apgd-ce, apgd-t, fab-t, square, in the order of its version "standard".
    """
    pyautoattack, torch = package("pyautoattack"), package("torch")
    net, x, y = same_network(Task(arch, variables, batch, "standard", eps))

    def program() -> np.ndarray:
        known = {"norm": "Linf", "eps": eps, "version": "standard", "device": x.device}
        evaluation = pyautoattack.AutoAttack(net, **known, seed=seed)
        evaluation.attacks_to_run = list(attacks)
        x_adv = evaluation.run_standard_evaluation(x, y, batch_size=batch_size)[0]
        with torch.no_grad():
            return (net(x_adv).argmax(1) == y).cpu().numpy()

    return named("pyautoattack", "torch"), program


def same_network(task: Task) -> tuple[Any, Any, Any]:
    """Return the torch module with frozen weights in the task's dtype, and the batch as tensors on torch's device.

    On a GPU torch may choose its fastest convolutions, and TF32 for float32, as XLA does.

    Raises:
      L2LError: its logits in float32 differ from ours.
    """
    torch = package("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    build = package("bench.torch_networks").build
    net = build(task.arch, task.variables).requires_grad_(False).to(device)
    x = torch.from_numpy(np.asarray(task.batch.x, np.float32).transpose(0, 3, 1, 2).copy()).to(device)
    y = torch.from_numpy(np.asarray(task.batch.y).astype(np.int64)).to(device)
    few = task.batch.x[:8]
    with jax.default_matmul_precision("float32"):
        ours: Array = jax.jit(models.create(task.arch).logits)(task.variables, few)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    theirs = net(x[: len(few)]).cpu().numpy()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    gap = float(np.abs(theirs - np.asarray(ours)).max())
    if gap > 1e-3 * max(1.0, float(np.abs(ours).max())):
        raise L2LError(f"torch's logits differ from ours by {gap:.2g}: the weights are not converted correctly")
    if task.dtype == "float32":
        return net, x, y

    class Autocast(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            with torch.autocast(device, dtype=getattr(torch, task.dtype)):
                return self.net(x).float()

    return Autocast().eval(), x, y


def _finished(program: Callable[[], Any]) -> Callable[[], Any]:
    """Return the program that waits for the GPU, if torch has one."""
    torch = package("torch")

    def run() -> Any:
        result = program()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return run


def named(*packages: str) -> str:
    """Return packages with their versions."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


@functools.cache
def package(name: str) -> Any:
    """Import a module by name; an L2LError says how to install a missing package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise L2LError(f"{error.name} is not installed: pip install '.[bench]'") from error
