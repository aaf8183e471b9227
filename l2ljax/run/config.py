"""The flags of the scripts as they are given, and `resolve`, which makes `Settings` of them and the recipes."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from l2ljax import data, defenses
from l2ljax.models.attackers import AttackerName
from l2ljax.run import recipes
from l2ljax.run.settings import (
    INGREDIENTS,
    AttackerOptimizer,
    Augment,
    Dtype,
    LrSchedule,
    Norm,
    OnOverfitting,
    Optimizer,
    Schedule,
    Selection,
    Settings,
)  # fmt: skip
from l2ljax.runtime.flags import checked
from l2ljax.types import L2LError
from l2ljax.values import Count, Natural, NonNegative, Positive, Range, Seed, Share, check, parse

__all__ = ["Config", "check_workdir", "methods", "named", "resolve"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags. What is None comes from the method's recipe."""

    dataset: str | None = None
    """In place of the script's data, with its recipes: a .npz file or module:function with arrays of yours (see
    l2ljax.data.arrays)."""
    recipe: str | None = None
    """The settings that flags replace: those of a paper (rnn_adv, l2l, l2l_v2, ait, trades, l2l_da) or ours; by
    default the method's own paper's on its data sets, ours elsewhere."""
    method: str | None = None
    """The training method, by default the recipe's own; several, separated by commas, or `all`, train one after the
    other and share a table."""
    arch: str | None = None
    """The classifier."""
    attacker: AttackerName | None = None
    """The convolutional attacker of the L2L methods and FGSM-SDI."""
    attacker_width: Count | None = None
    """Channels of its first convolution."""
    init_from: str | None = None
    """Start from the trained classifier of this workdir, or of pretrained:NAME. With the seed of that run the images
    held out for validation are the same; with another one it has trained on some of them."""
    attacker_from: str | None = None
    """Start from the trained attacker of this workdir."""
    eps: str | None = None
    """The threat's radius, like 8/255 or 0.031. Of a paper's recipe, steps and scales of attacks in pixels stay as they
    are: for another radius give those too, as --options."""
    norm: Norm | None = None
    """The threat's norm."""
    steps: Count | None = None
    """The steps of the attack in training."""
    options: str = ""
    """The method's options, like scale=1,weights=final."""
    awp: Annotated[float, Range(0, 1)] | None = None
    """Adversarial weight perturbation of that size, with any method; 0 is none, 0.005 its paper's."""
    epochs: Positive | None = None
    """Passes over the training images."""
    batch_size: Count | None = None
    """Images of a step, on all devices together."""
    replays: Count | None = None
    """Steps on each batch, one after the other (for free_adv); the epochs count them all, so that the images are seen
    in epochs / replays of them."""
    optimizer: Optimizer | None = None
    """The classifier's: sgd (momentum 0.9), adam, adamw, lion, or schedule_free (AdamW, evaluated at its average; give
    --lr-schedule=constant)."""
    lr: NonNegative | None = None
    """The classifier's learning rate."""
    weight_decay: NonNegative | None = None
    """The classifier's weight decay: added to the gradient of sgd and adam, decoupled from it in the others."""
    augment: Augment | None = None
    """The augmentation of training images."""
    cutout: Natural | None = None
    """Side of a square that is set to 0 in each training image, in pixels; 0: none."""
    cutmix: Share | None = None
    """The share of training images into which a box of another is pasted, with its part of the label; 0: none."""
    label_smoothing: Annotated[float, Range(0, 0.999)] | None = None
    """The part of each label that is spread evenly over all classes; 0: none."""
    lr_schedule: LrSchedule | None = None
    """steps (falls at the recipe's milestones, which stretch with --epochs), constant, cosine, warmup_cosine, onecycle,
    or cyclic (a triangle)."""
    ema: Annotated[float, Range(0, 0.99999)] | None = None
    """Evaluate a moving average of the weights with this decay, like 0.999; 0: the weights themselves."""
    on_overfitting: OnOverfitting | None = None
    """Where images held out (--val-size) show catastrophic overfitting (robust to one step, no longer to several):
    ignore (say so and go on; the default), stop (end the training), or restore (end it with the best parameters)."""
    attacker_optimizer: AttackerOptimizer | None = None
    """As --optimizer."""
    attacker_lr: NonNegative | None = None
    """As --lr."""
    warmup: NonNegative | None = None
    """Epochs of plain training at the start, of the run's."""
    schedule: Schedule | None = None
    """joint (both players move on one perturbation), alternating, classifier or attacker (it alone moves)."""
    seed: Seed = 0
    seeds: Annotated[int, Range(1, 10_000)] = 1
    """The number of runs, with the seeds SEED, SEED + 1, ..., one after the other; the report has their mean, standard
    deviation and lowest. The same command goes on where it was killed."""
    dtype: Dtype | None = None
    """The classifier's dtype."""
    remat: bool = False
    """Compute a residual network's activations again in the backward pass: less memory on accelerators, more time."""
    data_dir: str | None = None
    """A folder or archive with the data; without it, a prepared tensorflow-datasets set or a download."""
    train_size: Count | None = None
    """The number of training images."""
    val_size: Natural | None = None
    """The number of training images held out to choose the best parameters; with 0, the selection is last."""
    selection: Selection | None = None
    """Where the best parameters are chosen: validation, test (as several papers did), or last (none are); with the
    latter two, no training images are held out."""
    eval_size: Count | None = None
    """The number of test images in the report, the first ones; by default all."""
    attacks: str = "fgsm,pgd20,pgd100,margin100,own"
    """The attacks of the report, separated by commas; trained:WORKDIR is the attacker that was trained there, with
    N steps as trainedN:WORKDIR."""
    devices: Count | None = None
    """The number of local devices; by default the most that divide the batch."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where many processes (hosts) train one model: start the same command in each."""
    num_processes: Count | None = None
    """With --coordinator: how many there are."""
    process_id: Natural | None = None
    """With --coordinator: which of them this is, 0 to NUM_PROCESSES - 1. Process 0 evaluates and writes."""
    distributed: bool = False
    """In place of those three where SLURM, Open MPI, Kubernetes or a cloud TPU started the processes."""
    heartbeat_timeout: Count = 60
    """Seconds of silence after which a process counts as gone, and the others end."""
    checkpoint_every: Count | None = None
    """Steps between checkpoints; once an epoch by default."""
    no_checkpoint: bool = False
    """Save none; only in a workdir without a run."""
    workdir: str | None = None
    """Where results go: runs/DATASET_METHOD_ARCH_sSEED by default."""


