"""A run's settings: the flags of the scripts, and what they become when the recipes fill in the rest."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from l2ljax import attacks, data, defenses, threat, train
from l2ljax.run import recipes
from l2ljax.types import L2LError

__all__ = ["Config", "Learned", "Run", "learned", "methods", "named", "resolve"]

DEFAULT_ATTACKS = "fgsm,pgd20,pgd100,margin100,own"
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags. What is None comes from the method's recipe."""

    dataset: str | None = None
    """In place of the script's data, with its recipes: a .npz file or module:function with arrays of yours (see
    l2ljax.data.arrays)."""
    method: str = "rnn_adv"
    """How to train; several, separated by commas, or `all`, train one after the other and share a table."""
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
    norm: str = "linf"
    """The threat's norm: linf or l2."""
    steps: int | None = None
    """Of the attack in training."""
    options: str = ""
    """Of the method, like scale=1,weights=final."""
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    """The classifier's: sgd (momentum 0.9) or adam."""
    lr: float | None = None
    """The classifier's learning rate."""
    augment: str | None = None
    """Of training images: none, flip, crop or crop_flip."""
    lr_schedule: str | None = None
    """steps (falls at the recipe's milestones, which stretch with --epochs), constant, or cosine."""
    attacker_optimizer: str | None = None
    """sgd (momentum 0.9) or adam."""
    attacker_lr: float | None = None
    warmup: float | None = None
    """Epochs of plain training at the start, of the run's."""
    schedule: str = "joint"
    """joint (both players move on one perturbation), alternating, classifier or attacker (it alone moves)."""
    seed: int = 0
    seeds: int = 1
    """How many runs, with the seeds SEED, SEED + 1, ..., one after the other; the report has their mean, standard
    deviation and lowest. The same command goes on where it was killed."""
    dtype: str = "float32"
    """What the classifier computes in: float32 or bfloat16."""
    remat: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute a residual network's activations again in the backward pass: less memory on accelerators, more time."""
    data_dir: str | None = None
    """A folder or archive with the data; without it, a prepared tensorflow-datasets set or a download."""
    train_size: int | None = None
    """How many training images to use."""
    val_size: int | None = None
    """How many images to take out of the training set to choose the best parameters with; may be 0."""
    eval_size: int | None = None
    """How many test images the report is about, the first ones; all by default."""
    attacks: str = DEFAULT_ATTACKS
    """Of the report, separated by commas; trained:WORKDIR is the attacker that was trained there, with
    N steps as trainedN:WORKDIR."""
    devices: int | None = None
    """How many local devices to use; by default the most that divide the batch."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where many processes (hosts) train one model: start the same command in each."""
    num_processes: int | None = None
    """With --coordinator: how many there are."""
    process_id: int | None = None
    """With --coordinator: which of them this is, 0 to NUM_PROCESSES - 1. Process 0 evaluates and writes."""
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """In place of those three where SLURM, Open MPI, Kubernetes or a cloud TPU started the processes."""
    heartbeat_timeout: int = 60
    """Seconds of silence after which a process counts as gone, and the others end."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; once an epoch by default."""
    no_checkpoint: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Save none."""
    workdir: str | None = None
    """Where results go: runs/DATASET_METHOD_ARCH_sSEED by default."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run with every setting filled in and looked at."""

    dataset: str
    method: str
    recipe: recipes.Recipe
    eps: float
    options: dict[str, Any]
    attack_names: tuple[str, ...]
    workdir: Path
    config: Config

    def saved(self) -> dict[str, Any]:
        """What config.json holds."""
        config = dataclasses.asdict(self.config)
        recipe = {k: v for k, v in self.recipe._asdict().items() if k != "options"}
        recipe["milestones"] = list(self.recipe.milestones)
        about: dict[str, Any] = {"dataset": self.dataset, "method": self.method}
        if self.dataset not in data.SOURCES:  # which may be gone when the run is judged
            source = data.source(self.dataset)
            about |= {"image_shape": list(source.image_shape), "num_classes": len(source.classes)}
        return {**config, **about, **recipe, "options": self.options}


