"""The state and estimated cost of every row (`experiments/reproduce.py --list`), and of what the page lacks."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from l2ljax.report.markdown import grid
from l2ljax.types import L2LError
from papers import plan, records
from papers.effort import SPEEDS, Effort
from papers.jobs import Job, Part, effort_of
from papers.printed import printed
from papers.targets import ARCHITECTURES, TABLES, Table
from papers.work import left

__all__ = ["chosen", "listed", "missing", "parts_of", "shortfall", "state", "wanted"]


def chosen(only: str, *, as_printed: bool = False) -> list[Part]:
    """Return the plan's parts of those tables, or TABLE/ROW, separated by commas; all by default.

    Or those at the papers' own settings, if `as_printed`, see `printed`.

    Raises:
      L2LError: no such table or row.
    """
    names = wanted(only)
    if as_printed:
        return [part for name in names for part in printed(*name)]
    return [part for part in plan.PARTS if (part.table, part.row) in names]


def wanted(only: str) -> list[tuple[str, str]]:
    """Return the (table, row) pairs of `--only`."""
    rows = [(name, row) for name, table in TABLES.items() for row in table.rows]
    items = set(filter(None, re.split(r",(?! )", only)))  # a row's name may have a comma: "l2l_da:table1a/R-, D-"
    if only and not items:
        raise L2LError(f"--only={only} names nothing: leave it out for all tables, or name some")
    if unknown := items - {name for table, row in rows for name in (table, f"{table}/{row}")}:
        raise L2LError(f"--only={min(unknown)}: no such table or row; choose from {', '.join(TABLES)}, or TABLE/ROW")
    return [(table, row) for table, row in rows if not items or {table, f"{table}/{row}"} & items]


def listed(only: str = "") -> str:
    """Return Markdown: a line per row, and the sums of planned and missing work."""
    cells: list[list[str]] = []
    undone: dict[str, Job] = {}
    for name, row in wanted(only):
        table = TABLES[name]
        parts = parts_of(name, row)
        undone |= {job.made: job for part in missing(parts) for job in left(part)}
        own = printed(name, row)
        work, alone = effort_of(parts), effort_of(own)
        done = len(parts) - len(missing(parts))
        cells.append([
            name, row, state(parts), f"{done}/{len(parts)}" if parts else "-",
            ", ".join(str(seed) for seed in sorted({part.seed for part in parts})) or "-",
            ", ".join(sorted({recipe for part in parts if (recipe := _recipe(part))})) or "-",
            f"{work.passes:.2g}" if work.passes else "-", _hours(work, "cpu"), _hours(work, "gpu"),
            _recipe(own[0]) if own else "-", _hours(alone, "gpu"), "; ".join(table.printed),
        ])  # fmt: skip
    header = ["table", "row", "state", "parts", "seeds", "recipe", "passes", "CPU h", "GPU h"]
    header += ["as printed", "its GPU h", "printed in"]
    remaining = sum((job.effort for job in undone.values()), Effort())
    totals = (
        f"Planned and missing: {remaining.passes:.2g} passes, {remaining.hours('cpu'):.1f} hours on two CPU cores, "
        f"{remaining.hours('gpu'):.2g} on a data-center GPU. Estimates from counted multiplications; "
        "rows of a table share models, which count in each. --printed runs a row at its paper's own settings."
    )
    shown = f"Networks, not results: {', '.join(ARCHITECTURES)}."
    return "\n\n".join([grid(header, cells), totals, *([] if only else [shown])])


def shortfall() -> str:
    """Return the page's section on what has no results: a line per table of a paper, with what it would take."""
    cells = []
    for name, table in TABLES.items():
        of_row = {row: parts_of(name, row) for row in table.rows}
        lacking = [row for row, parts in of_row.items() if parts and missing(parts) == parts]
        partial = [f"{row} ({said})" for row, parts in of_row.items() if row not in lacking and (said := _gaps(parts))]
        unplanned = [row for row, parts in of_row.items() if not parts]
        columns = [f"{said} of {row}" for row, parts in of_row.items() if (said := _unplanned(table, row, parts))]
        if lacking or partial or unplanned or columns:
            planned = effort_of(part for parts in of_row.values() for part in missing(parts))
            own = effort_of(part for row in unplanned for part in printed(name, row))
            named = ["; ".join(rows) or "-" for rows in (lacking, partial, unplanned + columns)]
            cells.append([name, *named[:2], _hours(planned, "cpu"), named[2], _hours(own, "gpu")])
    total = effort_of(missing(plan.PARTS))
    about = (
        "Results are missing for lack of time: on two CPU cores with AVX-512 the planned ones take about "
        f"{total.hours('cpu'):.0f} hours (estimated from counted multiplications; with AVX2 alone twice as long). "
        "Tables share models, which count in each. Rows that are not planned are, in their papers, on networks, data "
        "and schedules for which two cores would need a day or more each, and no smaller stand-in is planned; columns "
        "that are not, slow attacks and attackers trained on one model each, are left out of planned rows. The last "
        "column has such rows' hours at their paper's own settings on a data-center GPU, taken to make "
        f"{SPEEDS['gpu']:.0e} multiplications a second. Not listed, and not run: L2L's Table 3 on CIFAR-100, AIT in "
        "L2L v2's Figure 5, and RNN-Adv's Restricted ImageNet (its Appendix C). "
        "`python experiments/reproduce.py --only=TABLE/ROW --minutes=N` runs planned rows, with `--printed` those of "
        "the papers. The papers' column `Min` is the lowest of its row, and not repeated."
    )
    header = ["table", "not run", "in part, without", "hours, two CPU cores", "not planned", "these rows' GPU hours"]
    return "\n\n".join(["## What is missing, and what it takes", about, grid(header, cells)])


