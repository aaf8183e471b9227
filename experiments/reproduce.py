"""The papers' tables next to ours, and BENCHMARKS.md.

    python experiments/reproduce.py --list                                    # every row: state and estimated cost
    python experiments/reproduce.py --only=rnn_adv:table3 --minutes=90 --data-dir=FOLDER
    python experiments/reproduce.py --tables                                  # experiments/results -> BENCHMARKS.md

--minutes runs the list in that time; the next call goes on. Models of the library are only judged. One per CPU core.
"""

import dataclasses
import re
from pathlib import Path

from l2ljax.files import write_files, write_json
from l2ljax.runtime.flags import launch, quiet_pipe
from l2ljax.runtime.workdir import read_json
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
    collect: str = ""
    """Workdirs of finished runs, separated by commas, whose reports to keep as experiments/results/runs_NAME.json."""
    judged: str = ""
    """Folders of finished evaluations, separated by commas, to keep as experiments/results/judged_NAME.json."""
    name: str = ""
    title: str = ""
    """Title for the table in the file NAME."""


def main(flags: Flags) -> None:
    """Collect, run, then write the tables."""
    collecting = bool(flags.collect or flags.judged)
    if not (flags.list or flags.minutes or flags.tables or collecting):
        raise L2LError("nothing to do: give --list, --minutes, --tables, --collect or --judged")
    if collecting and not re.fullmatch(r"\w[\w.-]*", flags.name, re.ASCII):
        raise L2LError(f"--name={flags.name}: give letters, digits, _ and - for the name of the file")
    used = {"only": flags.list or flags.minutes, **dict.fromkeys(("name", "title"), collecting),
            **dict.fromkeys(("printed", "data_dir"), flags.minutes)}  # fmt: skip
    for name, needed in used.items():
        if getattr(flags, name) and not needed:
            name = name.replace("_", "-")
            raise L2LError(f"--{name} belongs to --list, --minutes, --collect or --judged: see --help")
    listing.wanted(flags.only)
    keep(flags, flags.collect, "report.json", "runs", "reports")
    keep(flags, flags.judged, "robustbench.json", "judged", "judgements")
    if flags.minutes:
        work.work(listing.chosen(flags.only, as_printed=flags.printed), minutes=flags.minutes, data_dir=flags.data_dir)
    if flags.list:
        with quiet_pipe():
            print(listing.listed(flags.only))
    if flags.tables:
        text = page.markdown(page.RESULTS)
        overview.draw(page.RESULTS / "passes.png", overview.points(page.RESULTS))
        write_files({Path("BENCHMARKS.md"): text.encode()})


def keep(flags: Flags, folders: str, file: str, kind: str, key: str) -> None:
    """Write the folders' files to KIND_NAME.json, without the machine's own folders of data, results and script."""
    kept = {folder: read_json(Path(folder) / file) for folder in folders.split(",") if folder}
    for folder, record in kept.items():
        about = record.get("provenance", record)
        if not isinstance(about, dict) or not isinstance(about.get("command"), str):
            raise L2LError(f"{folder}/{file} has no command: give the folder of a finished run or evaluation")
        command = re.sub(r"(')?--(data-dir|workdir|out)=(?(1)[^']*'|\S+)", r"--\2=DIR", about["command"])
        about["command"] = re.sub(r"\S*(experiments/\w+\.py)", r"\1", command)
    if kept:
        content = {"title": flags.title, key: [*kept.values()]}
        page.section(f"{kind}_{flags.name}", content)  # before it is kept: else no page could be made any more
        write_json(page.RESULTS / f"{kind}_{flags.name}.json", content)


if __name__ == "__main__":
    launch(main, Flags, __doc__)
