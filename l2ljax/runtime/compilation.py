"""Compiled programs that outlive their process: JAX's persistent cache, where the scripts keep it.

    keep_programs()          # before the first compilation

A script that runs again, or goes on after it was stopped, reads its programs instead of compiling them. JAX looks them
up by everything that they depend on: the computation, its versions, XLA's flags, the devices. What is read is what was
compiled, to the same bits. Whoever can write to the folder can run code as you, so it belongs to one user.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

__all__ = ["DIRECTORY", "folder", "keep_programs"]

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
"""The environment variable, JAX's own, that names another folder; empty, nothing is kept."""


def keep_programs() -> None:
    """Have JAX keep all programs that this process compiles, also quick ones: a run has dozens, of 20 kB on average.

    In the folder that JAX's settings name, else in `folder()`; nothing is kept where that cannot be made. Nothing is
    ever deleted: the folder may be, at any time.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or no home
        return
    jax.config.update("jax_compilation_cache_dir", str(folder()))


def folder() -> Path:
    """l2ljax/CPU in XDG_CACHE_HOME, which is ~/.cache by default.

    CPU tells this machine's processor from others: programs for one may not run on another that shares the home.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        instructions = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        instructions = platform.processor()
    cpu = hashlib.sha256(f"{platform.machine()} {instructions}".encode()).hexdigest()[:12]
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "l2ljax" / cpu
