"""The sides of the claims' comparisons, from kept numbers, one per seed.

    where, more, less = in_worst_case("rnn_adv:table3", "RNN-Adv", "AdvTrain")(records, results)

`where` names data, network and schedule, and the passes of a training step if the sides' differ.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from papers import ablations, effort, equal
from papers.compare import Record
from papers.evidence import Group, Sides
from papers.jobs import FAST, Job
from papers.listing import parts_of
from papers.records import is_printed

__all__ = [
    "ATTACKS", "at_equal_passes", "costs", "current", "falls", "in_worst_case", "on_digits", "one_column", "tenth_of",
    "two_columns",
]  # fmt: skip

Find = Callable[[Sequence[Record], Path], Sides]
Cell = Mapping[str, Any]
Row = tuple[str, str]
"""Table and row."""
Column = tuple[str, str, str]
"""Table, row and column."""

ATTACKS = (
    "PGD-10", "PGD-100", "PGM-20", "PGM-100", "PGD10", "PGD100", "FGSM", "pgd100", "margin100", "CW-20", "CW-100",
    "CW100", "CW1000", "PGD", "PGD+BLS", "AutoAttack", "AutoAttack, fast", "L2LDA", "AdvGAN", "GAP", "L2L-DA",
)  # fmt: skip
"""Columns for a row's worst case, if all rows of a comparison have them: no attacker that learned with a row."""
_SETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
_CHOSEN = {"methods": "one-cycle rate, Cutout", "recipes": "constant rate", "slim": "constant rate"}
"""Table of experiments/ablation.py -> what its rows share."""
_L2L = ("naive_l2l", "grad_l2l", "two_step_l2l", "wide", "slim")
"""Rows of these tables with attackers of L2L, of the width that it gives them, 16."""


def in_worst_case(table: str, more: str, less: str) -> Find:
    """Compare two rows by the lowest accuracy per seed among the attacks that both have, all on the same images.

    Of attacks on 1,000 images and others on 10,000 those count under which both rows together keep less.
    """

    def find(records: Sequence[Record], results: Path) -> Sides:
        rows = (table, more), (table, less)
        of_row = _alike(records, *rows)
        every = [record["values"] for found in of_row for record in found]
        common = _common(every)
        lowest = [[min(common, key=lambda c: _value(r["values"][c])) for r in f if common] for f in of_row]
        groups = [
            _group(records, row, common or ATTACKS, [r["values"][c] for r, c in zip(found, names, strict=False)])
            for row, found, names in zip(rows, of_row, lowest, strict=True)
        ]
        strongest = " or ".join(sorted({name for names in lowest for name in names}))
        return Sides(_where(records, f"worst common attack{': ' * bool(strongest)}{strongest}", *rows), *groups)

    return find


def one_column(table: str, name: str, more: str, less: str) -> Find:
    """Compare two rows in one column."""

    def find(records: Sequence[Record], results: Path) -> Sides:
        rows = (table, more), (table, less)
        groups = [_column(records, row, name, f) for row, f in zip(rows, _alike(records, *rows), strict=True)]
        return Sides(_where(records, name, *rows), *groups)

    return find


def at_equal_passes(more: str, less: str) -> Find:
    """Compare two rows of `equal`, whose epochs differ, under AutoAttack."""
    table, [verdict] = "ours:equal-passes", FAST

    def find(records: Sequence[Record], results: Path) -> Sides:
        rows = (table, more), (table, less)
        groups = [_column(records, row, verdict, *_alike(records, row)) for row in rows]
        spent = f"{equal.spent(more)} passes of an image in all against {equal.spent(less)}"
        return Sides(f"CIFAR-10, resnet20, {spent}, {verdict}", *groups)

    return find


def two_columns(more: Column, less: Column) -> Find:
    """Compare two columns of one row, or of one in two tables: two attacks on the same models."""

    def find(records: Sequence[Record], results: Path) -> Sides:
        groups, rows = [], [column[:2] for column in (more, less)]
        of_row = _alike(records, *rows)
        seeds = set.intersection(*({record["seed"] for record in found} for found in of_row))
        for (table, row, name), found in zip((more, less), of_row, strict=True):
            alike = [record for record in found if record["seed"] in seeds]
            groups.append(_column(records, (table, row), name, alike)._replace(name=name))
        return Sides(_where(records, more[1], *rows), *groups)

    return find


def falls(more: Row, less: Row) -> Find:
    """Compare two rows by PGD-100's accuracy minus AutoAttack's on the same images."""
    [verdict] = FAST

    def fall(values: Mapping[str, Cell]) -> Cell:
        images = min(values["pgd100"]["images"], values[verdict]["images"])
        return {"value": _value(values["pgd100"]) - _value(values[verdict]), "images": images}

    def find(records: Sequence[Record], results: Path) -> Sides:
        groups = []
        for row, found in zip((more, less), _alike(records, more, less), strict=True):
            cells = [fall(r["values"]) for r in found if {"pgd100", verdict} <= r["values"].keys()]
            groups.append(_group(records, row, ["pgd100", verdict], cells))
        return Sides(_where(records, more[1], more, less), *groups)

    return find


