"""Figures of runs and of models, as PNG files (matplotlib is imported only to draw one).

    training_curves(workdir / "curves.png", rows)
    perturbation_grid(workdir / "examples.png", x, x_adv, labels, predictions, class_names)

A failed write raises an `L2LError` and leaves the earlier file unchanged.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chex
import numpy as np
from numpy.typing import ArrayLike

from l2ljax.files import write_files

__all__ = [
    "BLUE", "COLORS", "FACTORS", "GRAY", "LIGHT_BLUE", "MARKERS", "RED", "VERMILLION", "accuracy_against", "amplified",
    "amplified_perturbations", "canvas", "loss_along_attacks", "loss_landscape", "perturbation_grid", "png",
    "running_mean", "save", "tidy", "training_curves",
]  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# From Okabe and Ito's palette, which colorblind readers can distinguish: blue is clean, vermillion robust.
BLUE, VERMILLION, LIGHT_BLUE = "#0072B2", "#D55E00", "#A6D3EE"
COLORS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")  # for print without colors; one more than colors, so that pairs repeat late
RED, GRAY = "#C00000", "#595959"
FACTORS = (5, 30)
"""L2L's factors for amplified perturbations."""
MAX_EXAMPLES = 8


def canvas(size: tuple[float, float], rows: int = 1, columns: int = 1, **how: Any) -> tuple["Figure", Any]:
    """Return a figure of a size in inches, and its panels [rows, columns]."""
    from matplotlib.figure import Figure  # without pyplot, and so without its global state

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def training_curves(path: Path, rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Draw the loss and the accuracies of a run against its steps, as PNG.

    Args:
      path: the file to write.
      rows: {step, loss, accuracy, robust_accuracy, val_clean_acc, val_robust_acc}; the last three may be absent.
      title: above the panels.
    """
    from matplotlib.ticker import MaxNLocator

    figure, ((left, right),) = canvas((10, 4), 1, 2, sharex=True)
    figure.suptitle(title, parse_math=False)  # names may have a $
    at, loss = _series(rows, "loss")
    few = {"marker": "o"} if len(at) < 3 else {}  # a line of one point is invisible
    left.plot(at, loss, color=LIGHT_BLUE, linewidth=1, label="per batch", **few)
    left.plot(at, running_mean(loss), color=BLUE, linewidth=2, label="running mean", **few)
    curves = (("accuracy", "val_clean_acc", "clean", BLUE), ("robust_accuracy", "val_robust_acc", "robust", VERMILLION))
    for train, val, label, color in curves:
        at, accuracy = _series(rows, train)
        if len(at):
            right.plot(at, 100 * running_mean(accuracy), color=color, linewidth=2, label=f"train, {label}", **few)
        at, accuracy = _series(rows, val)
        if len(at):
            right.plot(at, 100 * accuracy, "o:", color=color, markeredgecolor="white", label=f"val, {label}")
    left.set_ylabel("training loss")
    right.set(ylabel="accuracy (%)", ylim=(-2, 102))
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        tidy(axes)
        if axes.lines:
            axes.legend()
    save(path, figure)


def perturbation_grid(
    path: Path, x: ArrayLike, x_adv: ArrayLike, labels: ArrayLike, predictions: ArrayLike,
    class_names: Sequence[str] | None = None, attack: str = "adversarial",
) -> None:  # fmt: skip
    """Draw clean images, perturbations and adversarial images, with the first 8 examples as columns, as PNG.

    Perturbations are drawn around gray, scaled by one factor that brings the largest to full range. A column's title is
    true class -> class predicted under attack, in red if they differ.

    Args:
      path: the file to write.
      x: images [N, H, W, C] in [0, 1], N >= 1; of C channels the first three are drawn, of two the first.
      x_adv: adversarial images, of the same shape.
      labels: true classes [N].
      predictions: classes [N] predicted for `x_adv`.
      class_names: the names of the first classes; numbers stand for the others.
      attack: what made `x_adv`, beside its row.
    """
    x, x_adv, labels, predictions = (np.asarray(a)[:MAX_EXAMPLES] for a in (x, x_adv, labels, predictions))
    chex.assert_equal_shape([x, x_adv])
    chex.assert_shape([labels, predictions], (len(x),))
    delta = x_adv.astype(float) - x
    factor = 0.5 / (np.abs(delta).max() or 0.5)
    rows = {"clean": x, f"perturbation\nx {factor:.3g}": amplified(x, x_adv, factor), attack: x_adv}
    known = dict(enumerate(class_names or ()))
    names = {k: known.get(k, str(k)) for k in map(int, (*labels, *predictions))}
    size = min(12, 120 / (2 + max(map(len, names.values()))))  # a title fits over its column
    figure, grid = canvas((1.25 * len(x) + 0.6, 1.25 * len(rows) + 0.6), len(rows), len(x))
    for line, (row, images) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(row, fontsize=11)
        for axes, image in zip(line, images, strict=True):
            _show(axes, image)
    for axes, label, prediction in zip(grid[0], labels, predictions, strict=True):
        axes.set_title(f"{names[int(label)]}\n→ {names[int(prediction)]}", fontsize=size, parse_math=False)
        if label != prediction:
            axes.title.set(color=RED, fontweight="bold")
    save(path, figure)


def amplified_perturbations(path: Path, shown: Mapping[str, Any]) -> None:
    """Draw `views.perturbations`: attacks on images, and 5 and 30 times what they change (L2L, Figure 4), as PNG.

    Rows are images and attacks. Columns are the clean image and, per model, the adversarial image, titled with the
    predicted class (in red if it is wrong), and its perturbations around mid-gray. A factor that would take the
    largest out of the range of pixels is smaller, and one alone is left if both would look alike.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    x, labels, models = np.asarray(shown["x"]), shown["labels"], shown["models"]
    names = dict(enumerate(shown["class_names"]))
    size = min(9, 140 / (2 + max(map(len, names.values()))))  # a title fits over its column
    largest = max(np.abs(np.asarray(a["x_adv"]) - x).max() for row in models.values() for a in row.values())
    fill = 0.5 / max(largest, 0.5 / FACTORS[1])  # at most 30
    factors = (FACTORS[0], fill) if fill > 2 * FACTORS[0] else (fill,)
    tried, group = list(next(iter(models.values()))), 1 + len(factors)
    shape = (len(x) * len(tried), 1 + group * len(models))
    titles = [textwrap.fill(f"on {model}", 12 * group) for model in models]
    above = 0.05 + 0.17 * max(title.count("\n") + 1 for title in titles)
    height = 1.5 * shape[0] + 0.35 + above
    figure, grid = canvas((1.35 * shape[1] + 0.5, height), *shape)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - above / height)))
    for row, line in enumerate(grid):
        i, attack = row // len(tried), tried[row % len(tried)]
        if attack == tried[0]:
            _show(line[0], x[i])
            line[0].set_title(f"clean\n{names.get(labels[i], labels[i])}", fontsize=size)
        else:
            line[0].set_axis_off()
        line[1].set_ylabel(textwrap.fill(attack, 18), fontsize=8)
        for k, shown in enumerate(models.values()):
            x_adv, predicted = np.asarray(shown[attack]["x_adv"])[i], shown[attack]["predictions"][i]
            first, *others = line[1 + k * group : 1 + (k + 1) * group]
            _show(first, x_adv)
            wrong = {"color": RED, "fontweight": "bold"} if predicted != labels[i] else {}
            first.set_title(f"→ {names.get(predicted, predicted)}", fontsize=size, **wrong)
            for axes, factor in zip(others, factors, strict=True):
                _show(axes, amplified(x[i], x_adv, factor))
                if row == 0:
                    axes.set_title(f"{factor:.2g} times", fontsize=9)
    for axes, title in zip(grid[0, 1::group], titles, strict=True):
        name = axes.annotate(title, (0, 1), (0, 18), xycoords="axes fraction", textcoords="offset points")
        name.set_in_layout(False)  # else the first column would be as wide as the name
    save(path, figure)


