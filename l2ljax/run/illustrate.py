"""Figures of a judged model, with a baseline beside it or alone (`--figures` of experiments/evaluate.py).

    plan = make_plan("sweep,losses", "runs/a", logits_fn, ball, dataset, baseline="runs/b", attackers=["own"])
    draw(plan, dataset.test, folder, key=key)   # sweep.png, sweep.json, ...
    redraw(folder / "sweep.json")

`sweep`: accuracy against the attack's radius and steps. `losses`: how attacks raise the loss step by step. `landscape`:
the loss around the images. `perturbations`: what attacks change, amplified. The JSON beside an image is what it shows.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from l2ljax.data import Dataset, Split
from l2ljax.evaluate import views
from l2ljax.evaluate.views import Plan
from l2ljax.files import write_files
from l2ljax.report import figures
from l2ljax.run.trained import check_dataset, check_threat, learned, load_attacker, load_classifier, read_config
from l2ljax.runtime.workdir import read_json
from l2ljax.threat import Ball
from l2ljax.types import Key, L2LError, LogitsFn

__all__ = ["FIGURES", "Figure", "draw", "make_plan", "redraw", "short_names"]


def make_plan(
    names: str, victim: str, logits_fn: LogitsFn, ball: Ball, dataset: Dataset, *, baseline: str | None = None,
    attackers: Sequence[str] = (), batch_size: int = 250,
) -> Plan:  # fmt: skip
    """Load the baseline and the learned attackers, and see that they fit the victim: errors come before the work.

    Args:
      names: of the figures, separated by commas; `all` is all of them. Without any, attackers are not looked at.
      victim: its workdir or name.
      logits_fn, ball, dataset: the victim, its threat and data.
      baseline: the workdir of a run.
      attackers: names of attacks; drawn are the learned ones, own (the victim's) and trained:WORKDIR.
      batch_size: images at a time.

    Raises:
      L2LError: an unknown figure, no such run or one on other data, an attacker of another threat or that learned
        nothing.
    """
    chosen = _chosen(names)

    def fits(workdir: str, attacks: bool) -> str:
        saved = read_config(workdir, "dataset", "norm", "eps")
        check_dataset(workdir, saved, dataset.name)
        check_threat(workdir, saved, ball if attacks else None)
        return workdir

    others = [fits(baseline, attacks=False)] if baseline else []
    loaded: list[LogitsFn] = [logits_fn, *map(load_classifier, others)]
    models = dict(zip(short_names([victim, *others]), loaded, strict=True))
    trained = [learned(name, victim) for name in attackers if chosen]
    workdirs = list(dict.fromkeys(fits(each.workdir, attacks=True) for each in trained if each))
    for workdir in workdirs:
        load_attacker(workdir)  # its errors
    made = {
        f"attacker of {short}": functools.partial(load_attacker, workdir)
        for short, workdir in zip(short_names(workdirs), workdirs, strict=True)
    }
    return Plan(chosen, models, made, ball, dataset.class_names, batch_size)


def draw(plan: Plan, split: Split, folder: Path, *, key: Key) -> list[Path]:
    """Compute figures on a split's images, write NAME.json and NAME.png, return the images' paths.

    Raises:
      L2LError: a folder that cannot be written, or what `evaluate` raises.
    """
    paths = []
    for name in plan.figures:
        print(f"figure {name}", flush=True)
        shown = FIGURES[name].data(plan, split, key)
        text = json.dumps({"figure": name, "data": shown}, default=lambda a: np.asarray(a, float).round(5).tolist())
        write_files({folder / f"{name}.json": text.encode() + b"\n"})
        paths.append(redraw(folder / f"{name}.json"))
    return paths


def redraw(path: Path) -> Path:
    """Draw the figure of a JSON file of `draw` beside it again, and return the image's path.

    Raises:
      L2LError: not such a file, or a folder that cannot be written.
    """
    record = read_json(path)
    if record.get("figure") not in FIGURES:
        raise L2LError(f"{path} holds no figure: give a file that --figures wrote, like sweep.json")
    FIGURES[record["figure"]].draw(path.with_suffix(".png"), record["data"])
    return path.with_suffix(".png")


def _chosen(names: str) -> list[str]:
    wanted = list(FIGURES) if names == "all" else [name for name in names.split(",") if name]
    if unknown := [name for name in wanted if name not in FIGURES]:
        raise L2LError(f"--figures={','.join(unknown)}: choose from all, {', '.join(FIGURES)}")
    return wanted


def short_names(names: list[str]) -> list[str]:
    """Return the last parts of paths, or all of them where two are alike; one that is given twice is an L2LError."""
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise L2LError(f"{twice[0]} stands twice: give it once, or a folder of the same name as ./{twice[0]}")
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else names


class Figure(NamedTuple):
    """One figure: what it shows, as JSON takes it (arrays included), and how that is drawn."""

    data: Callable[[Plan, Split, Key], Mapping[str, Any]]
    draw: Callable[[Path, Any], None]


FIGURES = {
    "sweep": Figure(views.sweep, figures.accuracy_against),
    "losses": Figure(views.loss_curves, figures.loss_along_attacks),
    "landscape": Figure(views.landscape, figures.loss_landscape),
    "perturbations": Figure(views.perturbations, figures.amplified_perturbations),
}
