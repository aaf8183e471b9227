"""From kept results to BENCHMARKS.md: `python experiments/reproduce.py --tables`.

`--collect=WORKDIR,WORKDIR,... --name=NAME` keeps the reports of runs as experiments/results/runs_NAME.json first.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import tyro

from l2ljax import report, workdir
from l2ljax.types import L2LError

HEAD = """# Benchmarks

Made by `python experiments/reproduce.py --tables` from experiments/results; no number is typed by hand.
"""


TABLES = {
    "reports": report.runs,
    "rows": report.over_seeds,
    "panels": report.strength,
    "autoattack": report.autoattack,
    "scaling": report.scaling,
    "results": report.throughput,
}
"""What a result file has -> how it is told."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """What to do."""

    tables: bool = False
    """Write BENCHMARKS.md."""
    collect: str = ""
    """Workdirs of finished runs, separated by commas."""
    name: str = ""
    """Of the file that the collected reports go to."""
    title: str = ""
    """What its table says above."""
    results: Path = Path("experiments/results")


def main(flags: Flags) -> None:
    """Collect, then write the tables."""
    if flags.collect:
        reports = [workdir.read_json(Path(folder) / "report.json") for folder in flags.collect.split(",")]
        for found in reports:  # where the data and the results lay is the machine's own
            command = re.sub(r"--(data-dir|workdir)=\S+", r"--\1=DIR", found["command"])
            found["command"] = re.sub(r"\S*(experiments/\w+\.py)", r"\1", command)
        content = json.dumps({"title": flags.title, "reports": reports}, indent=2) + "\n"
        workdir.write_atomically(flags.results / f"runs_{flags.name}.json", content)
    if flags.tables:
        parts = [HEAD]
        for path in sorted(flags.results.glob("*.json")):
            found = workdir.read_json(path)
            title = found.get("title", path.stem.replace("_", " "))
            tell = next(tell for key, tell in TABLES.items() if key in found)
            parts += [f"## {title}\n", tell(found), ""]
        workdir.write_atomically(Path("BENCHMARKS.md"), "\n".join(parts).rstrip() + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Flags, description=__doc__))
    except L2LError as error:
        sys.exit(f"error: {error}")
