"""An estimate of when training on many devices waits for communication. `python experiments/scaling.py`.

It compares the operations of a step of PGD adversarial training with a ring all-reduce of its gradients
(`bench.scaling`), for devices and networks given by flags. Gradients exist only in the backward pass, so the attack
hides nothing. Not counted: the small reductions of synchronized BatchNorm, the optimizer, and rings over several links
at once.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp

from bench.scaling import all_reduce_seconds, hiding_batch
from l2ljax import cost, models
from l2ljax.files import check_writable, write_json
from l2ljax.runtime.flags import launch
from l2ljax.runtime.provenance import provenance
from l2ljax.types import L2LError
from l2ljax.values import Count, Range


@dataclasses.dataclass(frozen=True)
class Flags:
    """The network and the devices."""

    arch: str = "wrn_34_10"
    steps: Count = 10
    """Steps of the attack in training."""
    devices: tuple[Count, ...] = (8, 64, 512)
    flops: Annotated[float, Range(1, 1e24)] = 4e14
    """Operations per second of a device: 4e14 is 40 % of an H100's dense bf16 peak."""
    bandwidth: tuple[Annotated[float, Range(1, 1e18)], ...] = (4.5e11, 5e10)
    """Bytes per second out of each device: NVLink 4, and one 400 Gb/s network port per device."""
    latency: Annotated[float, Range(0, 1e6)] = 5e-6
    """Seconds of an empty message."""
    batch: Count = 128
    """Images per device, for the last column."""
    out: Path = Path("runs/scaling.json")
    """The JSON file, a kept result if it is in experiments/results."""


def main(flags: Flags) -> None:
    """Count, write."""
    if not flags.devices or not flags.bandwidth:
        raise L2LError("nothing to estimate: give --devices and --bandwidth a number each, or several")
    check_writable(flags.out)
    classifier = models.create(flags.arch)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(classifier.init, jax.random.key(0), x)
    logits = cost.mark(classifier.logits)

    def total(variables, x):  # type: ignore[no-untyped-def]
        return logits(variables, x).sum()

    forward = 2 * cost.multiplications(total, variables, x)
    attack = 2 * cost.multiplications(jax.grad(total, argnums=1), variables, x)
    training = 2 * cost.multiplications(jax.grad(total), variables, x)
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    step_flops, backward = flags.steps * attack + training, training - forward
    rows = []
    for bandwidth, n in itertools.product(flags.bandwidth, flags.devices):
        link = {"bandwidth": bandwidth, "latency": flags.latency}
        seconds = all_reduce_seconds(nbytes, n, **link)
        rows.append({
            "devices": n, "bandwidth": bandwidth, "bytes_sent": 2 * (n - 1) / n * nbytes, "seconds": seconds,
            "hiding_batch": hiding_batch(nbytes, n, overlapped=backward, flops=flags.flops, **link),
            "share": seconds / (seconds + flags.batch * step_flops / flags.flops),
        })  # fmt: skip
    about = {name: getattr(flags, name) for name in ("arch", "steps", "flops", "latency", "batch")}
    counts = {"bytes": nbytes, "step_flops": step_flops, "backward_flops": backward}
    write_json(flags.out, {**provenance(), **about, **counts, "scaling": rows})


if __name__ == "__main__":
    launch(main, Flags, __doc__)
