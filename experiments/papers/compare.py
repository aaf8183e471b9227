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

from l2ljax import defenses
from l2ljax.report.markdown import grid
from l2ljax.run import recipes
from l2ljax.runtime.workdir import read_json
from l2ljax.threat import parse_eps
from papers import effort, records, tables
from papers.effort import TRAIN_IMAGES
from papers.plan import PARTS
from papers.printed import METHODS, setting
from papers.targets import TABLES, Table

__all__ = [
    "COMPARED", "Record", "as_markdown", "cell", "costs", "elsewhere", "images_of", "read_records",
    "section", "shortened",
]  # fmt: skip

Record = Mapping[str, Any]


def read_records(folder: Path = records.FOLDER) -> list[Record]:
    """Return all kept rows, by table, row and seed."""
    rows = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(rows, key=lambda r: (r["table"], r["row"], r["seed"]))


def as_markdown(measured: Sequence[Record], results: Path) -> str:
    """Return a section per table that has rows, after the costs of training steps in the folder `results`."""
    of_table = {name: [record for record in measured if record["table"] == name] for name in TABLES}
    sections = [section(name, TABLES[name], rows) for name, rows in of_table.items() if rows]
    head = ["## The papers' tables, ours beside them", _ABOUT, elsewhere(measured), costs(results)]
    return "\n\n".join([*head, *sections])


def elsewhere(measured: Sequence[Record]) -> str:
    """List the rows that have their own section, and count those without results."""
    kept = [part for part in PARTS if records.is_kept(part)]
    own: dict[str, list[str]] = {}
    for part in kept:
        if not part.columns:
            own.setdefault(part.table, []).append(Path(part.jobs[-1].made).stem)
    lines = [f"- {name}, {TABLES[name].title}: {', '.join(dict.fromkeys(made))}" for name, made in own.items()]
    count, run = sum(len(table.rows) for table in TABLES.values()), len({(part.table, part.row) for part in kept})
    older = len({(r["table"], r["row"]) for r in measured} - {(part.table, part.row) for part in kept})
    said = (
        f"Of {count} rows {run} have results of the runs that are planned for them, {older} of earlier ones, shown "
        "below; `python experiments/reproduce.py --list` says what each would take."
    )
    return "\n".join([said, "", "Not in these tables, by the name of the JSON in experiments/results:", *lines])


def costs(results: Path) -> str:
    """Return the times of training steps beside the papers', from experiments/results/costs_*.json where kept.

    L2L's methods stand in both forms, with their passes.
    """
    paper = {row: columns["CIFAR-10"] for row, columns in TABLES["l2l:table3"].rows.items()}
    measured, about = _measured(results / "costs_wrn_34_10.json")
    cells = [
        [
            *(method := METHODS[row], f"{effort.PASSES[method]}", f"{effort.ALTERNATING.get(method, '-')}"),
            *(_ratio(measured, name, "plain") for name in (method, f"{method}:alternating")),
            f"{time / paper['Plain']:.2f}",
        ]
        for row, time in paper.items()
    ]
    header = ["time / plain, wrn_34_10", "passes, joint", "passes, alternating, as released", "joint", "alternating"]
    rows = {row: columns["seconds per epoch"] for row, columns in TABLES["rnn_adv:table2"].rows.items()}
    others, about_others = _measured(results / "costs_resnet20.json")
    other_cells = [
        [METHODS[row], _ratio(others, METHODS[row], "rnn_adv"), f"{time / rows['RNN-Adv']:.2f}"]
        for row, time in rows.items()
    ]
    return "\n\n".join([
        f"Training steps of L2L's Table 3, and of RNN-Adv's Table 2 below. A pass is forward and backward through the "
        f"classifier; to the images alone it takes two thirds of the multiplications of a training step. {about}",
        grid([*header, "paper"], cells),
        about_others,
        grid(["time / rnn_adv", "resnet20", "paper, network not named"], other_cells),
    ])  # fmt: skip


def _measured(path: Path) -> tuple[dict[str, Sequence[float]], str]:
    """Return method -> seconds of a training step of ours, by round, and a sentence about the measurement."""
    if not path.exists():
        return {}, "Not measured."
    record = read_json(path)
    first, *_ = rows = [row for row in record["speed"] if row["program"] == "l2ljax"]
    return {row["method"]: row["seconds"] for row in rows}, (
        f"{record['machine']}, {record['devices']} device(s), {record['date']}: a step of {first['method']} on "
        f"{first['batch_size']} images takes {statistics.median(first['seconds']):.2g} s."
    )


def _ratio(seconds: Mapping[str, Sequence[float]], method: str, other: str) -> str:
    """Return the median of a method's times by another's, round by round, and the range; "-" without either."""
    if method not in seconds or other not in seconds:
        return "-"
    return tables.RATIO.format(**tables.quotient(seconds[method], seconds[other]))


_ABOUT = """A cell is ours, then the paper's number, then the difference, in points; between different data sets none
stands. Of several seeds ours is the mean, in brackets their range; seeds of different settings have a line each. The
schedule compares a run with the row's setting in its paper, in tables of ours with the recipe `ours`, ours for theirs;
where it says more than `as in the paper`, the difference is not one between implementations. Columns without a paper's
number stand beside the paper's attacks; in brackets behind a column is the number of test images."""


