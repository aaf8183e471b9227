"""Files written completely or not at all, and folders that one process writes to at a time."""

import contextlib
import datetime
import errno
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from l2ljax.types import L2LError

__all__ = ["check_writable", "locked", "write_files", "write_json"]


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files, or leave the old ones: write each beside its place, then move all."""
    drafts: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with open(drafts[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave an empty file under the new name
        for path, draft in drafts.items():
            os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or error
        fix = "free space there, or name a writable folder; an earlier file is untouched"
        raise L2LError(f"cannot write {path}: {reason}: {fix}") from error
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):  # moved, or never written
                draft.unlink()


def check_writable(path: Path, name: str = "--out", *, suffix: str = ".json") -> None:
    """Make the folder of a file that will be written after long work.

    Raises:
      L2LError: it cannot be, no file can be written there, or its name has another end than `suffix`, so that figures
        beside it would overwrite it; the message begins with `name`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
    except OSError as error:
        raise L2LError(f"{name}={path}: {error.strerror}: name a file in a writable folder") from error
    if not path.name.endswith(suffix):
        raise L2LError(f"{name}={path}: name a file that ends with {suffix}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, or leave the old file."""
    write_files({path: (json.dumps(content, indent=2) + "\n").encode()})


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep a folder to this process within the context; the folder is created if it is missing.

    The operating system drops the lock of a process that ends in any way, so none is ever stale. File systems and
    systems (Windows) without such locks keep no one out.

    Raises:
      L2LError: another process, which the message names, or another part of this one holds the folder; or the folder
        cannot be written.
    """
    path = Path(os.path.expanduser(folder)) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _hold(path)
    except OSError as error:
        raise L2LError(f"cannot write to {folder} ({error.strerror}): choose another folder") from error
    with file:
        began, command = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"), shlex.join(["python", *sys.argv])
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {began}, `{' '.join(command.split())}`")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _hold(path: Path) -> IO[str]:
    """Return the file, opened and locked; raise an L2LError where it is locked already."""
    while True:
        file = path.open("a+", errors="replace")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read() or "another process"
            raise L2LError(f"{path.parent} is in use by {holder}: wait for its end, or choose another folder") from None
        except (ImportError, OSError):  # no locks here
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its holder deleted it just now
