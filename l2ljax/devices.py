"""Local devices: one for each core of a CPU, and attacks on all of them.

    devices.one_per_core()                                                # before JAX's first computation
    x_adv = jax.jit(devices.on_each(attack))(logits_fn, keys, x, y)       # keys [B]: each device its part of the batch

XLA:CPU cuts every convolution into parts for its threads. Where each core is a device with its own part of the batch
there is nothing to cut, and nobody waits: compare speed and speed_one_device in BENCHMARKS.md.

Nothing here communicates between devices. A program that does (a training step, or a jitted function of sharded arrays
that reduces over the batch) may have at most 32 launches in flight on CPU devices: XLA's CPU client lets the 33rd wait
on a thread of the pool that executes, and a device that waits in a reduction for its neighbor then waits for ever.
`train.make_step` keeps to two; a loop of your own around such a function calls `jax.block_until_ready` on what the
step before the last returned.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2ljax.types import Array, L2LError, Tree

__all__ = [
    "AXIS", "MOST", "copied", "cores", "first", "on_each", "one_per_core", "own_core", "placed", "round_up",
    "spread",
]  # fmt: skip

AXIS = "examples"
MOST = 8
"""How many devices `one_per_core` makes at most: the parts of a batch must not become too small."""


def cores() -> int:
    """How many cores of the CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_per_core(most: int | None = None) -> bool:
    """Make each core of the CPU that this process may use a device. GPUs and TPUs stay what they are.

    Nothing changes once JAX has computed something, and where its own settings say how many devices a CPU has
    (JAX_NUM_CPU_DEVICES, or --xla_force_host_platform_device_count in XLA_FLAGS).

    Args:
      most: how many devices at most, `MOST` by default. A single one shares all cores.

    Returns:
      False where it is too late: JAX runs on the CPU with fewer devices.
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


def own_core() -> bool:
    """Return whether each local device is a CPU with one core; then `models.correlation` takes other kernels."""
    return jax.default_backend() == "cpu" and cores() < 2 * jax.local_device_count()


def round_up(size: int) -> int:
    """The least multiple of the number of local devices that is `size` or more."""
    return -(-size // jax.local_device_count()) * jax.local_device_count()


def spread(batch: Tree, count: int | None = None) -> Tree:
    """The arrays [B, ...] in equal parts on all local devices, or the first `count` of them.

    Raises:
      L2LError: B is no multiple of the number of devices, see `round_up`, or there are fewer than `count`.
    """
    local = first(count)
    size = len(jax.tree.leaves(batch)[0])
    if size % len(local):
        raise L2LError(f"a batch of {size} does not split over {len(local)} devices: give a multiple of {len(local)}")
    return jax.device_put(batch, _on(local, PartitionSpec(AXIS)))


def copied(tree: Tree, count: int | None = None) -> Tree:
    """The arrays, like a network's weights, whole on each local device, or on the first `count` of them."""
    return jax.device_put(tree, _on(first(count), PartitionSpec()))


def on_each(function: Callable[..., Any], *, whole: int = 1, count: int | None = None) -> Callable[..., Any]:
    """The function on each device with its part of the batch, and the results joined: for what examples do alone.

    An attack that looks across the batch, like L2L's with its batch-wide gradient maximum, sees its device's part.

    Args:
      function: (*copied, *spread) -> tree of arrays [B, ...], like an `Attack` with a key per example.
      whole: how many of its first arguments are copied to each device, like the logits function.
      count: on the first so many local devices; on all by default.

    Returns:
      A function of the same arguments; jits.
    """
    mesh, split = Mesh(np.array(first(count)), (AXIS,)), PartitionSpec(AXIS)

    def spread_out(*args: Any) -> Any:
        parts = (*[PartitionSpec()] * whole, *[split] * (len(args) - whole))
        return jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=split, check_vma=False)(*args)

    return spread_out


def first(count: int | None) -> list[jax.Device]:
    """So many local devices; all without a number.

    Raises:
      L2LError: there are fewer.
    """
    local = jax.local_devices()
    if count is not None and count > len(local):
        raise L2LError(f"--devices={count}: this machine has {len(local)}")
    return local[:count]


def placed(array: Array) -> jax.ShapeDtypeStruct:
    """The array's shape, type and place, to compile for."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _on(local: list[jax.Device], parts: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(local), (AXIS,)), parts)