def on_digits(table: str, more: str, less: str) -> Find:
    """Compare two settings of experiments/ablation.py under PGD-100."""

    def find(records: Sequence[Record], results: Path) -> Sides:
        path = results / f"digits_{table}.json"
        kept = json.loads(path.read_text())["rows"] if path.exists() else {}
        groups, of_row = [], {row: kept.get(row, []) for row in (more, less)}
        places = {f"{run['arch']}, {run['epochs']:g} epochs" for found in of_row.values() for run in found}
        for row, found in of_row.items():
            values = [run["attacks"]["pgd100"]["robust_acc"] for run in found if len(places) == 1]
            images = min((run["eval_size"] for run in found), default=0)
            groups.append(Group(row, values, images or None, (path.stem, row), available=images))
        steps = _passes({row: ablations.passes(row) for row in (more, less)})
        width = ["attackers of width 16"] * any(row.startswith(_L2L) for row in of_row)
        return Sides(", ".join(["digits", *sorted(places), _CHOSEN[table], *width, "PGD-100"]) + steps, *groups)

    return find


def costs(name: str, more: str, less: str) -> Find:
    """Compare the seconds of training steps of two methods, METHOD or METHOD:alternating, one per repeat."""

    def find(records: Sequence[Record], results: Path) -> Sides:
        path = results / f"{name}.json"
        made = json.loads(path.read_text())["speed"] if path.exists() else []
        steps = {r["method"]: r for r in made if r["what"] == "training step" and r["program"] == "l2ljax"}
        groups = [Group(m, steps.get(m, {}).get("seconds", []), row=(name, m)) for m in (more, less)]
        place = [f"{row['model']}, batches of {row['batch_size']}, " for row in [*steps.values()][:1]]
        return Sides("".join(place) + "seconds, by repeat", *groups)

    return find


def tenth_of(find: Find) -> Find:
    """Compare a tenth of the first side, a bound, with the second."""

    def found(records: Sequence[Record], results: Path) -> Sides:
        where, full, less = find(records, results)
        tenth = [value / 10 for value in full.values]
        return Sides(where, full._replace(name=f"a tenth of {full.name}", values=tenth, scale=0.1, bound=True), less)

    return found


def _alike(records: Sequence[Record], *rows: Row) -> list[list[Record]]:
    """Return the records of each row if all are of one network, and of as many epochs and images, else none."""
    every = [[record for record in records if (record["table"], record["row"]) == row] for row in rows]
    kinds = {_kind(record["training"]) for found in every for record in found}
    return every if len(kinds) == 1 else [[] for _ in rows]


def _common(every: Sequence[Mapping[str, Cell]]) -> list[str]:
    """Return the attacks that all rows of cells have, on the images under which they keep least."""
    of_images: dict[int, list[str]] = {}
    for column in ATTACKS:
        cells = [values[column] for values in every if column in values]
        if len(cells) == len(every) > 0 and len({cell["images"] for cell in cells}) == 1:
            of_images.setdefault(cells[0]["images"], []).append(column)
    kept = lambda columns: sum(min(_value(values[c]) for c in columns) for values in every)
    return min(of_images.values(), key=kept, default=[])


def _value(cell: Cell) -> float:
    return float(cell["value"])


def _column(records: Sequence[Record], row: Row, name: str, found: Sequence[Record]) -> Group:
    """Return a row's values in one column."""
    return _group(records, row, [name], [r["values"][name] for r in found if name in r["values"]])


def _group(records: Sequence[Record], row: Row, columns: Sequence[str], cells: Sequence[Cell]) -> Group:
    """Return the values of a row's cells, and how many of the plan's runs have the columns, of `ATTACKS` any."""
    complete = any if columns is ATTACKS else all
    runs = [r for r in records if (r["table"], r["row"]) == row and complete(c in r["values"] for c in columns)]
    images = None if "largest loss" in columns else min((cell["images"] for cell in cells), default=None)
    planned = sum(run["training"]["command"] in _planned(row) for run in runs)
    return Group(row[1], [*map(_value, cells)], images, row, columns, planned=planned)


def current(records: Sequence[Record]) -> list[Record]:
    """Return the records of the plan's training commands; of rows without any, those of earlier plans."""
    row = lambda record: (record["table"], record["row"])
    of_plan = lambda record: record["training"]["command"] in _planned(row(record))
    known = {row(record) for record in records if of_plan(record)}
    return [r for r in records if of_plan(r) or (row(r) not in known and not is_printed(r))]


@functools.cache
def _planned(row: Row) -> dict[str, Job]:
    """Return the training runs that are planned for a row, by command."""
    return {part.victim.line: part.victim for part in parts_of(*row) if part.victim}


def _where(records: Sequence[Record], what: str, *rows: Row) -> str:
    """Return data, network and schedule of rows, kept or planned, what of them, and passes a step if they differ."""
    runs = {row: next(iter(_planned(row).values())) for row in rows}
    kept = [record["training"] for record in records if (record["table"], record["row"]) in rows]
    about = [*kept, *(run.about for run in runs.values())][0]
    images = [f"{count:,} training images" for count in [about.get("train_size")] if count]
    place = [_SETS[about["dataset"]], about["arch"], f"{about['epochs']:g} epochs", *images, what]
    unlike = "; kept runs of unlike networks, epochs or images" * (len(set(map(_kind, kept))) > 1)
    return ", ".join(place) + unlike + _passes({row: _passes_a_step(run) for (_, row), run in runs.items()})


def _kind(training: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(training.get(name) for name in ("dataset", "arch", "epochs", "train_size"))


def _passes_a_step(run: Job) -> float:
    return run.effort.passes / (float(str(run.about["epochs"])) * effort.TRAIN_IMAGES[run.dataset])


def _passes(steps: Mapping[str, float]) -> str:
    """Return the passes of a step of each row if they differ."""
    listed = ", ".join(f"{row} {passes:g}" for row, passes in steps.items())
    return f"; passes a step: {listed}" * (len(set(steps.values())) > 1)
