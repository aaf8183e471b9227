"""The origin of a number: command, date, machine and versions, saved with every result."""

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

__all__ = ["command", "provenance", "versions"]


def command() -> str:
    """Return the command line of this process, to run again."""
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [Path(sys.argv[0]).name]
    return shlex.join([*program, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, and the kind of device."""
    packages = ("l2ljax", "jax", "jaxlib", "flax", "optax", "numpy")
    installed: dict[str, str] = {name: importlib.metadata.version(name) for name in packages}
    return {**installed, "python": platform.python_version(), "device": jax.devices()[0].device_kind}


def provenance() -> dict[str, Any]:
    """Return the command, the date, the machine and the versions, for JSON."""
    return {
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores{_processor()}, {jax.devices()[0].device_kind}",
        "versions": versions(),
    }


def _processor() -> str:
    """Return the CPU's name and widest vectors, if the system gives them: both determine speed."""
    text = file.read_text() if (file := Path("/proc/cpuinfo")).exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    vectors = [label for flag, label in {"avx512f": "AVX-512", "avx2": "AVX2"}.items() if f" {flag} " in text]
    return f" ({', '.join([name[1], *vectors[:1]])})" if name else ""
