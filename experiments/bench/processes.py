"""A program in a process of its own, as its users have it: its time beside others', and its memory.

    program = processes.apart(build, like_a_script=True)        # build, picklable, makes the program there
    program()                                                   # one run, there
    nbytes = processes.peak_bytes(build)

JAX and torch in one process share glibc's allocator, in which JAX alone would keep freed memory (see
`devices.keep_freed_memory`).
"""

import ctypes
import gc
import multiprocessing
import re
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from bench.benchmark import Program
from l2ljax import devices
from l2ljax.types import L2LError

__all__ = ["apart", "peak_bytes"]


def apart(build: Callable[[], Program], *, like_a_script: bool = False) -> Program:
    """Build a program in a new process; return what runs it there and waits for its end.

    The process ends with the last reference to the result, or with this process.

    Args:
      build: makes the program.
      like_a_script: keep freed memory, as the scripts of training do.

    Raises:
      L2LError: `build`, or the program when it is called, fails there.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, build, _cpu_devices(), like_a_script), daemon=True)
    process.start()
    there.close()

    def run() -> Any:
        try:
            here.send("run")
            error = here.recv()
        except (EOFError, ConnectionError):
            process.join(5)
            error = f"its process ended with status {process.exitcode}"
        if error:
            raise L2LError(f"a program failed: {error}")

    run()  # the first answer is that it is built
    return run


def _serve(requests: Connection, build: Callable[[], Program], cpu_devices: int, like_a_script: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the other process, and with it this one
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    if like_a_script:
        devices.keep_freed_memory()
    program: Program | None = None
    while True:
        try:
            requests.recv()
        except EOFError:  # nobody has the other end any longer
            return
        try:
            if program is None:
                program = build()
            else:
                program()
            requests.send("")
        except Exception as error:
            requests.send(f"{type(error).__name__}: {error}")


def _cpu_devices() -> int:
    return int(jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined]


def peak_bytes(build: Callable[[], Program]) -> int | None:
    """Return the most memory that a step needs beyond the state between steps, in its own process on a CPU.

    After a first step, which compiles, free memory returns to the system. The result is the peak of resident memory
    over three more steps, minus the resident memory before them. None if the system reports no such peak, or if the
    steps run on another device.
    """
    if jax.default_backend() != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, build, _cpu_devices()).result()


def _peak(build: Callable[[], Program], cpu_devices: int) -> int:
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    program = build()
    program()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the resident memory
    for _ in range(3):
        program()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    match = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(match[1]) if match else 0
