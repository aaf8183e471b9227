"""Training, attacks and starts beside torch on a CPU: `python experiments/goals.py --victim=RUN --data-dir=CIFAR10`.

An hour of measurements, one after the other, each kept in a folder, so that another call goes on; then one JSON with
both sides' figures and the ratios that we want. Run it alone on the machine, with the extra `bench` installed.
"""

import dataclasses
from pathlib import Path

import tyro

from bench import goals
from l2ljax.files import write_json
from l2ljax.runtime.monitor import one_line_errors
from papers import tables


@dataclasses.dataclass(frozen=True)
class Flags:
    """What to measure."""

    victim: Path | None = None
    """The workdir of a run with a residual network, for AutoAttack; left out without it."""
    data_dir: Path | None = None
    """CIFAR-10, for the first step of resnet20; left out without it."""
    only: str = ""
    """Measurements, separated by commas; by default all that the folder lacks."""
    folder: Path = Path("runs/goals")
    out: Path = Path("runs/goals.json")


def main(flags: Flags) -> None:
    """Measure, collect, print."""
    goals.measure(flags.folder, victim=flags.victim, data_dir=flags.data_dir, only=flags.only)
    record = goals.collect(flags.folder)
    write_json(flags.out, record)
    print(tables.tell(record))


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Flags, description=__doc__))
