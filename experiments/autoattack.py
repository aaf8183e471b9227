"""Our AutoAttack and pyautoattack: verdicts and time. `python experiments/autoattack.py --victim=WORKDIR`.

Both attack the same weights and images of a run with a residual network: its first test images, then training images.
Ours compiles in the first round; that time is listed separately. For the times, run it alone on the machine.
"""

import dataclasses
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from bench import benchmark, passes, rivals
from l2ljax import devices, threat
from l2ljax.evaluate import run_standard_evaluation
from l2ljax.files import check_writable, write_json
from l2ljax.run.trained import load_classifier, read_config
from l2ljax.runtime.flags import launch
from l2ljax.runtime.provenance import provenance
from l2ljax.types import Batch
from l2ljax.values import Count, parse_list


@dataclasses.dataclass(frozen=True)
class Flags:
    """The model and the attack."""

    victim: str
    """The workdir of a run with one of the residual networks."""
    data_dir: str | None = None
    images: Count = 256
    batch_size: Count | None = None
    """Our batch size; by default `run_standard_evaluation`'s own."""
    their_batch_size: Count = 256
    eps: str = "8/255"
    attacks: str = "apgd-ce,apgd-t,fab-t,square"
    seeds: Count = 1
    """Rounds, each with another seed."""
    out: Path = Path("runs/autoattack.json")
    """The JSON file, a kept result if it is in experiments/results."""


def main(flags: Flags) -> None:
    """Run both in turn, compare the robust examples, and write the results."""
    devices.one_per_core()
    names = tuple(parse_list(Literal["apgd-ce", "apgd-t", "fab-t", "square"], flags.attacks, "--attacks"))
    ball = threat.linf(threat.parse_eps(flags.eps))
    rivals.package("pyautoattack")
    check_writable(flags.out)
    saved = read_config(flags.victim)
    x, y = passes.examples(saved, flags.data_dir, flags.images)
    logits_fn = load_classifier(flags.victim)
    compiled, rounds = benchmark.compile_clock(), []
    for seed in range(flags.seeds):
        key, before, began = jax.random.key(seed), compiled(), time.perf_counter()
        ours = run_standard_evaluation(
            logits_fn, x, y, ball=ball, only=names, key=key, progress=print, batch_size=flags.batch_size
        )
        seconds, compiling = time.perf_counter() - began, compiled() - before
        name, program = rivals.pyautoattack_standard(
            saved["arch"], logits_fn.args[0], Batch(jnp.asarray(x), jnp.asarray(y)), eps=ball.eps, attacks=names,
            batch_size=flags.their_batch_size, seed=seed,
        )  # fmt: skip
        began = time.perf_counter()
        theirs = program()
        rounds.append({
            "seconds": {"ours": seconds - compiling, name: time.perf_counter() - began},
            "compile_seconds": compiling,
            "parts": ours.seconds,
            "robust": {"ours": int(ours.robust.sum()), name: int(theirs.sum())},
            "differing": int((ours.robust != theirs).sum()),
        })  # fmt: skip
        print(rounds[-1], flush=True)
    about = f"{saved['dataset']}, {saved['arch']} trained with {saved['method']}, linf eps {flags.eps}"
    write_json(flags.out, {**provenance(), "images": len(y), "about": about, "autoattack": rounds})


if __name__ == "__main__":
    launch(main, Flags, __doc__)
