"""Every row of every table: state and estimated cost (`experiments/reproduce.py --list`)."""

import re
from collections.abc import Sequence
from pathlib import Path

from l2ljax.report.markdown import grid
from l2ljax.types import L2LError
from papers import effort, plan, records
from papers.effort import Effort
from papers.jobs import Job, Part
from papers.targets import ARCHITECTURES, TABLES, Table
from papers.work import complete

__all__ = ["METHODS", "chosen", "listed", "papers", "state", "wanted"]

METHODS = {
    **plan.RNN_ROWS, **plan.L2L_ROWS, **{row: method for row, (method, _, _) in plan.DA_MODELS.items()},
    "AdvTrain+BLS": "pgd_bls_adv", "Plain Net": "plain", "Stability": "stability", "Kurakin": "fgsm_adv",
    "R+, D+": "l2l_da", "delta+, y+": "l2l_da", "PGD classifier": "pgd_adv", "L2L-DA classifier": "l2l_da",
}  # fmt: skip
"""Row of any table -> method."""


def chosen(only: str) -> list[Part]:
    """Return the plan's parts of those tables, or TABLE/ROW, separated by commas; all by default.

    Raises:
      L2LError: no such table or row.
    """
    names = wanted(only)
    return [part for part in plan.PARTS if (part.table, part.row) in names]


def wanted(only: str) -> list[tuple[str, str]]:
    """Return the (table, row) pairs of `--only`."""
    rows = [(name, row) for name, table in TABLES.items() for row in table.rows]
    items = set(filter(None, re.split(r",(?! )", only)))  # a row's name may have a comma: "l2l_da:table1a/R-, D-"
    if unknown := items - {name for table, row in rows for name in (table, f"{table}/{row}")}:
        raise L2LError(f"--only={min(unknown)}: no such table or row; choose from {', '.join(TABLES)}, or TABLE/ROW")
    return [(table, row) for table, row in rows if not items or {table, f"{table}/{row}"} & items]


def listed(only: str = "") -> str:
    """Return Markdown: a line per row, and the sums of planned and missing work."""
    cells: list[list[str]] = []
    missing: dict[str, Job] = {}
    for name, row in wanted(only):
        table = TABLES[name]
        parts = [part for part in plan.PARTS if (part.table, part.row) == (name, row)]
        jobs = {job.made: job for part in parts for job in part.jobs}
        if parts:
            missing |= {j.made: j for p in parts if not records.is_kept(p) for j in p.jobs if not complete(j)}
        work = sum((job.effort for job in jobs.values()), Effort()) if parts else papers(table, row)
        done = sum(map(records.is_kept, parts))
        cells.append([
            name, row, state(parts), f"{done}/{len(parts)}" if parts else "-",
            ", ".join(str(seed) for seed in sorted({part.seed for part in parts})) or "-",
            f"{work.passes:.2g}" if work.passes else "-", _hours(work, "cpu"), _hours(work, "gpu"),
            "; ".join(table.printed) + ("" if parts else " (the paper's setting)"),
        ])  # fmt: skip
    header = ["table", "row", "state", "parts", "seeds", "passes", "CPU h", "GPU h", "printed in"]
    left = sum((job.effort for job in missing.values()), Effort())
    totals = (
        f"Planned and missing: {left.passes:.2g} passes, {left.hours('cpu'):.1f} hours on two CPU cores, "
        f"{left.hours('gpu'):.2g} on a data-center GPU. Estimates from counted multiplications; "
        "rows of a table share models, which count in each."
    )
    shown = f"Networks, not results: {', '.join(ARCHITECTURES)}."
    return "\n\n".join([grid(header, cells), totals, *([] if only else [shown])])


def state(parts: Sequence[Part]) -> str:
    """Return done, partial, not run, or not planned."""
    if not parts:
        return "not planned"
    if all(map(records.is_kept, parts)):
        return "done"
    workdirs = (Path(job.folder) for part in parts for job in part.jobs if job.made.startswith("runs/"))
    begun = any(map(records.is_kept, parts)) or any(folder.exists() for folder in workdirs)
    return "partial" if begun else "not run"


def papers(table: Table, row: str) -> Effort:
    """Return a row's effort in the paper's own setting: training, and its columns on the whole test set."""
    if not (table.epochs and row in METHODS):
        return Effort()
    columns = [column for column in table.rows[row] if column not in ("Natural", "Min")]
    attacks = [column.lower().replace("-", "").replace("pgm", "pgd").replace("&", "") for column in columns]
    work = effort.training(table.dataset, table.arch, METHODS[row], epochs=table.epochs)
    return work + effort.judging(table.arch, attacks, 10_000)


def _hours(work: Effort, machine: str) -> str:
    hours = work.hours(machine)
    return f"{hours:.1f}" if hours >= 0.05 else "<0.1" if hours else "-"
