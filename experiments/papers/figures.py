"""Figures of scripts: the limiting cycle, and bars of speed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from l2ljax.report.figures import BLUE, GRAY, LIGHT_BLUE, VERMILLION, canvas, save, tidy

__all__ = ["bars", "paths_in_the_plane"]


def paths_in_the_plane(path: Path, paths: Mapping[str, ArrayLike]) -> None:
    """Draw a panel for each title -> points [T, 2], x and y of the players of a game (L2L, Figure 8), as PNG."""
    figure, (row,) = canvas((4 * len(paths), 4), 1, len(paths))
    for axes, (title, points) in zip(row, paths.items(), strict=True):
        x, y = np.asarray(points).T
        axes.plot(x, y, color=BLUE, linewidth=1.5)
        axes.plot(x[0], y[0], "o", color=BLUE, label="start")
        axes.plot(0, 0, "x", color=VERMILLION, label="equilibrium")
        axes.set(title=title, xlabel="x (descends)", ylabel="y (ascends)", aspect="equal")
        axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
        axes.grid(alpha=0.3)
        axes.legend()
    save(path, figure)


def bars(path: Path, groups: Mapping[str, Mapping[str, tuple[float, ...]]], label: str) -> None:
    """Draw a panel for each title, with a bar and its range for each name -> (value, lowest, highest), as PNG."""
    heights = [len(group) + 1.5 for group in groups.values()]
    figure, column = canvas((9, 0.35 * sum(heights) + 0.5), len(groups), height_ratios=heights)
    for (axes,), (title, group) in zip(column, groups.items(), strict=True):
        middle, low, high = np.array(list(group.values())).T
        colors = [BLUE if i == 0 else LIGHT_BLUE for i in range(len(group))]
        axes.barh(list(group), middle, color=colors, xerr=(middle - low, high - middle), ecolor=GRAY)
        axes.bar_label(axes.containers[-1], fmt="%.4g", label_type="center", fontsize=9)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10, loc="left")
        tidy(axes)
    axes.set_xlabel(label)
    save(path, figure)
