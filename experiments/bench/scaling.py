"""Estimated communication of training on many devices: a ring all-reduce, and the computation that hides it.

batch = hiding_batch(nbytes, devices, overlapped=flops_per_image, flops=4e14, bandwidth=5e10)
"""

import math

__all__ = ["all_reduce_seconds", "hiding_batch"]


def all_reduce_seconds(nbytes: float, devices: int, *, bandwidth: float, latency: float = 0.0) -> float:
    """Return the seconds of a ring all-reduce: 2 (n - 1) messages one after another, each of nbytes / n.

    Each of the n devices sends 2 (n - 1) / n of the bytes.

    Args:
      nbytes: bytes to reduce on each device.
      devices: n.
      bandwidth: bytes per second out of each device, along the ring.
      latency: seconds of an empty message.
    """
    return 2 * (devices - 1) * (nbytes / devices / bandwidth + latency)


def hiding_batch(
    nbytes: float, devices: int, *, overlapped: float, flops: float, bandwidth: float, latency: float = 0.0
) -> int:
    """Return the smallest batch per device whose computation takes as long as the all-reduce, and so can hide it.

    Args:
      nbytes, devices, bandwidth, latency: see `all_reduce_seconds`.
      overlapped: floating-point operations per image during the reduction of gradients: the backward pass.
      flops: floating-point operations per second of a device.
    """
    return math.ceil(all_reduce_seconds(nbytes, devices, bandwidth=bandwidth, latency=latency) * flops / overlapped)
