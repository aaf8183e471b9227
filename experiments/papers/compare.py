"""The kept rows in Markdown: the paper's number, ours, the difference, and our actual setting.

    print(as_markdown(read_records(), Path("experiments/results")))

The column `schedule` lists where a run is shorter or smaller than in the paper, from the run's own config.json, not
from the plan.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l2ljax import data, defenses
from l2ljax.report.markdown import grid
from l2ljax.run import recipes
from l2ljax.runtime.workdir import read_json
from l2ljax.threat import parse_eps
from papers import effort, records, speeds
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
    rows = [records.load(path) for path in folder.glob("*.json")]
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
    lines = [
        f"- {name}, {TABLES[name].title}: {', '.join(dict.fromkeys(made))}"
        for name, made in own.items()
        if name not in ("l2l:table3", "rnn_adv:table2")  # see `costs`
    ]
    done = {(part.table, part.row) for part in kept}
    part_done = {(part.table, part.row) for part in PARTS if part not in kept} & done
    counts = []
    for whose, ours in (("the papers' tables and figures", False), ("tables of ours", True)):
        rows = {(name, row) for name, table in TABLES.items() for row in table.rows if _is_ours(table) == ours}
        counts.append(
            f"Of {len(rows)} rows of {whose} {len(rows & done)} have results of the runs that are planned for them"
        )
        counts[-1] += f", {len(rows & done - part_done)} of these in all planned columns and seeds."
    older = len({(r["table"], r["row"]) for r in measured} - done)
    older_said = f" {older} more have results of earlier runs." if older else ""
    said = f"{' '.join(counts)}{older_said}"
    return "\n".join([said, "", "Not in these tables, by the name of the JSON in experiments/results:", *lines])


def _is_ours(table: Table) -> bool:
    return table.printed == ("ours",)


def costs(results: Path) -> str:
    """Return the times of training steps beside the papers', from experiments/results/costs_*.json where kept.

    L2L's methods stand in both forms, with their passes.
    """
    paper = {row: columns["CIFAR-10"] for row, columns in TABLES["l2l:table3"].rows.items()}
    measured, about = _measured(results / "costs_wrn_34_10.json")
    cells = [
        [
            METHODS[row] + form.replace(":", ", "),
            f"{(effort.ALTERNATING if form else effort.PASSES)[METHODS[row]]}",
            *_ratio(measured, METHODS[row] + form, "plain"),
            f"{time / paper['Plain']:.2f}",
        ]
        for row, time in paper.items()
        for form in ["", ":alternating"][: 1 + (METHODS[row] in effort.ALTERNATING)]
    ]
    rows = {row: columns["seconds per epoch"] for row, columns in TABLES["rnn_adv:table2"].rows.items()}
    others, about_others = _measured(results / "costs_resnet20.json")
    sizes = {row: columns["parameters"] for row, columns in TABLES["rnn_adv:table2"].rows.items()}
    other_cells = [
        [
            *(METHODS[row], *_ratio(others, METHODS[row], "rnn_adv"), f"{time / rows['RNN-Adv']:.2f}"),
            f"{others[METHODS[row]].parameters:,}" if METHODS[row] in others else "-",
            f"{sizes[row]:,.0f}",
        ]
        for row, time in rows.items()
    ]
    return "\n\n".join([
        "Training steps of L2L's Table 3, whose code alternates, and of RNN-Adv's Table 2. A pass that "
        "computes the gradient of the images alone takes two thirds of the multiplications of one that trains. "
        f"The papers timed GPUs. {about}",
        grid(["step on wrn_34_10", "passes", "multiplications / plain", "time / plain", "paper"], cells),
        about_others,
        grid(["step on resnet20", "multiplications / rnn_adv", "time / rnn_adv", "paper, network not named",
              "attacker's parameters", "paper"], other_cells),
    ])  # fmt: skip


class _Step(NamedTuple):
    """A training step that was timed."""

    seconds: Sequence[float]
    """By round."""
    operations: float
    parameters: int
    """The attacker's."""


