"""Attack and training throughput on this machine: `python experiments/throughput.py --rivals=torchattacks`.

Writes one JSON file per machine and day to --out, and prints it as Markdown. Run it alone on the machine.
"""

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from l2ljax import benchmark, rivals
from l2ljax.report import throughput
from l2ljax.results import provenance
from l2ljax.types import L2LError


@dataclasses.dataclass(frozen=True)
class Flags:
    """What to measure."""

    batch_size: int = 128
    steps: int = 10
    repeats: int = 7
    attacker_width: int = 16
    """Of grad_l2l's wide attacker (the paper's is 64)."""
    rivals: str = ""
    """Some of torchattacks, torch (a loop by hand), foolbox, art, separated by commas."""
    stock_scan: bool = False
    """Also the stock convolution inside a scan: minutes on a CPU."""
    out: Path = Path("experiments/results/throughput.json")


def main(flags: Flags) -> None:
    """Measure, write, print."""
    n, repeats = flags.batch_size, flags.repeats
    clf, variables, batch = benchmark.random_batch("resnet20", n)
    programs = benchmark.attack_programs(clf, variables, batch, flags.steps, flags.stock_scan)
    pgd = rivals.PGD(benchmark.BALL.eps, benchmark.STEP, flags.steps)
    programs |= rivals.pgd_programs(flags.rivals, clf, variables, batch, pgd)
    results = {f"PGD-{flags.steps}, resnet20": benchmark.alternate(programs, images=n, repeats=repeats)}
    for name, defense in {
        "training step of pgd_adv": lambda unroll: benchmark.pgd_adv(clf, flags.steps, unroll),
        "training step of grad_l2l": lambda unroll: benchmark.grad_l2l(clf, flags.attacker_width, unroll),
    }.items():
        programs = benchmark.training_programs(clf, batch, defense, flags.stock_scan)
        results[f"{name}, resnet20"] = benchmark.alternate(programs, images=n, repeats=repeats)
    for arch in ("resnet20", "digits_cnn"):
        clf, _, batch = benchmark.random_batch(arch, n)
        programs = benchmark.method_programs(clf, batch, flags.steps)
        results[f"joint step, {arch}"] = benchmark.alternate(programs, images=n, repeats=repeats)
    found = {
        **provenance(),
        "batch_size": n,
        "results": results,
    }
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(found, indent=2) + "\n")
    print(throughput(found))


if __name__ == "__main__":
    try:
        main(tyro.cli(Flags, description=__doc__))
    except L2LError as error:
        sys.exit(f"error: {error}")
