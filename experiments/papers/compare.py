"""The kept rows in Markdown: the paper's number, ours, the difference, and our actual setting.

    print(as_markdown(read_records()))

The column `schedule` lists where a run is shorter or smaller than in the paper, from the run's own config.json, not
from the plan.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2ljax.report.markdown import grid
from l2ljax.run import recipes
from papers import records
from papers.effort import GENERATORS, TRAIN_IMAGES
from papers.plan import PARTS
from papers.targets import TABLES, Table

__all__ = [
    "Record", "as_markdown", "cell", "elsewhere", "images_of", "read_records", "section", "shortened", "value_of",
]  # fmt: skip

Record = Mapping[str, Any]


def read_records(folder: Path = records.FOLDER) -> list[Record]:
    """Return all kept rows, by table, row and seed."""
    rows = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(rows, key=lambda r: (r["table"], r["row"], r["seed"]))


def as_markdown(measured: Sequence[Record]) -> str:
    """Return a section per table that has rows."""
    parts = ["## The papers' tables, ours beside them", _ABOUT, elsewhere()]
    for name, table in TABLES.items():
        mine = [record for record in measured if record["table"] == name]
        if mine:
            parts.append(section(name, table, mine))
    return "\n\n".join(parts)


def elsewhere() -> str:
    """List the rows that have their own section, and count those without results."""
    own: dict[str, list[str]] = {}
    for part in PARTS:
        if not part.columns and records.is_kept(part):
            lines = own.setdefault(part.table, [])
            lines += [name for name in [Path(part.jobs[-1].made).stem] if name not in lines]
    lines = [f"- {name}, {TABLES[name].title}: {', '.join(made)}" for name, made in own.items()]
    run = {(part.table, part.row) for part in PARTS if records.is_kept(part)}
    count = sum(len(table.rows) for table in TABLES.values())
    said = (
        f"Of {count} rows {len(run)} have results; `python experiments/reproduce.py --list` says what each would take."
    )
    return "\n".join([said, "", "In sections of their own, by the name of the JSON in experiments/results:", *lines])


_ABOUT = """A cell is ours, then the paper's number, then the difference, in points; between different data sets none
stands. Of several seeds ours is the mean, in brackets their range. Where the schedule says more than `as in the paper`,
the row is not the paper's setting, and the difference is not one between implementations. Columns without a paper's
number stand beside the paper's attacks."""


def section(name: str, table: Table, measured: Sequence[Record]) -> str:
    """Return one table: rows with their schedule, seeds and cells."""
    rows = [row for row in table.rows if any(record["row"] == row for record in measured)]
    columns = [*table.columns]
    columns += [c for record in measured for c in record["values"] if c not in columns]
    columns = list(dict.fromkeys(c for c in columns if c == "Min" or any(c in record["values"] for record in measured)))
    of_row = {row: [record for record in measured if record["row"] == row] for row in rows}
    said = {row: list(dict.fromkeys(shortened(r["training"], table) for r in seeds)) for row, seeds in of_row.items()}
    common = [
        part for part in said[rows[0]][0].split("; ") if all(part in s.split("; ") for t in said.values() for s in t)
    ]
    cells = []
    for row, seeds in of_row.items():
        own = ["; ".join(part for part in s.split("; ") if part not in common) or "the same" for s in said[row]]
        numbers = [cell(column, table, row, seeds) for column in columns]
        cells.append([row, "; or ".join(own), ", ".join(f"{record['seed']}" for record in seeds), *numbers])
    heads = [f"{column} ({images})" if (images := images_of(column, measured)) else column for column in columns]
    title = f"### {name}: {table.title} ({'; '.join(table.printed)})"
    about = [f"The schedule of all rows: {'; '.join(common)}."] if common else []
    return "\n\n".join([title, *about, grid(["row", "schedule", "seeds", *heads], cells)])


def cell(column: str, table: Table, row: str, seeds: Sequence[Record]) -> str:
    """Return ours / the paper's (difference)."""
    values = [value for record in seeds if (value := value_of(record, column, table)) is not None]
    printed = table.rows[row].get(column)
    if not values and any(column in record["values"] for record in seeds):
        return "kept"  # a curve or a drawing
    if not values:
        return "-" if printed is None else f"- / {printed:g}"
    scale, digits = (100, 2) if table.unit == "%" else (1, 3)
    ours = scale * statistics.mean(values)
    text = f"{ours:.{digits}f}"
    if len(values) > 1:
        text += f" [{scale * min(values):.{digits}f}, {scale * max(values):.{digits}f}]"
    if printed is None:
        return text
    same = all(table.dataset in (None, record["training"]["dataset"]) for record in seeds)
    return f"{text} / {printed:.{digits}f}" + (f" ({ours - printed:+.{digits}f})" if same else ", another data set")


def value_of(record: Record, column: str, table: Table) -> float | None:
    """Return a column of a kept row; Min is the lowest of the paper's attacks that were run."""
    if column != "Min":
        return record["values"].get(column, {}).get("value")
    attacks = [record["values"][c]["value"] for c in table.columns if c in record["values"] and c != "Natural"]
    return min(attacks) if attacks else None


def images_of(column: str, measured: Iterable[Record]) -> str:
    """Return the number of test images of a column."""
    counts = {record["values"][column]["images"] for record in measured if column in record["values"]}
    return " or ".join(f"{count:,}" for count in sorted(counts)) + " images" if counts else ""


def shortened(training: Mapping[str, Any], table: Table) -> str:
    """Describe the run's differences from the paper's setting: the table's, and for the rest the recipe's."""
    paper = recipes.find(training["dataset"], training["method"])
    epochs = table.epochs or paper.epochs
    said = []
    for name, theirs in (("dataset", table.dataset), ("arch", table.arch)):
        if theirs and training[name] != theirs:
            said.append(f"{training[name]} for {theirs}")
    if training["epochs"] != epochs:
        said.append(f"{training['epochs']} of {epochs} epochs")
    images, everything = training.get("train_size"), TRAIN_IMAGES.get(training["dataset"])
    if images is not None and images != everything:
        said.append(f"{images:,} of {everything:,} training images" if everything else f"{images:,} training images")
    width = training.get("options", {}).get("attacker_width")
    if training["method"] in GENERATORS and width not in (None, 64):
        said.append(f"attacker of width {width} for 64")
    for name in ("optimizer", "lr", "lr_schedule", "batch_size", "warmup", "attacker_optimizer", "attacker_lr"):
        theirs = getattr(paper, name)
        if name == "warmup":
            theirs *= training["epochs"] / paper.epochs
        if name in training and training[name] != theirs:
            said.append(f"{name.replace('_', ' ')} {training[name]} for {theirs:g}" if isinstance(theirs, float)
                        else f"{name.replace('_', ' ')} {training[name]} for {theirs}")  # fmt: skip
    if training["method"] not in GENERATORS:  # a learned attacker's options are an ablation's row
        said += [f"{name} {value}" for name, value in training.get("options", {}).items()]
    return "; ".join(said) or "as in the paper"
