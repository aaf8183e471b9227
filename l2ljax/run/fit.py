"""`fit`: train a classifier, of the library or of your own, with its attacker; the scripts' runs are made of it.

    result = l2ljax.fit(classifier, (images, labels), method="rnn_adv", ball=threat.linf(8 / 255), epochs=20)
    l2ljax.evaluate.run_standard_evaluation(result.logits_fn, x, y, ball=threat.linf(8 / 255), key=0)

`fit` takes what a program has in its hands; `run` takes complete settings.
"""

import contextlib
import functools
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import flax.linen as nn
import optax
from flax import nnx

from l2ljax import checkpoint, data, devices, models, threat
from l2ljax.files import locked
from l2ljax.report import markdown
from l2ljax.run.config import Config, check_workdir, resolve
from l2ljax.run.results import draw, summarize
from l2ljax.run.settings import Settings
from l2ljax.run.setup import Setup, prepare
from l2ljax.run.trained import trained_attack
from l2ljax.run.training import train
from l2ljax.run.validation import Best
from l2ljax.runtime import hosts
from l2ljax.runtime.workdir import Workdir, holds_run
from l2ljax.train import TrainState
from l2ljax.types import Attack, Classifier, Defense, L2LError, LogitsFn, Players
from l2ljax.values import Count, check

__all__ = ["Result", "fit", "run", "save"]

P = ParamSpec("P")
T = TypeVar("T")
FLAGS = sorted(
    Config.__dataclass_fields__.keys()
    & {*Settings._fields, "attacker", "attacker_width", "steps"} - {"dataset", "method", "arch", "options", "workdir"}
)
"""The flags that `fit` takes as keywords."""
REPLACED = {
    "ball": ("eps", "norm"),
    "classifier": ("dtype", "remat"),
    "dataset": ("data_dir",),
    "defense": ("options", "steps", "attacker", "attacker_width"),
    "optimizers": ("optimizer", "lr", "lr_schedule", "weight_decay", "attacker_optimizer", "attacker_lr"),
}
"""Part of `fit` -> the settings that have no effect beside it."""


class Result(NamedTuple):
    """A trained classifier and its attacker."""

    logits_fn: LogitsFn
    """The classifier after the last step, in evaluation mode, as a `jax.tree_util.Partial` of its variables."""
    attack: Attack | None
    """The attacker after the last step; None where it learns nothing."""
    state: TrainState
    """After the last step: both players' params, stats and optimizers, and the average."""
    best: Best
    """The players at the best validation; its score is -1 where there are no validation images."""
    history: list[dict[str, Any]]
    """The rows of metrics, one a step; some have the seconds since the one before that has them."""
    dataset: data.Dataset
    """As it was split: train, val and test."""
    settings: Settings
    identity: dict[str, Any]
    """The devices, and a checksum of a user's own data: what the bits depend on besides the settings."""
    report: dict[str, Any] | None
    """The content of report.json; None without a workdir."""

    def __repr__(self) -> str:
        """Return what was trained and its last metrics, without the arrays."""
        settings, last = self.settings, {k: v for k, v in (self.history or [{}])[-1].items() if k != "seconds"}
        return f"Result({settings.method}, {settings.arch} on {settings.dataset}, workdir={settings.workdir}, {last})"

    @property
    def variables(self) -> dict[str, Any]:
        """The evaluated classifier's {"params", "batch_stats"} after the last step: with `ema`, the average."""
        evaluated = self.state.evaluated
        return {"params": evaluated.params.classifier, "batch_stats": evaluated.stats.classifier}


def _naming_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Make errors name the keyword val_size where they name the scripts' flag --val-size."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except L2LError as error:
            text = re.sub(r"--([a-z][a-z-]*[a-z])", lambda flag: flag[1].replace("-", "_"), str(error))
            raise L2LError(text) from error

    return wrapped


