"""From kept results to BENCHMARKS.md: `python experiments/reproduce.py --tables`.

`--collect=WORKDIR,WORKDIR,... --name=NAME` keeps the reports of runs as experiments/results/runs_NAME.json first, and
`--judged=FOLDER,FOLDER,... --name=NAME` what experiments/evaluate.py wrote there as judged_NAME.json.
"""

import dataclasses
import json
import re
from pathlib import Path

import tyro

from l2ljax import tables, workdir
from l2ljax.monitor import told_in_one_line

HEAD = """# Benchmarks

Made by `python experiments/reproduce.py --tables` from experiments/results; no number is typed by hand.
"""


@dataclasses.dataclass(frozen=True)
class Flags:
    """What to do."""

    tables: bool = False
    """Write BENCHMARKS.md."""
    collect: str = ""
    """Workdirs of finished runs, separated by commas."""
    judged: str = ""
    """Folders of finished evaluations, separated by commas."""
    name: str = ""
    title: str = ""
    """What the table of the file NAME says above."""
    results: Path = Path("experiments/results")


def main(flags: Flags) -> None:
    """Collect, then write the tables."""
    if flags.collect:
        reports = [workdir.read_json(Path(folder) / "report.json") for folder in flags.collect.split(",")]
        for found in reports:
            found["command"] = without_places(found["command"])
        keep(flags, "runs", {"reports": reports})
    if flags.judged:
        judged = [workdir.read_json(Path(folder) / "robustbench.json") for folder in flags.judged.split(",")]
        for found in judged:
            found["provenance"]["command"] = without_places(found["provenance"]["command"])
        keep(flags, "judged", {"judgements": judged})
    if flags.tables:
        parts = [HEAD]
        for path in sorted(flags.results.glob("*.json")):
            found = workdir.read_json(path)
            parts += [f"## {found.get('title', path.stem.replace('_', ' '))}\n", tables.tell(found), ""]
        workdir.write_atomically(Path("BENCHMARKS.md"), "\n".join(parts).rstrip() + "\n")


def keep(flags: Flags, kind: str, content: dict) -> None:
    """Write KIND_NAME.json."""
    text = json.dumps({"title": flags.title, **content}, indent=2) + "\n"
    workdir.write_atomically(flags.results / f"{kind}_{flags.name}.json", text)


def without_places(command: str) -> str:
    """Where the data, the results and the script lay is the machine's own."""
    command = re.sub(r"--(data-dir|workdir|out)=\S+", r"--\1=DIR", command)
    return re.sub(r"\S*(experiments/\w+\.py)", r"\1", command)


if __name__ == "__main__":
    with told_in_one_line():
        main(tyro.cli(Flags, description=__doc__))
