"""A run's folder: its configuration, metrics row by row, and checkpoints.

config.json  metrics.jsonl  checkpoints/  report.json  report.md  figures/
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2ljax.files import write_files, write_json
from l2ljax.types import L2LError, one_line
from l2ljax.values import LARGEST

__all__ = ["ABOUT_REPORTING", "ALARM", "Workdir", "check_network", "holds_run", "read_json"]

ALARM = "overfitting"
"""The metric of a validation that finds catastrophic overfitting."""
ABOUT_REPORTING = (
    "workdir", "data_dir", "devices", "remat", "checkpoint_every", "no_checkpoint", "eval_size", "attacks",
    "on_overfitting", "trained_on", "network", "began_with", "demonstrations", "own",  # have their own messages
)  # fmt: skip
"""Settings that may differ between two runs of the same training."""


class Workdir:
    """The files of one run. Opening it checks that it belongs to the same configuration.

    A row has its step, from 1 on, and metrics by name: numbers, or lists of `seeds` numbers if that is given. Both
    accuracies of a validation are there, or neither.

    Raises:
      L2LError: it belongs to another configuration, or cannot be written.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, seeds: int | None = None) -> None:
        self.path, self._seeds = path, seeds
        self.figures = path / "figures"
        self._metrics = path / "metrics.jsonl"
        file = path / "config.json"
        if file.exists():
            before = read_json(file, "put back a sound copy, or choose another --workdir")
            _compare(path, before, config)
            _compare_endings(path, before, config, self.rows())
        elif holds_run(path):
            raise L2LError(f"{path} holds a run, but not its config.json: put that back, or choose another --workdir")
        try:
            self.figures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise L2LError(f"cannot write to {path} ({error.strerror}): choose another --workdir") from error
        write_json(file, config)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl in order, without lines that are none, like half-written or second ones."""
        return [row for _, row in self._lines()]

    def forget_after(self, step: int) -> None:
        """Drop the rows of later steps, which a run that resumes from `step` writes again, and lines that are no rows.

        A line on stderr says which of the rows 1..step are missing.
        """
        kept = [(line, row["step"]) for line, row in self._lines() if row["step"] <= step]
        write_files({self._metrics: b"".join(line + b"\n" for line, _ in kept)})
        if missing := sorted(set(range(1, step + 1)) - {number for _, number in kept}):
            lost = f"{len(missing)} of {step} rows, that of step {missing[0]} first: they were deleted or damaged"
            print(f"{self._metrics} lacks {lost}, and training goes on without them", file=sys.stderr)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield the lines of metrics.jsonl that hold the first row of a step, and the row."""
        seen = set[int]()
        try:
            content = self._metrics.read_bytes() if self._metrics.exists() else b""
        except OSError as error:
            raise L2LError(f"cannot read {self._metrics} ({error.strerror}): move it away") from error
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if self._is_row(row) and row["step"] not in seen:
                    seen.add(row["step"])
                    yield line, row

    def _is_row(self, row: Any) -> bool:
        if not isinstance(row, dict) or type(row.get("step")) is not int or not 1 <= row["step"] <= LARGEST:
            return False
        values = [value for name, value in row.items() if name != "step"]
        if self._seeds is not None:
            if not all(isinstance(value, list) and len(value) == self._seeds for value in values):
                return False
            values = [number for value in values for number in value]
        known = all(type(value) is float or (type(value) is int and abs(value) <= LARGEST) for value in values)
        return known and ("val_clean_acc" in row) == ("val_robust_acc" in row)

    def record(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to metrics.jsonl."""
        try:
            with self._metrics.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            fix = "free some space, then run the same command again"
            raise L2LError(f"cannot write {self._metrics} ({error.strerror}): {fix}") from error


def holds_run(folder: Path) -> bool:
    """Return whether a folder has checkpoints or rows of metrics."""
    metrics = folder / "metrics.jsonl"
    return any(folder.glob("checkpoints/*")) or (metrics.exists() and metrics.stat().st_size > 0)


def read_json(path: Path, fix: str = "give the workdir of a run") -> dict[str, Any]:
    """Return the object in a JSON file written by this library; one that is missing or damaged is an L2LError.

    `fix` ends its message.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise L2LError(f"cannot read {path} ({one_line(error)}): {fix}") from error
    if not isinstance(content, dict):
        raise L2LError(f"cannot read {path} (it holds a {type(content).__name__}): {fix}")
    return content


def _compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = old.get("trained_on", "1 cpu"), new.get("trained_on")  # older runs on a CPU had one device
    if now is not None and before != now:
        count = before.split()[0]
        raise L2LError(
            f"{path} holds a run on {before}, here it would be {now}: give --devices={count} ({count} cores where each "
            f"has one, or set JAX_NUM_CPU_DEVICES={count}), or choose another --workdir"
        )
    check_network(path, old.get("network"), new.get("network"))
    words = {"ball": "another ball", "defense": "another defense", "optimizers": "other optimizers"}
    for part, theirs in old.get("own", {}).items():
        what = words.get(part, "a network that starts at other weights")
        if _differ(theirs, new.get("own", {}).get(part)):
            raise L2LError(f"{path} holds a run with {what}: give the same, or choose another --workdir")
    for name, others in (("began_with", "other trained weights"), ("demonstrations", "other demonstrations")):
        if (theirs := old.get(name)) and theirs != new.get(name, theirs):
            raise L2LError(f"{path} holds a run that began with {others}: choose another --workdir")
    for name in new:
        if name not in ABOUT_REPORTING and old.get(name) != new[name]:
            start = "--attacker-from" if new.get("schedule") == "attacker" else "--init-from"
            further = f", and {start}={path} to train it further" * (name == "epochs")
            what = f"{path} holds a run with {name}={old.get(name)}, not {new[name]}"
            raise L2LError(f"{what}: choose another --workdir{further}")


def _compare_endings(
    path: Path, old: Mapping[str, Any], new: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Raise an L2LError if training would end otherwise at an alarm that is past: a run can only go on that stopped."""
    before, now = (config.get("on_overfitting") or "ignore" for config in (old, new))
    at = next((row["step"] for row in rows if ALARM in row), None)
    if at is not None and now not in (before, {"stop": "ignore"}.get(before)):
        done = {"ignore": "went on after", "stop": "stopped at", "restore": "went back to its best state after"}[before]
        fix = f"give --on-overfitting={before}, or choose another --workdir"
        raise L2LError(f"--on-overfitting={now}: the run in {path} {done} catastrophic overfitting at step {at}: {fix}")


def check_network(path: str | Path, theirs: Sequence[str] | None, ours: Sequence[str] | None) -> None:
    """Raise an L2LError if two of `models.fingerprint`, if there are two, differ in one version of JAX."""
    if _differ(theirs, ours):
        raise L2LError(f"{path} holds a run of another network: give the same, or another folder")


def _differ(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> bool:
    """Return whether two of `models.program` differ; one that is missing, or of another version of JAX, does not."""
    return theirs is not None and ours is not None and theirs[0] == ours[0] and theirs[1] != ours[1]
