"""Robust accuracy against training passes: a figure, and what the attack in training needs at each radius.

draw(Path("experiments/results/passes.png"), points(Path("experiments/results")))
"""

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from l2ljax import defenses
from l2ljax.report.figures import COLORS, MARKERS, canvas, save, tidy
from l2ljax.report.markdown import grid, percent, summary
from l2ljax.runtime.workdir import read_json
from papers import compare, effort
from papers.ablations import passes

__all__ = ["PANELS", "Point", "by_radius", "draw", "points"]

PANELS = {
    "digits, digits_cnn, eps 0.2": ("digits", "digits_cnn", "0.2"),
    "MNIST, small_cnn, eps 0.3": ("mnist", "small_cnn", "0.3"),
    "MNIST, lenet5, eps 0.3": ("mnist", "lenet5", "0.3"),
    "CIFAR-10, resnet20, eps 8/255": ("cifar10", "resnet20", "8/255"),
    "CIFAR-10, resnet20, eps 0.031": ("cifar10", "resnet20", "0.031"),
}
"""Title -> data set, network and radius."""
_ABLATIONS = ("l2l_da:table1a", "l2l_da:table1b")
"""Tables whose rows are variants of one method, or stand in another table."""


class Point(NamedTuple):
    """The models of one setting, all seeds together."""

    panel: str
    label: str
    """The method, and where the row adds an ingredient, as "n_fgsm with AWP", or is its printed form."""
    passes: float
    """Forward and backward passes over a training image, in all epochs."""
    accuracy: float
    """Under PGD-100, the mean over seeds."""
    error: float
    """The larger of the seeds' standard deviation and the images' standard error."""


def points(results: Path) -> list[Point]:
    """Return a point for each method on digits, and for each kept row with a column pgd100."""
    return [*_digits(results), *_papers(results)]


def by_radius(record: Mapping[str, Any]) -> str:
    """Return experiments/ablation.py --table=steps in Markdown: a row per attack in training, a column per radius."""
    cells: dict[str, dict[str, str]] = {}
    for row, runs in record["rows"].items():
        attack, _, radius = row.rpartition(", eps ")
        found = summary(runs)["pgd100"]
        at = cells.setdefault(attack, {"passes a step": f"{passes(row):g}"})
        at[f"eps {radius}"] = f"{percent(found['mean'])} ± {percent(found['deviation'])}"
    run, seeds = next((runs[0], len(runs)) for runs in record["rows"].values())
    about = (
        f"{run['dataset']}, {run['arch']}, {run['epochs']:.4g} epochs, {seeds} seeds, PGD-100 on {run['eval_size']} "
    )
    header = ["attack in training", *next(iter(cells.values()))]
    table = grid(header, [[attack, *row.values()] for attack, row in cells.items()])
    return f"{about}test images: mean ± standard deviation.\n\n{table}"


def _digits(results: Path) -> Iterator[Point]:
    """Yield the digits table of methods, each as in the recipe `ours`."""
    path = results / "digits_methods.json"
    for row, runs in (read_json(path)["rows"] if path.exists() else {}).items():
        if row == runs[0]["method"]:
            accuracies = [run["attacks"]["pgd100"]["robust_acc"] for run in runs]
            yield from _point(runs[0], None, 1.0, accuracies, runs[0]["eval_size"])


def _papers(results: Path) -> Iterator[Point]:
    rows: dict[tuple[str, str, float], list[compare.Record]] = {}
    for record in compare.read_records(results / "papers"):
        if "pgd100" in record["values"] and record["table"] not in _ABLATIONS:
            rows.setdefault((record["table"], record["row"], record["training"]["epochs"]), []).append(record)
    for (_, row, _), seeds in rows.items():
        run, added = seeds[0]["training"], "".join(re.findall(r" with .*|, as printed", row))
        share = (run.get("train_size") or effort.TRAIN_IMAGES[run["dataset"]]) / effort.TRAIN_IMAGES[run["dataset"]]
        cells = [record["values"]["pgd100"] for record in seeds]
        values, steps = [cell["value"] for cell in cells], run["options"].get("steps")
        for point in _point(run, steps, share, values, cells[0]["images"]):
            yield point._replace(label=point.label + added)


def _point(
    run: Mapping[str, Any], steps: int | None, share: float, accuracies: Sequence[float], images: int
) -> Iterator[Point]:
    about = {"schedule": run.get("schedule", "joint"), "steps": steps, "awp": run.get("awp") or 0.0}
    about["mixed"] = bool(run.get("options", {}).get("clean_weight"))
    mean = statistics.mean(accuracies)
    error = max(statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0, math.sqrt(mean * (1 - mean) / images))
    for panel, place in PANELS.items():
        if (run["dataset"], run["arch"], run["eps"]) == place and run["method"] != "plain":
            work = effort.training(*place[:2], run["method"], epochs=run["epochs"], images=1, **about)
            yield Point(panel, run["method"], work.passes * share, mean, error)


def draw(path: Path, found: Sequence[Point]) -> None:
    """Draw a panel per data set of three points or more, as PNG: a line for a method, solid if its attacker learns."""
    from matplotlib.ticker import LogLocator

    shown = [panel for panel in PANELS if sum(point.panel == panel for point in found) >= 3]
    found = [point for point in found if point.panel in shown]
    if not shown:
        return
    columns = min(len(shown), 3)
    height = math.ceil(len(shown) / columns)
    figure, panels = canvas((4.6 * columns + 1.5, 4.0 * height), height, columns)
    learns = {point.label: defenses.find(re.split("[ ,]", point.label)[0]).learns for point in found}
    labels = sorted(learns, key=lambda label: (learns[label], label))
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    for axes, panel in zip(panels.flat, shown, strict=False):
        for i, label in enumerate(labels):
            line = sorted(point[2:] for point in found if (point.panel, point.label) == (panel, label))
            spent, accuracies, errors = np.array(line).reshape(-1, 3).T
            style, face = ("-", None) if learns[label] else (":", "white")
            axes.errorbar(
                spent * 1.012 ** (i - len(labels) / 2), 100 * accuracies, 100 * errors,  # side by side where equal
                color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], linestyle=style, markerfacecolor=face,
                label=label, elinewidth=1,
            )  # fmt: skip
        across = [point.passes for point in found if point.panel == panel]
        highest = max(point.accuracy + point.error for point in found if point.panel == panel)
        limits = {"xlim": (min(across) / 1.5, max(across) * 1.5), "ylim": (-2 * highest, 105 * highest)}
        axes.set(title=panel, xlabel="training passes over an image", xscale="log", **limits)
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 6)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params("x", which="both", labelsize=7)
        tidy(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy under PGD-100 (%)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    save(path, figure)
