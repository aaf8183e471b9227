"""The papers' tables next to ours, and BENCHMARKS.md.

    python experiments/reproduce.py --list                                    # every row: state and estimated cost
    python experiments/reproduce.py --only=rnn_adv:table3 --minutes=90 --data-dir=FOLDER
    python experiments/reproduce.py --tables                                  # experiments/results -> BENCHMARKS.md

--minutes runs the list in that time; the next call goes on. Models of the library are only judged. One per CPU core.
"""

import dataclasses
from pathlib import Path

from l2ljax.files import write_files
from l2ljax.runtime.flags import launch, quiet_pipe
from l2ljax.types import L2LError
from l2ljax.values import NonNegative
from papers import listing, overview, page, work


@dataclasses.dataclass(frozen=True)
class Flags:
    """The task."""

    list: bool = False
    """Show every row of every table: done, partial or not run, and its cost."""
    only: str = ""
    """Tables, or TABLE/ROW, separated by commas, like rnn_adv:table3,l2l:table2/PGM Net; all by default."""
    printed: bool = False
    """With --minutes: the rows at their papers' own settings, in place of those sized for two CPU cores."""
    minutes: NonNegative = 0.0
    """Run what is missing, for at most this many minutes."""
    data_dir: Path | None = None
    """A folder with a folder (or link) for each data set: mnist, cifar10."""
    tables: bool = False
    """Write BENCHMARKS.md."""


def main(flags: Flags) -> None:
    """Run, list, then write the tables."""
    if not (flags.list or flags.minutes or flags.tables):
        raise L2LError("nothing to do: give --list, --minutes or --tables")
    used = {"only": flags.list or flags.minutes, "printed": flags.minutes, "data_dir": flags.minutes}
    for name, needed in used.items():
        if getattr(flags, name) and not needed:
            raise L2LError(f"--{name.replace('_', '-')} belongs to --list or --minutes: see --help")
    listing.wanted(flags.only)
    if not page.RESULTS.is_dir():
        raise L2LError(f"there is no {page.RESULTS}: run it in the root of the repository")
    if flags.minutes:
        work.work(listing.chosen(flags.only, as_printed=flags.printed), minutes=flags.minutes, data_dir=flags.data_dir)
    if flags.list:
        with quiet_pipe():
            print(listing.listed(flags.only))
    if flags.tables:
        text = page.markdown(page.RESULTS)
        overview.draw(page.RESULTS / "passes.png", overview.points(page.RESULTS))
        write_files({Path("BENCHMARKS.md"): text.encode()})


if __name__ == "__main__":
    launch(main, Flags, __doc__)
