"""Figures of runs and of papers, as PNG files (matplotlib is imported only here).

    training_curves(workdir / "curves.png", steps, validations)
    perturbation_grid(workdir / "examples.png", x, x_adv, labels, predictions, class_names)

What cannot be written raises an `L2LError` and leaves the earlier file as it was.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chex
import numpy as np
from numpy.typing import ArrayLike

from l2ljax.files import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, which colorblind readers can tell apart: blue is clean, vermillion robust.
BLUE, VERMILLION, LIGHT_BLUE = "#0072B2", "#D55E00", "#A6D3EE"
COLORS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00")
RED = "#C00000"
MAX_EXAMPLES = 8


def training_curves(path: Path, steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss and the accuracies of a run against its steps, as PNG.

    Args:
      path: the file to write.
      steps: rows {step, loss, accuracy, robust_accuracy} of training batches; the last may be absent.
      validations: rows {step, clean_acc, robust_acc}; may be empty.
    """
    from matplotlib.figure import Figure  # without pyplot, and so without its global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="tight")
    left, right = figure.subplots(1, 2, sharex=True)
    at, loss = _series(steps, "loss")
    few = {"marker": "o"} if len(at) < 3 else {}  # a line of one point is invisible
    left.plot(at, loss, color=LIGHT_BLUE, linewidth=1, label="per batch", **few)
    left.plot(at, _running_mean(loss), color=BLUE, linewidth=2, label="running mean", **few)
    for train, val, label, color in (
        ("accuracy", "clean_acc", "clean", BLUE),
        ("robust_accuracy", "robust_acc", "robust", VERMILLION),
    ):
        at, accuracy = _series(steps, train)
        if len(at):
            right.plot(at, 100 * _running_mean(accuracy), color=color, linewidth=2, label=f"train, {label}", **few)
        at, accuracy = _series(validations, val)
        if len(at):
            right.plot(at, 100 * accuracy, "o:", color=color, markeredgecolor="white", label=f"val, {label}")
    left.set_ylabel("training loss")
    right.set(ylabel="accuracy (%)", ylim=(-2, 102))
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend()
    _save(path, figure)


def perturbation_grid(
    path: Path,
    x: ArrayLike,
    x_adv: ArrayLike,
    labels: ArrayLike,
    predictions: ArrayLike,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draw clean images, perturbations and adversarial images, the first 8 examples as columns, as PNG.

    Perturbations are drawn around gray, all times the one factor that brings the largest to full range. A
    column is titled true class -> class predicted under attack, in red where they differ.

    Args:
      path: the file to write.
      x: images [N, H, W, 1 or 3] in [0, 1], N >= 1.
      x_adv: adversarial images, of the same shape.
      labels: true classes [N].
      predictions: classes [N] predicted for `x_adv`.
      class_names: the names of the classes; their numbers by default.
    """
    from matplotlib.figure import Figure

    x, x_adv, labels, predictions = (np.asarray(a)[:MAX_EXAMPLES] for a in (x, x_adv, labels, predictions))
    chex.assert_equal_shape([x, x_adv])
    chex.assert_shape([labels, predictions], (len(x),))
    delta = x_adv.astype(float) - x
    factor = 0.5 / (np.abs(delta).max() or 0.5)
    rows = {"clean": x, f"perturbation\nx {factor:.3g}": 0.5 + factor * delta, "adversarial": x_adv}

    names = {k: class_names[k] if class_names else str(k) for k in map(int, (*labels, *predictions))}
    size = min(12, 120 / (2 + max(map(len, names.values()))))  # so that a title fits over its column
    figure = Figure(figsize=(1.25 * len(x) + 0.6, 1.25 * len(rows) + 0.6), layout="tight")
    grid = figure.subplots(len(rows), len(x), squeeze=False)
    for line, (row, images) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(row, fontsize=11)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(np.broadcast_to(image.clip(0, 1), (*image.shape[:2], 3)), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    for axes, label, prediction in zip(grid[0], labels, predictions, strict=True):
        axes.set_title(f"{names[int(label)]}\n→ {names[int(prediction)]}", fontsize=size)
        if label != prediction:
            axes.title.set(color=RED, fontweight="bold")
    _save(path, figure)


def loss_along_attacks(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, ArrayLike]]]) -> None:
    """Draw how attacks raise the loss of classifiers step by step (L2L-DA, Figure 2), as PNG.

    Args:
      path: the file to write.
      panels: classifier -> attack -> {"largest", "spread"}, each [T + 1]: over the test images the means of the
        largest loss and of the standard deviation among the restarts, after t = 0..T steps.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="tight")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
            largest, spread = np.asarray(curve["largest"]), np.asarray(curve["spread"])
            axes.plot(largest, color=color, linewidth=2, label=name)
            axes.fill_between(range(len(largest)), largest - spread, largest, color=color, alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
    grid[0].set_ylabel("mean over images of the largest loss")
    _save(path, figure)


def accuracy_against(path: Path, panels: Mapping[str, Mapping[str, ArrayLike]]) -> None:
    """Draw the accuracy under attack against what makes the attack stronger (L2L, Figures 4 and 9), as PNG.

    Args:
      path: the file to write.
      panels: title -> {name of the x axis: values [N], "accuracy": [N] fractions}.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="tight")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, series) in zip(grid, panels.items(), strict=True):
        (name,) = series.keys() - {"accuracy"}
        axes.plot(np.asarray(series[name]), 100 * np.asarray(series["accuracy"]), "o-", color=VERMILLION)
        axes.set(title=title, xlabel=name, ylim=(-2, 102))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("robust accuracy (%)")
    _save(path, figure)


def paths_in_the_plane(path: Path, paths: Mapping[str, ArrayLike]) -> None:
    """Draw how players of a game on the plane move (L2L, Figure 8), as PNG.

    Args:
      path: the file to write.
      paths: title -> points [T, 2], x and y of the players; a panel each.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(paths), 4), layout="tight")
    for axes, (title, points) in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths.items(), strict=True):
        x, y = np.asarray(points).T
        axes.plot(x, y, color=BLUE, linewidth=1.5)
        axes.plot(x[0], y[0], "o", color=BLUE, label="start")
        axes.plot(0, 0, "x", color=VERMILLION, label="equilibrium")
        axes.set(title=title, xlabel="x (descends)", ylabel="y (ascends)", aspect="equal")
        axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(path, figure)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of `key`. Of a step logged twice, by a resumed run, the later row counts."""
    values = {row["step"]: row[key] for row in rows if row.get(key) is not None and math.isfinite(row[key])}
    return np.array(sorted(values), int), np.array([values[step] for step in sorted(values)], float)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the last fiftieth of a run's values, of five at least where there are as many."""
    window = max(5, len(values) // 50)
    return np.array([values[max(0, i - window) : i].mean() for i in range(1, len(values) + 1)])


def _save(path: Path, figure: "Figure") -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_files({Path(path): buffer.getvalue()})
