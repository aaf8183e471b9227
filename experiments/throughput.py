"""Attack and training throughput on this machine: `python experiments/throughput.py --rivals=torchattacks`.

Writes one JSON file per machine and day to --out, and prints it as Markdown. Run it alone on the machine.
"""

import dataclasses
import json
from pathlib import Path

import tyro

from l2ljax import benchmark, rivals, tables
from l2ljax.monitor import told_in_one_line
from l2ljax.results import provenance


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
    train: str = ""
    """Measure instead a training step of these methods, separated by commas, the first being what the others are
    compared with; the papers' table is plain,pgd_adv,naive_l2l,grad_l2l,two_step_l2l,rnn_adv."""
    arch: str = "wrn_34_10"
    """Of --train."""
    out: Path = Path("experiments/results/throughput.json")


def main(flags: Flags) -> None:
    """Measure, write, print."""
    if flags.train:
        rows = benchmark.training_costs(
            flags.arch, flags.train.split(","), batch_size=flags.batch_size, repeats=flags.repeats
        )
        keep(flags.out, {**provenance(), "batch_size": flags.batch_size, "arch": flags.arch, "costs": rows})
    else:
        keep(flags.out, {**provenance(), "batch_size": flags.batch_size, "results": attacks_and_steps(flags)})


def keep(path: Path, found: dict) -> None:
    """Write and print."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(tables.tell(found))


def attacks_and_steps(flags: Flags) -> dict[str, dict]:
    """PGD and single training steps, each in several programs, and those of rivals."""
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
    return results


if __name__ == "__main__":
    with told_in_one_line():
        main(tyro.cli(Flags, description=__doc__))
