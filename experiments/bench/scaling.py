"""Communication of training on many devices, on paper: a ring all-reduce, and the computing that hides it.

batch = hiding_batch(nbytes, devices, overlapped=flops_per_image, flops=4e14, bandwidth=5e10)
"""

import math

__all__ = ["all_reduce_seconds", "hiding_batch"]


def all_reduce_seconds(nbytes: float, devices: int, *, bandwidth: float, latency: float = 0.0) -> float:
    """Seconds of a ring all-reduce: 2 (n - 1) messages one after another, each of nbytes / n.

    So 2 (n - 1) / n of the bytes leave each of the n devices.

    Args:
      nbytes: what each device has to reduce.
      devices: n.
      bandwidth: bytes per second out of each device, along the ring.
      latency: seconds of an empty message.
    """
    return 2 * (devices - 1) * (nbytes / devices / bandwidth + latency)


def hiding_batch(
    nbytes: float, devices: int, *, overlapped: float, flops: float, bandwidth: float, latency: float = 0.0
) -> int:
    """The smallest batch per device whose computing takes as long as the all-reduce, which may then hide behind it.

    Args:
      nbytes: as for `all_reduce_seconds`, like devices, bandwidth and latency.
      devices: n.
      overlapped: floating-point operations per image of what runs while gradients are reduced: the backward pass.
      flops: floating-point operations per second that a device reaches.
      bandwidth: in bytes per second.
      latency: in seconds.
    """
    return math.ceil(all_reduce_seconds(nbytes, devices, bandwidth=bandwidth, latency=latency) * flops / overlapped)
