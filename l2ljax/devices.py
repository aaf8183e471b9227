"""Local devices: one for each core of a CPU, and batches spread over them.

    devices.one_per_core()                  # before JAX's first computation; the scripts do it
    f, (x, y) = devices.copied(f), devices.spread((x, y))
    x_adv = jax.jit(attack)(f, key, x, y)   # each device attacks its part of the batch

XLA:CPU cuts every convolution into parts for its threads. Where each core is a device with its own part of the batch
there is nothing to cut, and nobody waits: attacks on resnet20 take two thirds of the time on 2 cores.
"""

import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2ljax.types import L2LError, Tree

MOST = 8
"""How many devices `one_per_core` makes at most: the parts of a batch must not become too small."""


def cores() -> int:
    """How many cores of the CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_per_core() -> None:
    """Make each core of the CPU, of the first `MOST`, a device. GPUs and TPUs stay what they are.

    Nothing changes once JAX has computed something, and where its own settings say how many devices a CPU has
    (JAX_NUM_CPU_DEVICES, or --xla_force_host_platform_device_count in XLA_FLAGS).
    """
    chosen = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", min(cores(), MOST))
    except RuntimeError:  # too late
        return


def own_core() -> bool:
    """Whether a local device is a CPU that has a core, and no two."""
    return jax.default_backend() == "cpu" and cores() < 2 * jax.local_device_count()


def round_up(size: int) -> int:
    """The least multiple of the number of local devices that is `size` or more."""
    return -(-size // jax.local_device_count()) * jax.local_device_count()


def spread(batch: Tree) -> Tree:
    """The arrays [B, ...] in equal parts on all local devices.

    What is jitted then runs on all of them, and its result is spread likewise: the same numbers, but for rounding.

    Raises:
      L2LError: B is no multiple of the number of devices, see `round_up`.
    """
    size, n = len(jax.tree.leaves(batch)[0]), jax.local_device_count()
    if size % n:
        raise L2LError(f"a batch of {size} does not split over {n} devices: give a multiple of {n}")
    return jax.device_put(batch, _on_all(PartitionSpec("examples")))


def copied(tree: Tree) -> Tree:
    """The arrays, like a network's weights, whole on each local device."""
    return jax.device_put(tree, _on_all(PartitionSpec()))


def _on_all(parts: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), ("examples",)), parts)
