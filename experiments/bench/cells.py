"""The flags of `experiments/throughput.py`, and the comparisons that they ask for, each name and number checked."""

import dataclasses
import importlib.util
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from bench import rivals, training
from l2ljax import attacks, defenses, devices, models, threat
from l2ljax.run.settings import Dtype
from l2ljax.types import L2LError
from l2ljax.values import Count, Positive, parse_list

__all__ = ["TRAINING", "Cell", "Flags", "cells", "presets", "split"]

TRAINING = "training step"


@dataclasses.dataclass(frozen=True)
class Flags:
    """The measurements."""

    model: str = "resnet20"
    """Classifiers with random weights, separated by commas, or module:function, a function without arguments that
    returns images -> logits."""
    image_shape: tuple[Count, Count, Count] | None = None
    """Shape of the images of a module:function."""
    attacks: str | None = None
    """Names as in --attacks of the other scripts, separated by commas; by default pgd10, or none with --train."""
    train: str = ""
    """Also a training step of these methods, separated by commas, each METHOD (joint) or METHOD:alternating. The first
    is the reference; for --model=wrn_34_10 the papers have plain,pgd_adv,naive_l2l,grad_l2l,two_step_l2l."""
    steps: str = ""
    """With --train: numbers of attack steps, separated by commas, for methods with steps; by default their own."""
    attacker_width: Count | None = None
    """Width of the convolutional attackers: with --train by default the papers', 64, with --variants 16."""
    memory: bool = False
    """With --train, on a CPU: also the peak memory of each step, in its own process."""
    batch_sizes: str = "128"
    dtypes: str = "float32"
    """The types of our classifiers: float32, bfloat16."""
    devices: Count | None = None
    """Number of devices to split each batch over; all by default. A CPU has one per core, and with --devices=1 one for
    all cores."""
    eps: str = "8/255"
    rivals: str = ""
    """Some of torchattacks, torch (a loop by hand), torch_compile, foolbox, art (pgdN), pyautoattack (apgdN), separated
    by commas: the same attack on the same weights, on residual networks and small_cnn. torch has training steps too."""
    repeats: Count = 7
    minutes: Positive | None = None
    """Time limit; the measurements so far are kept."""
    out: Path = Path("runs/speed.json")
    """The JSON file, a kept result if it is in experiments/results; a bar chart of the same name goes next to it."""


def presets() -> dict[str, dict[str, Any]]:
    """Return name -> flags that differ from the defaults. gpu has rivals if torchattacks is installed."""
    rivals = "torchattacks,torch_compile" if importlib.util.find_spec("torchattacks") else ""
    gpu = {
        "model": "wrn_34_10,resnet18", "attacks": "pgd10", "train": "pgd_adv", "batch_sizes": "256",
        "dtypes": "bfloat16,float32", "rivals": rivals, "repeats": 5, "minutes": 9.0,
        "out": Path("runs/speed_gpu.json"),
    }  # fmt: skip
    return {"": {}, "gpu": gpu}


class Cell(NamedTuple):
    """The setting of one comparison."""

    model: str
    what: str
    """An attack's name, or `TRAINING`."""
    dtype: str
    batch_size: int
    steps: int | None = None
    """Steps of the attacks in training, unless the methods' own."""

    def title(self) -> str:
        """A title in words."""
        steps = "" if self.steps is None else f", {self.steps} attack steps"
        return f"{self.what}, {self.model}, {self.dtype}, batch of {self.batch_size}{steps}"


def cells(flags: Flags) -> list[Cell]:
    """List the comparisons, after a look at every name and number: nothing begins that would fail."""
    archs, sizes = parse_list(str, flags.model, "--model"), parse_list(Count, flags.batch_sizes, "--batch-sizes")
    dtypes = parse_list(Dtype, flags.dtypes, "--dtypes")
    attacked = split(flags.attacks if flags.attacks is not None else "" if flags.train else "pgd10")
    lengths = parse_list(Count, flags.steps, "--steps") if flags.steps else [None]
    ball, rival = threat.linf(threat.parse_eps(flags.eps)), rivals.split(flags.rivals)
    for name in ("steps", "memory", "attacker_width"):
        if getattr(flags, name) and not flags.train:
            raise L2LError(f"--{name.replace('_', '-')} does nothing without --train")
    if flags.image_shape and ":" not in flags.model:
        raise L2LError("--image-shape does nothing without --model=module:function")
    if not attacked and not flags.train:
        raise L2LError("nothing to measure: give --attacks or --train")
    for attack in attacked:
        attacks.create(attack, ball)
    for model in archs:
        if ":" not in model or flags.train:
            models.create(model)
        elif flags.image_shape is None:
            raise L2LError(f"--model={model} needs --image-shape, like --image-shape 32 32 3")
        elif rival:
            raise L2LError(f"--rivals attack our residual networks, not {model}: leave them out")
    for method in split(flags.train):
        task = training.Task(archs[0], dtypes[0], sizes[0], method, ball.eps)
        _ = defenses.options(task.name), task.schedule
    count = len(devices.first(flags.devices))
    for size in sizes:
        if size % count:
            raise L2LError(f"--batch-sizes={size}: {count} devices share a batch: give a multiple of {count}")
    whats = [*((TRAINING, steps) for steps in lengths if flags.train), *((name, None) for name in attacked)]
    grid = itertools.product(archs, dtypes, sizes)
    return [Cell(model, what, dtype, size, steps) for model, dtype, size in grid for what, steps in whats]


def split(text: str) -> list[str]:
    """Return the names that commas separate."""
    return [name for name in text.split(",") if name]
