"""Files written completely or not at all."""

import contextlib
import json
import os
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


def check_writable(path: Path) -> None:
    """Write the file as it is, or an empty one for a moment: hours of work should not end with an L2LError."""
    old = path.read_bytes() if path.is_file() else None
    write_files({path: old or b""})
    if old is None:
        path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON, or leave the old file."""
    write_files({path: (json.dumps(content, indent=2) + "\n").encode()})