def amplified(x: ArrayLike, x_adv: ArrayLike, factor: float) -> np.ndarray:
    """Return the amplified perturbation as an image: 0.5 + factor (x_adv - x), clipped to [0, 1]."""
    return np.clip(0.5 + factor * (np.asarray(x_adv, float) - np.asarray(x, float)), 0, 1)


def loss_along_attacks(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, ArrayLike]]]) -> None:
    """Draw the loss of classifiers along attacks step by step (RNN-Adv and L2L-DA, Figures 2), as PNG.

    Args:
      path: the file to write.
      panels: classifier -> attack (the same for all) -> {"largest", "spread"}, each [T + 1]: the means over test images
        of the largest loss and of the standard deviation among restarts, after t = 0..T steps. Without any spread, as
        with one attack per image, the largest is *the* loss and the figure says so.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (grid,) = canvas((5 * len(panels), 5), 1, len(panels), sharey=True)
    spreads = [np.any(curve["spread"]) for curves in panels.values() for curve in curves.values()]
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        for color, marker, (name, curve) in zip(cycle(COLORS), cycle(MARKERS), curves.items(), strict=False):
            largest, spread = np.asarray(curve["largest"]), np.asarray(curve["spread"])
            axes.plot(largest, color=color, marker=marker, markersize=4, linewidth=2, label=name)
            axes.fill_between(range(len(largest)), largest - spread, largest, color=color, alpha=0.2, linewidth=0)
        axes.set(title=textwrap.fill(title, 40), xlabel="step of the attack (0: clean images)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)
    names = [textwrap.fill(line.get_label(), 55 * len(panels)) for line in grid[0].lines]
    figure.legend(grid[0].lines, names, loc="outside lower center")
    grid[0].set_ylabel(f"cross-entropy (nats){', largest of the draws' if any(spreads) else ''}\nmean over images")
    save(path, figure)


def accuracy_against(path: Path, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw `views.sweep`: the accuracy against the attack's strength, and differences below (L2L, Figures 4 and 9)."""
    rows = 2 if any("difference" in panel for panel in panels.values()) else 1
    shared = {"sharex": "col", "sharey": "row", "height_ratios": (3, 2)[:rows]}
    figure, grid = canvas((4.6 * len(panels), 1.5 + 2.5 * rows), rows, len(panels), **shared)
    for column, (title, panel) in zip(grid.T, panels.items(), strict=True):
        values, styles = np.asarray(panel["values"]), ((VERMILLION, "o-"), (GRAY, "s--"))
        for (color, style), (name, accuracy) in zip(styles, panel["accuracy"].items(), strict=False):
            column[0].plot(
                values, 100 * np.asarray(accuracy), style, color=color, markersize=5, label=textwrap.fill(name, 30)
            )
        column[0].set(title=title, ylim=(-2, 102))
        column[-1].set(xlabel=panel["x"], xscale=panel["scale"])
        if panel["scale"] == "log":
            column[-1].set_xticks(values, map(str, values), minor=False)
            column[-1].set_xticks([], minor=True)
        if rows == 2:
            gain, error = 100 * np.asarray(panel["difference"]), 100 * np.asarray(panel["error"])
            column[1].axhline(0, color=GRAY, linestyle="--", linewidth=1)
            column[1].plot(values, gain, "o-", color=VERMILLION, markersize=5)
            column[1].fill_between(values, gain - error, gain + error, color=VERMILLION, alpha=0.2, linewidth=0)
        for axes in column:
            tidy(axes)
    grid[0, 0].set_ylabel("robust accuracy (%)")
    grid[0, 0].legend()
    if rows == 2:
        grid[1, 0].set_ylabel("difference (points)\n± standard error")
        grid[1, 0].set_title(textwrap.fill(" minus ".join(panel["accuracy"]), 50), fontsize=10)
    save(path, figure)