def _measured(path: Path) -> tuple[dict[str, _Step], str]:
    """Return method -> a training step of ours, and a sentence about the measurement."""
    if not path.exists():
        return {}, "Not measured."
    record = read_json(path)
    if not (rows := [row for row in record["speed"] if row["program"] == "l2ljax"]):
        return {}, "Not measured."
    first = rows[0]
    steps = {row["method"]: _Step(row["seconds"], row["flops"], row["attacker_parameters"]) for row in rows}
    return steps, (
        f"{record['machine']}, {record['devices']} device(s), {record['date']}: a step of {first['method']} on "
        f"{first['batch_size']} images takes {statistics.median(first['seconds']):.2g} s."
    )


def _ratio(steps: Mapping[str, _Step], method: str, other: str) -> list[str]:
    """Return a step's operations by another's, and the median of its times by the other's, with the range."""
    if method not in steps or other not in steps:
        return ["-", "-"]
    ours, least = steps[method], steps[other]
    ratio = speeds.quotient(ours.seconds, least.seconds)
    return [f"{ours.operations / least.operations:.2f}", speeds.RATIO.format(**ratio)]


_ABOUT = """A cell is ours, then the paper's number, then the difference in points; where the paper's number is of
another data set, no difference is given. Of several seeds ours is the mean, with their range in brackets; seeds of
different settings have a line each. The column `schedule` lists what differs in training from the row's setting in its
paper; in tables of ours, from the recipe `ours`, which is of no paper. Where a paper does not state a setting, that of
the code it builds on is taken, as l2ljax/run/recipes.py says (RNN-Adv states none of its classifiers' rates, batch
sizes and epochs). Between data sets only data, network, radius and epochs are compared. No difference in these tables
is one between implementations alone: the budgets differ. All models are judged in their last state; L2L's papers and
RNN-Adv's print the lowest of five seeds. In brackets behind a column is its number of test images; columns `ours: NAME`
are the attack of that name in the README, and `RNN-Adv` is the attacker of our RNN-Adv of seed 0, trained with 7 steps,
with 10. No paper has the rows `RNN-Adv, as printed`, `Plain` of L2L's Table 2, or `L2L by coordinate`; `R+, D+`,
`delta+, y+` and `L2L-DA` are one model of L2L-DA's."""
_OURS = {"pgd100": "ours: pgd100", "margin100": "ours: margin100"}
"""Heads of columns that are no paper's."""


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
    heads = [_head(column, measured) for column in columns]
    title = f"### {name}: {table.title} ({'; '.join(table.printed)})"
    about = [f"The schedule of all rows: {'; '.join(common)}."] if common else []
    return "\n\n".join([title, *about, *_attacks(name, columns), grid(["row", "schedule", "seeds", *heads], cells)])


def _attacks(table: str, columns: Sequence[str]) -> list[str]:
    """Return a line with the attacks, by their names in the README, of the columns that have another name."""
    known: dict[str, set[str]] = {}
    for part in PARTS:
        for column, attack in part.columns.items() if part.table == table else ():
            name, on, _ = attack.partition(" on ")  # in black-box tables, the surrogate that the column names
            if name.startswith("trained:"):
                name = "trained on the surrogate" if on else "trained on each row's model"
            known.setdefault(column, set()).update({name} - {column, "clean", "mean draw", "own"})
    listed = [f"{column} is {' or '.join(sorted(known[column]))}" for column in columns if known.get(column)]
    return [f"Attacks: {'; '.join(listed)}."] * bool(listed)


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
    if len(values) < len(seeds):
        text += f" ({len(values)} seed{'s' * (len(values) > 1)})"
    if len(values) > 1:
        text += f" [{scale * min(values):.{digits}f}, {scale * max(values):.{digits}f}]"
    if printed is None:
        return text
    same = all(table.dataset == record["training"]["dataset"] for record in seeds)
    return f"{text} / {printed:.{digits}f}" + (f" ({ours - printed:+.{digits}f})" if same else ", another data set")