@_naming_keywords
def fit(
    classifier: Classifier | nn.Module | nnx.Module | str,
    dataset: Any,
    *,
    method: str = "rnn_adv",
    ball: threat.Ball | None = None,
    defense: Defense | None = None,
    optimizers: Players | tuple[Any, Any] | None = None,
    options: Mapping[str, Any] | str = "",
    workdir: str | Path | None = None,
    **settings: Any,
) -> Result:
    """Train a classifier with one of the methods, and its attacker with it.

    Each core of a CPU becomes a device, where JAX has not computed yet; else a warning says so once.

    Args:
      classifier: an architecture of `models.CLASSIFIERS` by name, a `Classifier`, or a linen or nnx network, which
        `models.from_linen` or `models.from_nnx` makes one of.
      dataset: a data set by name, a `data.Dataset`, or arrays: (images [N, H, W, C], uint8 or floats in [0, 1]; labels
        [N]) to train on, of which a sixth is held out as test, or with test images and labels of yours behind them.
      method: of `defenses.METHODS`, to which `defenses.register` adds yours, or with init_from of `defenses.ATTACKERS`.
      ball: the threat; by default the recipe's.
      defense: in place of the one that the method's name stands for, built with `axis_name=train.AXIS`; what it
        trained is loaded as its class's name, not the method's, so `load_attacker` refuses it.
      optimizers: optax optimizers of (classifier, attacker), in place of the recipe's; free_adv moves its attacker
        itself.
      options: of the method, like {"scale": 1}.
      workdir: where checkpoints, metrics, report and figures go, as the scripts have them, and from where the same call
        goes on when it was stopped. Without one everything stays in memory, and nothing is reported.
      **settings: epochs, lr, batch_size, schedule, seed, val_size, steps, devices and the other flags of the scripts,
        described by `l2ljax train digits --help`; those that are not given come from the method's recipe on that data
        set, or on the known one that is nearest in size.

    Returns:
      A `Result`: logits_fn and attack after the last step, best (the players that validation chose), variables (the
      classifier's), history (a dictionary of metrics for each step: loss, accuracy, robust_accuracy under the attack in
      training, and at validations val_robust_acc under the recipe's selection_attack), dataset, settings, report.

    Raises:
      L2LError: bad settings or data, a workdir of another run, a loss that is not finite, a full disk.
      Interrupted: SIGTERM or Ctrl-C during training in a workdir; the state is saved.
    """
    if ball is not None and not isinstance(ball, threat.Ball):
        raise L2LError(f"ball={ball}: give one like threat.linf(8 / 255)")
    if not isinstance(defense, Defense | None):
        example = "defenses.create('trades', classifier, ball, axis_name=train.AXIS)"
        raise L2LError(f"defense is a {type(defense).__name__}: give one like {example}")
    optimizers = _pair(optimizers)
    if own := [name for name in REPLACED["optimizers"] if _is_optax(settings.get(name))]:
        raise L2LError(f"{own[0]} is an object of optax: give optimizers=(optax.sgd(0.1), optax.adam(1e-3))")
    if not isinstance(options, str | Mapping):
        raise L2LError(f"options={options}: give a dictionary, like {{'steps': 2}}, or a text, like 'steps=2'")
    if workdir == "":
        raise L2LError("workdir='': give a folder, or None for no files")
    if settings.get("devices") is not None:
        check(Count, settings["devices"], "devices")
    if unknown := sorted(settings.keys() - FLAGS):
        raise L2LError(f"fit has no setting {unknown[0]!r}: choose from {', '.join(FLAGS)}")
    names = settings.keys() | ({"options"} if options else set())
    parts = {"ball": ball, "classifier": classifier, "dataset": dataset, "defense": defense, "optimizers": optimizers}
    for part, value in parts.items():
        if not isinstance(value, str | None) and (twice := sorted(names & {*REPLACED[part]})):
            raise L2LError(f"fit got a {part} of yours and {twice[0]}: give one of them")
    if not devices.one_per_core(settings.get("devices")):
        warnings.warn(
            "JAX has computed before fit, so that all cores share one device, which is slower: "
            "put `l2ljax.devices.one_per_core()` first",
            stacklevel=2,
        )
    if isinstance(dataset, tuple | list) and len(dataset) == 2:
        dataset = data.from_arrays(*dataset)
    dataset = dataset if isinstance(dataset, str) else data.load(dataset)
    if ball is not None:
        settings |= {"eps": repr(float(ball.eps)), "norm": ball.name}
    if not isinstance(eps := settings.get("eps"), str | None):
        settings["eps"] = repr(threat.parse_eps(eps))
    if isinstance(named := settings.get("attacks"), tuple | list):
        settings["attacks"] = ",".join(map(str, named))
    made = None if isinstance(classifier, str) else models.as_classifier(classifier)
    settings |= {
        "arch": classifier if isinstance(classifier, str) else type(classifier).__name__,
        "options": options if isinstance(options, str) else "",
        "workdir": workdir,
    }
    given: dict[str, Any] = {k: os.fspath(v) if isinstance(v, Path) else v for k, v in settings.items()}
    chosen = options if isinstance(options, Mapping) else None
    complete = resolve(dataset, method, Config(method=method, **given), chosen)
    if workdir is None:
        complete = complete._replace(workdir=None)
    if defense is not None:
        complete = complete._replace(method=type(defense).__name__)
    if optimizers is not None:
        complete = complete._replace(optimizer="own")
    users = None if isinstance(dataset, str) else dataset
    return run(complete, dataset=users, classifier=made, ball=ball, defense=defense, movers=optimizers)


