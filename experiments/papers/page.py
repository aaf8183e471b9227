"""BENCHMARKS.md, made from experiments/results: `markdown(Path("experiments/results"))`."""

import re
from pathlib import Path

from l2ljax.runtime.workdir import read_json
from papers import claims, compare, tables

__all__ = ["SPEED", "anchor", "compact", "heading", "markdown"]

HEAD = """# Benchmarks

Made by `python experiments/reproduce.py --tables` from experiments/results; no number is typed by hand. The JSON of a
section, and of a row of the papers' tables in experiments/results/papers, has its command, versions and date.
[Accuracy against training passes](experiments/results/passes.png) draws the models.
"""
SPEED = ("goals", "speed", "costs_resnet20", "costs_wrn_34_10", "gail_speed", "throughput", "scaling")
"""Results about speed, which come first."""


def markdown(results: Path) -> str:
    """Return BENCHMARKS.md: contents, speed, reproduced claims, the papers' tables, all other results."""
    records = {path.stem: read_json(path) for path in sorted(results.glob("*.json"))}
    sections = {
        name: f"{heading(record.get('title', name.replace('_', ' ')))}\n\n{tables.tell(record)}"
        for name, record in records.items()
    }
    first = [sections.pop(name) for name in SPEED if name in sections]
    rows = compare.read_records(results / "papers")
    papers = [claims.as_markdown(claims.answers(rows, results)), compare.as_markdown(rows)]
    text = "\n\n".join([*first, *papers, *sections.values()])
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in titles)
    return f"{HEAD}\n{contents}\n\n{compact(text)}\n"


def anchor(title: str) -> str:
    """Return GitHub's name of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def compact(text: str) -> str:
    """Take out the padding of tables, half of the page, commands, and paragraphs that stand above already."""
    paragraphs = text.split("\n\n")
    again = lambda i, p: p in paragraphs[:i] and not p.startswith("|")
    kept = [p for i, p in enumerate(paragraphs) if not again(i, p) and not re.fullmatch(r"`python .*`", p)]
    lines = "\n\n".join(kept).splitlines()
    return "\n".join(_narrow(line) if line.startswith("|") else line for line in lines)


def _narrow(line: str) -> str:
    """Return a table's line with single spaces, and its rule with none."""
    rule = re.fullmatch(r"[|:\- ]+", line)
    return re.sub(r"-{2,}", "--", line.replace(" ", "")) if rule else re.sub(r" {2,}", " ", line)


def heading(title: str) -> str:
    """Return a title of more than 60 characters as a short heading, and the rest below it."""
    short, _, rest = title.partition(": ")
    return f"## {short}\n\n{rest[0].upper()}{rest[1:]}." if len(title) > 60 and len(short) > 20 else f"## {title}"
