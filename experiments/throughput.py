"""Attack and training throughput on this machine: `python experiments/throughput.py --rivals=torchattacks,torch`.

Attack any classifier, or your own as --model=module:function, over batch sizes and dtypes, against other libraries;
`--preset=gpu` takes nine minutes. Writes JSON and a bar chart, prints Markdown. Run it alone on the machine.
"""

import argparse
import dataclasses

from bench import benchmark, throughput
from l2ljax import devices
from l2ljax.files import check_writable, write_json
from l2ljax.runtime.flags import launch
from l2ljax.runtime.monitor import one_line_errors
from l2ljax.runtime.provenance import provenance
from l2ljax.types import L2LError
from l2ljax.values import Count, parse
from papers import tables


@dataclasses.dataclass(frozen=True)
class Flags(throughput.Flags):
    """The measurements."""

    variants: bool = False
    """Measure PGD and training steps in several programs each instead: convolutions, scans and unrolled loops, on one
    device."""
    stock_scan: bool = False
    """With --variants: also the stock convolution inside a scan; minutes on a CPU."""


def main(flags: Flags) -> None:
    """Measure, write, print."""
    if flags.stock_scan and not flags.variants:
        raise L2LError("--stock-scan does nothing without --variants")
    if not flags.variants:
        devices.one_per_core(flags.devices)
        throughput.run(flags)
        return
    taken = ("batch_sizes", "repeats", "attacker_width", "out", "variants", "stock_scan")
    for field in dataclasses.fields(flags):
        if field.name not in taken and getattr(flags, field.name) != field.default:
            raise L2LError(f"--{field.name.replace('_', '-')} does nothing with --variants")
    size = parse(Count, flags.batch_sizes, "--batch-sizes")
    check_writable(flags.out)
    width = flags.attacker_width or 16
    results = benchmark.variants(size, repeats=flags.repeats, width=width, stock_scan=flags.stock_scan)
    record = {**provenance(), "batch_size": size, "results": results}
    write_json(flags.out, record)
    print(tables.tell(record))


if __name__ == "__main__":
    presets = throughput.presets()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="")
    chosen, others = parser.parse_known_args()
    known = f"--preset: {', '.join(filter(None, presets))}, whose settings the flags below replace."
    with one_line_errors():
        if chosen.preset not in presets:
            raise L2LError(f"--preset={chosen.preset}: choose from {', '.join(filter(None, presets))}")
    launch(main, Flags, f"{__doc__}\n{known}", arguments=others, default=Flags(**presets[chosen.preset]))
