"""Attack and training throughput on this machine: `python experiments/throughput.py --rivals=torchattacks,torch`.

Any attack on any classifier, or on your own as --model=module:function, over batch sizes and dtypes, beside other
libraries; `--preset=gpu` takes nine minutes. Writes JSON and a bar chart, prints Markdown. Run it alone on the machine.
"""

import argparse
import dataclasses
import json

import tyro

from l2ljax import devices
from l2ljax.bench import benchmark, throughput
from l2ljax.report import tables
from l2ljax.run import imports
from l2ljax.run.monitor import one_line_errors
from l2ljax.run.results import provenance
from l2ljax.run.workdir import write_atomically


@dataclasses.dataclass(frozen=True)
class Flags(throughput.Flags):
    """What to measure."""

    train: str = ""
    """Measure instead a training step of these methods, separated by commas, the first being what the others are
    compared with; of --model=wrn_34_10 the papers have plain,pgd_adv,naive_l2l,grad_l2l,two_step_l2l."""
    variants: bool = False
    """Measure instead PGD and training steps in several programs each: convolutions, scans and unrolled loops, on one
    device."""
    stock_scan: bool = False
    """With --variants: also the stock convolution inside a scan; minutes on a CPU."""
    attacker_width: int = 16
    """With --variants: of grad_l2l's wide attacker (the paper's is 64)."""


def main(flags: Flags) -> None:
    """Measure, write, print."""
    size = int(flags.batch_sizes.split(",")[0])
    if flags.variants:
        keep(flags, {"batch_size": size, "results": variants(flags, size)})
        return
    if not (flags.train or flags.steps_of or flags.devices == 1):  # steps reduce over devices: not over a CPU's
        devices.one_per_core()
    if flags.train:
        local = devices.first(flags.devices)
        rows = benchmark.training_costs(
            flags.model, flags.train.split(","), batch_size=size, repeats=flags.repeats, devices=local
        )
        keep(flags, {"batch_size": size, "devices": len(local), "arch": flags.model, "costs": rows})
    else:
        throughput.run(flags)


def keep(flags: Flags, content: dict) -> None:
    """Write and print."""
    record = {**provenance(), **content}
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(flags.out, json.dumps(record, indent=2) + "\n")
    print(tables.tell(record))


def variants(flags: Flags, n: int, steps: int = 10) -> dict[str, dict]:
    """PGD and single training steps, each in several programs."""
    clf, variables, batch = benchmark.random_batch("resnet20", n)
    programs = benchmark.attack_programs(clf, variables, batch, steps, flags.stock_scan)
    results = {f"PGD-{steps}, resnet20": benchmark.alternate(programs, images=n, repeats=flags.repeats)}
    for name, defense in {
        "training step of pgd_adv": lambda unroll: benchmark.pgd_adv(clf, steps, unroll),
        "training step of grad_l2l": lambda unroll: benchmark.grad_l2l(clf, flags.attacker_width, unroll),
    }.items():
        programs = benchmark.training_programs(clf, batch, defense, flags.stock_scan)
        results[f"{name}, resnet20"] = benchmark.alternate(programs, images=n, repeats=flags.repeats)
    for arch in ("resnet20", "digits_cnn"):
        clf, _, batch = benchmark.random_batch(arch, n)
        programs = benchmark.method_programs(clf, batch, steps)
        results[f"joint step, {arch}"] = benchmark.alternate(programs, images=n, repeats=flags.repeats)
    return results


if __name__ == "__main__":
    presets = throughput.presets()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--preset", choices=presets, default="")
    chosen, others = parser.parse_known_args(imports.load())
    with one_line_errors():
        known = f"--preset: {', '.join(filter(None, presets))}, whose settings the flags below replace."
        description = f"{__doc__}\n{known}\n{imports.HELP}"
        main(tyro.cli(Flags, description=description, default=Flags(**presets[chosen.preset]), args=others))