def _is_optax(value: Any) -> bool:
    return callable(value) or isinstance(value, optax.GradientTransformation)


def _pair(optimizers: Any) -> Players | None:
    """Return the optimizers of both players."""
    of_both = optimizers if isinstance(optimizers, tuple | list) and len(optimizers) == 2 else ()
    if optimizers is None or (of_both and all(isinstance(o, optax.GradientTransformation) for o in of_both)):
        return optimizers and Players(*optimizers)
    raise L2LError("optimizers are no pair of optax's: give (optax.sgd(0.1), optax.adam(1e-3))")


def run(settings: Settings, **parts: Any) -> Result:
    """Train as the settings say, or go on with it; in a workdir, evaluate and leave everything there.

    Of many processes (see `hosts`) all train; process 0 alone evaluates, on its own devices, and touches the workdir,
    while the others wait. All of them read what a run reads (data, --init-from, --attacker-from, trained:).

    Args:
      settings: complete.
      **parts: see `setup.prepare`.

    Raises:
      L2LError, Interrupted: as `fit` does.
    """
    setup, state = prepare(settings, **parts)
    settings, identity = setup.settings, setup.identity()
    about = {**settings.saved(), **identity}
    workdir, report = None, None
    with contextlib.ExitStack() as stack:
        if settings.workdir is not None:
            hosts.on_first(stack.enter_context, locked(settings.workdir))
            if settings.no_checkpoint and hosts.on_first(holds_run, settings.workdir):
                raise L2LError(
                    f"--no-checkpoint: {settings.workdir} holds a run: leave it out, or choose another folder"
                )
            workdir = hosts.on_first(Workdir, settings.workdir, about)
        state, best, history = train(setup, state, workdir)
        if workdir is not None:
            report = hosts.on_first(_write_report, setup, state, best, history, workdir)
            print(markdown.table([report]))
            print(f"report, figures and checkpoints: {workdir.path}")
    attack = trained_attack(setup.defense, state.params.attacker, state.stats.attacker)
    evaluated = state.evaluated
    logits_fn = setup.logits_fn(evaluated.params, evaluated.stats)
    return Result(logits_fn, attack, state, best, history, setup.dataset, settings, identity, report)


def save(result: Result, workdir: str | Path) -> None:
    """Write a result to a folder, a workdir like that of a run: `load`, evaluate.py and `fit` take it.

    Raises:
      L2LError: the folder holds a run, or cannot be written.
    """
    check_workdir(workdir)
    path = Path(os.path.expanduser(workdir))
    with locked(path):
        if holds_run(path):
            raise L2LError(f"{workdir} holds a run: choose another folder")
        folder = Workdir(path, {**result.settings.saved(), **result.identity})
        saved = checkpoint.Checkpoints(path / "checkpoints")
        saved.save(int(result.state.step), {"last": result.state, "best": result.best})
        folder.forget_after(-1)
        folder.record(result.history)


def _write_report(
    setup: Setup, state: TrainState, best: Best, history: list[dict[str, Any]], workdir: Workdir
) -> dict[str, Any]:
    """Evaluate, write the report and the figures, and return the content of report.json."""
    result = summarize(setup, state, best, history)
    markdown.write(workdir.path, result, draw(setup, state, workdir))
    return result
