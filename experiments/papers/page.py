"""BENCHMARKS.md, made from experiments/results: `markdown(Path("experiments/results"))`."""

import re
from pathlib import Path

from l2ljax.runtime.workdir import read_json
from papers import ablations, claims, compare, tables

__all__ = ["SPEED", "compact", "markdown"]

HEAD = """# Benchmarks

Made by `python experiments/reproduce.py --tables` from experiments/results; no number is typed by hand. The JSON of a
section, and of a row of the papers' tables in experiments/results/papers, has its command and versions; searches of
learning rates for GAIL are in experiments/results/searched.
[Accuracy against training passes](experiments/results/passes.png) draws the models.
"""
SPEED = ("goals", "speed", "gail_speed", "throughput", "scaling")
"""Results about speed, which come first; costs_*.json is in the papers' part."""


def markdown(results: Path) -> str:
    """Return BENCHMARKS.md: speed, reproduced claims, the papers' tables, all other results."""
    records = {path.stem: read_json(path) for path in sorted(results.glob("*.json"))}
    records = {name: record for name, record in records.items() if not name.startswith("costs_")}
    digits = {f"digits_{table}": title for table, title in ablations.TITLES.items()}
    titles = {name: record.get("title") or digits.get(name, name.replace("_", " ")) for name, record in records.items()}
    sections = {name: f"## {titles[name]}\n\n{tables.tell(record)}" for name, record in records.items()}
    first = [sections.pop(name) for name in SPEED if name in sections]
    rows = compare.read_records(results / "papers")
    papers = [claims.as_markdown(claims.answers(rows, results)), compare.as_markdown(rows, results)]
    text = "\n\n".join([*first, *papers, *sections.values()])
    return f"{HEAD}\n{compact(text)}\n"


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
