"""The sides of the claims' comparisons: kept numbers of one row, one per seed.

more, less = worst(compare.read_records(), "rnn_adv:table3", "RNN-Adv", "AdvTrain")
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papers.compare import Record
from papers.evidence import Group
from papers.jobs import FAST
from papers.plan import PARTS

__all__ = ["ATTACKS", "alike", "column", "digits", "falls", "worst"]

ATTACKS = (
    "PGD-10", "PGD-100", "PGM-20", "PGM-100", "PGD10", "PGD100", "FGSM", "pgd100", "margin100", "CW-20", "CW-100",
    "CW100", "CW1000", "PGD", "PGD+BLS", "AutoAttack", "AutoAttack, fast",
)  # fmt: skip
"""Columns for a row's worst case, if all rows of a comparison have them."""


def alike(found: Sequence[Record]) -> Sequence[Record]:
    """Return the records if all are of one network and one number of images in training, else none."""
    about = ("dataset", "arch", "epochs", "train_size")
    return found if len({tuple(record["training"].get(name) for name in about) for record in found}) == 1 else []


def worst(records: Sequence[Record], table: str, *rows: str) -> list[Group]:
    """Return for each row the lowest accuracy per seed among the attacks that all these rows share, if `alike`."""
    every = alike([record for record in records if record["table"] == table and record["row"] in rows])
    common = [c for c in ATTACKS if every and all(c in record["values"] for record in every)]
    of_row = {row: [record["values"] for record in every if record["row"] == row] for row in rows}
    return [
        _group(records, table, row, [min((v[c] for c in common), key=_value) for v in seeds if common])
        for row, seeds in of_row.items()
    ]


def column(records: Sequence[Record], table: str, name: str, *rows: str) -> list[Group]:
    """Return a column's values per seed of each row, if all are `alike`."""
    every = alike([r for r in records if r["table"] == table and r["row"] in rows and name in r["values"]])
    cells = {row: [record["values"][name] for record in every if record["row"] == row] for row in rows}
    return [_group(records, table, row, found) for row, found in cells.items()]


def _value(cell: Mapping[str, Any]) -> float:
    return float(cell["value"])


def _group(records: Sequence[Record], table: str, row: str, cells: Sequence[Mapping[str, Any]]) -> Group:
    """Return the values of a row's cells, and how many of its records are of the plan's training commands."""
    commands = {part.victim.line for part in PARTS if (part.table, part.row) == (table, row) and part.victim}
    runs = [r["training"]["command"] for r in records if (r["table"], r["row"]) == (table, row)]
    images = min((cell["images"] for cell in cells), default=None)
    return Group(row, [*map(_value, cells)], images, (table, row), sum(command in commands for command in runs))


def digits(results: Path, table: str, row: str) -> Group:
    """Return PGD-100 per seed of a setting of experiments/ablation.py."""
    path = results / f"digits_{table}.json"
    runs = json.loads(path.read_text())["rows"].get(row, []) if path.exists() else []
    return Group(row, [run["attacks"]["pgd100"]["robust_acc"] for run in runs], runs[0]["eval_size"] if runs else None)


def falls(records: Sequence[Record], *rows: tuple[str, str]) -> list[Group]:
    """Return for each (table, row) PGD-100's accuracy minus AutoAttack's on the same images, per seed, if `alike`."""
    [verdict] = FAST
    both = alike([r for r in records if (r["table"], r["row"]) in rows and {"pgd100", verdict} <= set(r["values"])])
    groups = []
    for table, row in rows:
        seeds = [r["values"] for r in both if (r["table"], r["row"]) == (table, row)]
        falls = [{**v[verdict], "value": v["pgd100"]["value"] - v[verdict]["value"]} for v in seeds]
        groups.append(_group(records, table, row, falls))
    return groups
