"""Records of finished parts: experiments/results/papers/TABLE-ROW-sSEED.json, small, complete, without local paths.

    {"table", "row", "seed", "values": {column: {"value", "images", "command"}}, "training": {...}, "provenance": {...}}

Values are fractions for accuracies. A row's parts share the file; each adds its columns.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from l2ljax.files import write_json
from l2ljax.models import shipped
from l2ljax.runtime.workdir import read_json
from l2ljax.types import L2LError, one_line
from papers.jobs import Job, Part, bare

__all__ = [
    "FOLDER", "PRINTED", "SETTINGS", "command_of", "is_kept", "is_of", "is_printed", "keep", "load", "of_card",
    "path_of", "read", "training",
]  # fmt: skip

FOLDER = Path("experiments/results/papers")
PRINTED = "runs/printed/"
"""Where runs at the papers' own settings are."""
SETTINGS = (
    "recipe", "method", "dataset", "arch", "eps", "norm", "epochs", "train_size", "batch_size", "optimizer", "lr",
    "lr_schedule", "milestones", "decay", "weight_decay", "nesterov", "clip_norm", "warmup", "augment", "schedule",
    "val_size", "selection", "attacker_optimizer", "attacker_lr", "attacker_weight_decay", "options", "dtype", "seed",
    "ema", "awp", "cutout", "cutmix", "label_smoothing", "replays",
)  # fmt: skip
"""Settings from the training run's config.json: the actual setting of the result."""


def path_of(part: Part) -> Path:
    """Return the file of a part's row and seed."""
    printed = part.victim is not None and part.victim.folder.startswith(PRINTED)
    name = f"{part.table}-{part.row}{'-printed' * printed}-s{part.seed}".replace("*", " star")
    return FOLDER / f"{re.sub(r'[^0-9A-Za-z+]+', '-', name)}.json"


def load(path: Path) -> dict[str, Any]:
    """Return a kept row; one that is damaged is an L2LError."""
    fix = "put back a sound copy, or delete it and run its row again"
    record = read_json(path, fix)
    kinds = {"table": str, "row": str, "seed": int, "values": dict, "training": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        raise L2LError(f"{path} is damaged (no {wrong[0]}): {fix}")
    return record


def is_printed(record: Mapping[str, Any]) -> bool:
    """Return whether a row is of a run at its paper's own settings."""
    return f"--workdir={PRINTED}" in record["training"].get("command", "")


def is_kept(part: Part) -> bool:
    """Return whether the file has the part's columns of the plan's model; of a script's own file, whether it is of the
    plan's command."""
    if not part.columns or part.victim is None:
        path = Path(part.jobs[-1].made)
        return path.exists() and is_of(read_json(path), part.jobs[-1])
    record = _of_this_model(part)
    return record is not None and set(part.columns) <= set(record["values"])


def is_of(content: Mapping[str, Any], job: Job) -> bool:
    """Return whether a script's result is of the job's command, whatever its output file and its data's folder."""
    return bare(command_of(content)) == bare(job.line)


def command_of(content: Mapping[str, Any]) -> str:
    """Return the command that made a result; "" for a figure's data, which name none."""
    about = content if "command" in content else content.get("provenance")
    return str(about.get("command", "")) if isinstance(about, dict) else ""


def _of_this_model(part: Part) -> dict[str, Any] | None:
    """Return the row's record if it is of the plan's training command, which has recipe, method, epochs and seed."""
    path, command = path_of(part), part.victim.line if part.victim else ""
    record = load(path) if path.exists() else None
    return record if record is not None and record["training"].get("command") == command else None


def of_card(part: Part) -> dict[str, dict[str, Any]]:
    """Return the results of a part if its model comes with the library and was judged so for its card, else nothing."""
    if part.victim is None or not (name := shipped.name_of(part.victim.model)):
        return {}
    judged = shipped.card(name)["judged"]
    about = {key: judged[key] for key in ("images", "date", "command")}
    found = {attack: {"value": value, **about} for attack, value in judged["attacks"].items()}
    wanted = set(part.columns.values())
    return found if wanted <= set(found) and f"--eval-size={judged['images']}" in part.jobs[-1].flags else {}


def keep(part: Part) -> None:
    """Add a finished part to its file.

    Raises:
      L2LError: the last job's result lacks a column.
    """
    if not part.columns or part.victim is None:
        return
    last, path = part.jobs[-1], path_of(part)
    content = of_card(part) or read(Path(last.made))
    about = {"command": last.line}
    if missing := set(part.columns.values()) - set(content):
        raise L2LError(f"{last.made} has no {min(missing)}: delete it, then run the same command again")
    new: dict[str, Any] = {"table": part.table, "row": part.row, "seed": part.seed, "values": {}}
    with _alone_in(path.parent):
        record = _of_this_model(part) or new  # columns of another model do not stay beside this one's
        record["values"] |= {column: {**about, **content[name]} for column, name in part.columns.items()}
        record["training"] = training(part.victim)
        write_json(path, record)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that change a row's file: between its reading and writing no columns are lost."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def training(victim: Job) -> dict[str, Any]:
    """Return the settings of the run, or of the model that comes with the library, and the plan's command."""
    if name := shipped.name_of(victim.model):
        config = report = shipped.card(name)
    else:
        config, report = read_json(Path(victim.folder) / "config.json"), read_json(Path(victim.made))
    settings = {name: config[name] for name in SETTINGS if name in config}
    about = {name: report[name] for name in ("parameters", "versions")}
    return {**settings, **about, "command": victim.line}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return name -> {"value", "images"} of a job's result: an evaluation, or a figure's data; damaged, an L2LError."""
    content = read_json(path, fix := "delete it, then run the same command again")
    try:
        return READERS.get(path.name, _judgement)(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise L2LError(f"{path} is damaged ({one_line(error)}): {fix}") from error


def _judgement(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    known = content["provenance"]
    about = {name: known[name] for name in ("images", "date", "machine")}
    black = {f"{name} on {who}": value for who, row in known["black_box"].items() for name, value in row.items()}
    accuracies = {"clean": float(content["clean_acc"]) / 100, **known["attacks"], **black}
    return {name: {"value": value, **about} for name, value in accuracies.items()}


def _landscape(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    [loss] = content["data"]["loss"].values()
    return {"largest loss": {"value": max(map(max, loss)), "images": 100}}  # as many as `views.landscape` takes


def _report(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the run's own attacks after the last step, and as `raw NAME` those without the average of the weights."""
    values = {name: row["robust_acc"] for name, row in content["attacks"].items()}
    if raw := content.get("raw"):
        values |= {"raw clean": raw["clean_acc"], **{f"raw {k}": v["robust_acc"] for k, v in raw["attacks"].items()}}
    return {name: {"value": value, "images": content["eval_size"]} for name, value in values.items()}


def _sweep(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the victim's curves: panel -> [[radius or steps, accuracy], ...]."""
    curves = {
        panel: [list(point) for point in zip(shown["values"], next(iter(shown["accuracy"].values())), strict=True)]
        for panel, shown in content["data"].items()
    }
    return {"sweep": {"value": None, "images": 500, "curves": curves}}


READERS = {
    "report.json": _report,
    "landscape.json": _landscape,
    "perturbations.json": lambda content: {"perturbations": {"value": None, "images": len(content["data"]["labels"])}},
    "sweep.json": _sweep,
}
