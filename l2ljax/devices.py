"""Local devices: one for each CPU core, and attacks on all of them.

    devices.one_per_core()                                                # before JAX's first computation
    x_adv = jax.jit(devices.on_each(attack))(logits_fn, keys, x, y)       # keys [B]; the batch is split over devices

XLA:CPU splits every convolution over its threads. With a device per core, each with its own part of the batch, nothing
is split and no thread waits: compare PGD-10 on one device and on two in BENCHMARKS.md.

The functions here do not communicate between devices. A program that does (a training step, a jitted reduction over a
sharded batch) may have at most 32 launches in flight on CPU devices: XLA makes the 33rd wait on a thread of the
executing pool, and a device that waits in a reduction for its neighbour then waits forever. `train.make_step` keeps to
two. Your own loop should call `jax.block_until_ready` on the result of the step before the last.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from l2ljax.types import L2LError, Tree
from l2ljax.values import Count, checked

__all__ = [
    "AXIS", "MOST", "cores", "first", "keep_freed_memory", "on_each", "one_per_core", "own_core", "replicate",
    "round_up", "shard",
]  # fmt: skip
__dir__ = lambda: __all__

AXIS = "examples"
MOST = 8
"""The largest number of devices of `one_per_core`: the parts of a batch must not become too small."""
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # of malloc.h


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@checked
def one_per_core(most: Count | None = None) -> bool:
    """Make each CPU core available to this process a device, at most `most` (`MOST`); one device shares all cores.

    GPUs and TPUs are unaffected, and JAX's own settings (JAX_NUM_CPU_DEVICES, or XLA_FLAGS with
    --xla_force_host_platform_device_count) stay. Return False if it is too late: JAX has computed on the CPU, with
    fewer devices.
    """
    chosen = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return True
    count = min(cores(), most or MOST)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # too late
        return jax.default_backend() != "cpu" or jax.local_device_count() >= count
    return True


def keep_freed_memory() -> None:
    """Have glibc keep all freed memory for the next arrays, in one arena that never shrinks: mallopt(3).

    XLA:CPU allocates a program's temporary arrays anew in each call, hundreds of MB in a training step, and the kernel
    would map and clear their pages each time. For processes of JAX alone, as the scripts are: with torch in the same
    process steps became slower, for a reason that is not known. Any MALLOC_... in the environment, other systems'
    allocators and accelerators are unaffected.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and not any(name.startswith("MALLOC_") for name in os.environ):
        for parameter, value in {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}.items():
            mallopt(parameter, value)


def own_core() -> bool:
    """Return whether each local device is a CPU with one core, for which `models.correlation` has other kernels."""
    return jax.default_backend() == "cpu" and cores() < 2 * jax.local_device_count()


def round_up(size: int) -> int:
    """Return the least multiple of the number of local devices that is at least `size`."""
    return -(-size // jax.local_device_count()) * jax.local_device_count()


def shard(batch: Tree, count: int | None = None) -> Tree:
    """Split the arrays [B, ...] evenly over all local devices, or the first `count`.

    Raises:
      L2LError: B is not a multiple of the number of devices (see `round_up`), or there are fewer than `count`.
    """
    local = first(count)
    size = len(jax.tree.leaves(batch)[0])
    if size % len(local):
        raise L2LError(f"a batch of {size} does not split over {len(local)} devices: give a multiple of {len(local)}")
    return jax.device_put(batch, _on(local, PartitionSpec(AXIS)))


def replicate(tree: Tree, count: int | None = None) -> Tree:
    """Copy the arrays, like a network's weights, to each local device, or to the first `count`."""
    return jax.device_put(tree, _on(first(count), PartitionSpec()))


def on_each(function: Callable[..., Any], *, whole: int = 1, count: int | None = None) -> Callable[..., Any]:
    """Return the function, run on each device with its part of the batch and the results joined; it jits.

    An attack that looks across the batch, like L2L's with its batch-wide gradient maximum, sees its device's part.
    Some attacks begin their loops with constants, so that a `jax.shard_map` of your own needs check_vma=False.

    Args:
      function: (*replicated, *sharded) -> tree of arrays [B, ...], like an `Attack` with a key per example.
      whole: number of leading arguments to copy to each device, like the logits function.
      count: use the first `count` local devices; all by default.

    Raises:
      L2LError: when called, one key, or a B that is not a multiple of the number of devices (see `round_up`).
    """
    mesh, split = Mesh(np.array(first(count)), (AXIS,)), PartitionSpec(AXIS)

    def sharded(*args: Any) -> Any:
        plain = [callable(a) and jax.tree_util.all_leaves([a]) for a in args[:whole]]
        args = (*(Partial(a) if leaf else a for a, leaf in zip(args, plain, strict=False)), *args[whole:])
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args[whole:])]
        if any(not shape or shape[0] % mesh.size for shape in shapes):
            fix = f"give arrays [B], keys by types.example_keys(key, B), with B a multiple of {mesh.size}"
            raise L2LError(f"the arguments do not split over {mesh.size} devices: {fix}")
        parts = (*[PartitionSpec()] * whole, *[split] * (len(args) - whole))
        return jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=split, check_vma=False)(*args)

    return sharded


@checked
def first(count: Count | None) -> list[jax.Device]:
    """Return the first `count` local devices, all by default; raise an L2LError if there are fewer."""
    local = jax.local_devices()
    if count is not None and count > len(local):
        raise L2LError(f"--devices={count}: this machine has {len(local)}")
    return local[:count]


def _on(local: list[jax.Device], parts: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(local), (AXIS,)), parts)