def _head(column: str, measured: Sequence[Record]) -> str:
    images = images_of(column, measured)
    return _OURS.get(column, column) + (f" ({images})" if images else "")


def images_of(column: str, measured: Iterable[Record]) -> str:
    """Return the number of test images of a column."""
    counts = {record["values"][column]["images"] for record in measured if column in record["values"]}
    return " or ".join(f"{count:,}" for count in sorted(counts))


COMPARED = (
    "optimizer", "lr", "lr_schedule", "milestones", "decay", "weight_decay", "nesterov", "batch_size", "clip_norm",
    "augment", "schedule", "attacker_optimizer", "attacker_lr", "attacker_weight_decay",
    "ema", "awp", "cutout", "cutmix", "label_smoothing", "replays",
)  # fmt: skip
"""The settings that are compared as they stand, those in epochs as shares of the run."""


def shortened(training: Mapping[str, Any], table: str, row: str) -> str:
    """Describe the run's differences from the row's setting in its paper, `printed.setting`.

    Settings that an older record lacks are not compared, or taken to be the paper's.
    """
    own = {name: training[name] for name in ("dataset", "method", "arch")}
    paper = setting(table, row) or recipes.find(own["dataset"], own["method"], "ours")._replace(**own)
    training = {"schedule": "joint", "val_size": paper.val_size, **training}  # what older records do not name
    plain = [name for name in ("dataset", "arch", "eps", "norm") if name in training]
    said = [
        f"{training[name]} instead of {theirs}" for name in plain if training[name] != (theirs := getattr(paper, name))
    ]
    if training["epochs"] != paper.epochs:
        said.append(f"{training['epochs']:g} of {paper.epochs:.4g} epochs")
    images, theirs = _images(training), _images(paper._asdict())
    if images != theirs and training["dataset"] == paper.dataset:
        said.append(f"{images:,} of {theirs:,} training images")
    if training["dataset"] != paper.dataset:  # its rates and steps are for other images
        return "; ".join(said)
    stepped = training.get("lr_schedule", paper.lr_schedule) == paper.lr_schedule  # else there are no milestones
    for name in COMPARED:
        theirs, ours = getattr(paper, name), training.get(name, ...)
        if name in ("milestones", "decay") and not stepped:
            continue
        if name.startswith("attacker") and not defenses.find(training["method"]).learns:
            continue
        if name == "milestones":  # in epochs: stretched like the run
            theirs = [m * training["epochs"] / paper.epochs for m in theirs]
        if ours is not ... and ours != theirs:
            said.append(f"{name.replace('_', ' ')} {_shown(ours)} instead of {_shown(theirs)}")
    if (
        training["method"] != "plain"
        and "warmup" in training
        and (steps := _plain_steps(training)) != (theirs := _plain_steps(paper._asdict()))
    ):
        said.append(f"{steps:,} plain steps first instead of {theirs:,}")
    if paper.selection == "test":
        said.append("the last state instead of the best on the test images")
    given = training.get("options", {})
    options = _options(training["method"], given, training)
    theirs = _options(paper.method, paper.options, paper.saved())
    for name in sorted({**given, **paper.options}):
        here, there = _shown(options.get(name)), _shown(theirs.get(name))
        if here != there:  # as shown: 3.333 is 1 / 0.3
            said.append(f"{name.replace('_', ' ')} {here} instead of {there}")
    return "; ".join(said) or "as in the paper"


def _images(settings: Mapping[str, Any]) -> int:
    """Return the number of training images: as many as asked, or all but those held out."""
    return int(settings.get("train_size") or TRAIN_IMAGES[settings["dataset"]] - settings["val_size"])


def _plain_steps(settings: Mapping[str, Any]) -> int:
    """Return the number of steps of plain training before the attacks."""
    return round(settings["warmup"] * data.steps_per_epoch(_images(settings), settings["batch_size"]))


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
