"""BENCHMARKS.md, made from experiments/results: `markdown(Path("experiments/results"))`."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from l2ljax.runtime.workdir import read_json
from l2ljax.types import L2LError, one_line
from papers import ablations, claims, compare, jobs, listing, tables

__all__ = ["RESULTS", "SPEED", "TITLES", "compact", "markdown", "section"]

HEAD = """# Benchmarks

Made by `python experiments/reproduce.py --tables` from experiments/results; no measured number is typed by hand. The
JSON of a section, and of a row of the papers' tables in experiments/results/papers, has its command and versions;
searches of learning rates for GAIL are in experiments/results/searched.
[Accuracy against training passes](experiments/results/passes.png) has each method's accuracy under PGD-100, but
not the ablations of L2L-DA; where passes are equal, the markers stand side by side.
"""
RESULTS = Path(jobs.RESULTS)
SPEED = ("goals", "speed", "gail_speed", "throughput", "scaling")
"""Results about speed, which come first; costs_*.json is in the papers' part."""
TITLES = {
    "speed": "PGD-10 beside other libraries",
    "gail_speed": "GAIL beside another library",
    "throughput": "Our convolutions and loops",
    "scaling": "Many devices, on paper",
    "autoattack_apgd_ce": "APGD-CE beside pyautoattack",
    "autoattack_fast": "AutoAttack: fast beside standard",
    "cycle": "The limiting cycle (L2L, Figure 8)",
    "strength_pretrained": "The loss along attacks on the pretrained MNIST models (RNN-Adv, Figure 2)",
    "traveller": "RNN-Adv's optimizer learned on many networks (traveller), on others",
}


def markdown(results: Path) -> str:
    """Return BENCHMARKS.md: speed, reproduced claims, the papers' tables, all other results."""
    if not (paths := sorted(results.glob("*.json"))):
        raise L2LError(f"there is no {results}/*.json: run it in the root of the repository")
    records = {path.stem: read_json(path, "put back a sound copy, or move it away") for path in paths}
    records = {name: record for name, record in records.items() if not name.startswith("costs_")}
    sections = {name: section(name, record) for name, record in records.items()}
    first = [sections.pop(name) for name in SPEED if name in sections]
    rows = compare.read_records(results / "papers")
    papers = [
        _sound("result behind a claim", lambda: claims.as_markdown(claims.answers(rows, results))),
        compare.as_markdown(rows, results),
        listing.shortfall(),
    ]
    text = "\n\n".join([*first, *papers, *sections.values()])
    return f"{HEAD}\n{compact(text)}\n"


def _title(name: str, record: Mapping[str, Any]) -> str:
    if "arms" in record:
        return f"GAIL on {record['environment']}, {record['iterations']:,} iterations: {', '.join(record['arms'])}"
    own = TITLES | {f"digits_{table}": title for table, title in ablations.TITLES.items()}
    return record.get("title") or own.get(name, name.replace("_", " "))


def section(name: str, record: Mapping[str, Any]) -> str:
    """Return a kept result's section; a damaged one, or one that no table knows, is an L2LError."""
    return _sound(f"result {name}", lambda: f"## {_title(name, record)}\n\n{tables.tell(record)}")


def _sound(what: str, tell: Callable[[], str]) -> str:
    try:
        return tell()
    except (KeyError, IndexError, StopIteration, TypeError, ValueError, AttributeError) as error:
        fix = "put back a sound copy, or move it away"
        raise L2LError(f"{what} is damaged, or none that `tables` knows ({one_line(error)}): {fix}") from error


def compact(text: str) -> str:
    """Take out the padding of tables, half of the page, commands, and explanations that stand above already."""
    paragraphs = text.split("\n\n")
    again = lambda i, p: p in paragraphs[:i] and len(p) > 250 and not p.startswith(("|", "The schedule"))
    kept = [p for i, p in enumerate(paragraphs) if not again(i, p) and not re.fullmatch(r"`python .*`", p)]
    lines = "\n\n".join(kept).splitlines()
    return "\n".join(_narrow(line) if line.startswith("|") else line for line in lines)


def _narrow(line: str) -> str:
    """Return a table's line with single spaces, and its rule with none."""
    rule = re.fullmatch(r"[|:\- ]+", line)
    return re.sub(r"-{2,}", "--", line.replace(" ", "")) if rule else re.sub(r" {2,}", " ", line)
