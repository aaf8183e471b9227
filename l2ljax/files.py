"""Files that are written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2ljax.types import L2LError

__all__ = ["write_files", "write_json"]


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files, or leave what was there: each beside its place first, then all moved."""
    drafts: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with open(drafts[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave the new name with nothing in it
        for path, draft in drafts.items():
            os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or error
        fix = "make room there, or name a folder that can be written; an earlier file is untouched"
        raise L2LError(f"cannot write {path}: {reason}: {fix}") from error
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):  # moved, or never made
                draft.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON, or leave what was there."""
    write_files({path: (json.dumps(content, indent=2) + "\n").encode()})