def _gaps(parts: Sequence[Part]) -> str:
    """Return the seeds of a row without results, and the columns, or files of their own, that the others lack."""
    said = []
    for seed in sorted({part.seed for part in parts}):
        of_seed = [part for part in parts if part.seed == seed]
        gone = missing(of_seed)
        columns = ", ".join(name for part in gone for name in part.columns or [Path(part.jobs[-1].made).stem])
        if gone:
            said.append(f"seed {seed}" if gone == of_seed else f"{columns} of seed {seed}")
    return "; ".join(said)


def _unplanned(table: Table, row: str, parts: Sequence[Part]) -> str:
    """Return the paper's columns that no part of a planned row has; parts without columns are scripts' results."""
    planned = {column for part in parts for column in part.columns}
    return ", ".join(column for column in table.rows[row] if planned and column not in {"Min", *planned})


def parts_of(table: str, row: str) -> list[Part]:
    """Return the plan's parts of a row, none if it is not planned."""
    return [part for part in plan.PARTS if (part.table, part.row) == (table, row)]


def missing(parts: Iterable[Part]) -> list[Part]:
    """Return the parts without kept results."""
    return [part for part in parts if not records.is_kept(part)]


def state(parts: Sequence[Part]) -> str:
    """Return done, partial, not run, or not planned."""
    if not parts:
        return "not planned"
    if all(map(records.is_kept, parts)):
        return "done"
    workdirs = (Path(job.folder) for part in parts for job in part.jobs if job.made.startswith("runs/"))
    begun = any(map(records.is_kept, parts)) or any(folder.exists() for folder in workdirs)
    return "partial" if begun else "not run"


def _recipe(part: Part) -> str:
    """Return the --recipe of a part's model."""
    flags = part.victim.flags if part.victim else ()
    return next((flag.removeprefix("--recipe=") for flag in flags if flag.startswith("--recipe=")), "")


def _hours(work: Effort, machine: str) -> str:
    hours = work.hours(machine)
    return f"{hours:.1f}" if hours >= 0.05 else "<0.1" if hours else "-"
