"""Jobs in order of importance within a time limit, each in its own process, with complete JSON at any end.

    agenda.run([Job("verdicts", check, (flags,), share=4), ...], out=Path("gpu.json"), folder=Path("logs"), seconds=540)

A job that compiles too long, takes too much memory or crashes ends alone; its written results count.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from l2ljax.files import write_json
from l2ljax.runtime.monitor import script, stopping_on_signals

__all__ = ["GRACE", "LEAST", "LOG_LINES", "Job", "run"]

GRACE = 10.0
"""Seconds that a job has to end after SIGTERM."""
LEAST = 10.0
"""The least remaining seconds to start a job."""
LOG_LINES = 30


class Job(NamedTuple):
    """A job for one process."""

    name: str
    function: Callable[..., None]
    """(*args, path=, seconds=): a function of a module. It writes `path` with `files.write_json`, as often as it likes,
    is asked to end (SIGTERM) after `seconds`, and is killed `GRACE` seconds later."""
    args: tuple[Any, ...]
    share: float
    """Its part of the time, relative to the sum of all shares; unused time goes to later jobs."""


def run(
    jobs: Sequence[Job],
    *,
    out: Path,
    folder: Path,
    seconds: float,
    summarize: Callable[[dict[str, Any]], dict[str, Any]] = lambda results: {},
) -> dict[str, Any]:
    """Run the jobs in order within the seconds; SIGTERM and Ctrl-C end the current one and skip the others.

    `folder` is for the jobs' own files and logs. `out` is written completely before and after each job and whenever one
    has written; it keeps the entries of other jobs. Its content is returned: "summary", of job -> result, and "jobs",
    name -> {"state": done, failed (by itself), stopped, running or not begun, "seconds", "result": its JSON, "log": its
    last lines if it is not done}.
    """
    began = time.monotonic()
    rows: dict[str, dict[str, Any]] = json.loads(out.read_text())["jobs"] if out.exists() else {}
    rows |= {job.name: {"state": "not begun"} for job in jobs}
    ends = [part / sum(job.share for job in jobs) * seconds for part in accumulate(job.share for job in jobs)]

    def keep() -> dict[str, Any]:
        results = {name: row["result"] for name, row in rows.items() if row.get("result")}
        content = {"seconds": time.monotonic() - began, "summary": summarize(results), "jobs": rows}
        write_json(out, content)
        return content

    folder.mkdir(parents=True, exist_ok=True)
    with stopping_on_signals() as stopping:
        for job, end in zip(jobs, ends, strict=True):
            if stopping():
                break
            if began + end - time.monotonic() < LEAST:
                continue
            _work(job, rows[job.name], folder, began + end, stopping, keep)
            print(f"{job.name}: {rows[job.name]['state']}, {rows[job.name]['seconds']:.0f} s", flush=True)
    return keep()


def _work(
    job: Job, row: dict[str, Any], folder: Path, deadline: float, stopping: Callable[[], bool], keep: Callable[[], Any]
) -> None:
    """Run a job until it ends or its time is up, and fill in its row."""
    began, seen = time.monotonic(), 0
    path, log = (folder / f"{job.name}{suffix}" for suffix in (".json", ".log"))
    path.unlink(missing_ok=True)
    row["state"] = "running"
    keep()

    def look() -> None:
        nonlocal seen
        if path.exists() and path.stat().st_mtime_ns != seen:
            seen = path.stat().st_mtime_ns
            row["result"] = json.loads(path.read_text())
            keep()

    process = multiprocessing.get_context("spawn").Process(target=_begin, args=(job, path, log, deadline - began))
    process.start()
    try:
        while process.is_alive() and time.monotonic() < deadline and not stopping():
            process.join(0.2)
            look()
        row["state"] = "stopped" if process.is_alive() else "failed" if process.exitcode else "done"
    finally:
        _end(process)
    row["seconds"] = time.monotonic() - began
    if row["state"] != "done":
        row["log"] = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    look()


def _begin(job: Job, path: Path, log: Path, seconds: float) -> None:
    """Run the job in its process."""
    os.setsid()  # all processes that it starts can be ended with it
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with script():
        job.function(*job.args, path=path, seconds=seconds)


def _end(process: BaseProcess) -> None:
    """End the process and those it started."""
    if process.is_alive():
        _signal(process, signal.SIGTERM)
        process.join(GRACE)
    _signal(process, signal.SIGKILL)
    process.join()


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    assert process.pid
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # all have ended, or it is not in its group yet
        if process.is_alive():
            os.kill(process.pid, number)
