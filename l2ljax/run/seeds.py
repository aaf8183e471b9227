"""A method with several seeds: a run each, and a report of mean, spread and lowest ("five runs, lowest reported").

    planned = plan("digits", "rnn_adv", Config(seeds=3))      # seeds 0, 1, 2
    results = [finished(settings) or experiment.run(settings) for settings in planned]

The runs go one after the other, each to the bits that it has alone, in a workdir of its own. The other way, `jax.vmap`
over the whole step, makes grouped convolutions, a group per seed: on a CPU three seeds so ran 4 to 7 times slower than
in turn (input and weight gradient), and all our classifiers have convolutions.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2ljax.checkpoint import place
from l2ljax.files import write_files
from l2ljax.report import markdown
from l2ljax.run.config import Config, named, resolve
from l2ljax.run.settings import Settings
from l2ljax.run.setup import data_identity
from l2ljax.run.trained import learned
from l2ljax.runtime.flags import checked
from l2ljax.runtime.provenance import provenance
from l2ljax.runtime.workdir import ABOUT_REPORTING, read_json

__all__ = ["finished", "plan", "write"]


def plan(dataset: str, method: str, config: Config) -> list[Settings]:
    """Return the runs of seeds `seed`, ..., `seed + seeds - 1`.

    Of several, that of seed 3 is in WORKDIR/s3, where --workdir is given, and in WORKDIR/s3/METHOD where --method names
    several. Bad settings are an L2LError.
    """
    config = checked(config)
    seeds = range(config.seed, config.seed + config.seeds)
    folders = {s: f"{config.workdir}/s{s}" if config.workdir and config.seeds > 1 else config.workdir for s in seeds}
    return [
        resolve(dataset, method, dataclasses.replace(config, seed=seed, seeds=1, workdir=folder))
        for seed, folder in folders.items()
    ]


def finished(settings: Settings) -> dict[str, Any] | None:
    """Return the report that a run's workdir holds, on the same data with the same attacks; None if there is none."""
    folder = Path(settings.workdir or "")
    report, config = folder / "report.json", folder / "config.json"
    if not report.exists() or not config.exists() or report.stat().st_mtime_ns < config.stat().st_mtime_ns:
        return None  # a run writes its configuration at its beginning, the report at its end
    saved, wanted = read_json(config), {**settings.saved(), **data_identity(settings)}
    if settings.pretrained and not settings.init_from:
        wanted["init_from"] = str(folder / "classifier")  # see `experiment.run`
    free = set(ABOUT_REPORTING) - {"attacks", "eval_size", "on_overfitting"}
    known = all(saved.get(k) == v for k, v in wanted.items() if k not in free)
    return read_json(report) if known and not _newer_sources(settings, report.stat().st_mtime_ns) else None


def _newer_sources(settings: Settings, than: int) -> bool:
    """Return whether a run that these settings start from, or attack with, saved a state since that time in ns."""
    attackers = [known.workdir for name in settings.attacks if (known := learned(name))]
    named = [name for name in (settings.init_from, settings.attacker_from, *attackers) if name]
    folders = [place(name)[0] / "checkpoints" for name in named]
    return any(saved.stat().st_mtime_ns >= than for folder in folders for saved in folder.glob("*"))


def write(dataset: str, config: Config, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Path, str]:
    """Write report.json and report.md over the seeds of each method; returns their folder and the Markdown.

    Args:
      dataset: the data.
      config: of all runs.
      rows: method -> the content of each seed's report.json.
    """
    last, arch = config.seed + config.seeds - 1, next(iter(rows.values()))[0]["arch"]
    name = f"{named(config.dataset or dataset)}_{config.method or next(iter(rows))}_{arch}_s{config.seed}-{last}"
    folder = Path(os.path.expanduser(config.workdir or f"runs/{name}"))
    summary = {method: markdown.summary(runs) for method, runs in rows.items()}
    report = {**provenance(), "seeds": list(range(config.seed, last + 1)), "summary": summary, "rows": rows}
    page = markdown.over_seeds(report)
    texts = {"report.json": json.dumps(report, indent=2) + "\n", "report.md": page + "\n"}
    write_files({folder / name: text.encode() for name, text in texts.items()})
    return folder, page
