"""The flags of the scripts as they are given, and `resolve`, which makes `Settings` of them and the recipes."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

from l2ljax import data, defenses
from l2ljax.run import recipes
from l2ljax.run.settings import Settings
from l2ljax.types import L2LError

__all__ = ["Config", "methods", "named", "resolve"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags. What is None comes from the method's recipe."""

    dataset: str | None = None
    """In place of the script's data, with its recipes: a .npz file or module:function with arrays of yours (see
    l2ljax.data.arrays)."""
    method: str = "rnn_adv"
    """The training method; several, separated by commas, or `all`, train one after the other and share a table."""
    arch: str | None = None
    """The classifier."""
    attacker: str | None = None
    """The L2L methods' attacker: wide, wide_paper, slim, slim_no_skip."""
    attacker_width: int | None = None
    """Channels of its first convolution."""
    init_from: str | None = None
    """Start from the trained classifier of this workdir."""
    attacker_from: str | None = None
    """Start from the trained attacker of this workdir."""
    eps: str | None = None
    """The threat's radius, like 8/255 or 0.031."""
    norm: str | None = None
    """The threat's norm: linf or l2."""
    steps: int | None = None
    """The steps of the attack in training."""
    options: str = ""
    """The method's options, like scale=1,weights=final."""
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    """The classifier's: sgd (momentum 0.9) or adam."""
    lr: float | None = None
    """The classifier's learning rate."""
    augment: str | None = None
    """The augmentation of training images: none, flip, crop or crop_flip."""
    lr_schedule: str | None = None
    """steps (falls at the recipe's milestones, which stretch with --epochs), constant, or cosine."""
    attacker_optimizer: str | None = None
    """sgd (momentum 0.9) or adam."""
    attacker_lr: float | None = None
    warmup: float | None = None
    """Epochs of plain training at the start, of the run's."""
    schedule: str | None = None
    """joint (both players move on one perturbation), alternating, classifier or attacker (it alone moves)."""
    seed: int = 0
    seeds: int = 1
    """The number of runs, with the seeds SEED, SEED + 1, ..., one after the other; the report has their mean, standard
    deviation and lowest. The same command goes on where it was killed."""
    dtype: str | None = None
    """The classifier's dtype: float32 or bfloat16."""
    remat: bool = False
    """Compute a residual network's activations again in the backward pass: less memory on accelerators, more time."""
    data_dir: str | None = None
    """A folder or archive with the data; without it, a prepared tensorflow-datasets set or a download."""
    train_size: int | None = None
    """The number of training images."""
    val_size: int | None = None
    """The number of training images held out to choose the best parameters; may be 0."""
    eval_size: int | None = None
    """The number of test images in the report, the first ones; by default all."""
    attacks: str = "fgsm,pgd20,pgd100,margin100,own"
    """The attacks of the report, separated by commas; trained:WORKDIR is the attacker that was trained there, with
    N steps as trainedN:WORKDIR."""
    devices: int | None = None
    """The number of local devices; by default the most that divide the batch."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where many processes (hosts) train one model: start the same command in each."""
    num_processes: int | None = None
    """With --coordinator: how many there are."""
    process_id: int | None = None
    """With --coordinator: which of them this is, 0 to NUM_PROCESSES - 1. Process 0 evaluates and writes."""
    distributed: bool = False
    """In place of those three where SLURM, Open MPI, Kubernetes or a cloud TPU started the processes."""
    heartbeat_timeout: int = 60
    """Seconds of silence after which a process counts as gone, and the others end."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; once an epoch by default."""
    no_checkpoint: bool = False
    """Save none."""
    workdir: str | None = None
    """Where results go: runs/DATASET_METHOD_ARCH_sSEED by default."""


def methods(text: str) -> list[str]:
    """Return the methods that `--method` names."""
    return list(defenses.METHODS) if text == "all" else text.split(",")


def resolve(dataset: str | data.Dataset, method: str, config: Config) -> Settings:
    """Return one run's settings: the flags over the recipe of `dataset`, also where the flags name other data.

    A `Dataset` is one that was checked, as by `data.load`.

    Raises:
      L2LError: a flag's value is not one that can be.
    """
    settings = recipes.find(dataset, method)
    dataset = config.dataset or dataset
    name = dataset if isinstance(dataset, str) else dataset.name
    if isinstance(dataset, str) and dataset in data.NAMES:
        classes = len(data.source(dataset).classes)
    else:
        users = data.load(dataset) if isinstance(dataset, str) else dataset
        classes = users.num_classes
        settings = recipes.fitted(settings, users)._replace(image_shape=users.image_shape, num_classes=classes)
    given = {field: value for field, value in dataclasses.asdict(config).items() if value is not None}
    options = {**settings.options, **_given_options(method, config)}
    if "num_classes" in defenses.options(method):
        options["num_classes"] = classes
    if "epochs" in given:
        stretch = given["epochs"] / settings.epochs
        given = {"warmup": settings.warmup * stretch, **given}
        settings = settings._replace(milestones=tuple(m * stretch for m in settings.milestones))
    folder = config.workdir or f"runs/{named(name)}_{method}_{given.get('arch', settings.arch)}_s{config.seed}"
    several = config.workdir and len(methods(config.method)) > 1
    given |= {
        "dataset": name,
        "method": method,
        "options": options,
        "attacks": tuple(filter(None, config.attacks.split(","))),
        "workdir": Path(folder).expanduser() / (method if several else ""),
    }
    settings = settings._replace(**{field: value for field, value in given.items() if field in Settings._fields})
    settings.check()
    return settings


def named(dataset: str) -> str:
    """Return the name of a data set as part of a folder's: a file's own name, and module:function with a dot."""
    return dataset.replace(":", ".") if dataset in data.SOURCES or ":" in dataset else Path(dataset).stem


def _given_options(method: str, config: Config) -> dict[str, Any]:
    """Return the method's options that flags name: --options, over them the flags of their own."""
    known, chosen = defenses.options(method), {}
    for item in filter(None, config.options.split(",")):
        name, equals, text = item.partition("=")
        if not equals or name not in known:
            listed = ", ".join(f"{k}={v}" for k, v in known.items())
            raise L2LError(f"--options={item}: {method} takes {listed or 'none'}")
        try:
            chosen[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            chosen[name] = text
    for name in ("attacker", "attacker_width", "steps"):
        value = getattr(config, name)
        if value is not None and name in known:
            chosen[name] = value
        elif value is not None and "," not in config.method and config.method != "all":
            raise L2LError(f"--{name.replace('_', '-')}: {method} has none")
    if config.steps is not None and config.steps < 1:
        raise L2LError(f"--steps={config.steps}: give 1 or more")
    return chosen
