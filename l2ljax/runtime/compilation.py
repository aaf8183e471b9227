"""JAX's persistent cache of compiled programs, in the place where the scripts keep it.

    keep_programs()          # before the first compilation

A script that runs again or resumes reads its programs, the same bit by bit, instead of compiling them. JAX looks them
up by everything that they depend on: the computation, versions, XLA's flags, the devices. Whoever can write to the
folder can run code as you, so it belongs to one user.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

__all__ = ["DIRECTORY", "folder", "keep_programs"]

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
"""JAX's own environment variable, which names another folder; an empty value disables the cache."""


def keep_programs() -> None:
    """Have JAX keep all programs that this process compiles, even quick ones: a run has dozens, of 20 kB on average.

    They go to the folder in JAX's settings, else to `folder()`. If it cannot be created, nothing is kept. Nothing is
    ever deleted; you may delete the folder at any time.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only file system, or no home
        return
    jax.config.update("jax_compilation_cache_dir", str(folder()))


def folder() -> Path:
    """Return l2ljax/CPU in XDG_CACHE_HOME (~/.cache): programs may not run on another processor with the same home."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        instructions = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        instructions = platform.processor()
    cpu = hashlib.sha256(f"{platform.machine()} {instructions}".encode()).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l2ljax" / cpu
