"""The papers' printed numbers: every table and figure, accuracies in percent; without numbers, the rows' names.

    TABLES["rnn_adv:table3"].rows["RNN-Adv"]["PGD-100"]   # 95.62

The numbers are in targets.txt. The texts: `L2L v1` is Learning to Defend by Learning to Attack as submitted to ICLR,
`L2L v2` at AISTATS 2021; `RNN-Adv` Improved Adversarial Training via Learned Optimizer (ECCV 2020); `L2L-DA`
Adversarial Defense via Learning to Generate Diverse Attacks (ICCV 2019).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["ARCHITECTURES", "TABLES", "Table"]


class Table(NamedTuple):
    """One table or figure, or one data set's half of it."""

    title: str
    printed: tuple[str, ...]
    """Its place, like `L2L v1 Table 2`."""
    rows: Mapping[str, Mapping[str, float]]
    """Row -> column -> printed number; for a figure, rows without columns."""
    columns: tuple[str, ...]
    dataset: str
    arch: str
    """The papers' classifier."""
    unit: str


def _read(text: str) -> dict[str, Table]:
    """Parse targets.txt, whose first lines describe it."""
    tables = {}
    for block in text.split("\n\n")[1:]:
        lines = ([cell.strip() for cell in line.split("|")] for line in block.splitlines())
        (name, title, printed, *setting), (_, *columns), *rows = lines
        numbers = {
            row: {column: float(cell) for column, cell in zip(columns, cells, strict=True) if cell != "-"}
            for row, *cells in rows
        }
        dataset, arch, unit = ("" if cell == "-" else cell for cell in setting)
        places = tuple(printed.split("; "))
        tables[name] = Table(title, places, numbers, tuple(columns), dataset, arch, unit)
    return tables


TABLES = _read(Path(__file__).with_suffix(".txt").read_text())
"""The tables to compare, by name."""

ARCHITECTURES = (
    *(f"L2L v1 {place}" for place in ("Table 1", "Table 7", "Figure 2", "Figure 3", "Figure 7")),
    *("L2L v2 Table 1", "L2L v2 Figure 1", "L2L v2 Figure 2", "RNN-Adv Figure 1", "L2L-DA Figure 1"),
)
"""Tables and figures that show a network, not a result: `models.attackers` and `models.generators`."""
