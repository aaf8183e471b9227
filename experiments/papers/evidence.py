"""Two groups of numbers, one per seed, held against each other.

    exceeds("RNN-Adv beats AdvTrain", "MNIST, PGD-100", Group("RNN-Adv", [0.95]), Group("AdvTrain", [0.94])).answer

The noise is the larger of the groups' ranges over seeds and of two standard errors from the number of images. A
difference above the noise is yes, one below minus the noise is no. Between, with three seeds of both and none of them a
bound: if the ranges do not meet, and the difference is beyond the images' errors, its sign decides too; if it is within
the ranges, it is no, within noise. All else is open.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from papers import records
from papers.jobs import Part, effort_of
from papers.plan import PARTS

__all__ = ["NEEDED", "Answer", "Group", "exceeds", "hours"]

NEEDED = 3
"""The number of seeds that makes a difference within the noise a no."""


class Group(NamedTuple):
    """One side of a comparison."""

    name: str
    values: Sequence[float]
    images: int | None = None
    """The number of images of an accuracy; None for other numbers."""
    row: tuple[str, str] = ("", "")
    """The table and row of `PARTS` that make it; groups of one row are of the same runs."""
    planned: int | None = None
    """The number of the row's planned runs that have results; None for as many as values."""
    scale: float = 1.0
    """The factor between accuracies and values, for a tenth of an accuracy 0.1."""
    bound: bool = False
    """Whether it is a bound made of another row's numbers, to which a difference within the noise says nothing."""


class Answer(NamedTuple):
    """The answer to one claim in one place."""

    claim: str
    where: str
    answer: str
    """yes; no; no, within noise; open."""
    shown: str
    """The numbers and the noise."""
    seeds: int = 0
    """The number of seeds of the smaller group: with one, the noise does not include the seeds'."""
    settled_by: str = ""
    """The budget that would settle an open claim."""


def exceeds(claim: str, where: str, more: Group, less: Group) -> Answer:
    """Return whether `more` is above `less` by more than the noise."""
    if not more.values or not less.values:
        missing = ", ".join(group.name for group in (more, less) if not group.values)
        return Answer(claim, where, "open", f"not run as planned: {missing}", settled_by=_seeds(more, less))
    difference = statistics.mean(more.values) - statistics.mean(less.values)
    spread = max(max(group.values) - min(group.values) for group in (more, less))
    error = 2 * math.hypot(_error(more), _error(less))
    noise, seeds = max(spread, error), min(len(more.values), len(less.values))
    telling = seeds >= NEEDED and not (more.bound or less.bound)
    apart = min(more.values) > max(less.values) or max(more.values) < min(less.values)
    if abs(difference) > (error if telling and apart else noise):
        answer = "yes" if difference > 0 else "no"
    elif telling and abs(difference) <= spread:
        answer = "no, within noise"
    else:
        answer = "open"
    sides = [f"{group.name} {', '.join(_number(value, group) for value in group.values)}" for group in (more, less)]
    settled_by = ""
    if answer == "open":
        if seeds < NEEDED:
            settled_by = _seeds(more, less)
        elif abs(difference) <= spread:
            settled_by = "more seeds"
        else:
            settled_by = f"{(more.images or 0) * (noise / difference) ** 2:,.0f} images"
    shown = f"{'; '.join(sides)}; noise {_number(noise, more)}"
    return Answer(claim, where, answer, shown, seeds, settled_by)


def _seeds(*groups: Group) -> str:
    """Return the runs that the groups' rows lack of `NEEDED`, with their hours: with all, few answers remain open."""
    runs, time = 0, 0.0
    for row in {group.row if any(group.row) else (group.name, "") for group in groups}:
        known = [group for group in groups if row in (group.row, (group.name, ""))]
        lacking = max(NEEDED - min(len(g.values) if g.planned is None else g.planned for g in known), 0)
        runs, time = runs + lacking, time + hours(*row, lacking)
    return f"{runs} run{'s' * (runs != 1)}" + f", {max(time, 0.1):.1f} h" * (time > 0)


def _error(group: Group) -> float:
    """Return the standard error of an accuracy of one seed from its number of images; 0 for other numbers."""
    if not group.images:
        return 0.0
    p = min(max(abs(statistics.mean(group.values)) / group.scale, 1 / group.images), 1.0)
    return group.scale * math.sqrt(p * (1 - p) / group.images)


def _number(value: float, group: Group) -> str:
    return f"{100 * value:.2f}" if group.images else f"{value:.1f}"


def hours(table: str, row: str, runs: int) -> float:
    """Return the time of more runs of a row: of the plan's seeds without results, then of others like its first."""
    seeds: dict[int, list[Part]] = {}
    for part in PARTS:
        if (part.table, part.row) == (table, row):
            seeds.setdefault(part.seed, []).append(part)
    missing = [parts for parts in seeds.values() if not any(map(records.is_kept, parts))]
    wanted = [*missing, *runs * list(seeds.values())[:1]][:runs]
    return sum(effort_of(parts).hours("cpu") for parts in wanted)