def section(name: str, table: Table, measured: Sequence[Record]) -> str:
    """Return one table: rows with their schedule, seeds and cells."""
    run = [column for record in measured for column in record["values"]]
    columns = [column for column in dict.fromkeys([*table.columns, *run]) if column in run]
    lines: dict[tuple[str, str], list[Record]] = {}  # seeds of different settings are no mean
    for row in table.rows:
        for record in measured:
            if record["row"] == row:
                lines.setdefault((row, shortened(record["training"], name, row)), []).append(record)
    schedules = [schedule.split("; ") for _, schedule in lines]
    common = [part for part in schedules[0] if all(part in parts for parts in schedules)]
    cells = []
    for (row, schedule), seeds in lines.items():
        own = "; ".join(part for part in schedule.split("; ") if part not in common) or "the same"
        numbers = [cell(column, table, row, seeds) for column in columns]
        cells.append([row, own, ", ".join(f"{record['seed']}" for record in seeds), *numbers])
    heads = [f"{column} ({images})" if (images := images_of(column, measured)) else column for column in columns]
    title = f"### {name}: {table.title} ({'; '.join(table.printed)})"
    about = [f"The schedule of all rows: {'; '.join(common)}."] if common else []
    return "\n\n".join([title, *about, grid(["row", "schedule", "seeds", *heads], cells)])


def cell(column: str, table: Table, row: str, seeds: Sequence[Record]) -> str:
    """Return ours / the paper's (difference)."""
    known = [record["values"][column]["value"] for record in seeds if column in record["values"]]
    values = [value for value in known if value is not None]
    printed = table.rows[row].get(column)
    if known and not values:
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
    same = all(table.dataset == record["training"]["dataset"] for record in seeds)
    return f"{text} / {printed:.{digits}f}" + (f" ({ours - printed:+.{digits}f})" if same else ", another data set")


def images_of(column: str, measured: Iterable[Record]) -> str:
    """Return the number of test images of a column."""
    counts = {record["values"][column]["images"] for record in measured if column in record["values"]}
    return " or ".join(f"{count:,}" for count in sorted(counts))


COMPARED = (
    "optimizer", "lr", "lr_schedule", "milestones", "decay", "weight_decay", "nesterov", "batch_size", "clip_norm",
    "warmup", "augment", "schedule", "selection", "attacker_optimizer", "attacker_lr", "attacker_weight_decay",
    "ema", "awp", "cutout", "cutmix", "label_smoothing", "replays",
)  # fmt: skip
"""The settings that are compared as they stand, those in epochs as shares of the run."""


def shortened(training: Mapping[str, Any], table: str, row: str) -> str:
    """Describe the run's differences from the row's setting in its paper, `printed.setting`.

    Settings that an older record lacks are not compared.
    """
    own = {name: training[name] for name in ("dataset", "method", "arch")}
    paper = setting(table, row) or recipes.find(own["dataset"], own["method"], "ours")._replace(**own)
    training = {"schedule": "joint", **training}  # the one schedule of all records that do not name it
    plain = [name for name in ("dataset", "arch", "eps", "norm") if name in training]
    said = [f"{training[name]} for {theirs}" for name in plain if training[name] != (theirs := getattr(paper, name))]
    if training["epochs"] != paper.epochs:
        said.append(f"{training['epochs']:g} of {paper.epochs:.4g} epochs")
    images, everything = training.get("train_size"), TRAIN_IMAGES.get(training["dataset"])
    if images is not None and images != everything:
        said.append(f"{images:,} of {everything:,} training images" if everything else f"{images:,} training images")
    if training["dataset"] != paper.dataset:  # its rates and steps are for other images
        return "; ".join(said)
    stepped = training.get("lr_schedule", paper.lr_schedule) == paper.lr_schedule  # else there are no milestones
    for name in COMPARED:
        if name in ("milestones", "decay") and not stepped:
            continue
        theirs, ours = getattr(paper, name), training.get(name, ...)
        if name in ("milestones", "warmup"):  # in epochs: stretched like the run
            stretch = training["epochs"] / paper.epochs
            theirs = [m * stretch for m in theirs] if name == "milestones" else theirs * stretch
        if ours is not ... and ours != theirs:
            said.append(f"{name.replace('_', ' ')} {_shown(ours)} for {_shown(theirs)}")
    given = training.get("options", {})
    options = _options(training["method"], given, training)
    theirs = _options(paper.method, paper.options, paper.saved())
    for name in {**given, **paper.options}:
        here, there = _shown(options.get(name)), _shown(theirs.get(name))
        if here != there:  # as shown: 3.333 is 1 / 0.3
            said.append(f"{name.replace('_', ' ')} {here} for {there}")
    return "; ".join(said) or "as in the paper"


def _options(method: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options with their defaults, also those that depend on the radius and on the network."""
    options = {**defenses.options(method), **given}
    if "step_size" in options and options["step_size"] is None and "eps" in settings:
        options["step_size"] = parse_eps(settings["eps"]) / 4
    if "attacker_width" in options and options["attacker_width"] is None:
        options["attacker_width"] = 128 if "slim" in options.get("attacker", "") else 64
    return options


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
