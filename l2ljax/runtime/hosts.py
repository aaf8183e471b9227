"""One run in several processes, one per host: joining, writing, stopping, and the message if a process is lost.

    with joined(config.coordinator, config.num_processes, config.process_id):   # before anything touches a device
        state = from_first(state)                         # process 0's arrays, in all processes
        report = on_first(evaluate_and_write, state)      # process 0's result, in all processes

Training itself does not need this module: `train.make_step` reduces over the devices of all processes, and
`data.stream(part=...)` gives each process its part of the same batches. In a single process these functions do nothing.
"""

import contextlib
import itertools
import os
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from l2ljax.train import Interrupted
from l2ljax.types import Array, L2LError, Tree, is_key

__all__ = ["AGREE_EVERY", "agreed", "from_first", "is_first", "joined", "on_first", "part"]

_T = TypeVar("_T")
AGREE_EVERY = 16
"""Number of steps between checks for a stop request: each check makes the host wait for its devices."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *,
    distributed: bool = False, heartbeat_timeout: int = 60,
) -> Iterator[None]:  # fmt: skip
    """Make this process one of a run's within the context; process 0 alone writes to stdout.

    JAX watches the processes: if one is silent for `heartbeat_timeout` seconds, it aborts the others, which would
    otherwise wait forever. One line of advice on stderr follows, unless the end was orderly. A collective that fails
    earlier also ends the process.

    Args:
      coordinator: HOST:PORT of process 0; without it and `distributed`, nothing is joined.
      num_processes, process_id: their number, and which of them this is, from 0.
      distributed: instead of these, let JAX ask SLURM, Open MPI, Kubernetes or the cloud TPU.
      heartbeat_timeout: in seconds; an ending process waits for the others as long.

    Raises:
      L2LError: one of the three is missing, or there is no cluster.
    """
    named = (coordinator, num_processes, process_id)
    if not distributed and named == (None, None, None):
        yield
        return
    if distributed != (None in named) or (distributed and any(value is not None for value in named)):
        raise L2LError("give --coordinator=HOST:PORT, --num-processes and --process-id, or --distributed alone")
    if coordinator is not None:
        port = re.fullmatch(r".+:([0-9]{1,5})", coordinator)
        if port is None or not 1 <= int(port[1]) <= 65535:
            raise L2LError(f"--coordinator={coordinator}: give HOST:PORT, like 10.0.0.1:1234, a port from 1 to 65535")
    jax.config.update("jax_enable_preemption_service", False)  # it would intercept SIGTERM
    try:
        jax.distributed.initialize(
            *named,
            cluster_detection_method=None if distributed else "deactivate",
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise L2LError(f"cannot join the other processes ({str(error).splitlines()[0]}): give --coordinator") from error
    # XLA aborts in a thread of its own, which Python can neither catch nor precede; a shell outlives this process.
    line = (
        f"process {jax.process_index()} of {jax.process_count()} ends: another process is gone, or it failed itself "
        "(see above). Run the same command again in all of them to resume from the last checkpoint."
    )
    watcher = ["sh", "-c", 'read orderly || echo "$0" >&2', line]  # in a session of its own: Ctrl-C is for this process
    shell = subprocess.Popen(watcher, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
    except (SystemExit, L2LError, Interrupted):
        shell.communicate(b"orderly\n")
        raise
    except BaseException as error:
        if not any(library in str(error) for library in ("Gloo", "NCCL")):  # else a collective lost its connection
            traceback.print_exc()
        os._exit(1)  # an orderly exit would wait for the others, which wait for this one
    shell.communicate(b"orderly\n")


def is_first() -> bool:
    """Return whether this is process 0, which writes."""
    return jax.process_index() == 0


def part() -> tuple[int, int]:
    """Return (index, count) of this process's part of each batch, for `data.stream`."""
    return jax.process_index(), jax.process_count()


def on_first(function: Callable[..., _T], *args: Any) -> _T:
    """Call the function on process 0 only, and return its result on all processes, which wait for it.

    The result is pickled, so it should be small, without typed keys. An L2LError is raised on all processes.
    """
    if jax.process_count() == 1:
        return function(*args)
    outcome = b""
    if is_first():
        try:
            outcome = pickle.dumps((function(*args), None))
        except L2LError as error:
            outcome = pickle.dumps((None, str(error)))
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(outcome))))
    sent = np.frombuffer(outcome.ljust(size), np.uint8)
    value, refusal = pickle.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())
    if refusal is not None:
        raise L2LError(refusal)
    return value


def from_first(tree: Tree) -> Tree:
    """Return process 0's arrays, in a tree of the same structure and shapes. PRNG keys are allowed."""
    if jax.process_count() == 1:
        return tree
    sent = jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)

    def received(leaf: Array, here: Array) -> Array:
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(here)) if is_key(here) else jnp.asarray(leaf)

    return jax.tree.map(received, multihost_utils.broadcast_one_to_all(sent), tree)


def agreed(asked: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that says whether any process was asked to stop: the same answer in all processes.

    With several processes it is true only at every 16th call; all must call it equally often, as after each training
    step.
    """
    if jax.process_count() == 1:
        return asked
    calls = itertools.count(1)

    def any_asked() -> bool:
        return next(calls) % AGREE_EVERY == 0 and bool(multihost_utils.process_allgather(np.array(asked())).any())

    return any_asked
