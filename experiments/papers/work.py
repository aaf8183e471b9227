"""Runs the plan's jobs as child processes, stops them in time, keeps the finished parts.

    work(PARTS, minutes=90, data_dir=Path("data"))

A job stopped by SIGTERM saves a checkpoint, or the state of its evaluation, and resumes when started again. It is done
only once its last file exists. Two of these may run at the same time: each leaves the other's current job alone.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from l2ljax.runtime.monitor import duration, stopping_on_signals
from l2ljax.runtime.workdir import read_json
from l2ljax.types import L2LError
from papers import records
from papers.jobs import Job, Part

__all__ = ["GRACE", "at_work_on", "complete", "data_dirs", "left", "log_of", "run", "tell", "work"]

GRACE = 90.0
"""Seconds that a job has to finish its step and save, within the given time."""
POLL = 0.5


def tell(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)


def data_dirs(folder: Path | None, jobs: Iterable[Job]) -> dict[str, str]:
    """Return data set -> FOLDER/NAME, for the jobs' data sets; without a folder the scripts search or download.

    Raises:
      L2LError: the folder lacks one.
    """
    names = {job.dataset for job in jobs} - {"", "digits"}
    folders = {name: folder / name for name in sorted(names)} if folder else {}
    for name, path in folders.items():
        if not path.exists():
            raise L2LError(f"--data-dir={folder} has no {name}: put or link that data set there as {path}")
    return {name: str(path) for name, path in folders.items()}


def complete(job: Job) -> bool:
    """Return whether the job's last file exists; a script writes its result again if that is of another command.

    Raises:
      L2LError: the file belongs to another training run.
    """
    made = Path(job.made)
    if not made.exists():
        return False
    if records.is_of(content := read_json(made), job):
        return True
    if job.about:
        raise L2LError(f"{made} is of another run, {content.get('command')}: move its folder away")
    return not records.command_of(content)


def left(part: Part) -> list[Job]:
    """Return the jobs of a part that are not done.

    A model that comes with the library is neither trained again nor attacked again as for its card.

    Raises:
      L2LError: see `complete`.
    """
    if records.of_card(part):
        return []
    return [job for job in part.needed if not complete(job)]


def work(
    parts: Sequence[Part], *, minutes: float, data_dir: Path | None = None, tell: Callable[[str], None] = tell
) -> bool:
    """Run the list until it is done or the minutes are over; return whether all parts are kept.

    An unfinished job is stopped, and resumes next time. `data_dir` has a subfolder for each data set.

    Raises:
      L2LError: too few minutes, missing data, or results of other runs in the plan's folders.
    """
    if 60 * minutes <= GRACE:
        raise L2LError(f"--minutes={minutes:g}: give more than {GRACE / 60:g}, in which a job that is stopped may save")
    until = time.monotonic() + 60 * minutes - GRACE
    missing = [part for part in parts if not records.is_kept(part)]
    dirs = data_dirs(data_dir, [job for part in missing for job in left(part)])
    failed: set[str] = set()
    with stopping_on_signals() as stopping:
        over = lambda: stopping() or time.monotonic() >= until
        for part in missing:
            name = f"{part.table}, {part.row}, seed {part.seed}"
            for job in left(part):
                if job.made in failed:
                    break
                if over():
                    tell("stopped before the next job; the same command goes on from here")
                    return False
                time_left = duration(max(until - time.monotonic(), 0))
                tell(f"{name}: {' '.join(job.command())} ({time_left} left)")
                ended = run(job, dirs, over)
                if complete(job):
                    continue
                if over():
                    tell("stopped; the same command goes on from here")
                    return False
                failed.add(job.made)
                tell(f"no {job.made}, {ended}: see {log_of(job)}; going on without it")
                break
            else:
                records.keep(part)
                tell(f"{name}: kept")
    return all(records.is_kept(part) for part in parts)


def run(job: Job, dirs: Mapping[str, str], over: Callable[[], bool]) -> str:
    """Run one job to its end, or until `over`; return a description of its end."""
    with at_work_on(job) as (lock, other):
        if lock is None:
            return f"process {other} is at it"
        if complete(job):  # by another process, between the list's look and the lock
            return "done"
        command = [sys.executable, *job.command(dirs)]
        with open(log_of(job), "ab") as log, subprocess.Popen(
            command, stdout=log, stderr=log, pass_fds=[lock.fileno()], start_new_session=True
        ) as child:  # fmt: skip
            lock.write(f"{child.pid}")
            lock.flush()
            try:
                while child.poll() is None and not over():
                    time.sleep(POLL)
                child.terminate()
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
            finally:
                child.kill()  # both do nothing once it has ended
    return f"exit status {child.returncode}"


def log_of(job: Job) -> Path:
    """Return the file of the job's output."""
    return Path("runs") / f"{_name(job)}.log"


@contextlib.contextmanager
def at_work_on(job: Job) -> Iterator[tuple[IO[str] | None, str]]:
    """Lock the job, also by its process, for as long as either lives: yield (the lock's file, "").

    If another process has the lock, or has just given it up, yield (None, its number).
    """
    path = Path("runs") / f".{_name(job)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(file.fileno()).st_nlink > 0  # else its last owner deleted it since it was opened
        except OSError:
            free = False
        if not free:
            file.seek(0)
            yield None, file.read()
            return
        file.truncate(0)
        yield file, ""
        with contextlib.suppress(OSError):
            os.unlink(path)


def _name(job: Job) -> str:
    return job.made.removesuffix("/report.json").removeprefix("runs/").replace("/", "-")
