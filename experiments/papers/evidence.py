"""Two groups of numbers, one per seed, held against each other.

    sides = Sides("MNIST, PGD-100", Group("RNN-Adv", [0.95]), Group("AdvTrain", [0.94]))
    exceeds("RNN-Adv T3", "RNN-Adv beats AdvTrain", sides).answer

The noise is the larger of the groups' ranges over seeds and of two standard errors from the number of images. A
difference above the noise is yes, one below minus the noise is no. Between, with three seeds of both and none of them a
bound: if the ranges do not meet, and the difference is beyond the images' errors, its sign decides too; if it is within
the ranges, no difference is found. All else is open, and so is one number a side without images, of unknown noise.
"""

import math
import statistics
from collections.abc import Sequence, Set
from typing import NamedTuple

from papers import records
from papers.effort import Effort
from papers.jobs import Part
from papers.listing import parts_of

__all__ = ["NEEDED", "Answer", "Group", "Sides", "exceeds", "more_runs"]

NEEDED = 3
"""The number of seeds a side from which a difference within their range is none."""


class Group(NamedTuple):
    """One side of a comparison."""

    name: str
    values: Sequence[float]
    images: int | None = None
    """The number of images of an accuracy; None for other numbers."""
    row: tuple[str, str] = ("", "")
    """The table and row of `PARTS` that make it, or a file and a name in it; groups of one row are of the same runs."""
    columns: Sequence[str] = ()
    """The row's columns that are read."""
    available: int = 10_000
    """The number of test images that there are."""
    planned: int | None = None
    """The number of the row's planned runs that have results; None for as many as values."""
    scale: float = 1.0
    """The factor between accuracies and values, for a tenth of an accuracy 0.1."""
    bound: bool = False
    """Whether it is a bound made of another row's numbers, to which a difference within the noise says nothing."""


class Sides(NamedTuple):
    """Two groups of numbers, and the claim that `more` is above `less`."""

    where: str
    more: Group
    less: Group


class Answer(NamedTuple):
    """The answer to one claim in one place."""

    of: str
    """The paper and table, or ours."""
    claim: str
    where: str
    answer: str
    """yes; no; no difference found; open."""
    shown: str
    """The numbers and the noise: (a) the seeds' range, (b) the images' error."""
    seeds: int = 0
    """The number of seeds of the smaller group: with one, the noise does not include the seeds'."""
    settled_by: str = ""
    """The budget that would settle an open claim."""


def exceeds(of: str, claim: str, sides: Sides) -> Answer:
    """Return whether `more` is above `less` by more than the noise."""
    where, more, less = sides
    if not more.values or not less.values:
        missing = ", ".join(group.name for group in (more, less) if not group.values)
        return Answer(of, claim, where, "open", f"not run as planned: {missing}", settled_by=_runs(more, less))
    difference = statistics.mean(more.values) - statistics.mean(less.values)
    spread = max(max(group.values) - min(group.values) for group in (more, less))
    error = 2 * math.hypot(_error(more), _error(less))
    noise, seeds = max(spread, error), min(len(more.values), len(less.values))
    telling = seeds >= NEEDED and not (more.bound or less.bound)
    apart = min(more.values) > max(less.values) or max(more.values) < min(less.values)
    known = bool(more.images) or seeds > 1
    settled_by = ""
    if known and abs(difference) > (error if telling and apart else noise):
        answer = "yes" if difference > 0 else "no"
    elif telling and abs(difference) <= spread:
        answer = "no difference found"
    else:
        answer, settled_by = "open", _budget(more, less, abs(difference), spread, error)
    listed = [f"{group.name} {', '.join(_number(value, group) for value in group.values)}" for group in (more, less)]
    about = f" ({_images(more, less):,} images)" if more.images else ""
    sources = {"(a)": spread if spread or seeds > 1 else None, "(b)": error if more.images else None}
    errors = ", ".join(f"{name} {_number(size, more)}" for name, size in sources.items() if size is not None)
    shown = f"{'; '.join(listed)}; noise {errors if known else 'unknown'}{about}"
    return Answer(of, claim, where, answer, shown, seeds, settled_by)


def _budget(more: Group, less: Group, difference: float, spread: float, error: float) -> str:
    """Return what would settle an open answer: images if the difference is within their error, and seeds."""
    images = math.ceil(_images(more, less) * (error / difference) ** 2) if 0 < difference <= error else 0
    if min(len(more.values), len(less.values)) < NEEDED:
        needed = [_runs(more, less), f"{images:,} images" * (0 < images <= more.available)]
    elif images > more.available:
        needed = [f"not by the {more.available:,} test images that there are"]
    else:
        needed = ["more seeds" * (difference <= spread), f"{images:,} images" * (images > 0)]
    return ", ".join(filter(None, needed))


def _runs(*groups: Group) -> str:
    """Return the runs that the groups' rows lack of `NEEDED`, with their hours: with all, few answers remain open."""
    runs, jobs = 0, dict[str, Effort]()
    for row in {group.row for group in groups}:
        of_row = [group for group in groups if group.row == row]
        lacking = max(NEEDED - min(len(g.values) if g.planned is None else g.planned for g in of_row), 0)
        runs, jobs = runs + lacking, jobs | more_runs(row, {c for g in of_row for c in g.columns}, lacking)
    time = sum(jobs.values(), Effort()).hours("cpu")
    return f"{runs} run{'s' * (runs != 1)}" + f", {max(time, 0.1):.1f} h" * (time > 0)


def more_runs(row: tuple[str, str], columns: Set[str], runs: int) -> dict[str, Effort]:
    """Return the efforts of more runs of a row, judged in those columns, by file.

    The plan's seeds without results come first, then others like its first, on models and surrogates that exist.
    """
    seeds: dict[int, list[Part]] = {}
    for part in parts_of(*row):
        if columns & part.columns.keys():
            seeds.setdefault(part.seed, []).append(part)
    missing = [parts for parts in seeds.values() if not all(map(records.is_kept, parts))][:runs]
    jobs = {job.made: job.effort for parts in missing for part in parts for job in part.needed}
    for i in range(runs - len(missing)):
        for part in next(iter(seeds.values()), []):
            own = (
                job for job in part.jobs if part.victim in (job, None) or f"--victim={part.victim.model}" in job.flags
            )
            jobs |= {f"{i}/{job.made}": job.effort for job in own}
    return jobs


def _images(more: Group, less: Group) -> int:
    """Return the smaller number of images of the two, 0 for other numbers."""
    return min(more.images or 0, less.images or 0)


def _error(group: Group) -> float:
    """Return the standard error of an accuracy of one seed from its number of images; 0 for other numbers."""
    if not (n := group.images):
        return 0.0
    p = min(max(abs(statistics.mean(group.values)) / group.scale, 1 / n), 1 - 1 / n)
    return group.scale * math.sqrt(p * (1 - p) / n)


def _number(value: float, group: Group) -> str:
    return f"{100 * value:.2f}" if group.images else f"{value:.1f}"