def methods(text: str) -> list[str]:
    """The methods that `--method` names."""
    return list(defenses.METHODS) if text == "all" else text.split(",")


def resolve(dataset: str, method: str, config: Config) -> Run:
    """One method's run: the flags over its recipe; that of `dataset`, also where the flags name other data.

    Raises:
      L2LError: a flag's value is not one that can be.
    """
    recipe = recipes.find(dataset, method)
    dataset = config.dataset or dataset
    if dataset not in data.SOURCES:
        recipe = recipes.fitted(recipe, data.load(dataset))
    given = {
        name: getattr(config, name)
        for name in recipes.Recipe._fields
        if name in Config.__dataclass_fields__ and name != "options" and getattr(config, name) is not None
    }
    if "epochs" in given:
        _check_positive("epochs", given["epochs"])
        stretch = given["epochs"] / recipe.epochs
        given["milestones"] = tuple(m * stretch for m in recipe.milestones)
        given.setdefault("warmup", recipe.warmup * stretch)
    options = _options(method, config, dict(recipe.options))
    if "num_classes" in defenses.options(method):
        options["num_classes"] = len(data.source(dataset).classes)
    recipe = recipe._replace(**given)
    for name in ("batch_size", "checkpoint_every", "devices", "train_size", "eval_size", "steps"):
        value = recipe.batch_size if name == "batch_size" else getattr(config, name)
        if value is not None:
            _check_positive(name, value)
    _check_choice("norm", config.norm, tuple(threat.BALLS))
    _check_choice("schedule", config.schedule, tuple(train.SCHEDULES))
    _check_choice("optimizer", recipe.optimizer, tuple(recipes.OPTIMIZERS))
    _check_choice("attacker_optimizer", recipe.attacker_optimizer, tuple(recipes.OPTIMIZERS))
    if not 0 <= recipe.warmup <= recipe.epochs:
        raise L2LError(f"--warmup={recipe.warmup}: give 0 to {recipe.epochs}, the run's epochs")
    if recipe.augment is not None:
        _check_choice("augment", recipe.augment, data.AUGMENTS)
    _check_choice("lr_schedule", recipe.lr_schedule, tuple(recipes.LR_SCHEDULES))
    _check_choice("dtype", config.dtype, DTYPES)
    eps = threat.parse_eps(recipe.eps)
    names = tuple(name for name in config.attacks.split(",") if name)
    ball = threat.BALLS[config.norm](eps)
    for name in names:
        if learned(name) is None:
            attacks.create(name, ball)
    folder = config.workdir or f"runs/{named(dataset)}_{method}_{recipe.arch}_s{config.seed}"
    several = config.workdir and len(methods(config.method)) > 1
    workdir = Path(folder).expanduser() / (method if several else "")
    return Run(dataset, method, recipe, eps, options, names, workdir, config)


def named(dataset: str) -> str:
    """The name of a data set in that of a folder: of a file its own, of module:function with a dot."""
    return dataset.replace(":", ".") if dataset in data.SOURCES or ":" in dataset else Path(dataset).stem


class Learned(NamedTuple):
    """What the name of a trained attacker means."""

    workdir: str
    """Of the run that trained it."""
    steps: int | None
    """By default those that it was trained with."""


def learned(name: str, own: str = "") -> Learned | None:
    """What own, ownN, trained:WORKDIR or trainedN:WORKDIR means (N steps, own: the workdir `own`); None for others."""
    match = re.fullmatch(r"own([1-9]\d*)?|trained([1-9]\d*)?:(.+)", name)
    if match is None:
        return None
    steps = match[1] or match[2]
    return Learned(match[3] or own, int(steps) if steps else None)


def _options(method: str, config: Config, chosen: dict[str, Any]) -> dict[str, Any]:
    """The method's options: the recipe's, over them --options, over them the flags of their own."""
    known = defenses.options(method)
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
    return chosen


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise L2LError(f"--{name.replace('_', '-')}={value}: give 1 or more")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise L2LError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