def methods(config: Config) -> list[str]:
    """Return the methods that `--method` names, or that of the recipe."""
    if config.method is None:
        return [recipes.check(config.recipe or "ours").methods[0]]
    return list(defenses.METHODS) if config.method == "all" else config.method.split(",")


def resolve(
    dataset: str | data.Dataset, method: str, config: Config, options: Mapping[str, Any] | None = None
) -> Settings:
    """Return one run's settings: the flags over the recipe of `dataset`, also where the flags name other data.

    Args:
      dataset: a name, or a `Dataset` that was checked, as by `data.load`.
      method: one of those that `config.method` names.
      config: the flags.
      options: of the method, in place of `config.options`.

    Raises:
      L2LError: a flag's value is not one that can be.
    """
    config = checked(config)
    if method in defenses.ATTACKERS and config.init_from is None:
        raise L2LError(f"{method} attacks a trained classifier: train it with attack.py, or give --init-from")
    settings = recipes.find(dataset, method, config.recipe)
    dataset = config.dataset or dataset
    name = dataset if isinstance(dataset, str) else dataset.name
    if isinstance(dataset, str) and dataset in data.NAMES:
        classes = len(data.source(dataset).classes)
    else:
        users = data.load(dataset) if isinstance(dataset, str) else dataset
        classes = users.num_classes
        settings = recipes.fitted(settings, users)._replace(image_shape=users.image_shape, num_classes=classes)
    given = {field: value for field, value in vars(config).items() if value is not None}
    chosen = {**settings.options, **_given_options(method, config, options)}
    if "num_classes" in defenses.options(method):
        chosen["num_classes"] = classes
    if "val_size" in given and "selection" not in given:
        given["selection"] = "validation" if given["val_size"] else "last"
    elif given.get("selection") in ("test", "last"):
        given.setdefault("val_size", 0)
    if "epochs" in given:
        stretch = given["epochs"] / settings.epochs
        given = {"warmup": settings.warmup * stretch, **given}
        settings = settings._replace(milestones=tuple(m * stretch for m in settings.milestones))
    given |= {field: given[field] or None for field in INGREDIENTS.keys() & given.keys()}  # 0: none
    given |= {"replays": None} if given.get("replays") == 1 else {}  # one step a batch is what all others take
    check_workdir(config.workdir or "")
    folder = config.workdir or f"runs/{named(name)}_{method}_{given.get('arch', settings.arch)}_s{config.seed}"
    several = config.workdir and len(methods(config)) > 1
    given |= {
        "dataset": name,
        "method": method,
        "options": chosen,
        "attacks": tuple(filter(None, config.attacks.split(","))),
        "workdir": Path(os.path.expanduser(folder)) / (method if several else ""),
    }
    settings = settings._replace(**{field: value for field, value in given.items() if field in Settings._fields})
    settings.check()
    return settings


def check_workdir(workdir: str | Path) -> None:
    """Refuse a folder whose name could not be given where a workdir is read."""
    if os.fspath(workdir).endswith("@best"):
        raise L2LError(f"--workdir={workdir}: @best names a state of a run: choose another folder")


def named(dataset: str) -> str:
    """Return the name of a data set as part of a folder's: a file's own name, and module:function with a dot."""
    return dataset.replace(":", ".") if dataset in data.SOURCES or ":" in dataset else Path(dataset).stem


def _given_options(method: str, config: Config, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the method's options that flags name, --options or one of their own, checked by their annotations."""
    kinds, known = defenses.find(method).kinds, defenses.options(method)
    items = [item.partition("=")[::2] for item in filter(None, config.options.split(","))]
    chosen: dict[str, Any] = dict(items if options is None else options)
    if options is None and len(chosen) < len(items):
        raise L2LError(f"--options={config.options}: give each option once")
    for name, value in chosen.items():
        if name not in known or name == "num_classes" or value == "":
            listed = ", ".join(f"{k}={v}" for k, v in known.items() if k != "num_classes")
            raise L2LError(f"--options={name}={value}: {method} takes {listed or 'none'}")
        chosen[name] = (parse if options is None else check)(kinds[name], value, f"--options={name}")
    for name in ("attacker", "attacker_width", "steps"):
        value, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        if value is not None and name in chosen:
            raise L2LError(f"{flag}={value}: --options has {name}={chosen[name]} too: give one of them")
        if value is not None and name in known:
            chosen[name] = check(kinds[name], value, flag)
        elif value is not None and len(methods(config)) == 1:
            raise L2LError(f"{flag}: {method} has none")
    return chosen