def loss_landscape(path: Path, surfaces: Mapping[str, Any]) -> None:
    """Draw `views.landscape`: the loss over the steepest and a random direction (RNN-Adv, Figure 3), as PNG."""
    loss = {name: np.asarray(values) for name, values in surfaces["loss"].items()}
    low, high = min(v.min() for v in loss.values()), max(v.max() for v in loss.values())
    figure, (grid,) = canvas((5 * len(loss) + 0.8, 4.6), 1, len(loss), subplot_kw={"projection": "3d"})
    a, b = np.meshgrid(surfaces["units"], surfaces["units"], indexing="ij")
    ticks = np.linspace(a.min(), a.max(), 5)
    for axes, (name, values) in zip(grid, loss.items(), strict=True):
        surface = axes.plot_surface(a, b, values, cmap="viridis", vmin=low, vmax=high, rstride=1, cstride=1)
        axes.set(xlabel=surfaces["axes"][0], ylabel=surfaces["axes"][1], zlabel="cross-entropy (nats)")
        axes.set(zlim=(low, high), xticks=ticks, yticks=ticks)
        axes.set_title(f"{textwrap.fill(name, 40)}\n{values.min():.3g} to {values.max():.3g}", y=0.95)
        axes.tick_params(labelsize=9, pad=1)
        axes.set_box_aspect((1, 1, 0.75), zoom=0.95)
        axes.view_init(elev=25, azim=-125)
    figure.colorbar(surface, ax=list(grid), shrink=0.7, pad=0.06, label="cross-entropy (nats), mean over images")
    save(path, figure)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and finite values of `key`."""
    values = {row["step"]: row[key] for row in rows if row.get(key) is not None and math.isfinite(row[key])}
    return np.array(sorted(values), int), np.array([values[step] for step in sorted(values)], float)


def running_mean(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Average each value with those before it, `window` in all; by default a fiftieth of them, but five or more."""
    window = max(5, len(values) // 50) if window is None else window
    return np.array([values[max(0, i - window) : i].mean() for i in range(1, len(values) + 1)])


def _show(axes: Any, image: np.ndarray) -> None:
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    axes.imshow(np.broadcast_to(image.clip(0, 1), (*image.shape[:2], 3)), interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def tidy(axes: Any) -> None:
    """Give a panel a faint grid and no frame."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def save(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG."""
    write_files({Path(path): png(figure)})
