"""Training, attacks and starts against torch on a CPU: `python experiments/goals.py --victim=RUN --data-dir=CIFAR10`.

The measurements take an hour, one after the other, each kept in a folder so that another call resumes. One JSON then
holds both sides' figures and the target ratios. Run it alone on the machine, with the extra `bench` installed.
"""

import dataclasses
from pathlib import Path

from bench import goals
from l2ljax.files import check_writable, write_json
from l2ljax.runtime.flags import launch
from papers import tables


@dataclasses.dataclass(frozen=True)
class Flags:
    """The measurements."""

    victim: Path | None = None
    """The workdir of a run with a residual network, for AutoAttack; without it AutoAttack is left out."""
    data_dir: Path | None = None
    """CIFAR-10, for the first step of resnet20; without it that step is left out."""
    only: str = ""
    """Measurements, separated by commas; by default those missing in the folder."""
    folder: Path = Path("runs/goals")
    out: Path = Path("runs/goals.json")


def main(flags: Flags) -> None:
    """Measure, collect, print."""
    check_writable(flags.out)
    goals.measure(flags.folder, victim=flags.victim, data_dir=flags.data_dir, only=flags.only)
    record = goals.collect(flags.folder)
    write_json(flags.out, record)
    print(tables.tell(record))


if __name__ == "__main__":
    launch(main, Flags, __doc__)
