"""Files written completely or not at all."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2ljax.types import L2LError

__all__ = ["check_writable", "write_files", "write_json"]


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


def check_writable(path: Path, name: str) -> None:
    """Make the folder of a file that will be written after long work.

    Raises:
      L2LError: it cannot be, or no file can be written there; the message begins with `name`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
    except OSError as error:
        raise L2LError(f"{name}={path}: {error.strerror}: name a file in a writable folder") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, or leave the old file."""
    write_files({path: (json.dumps(content, indent=2) + "\n").encode()})
