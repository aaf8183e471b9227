"""The text of BENCHMARKS.md for kept results about speed: of goals.py, throughput.py, scaling.py and gail_speed.py."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from l2ljax.report.markdown import grid

__all__ = ["RATIO", "gail_speed", "goals", "quotient", "scaling", "speed", "throughput"]


def throughput(record: Mapping[str, Any]) -> str:
    """Return experiments/throughput.py --variants in Markdown: a table per group.

    The last column compares with the first row, see `quotient`.
    """
    parts = [
        f"{record['machine']}, {record['date']}; one device, batch of {record['batch_size']}. "
        "Own and stock: with our gradients of convolutions and with JAX's; scan and unrolled: the attack's steps as a "
        "compiled loop and written out."
    ]
    for group, rows in record["results"].items():
        reference, first = next((name, row["seconds"]) for name, row in rows.items())
        cells = [[name, *_times(row), _quotient(row["seconds"], first)] for name, row in rows.items()]
        parts.append(grid([group, *_TIMES, f"time / {reference}"], cells))
    return "\n\n".join(parts)


def quotient(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Return the ratio of two programs' times within each round: "median", "least" and "most".

    This cancels slow periods of the machine. A slow program has fewer rounds.
    """
    ratios = [s / r for s, r in zip(seconds, reference, strict=False)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


RATIO = "{median:.2f} ({least:.2f}-{most:.2f})"
_TIMES = ("median s (range)", "runs", "images/s")


def _quotient(seconds: Sequence[float], reference: Sequence[float]) -> str:
    return RATIO.format(**quotient(seconds, reference))


def _times(row: Mapping[str, Any]) -> list[str]:
    seconds = row["seconds"]
    shown = f"{statistics.median(seconds):.4g} ({min(seconds):.4g}-{max(seconds):.4g})"
    return [shown, f"{len(seconds)}", f"{row['images_per_second']:,.0f}"]


def speed(record: Mapping[str, Any]) -> str:
    """Return experiments/throughput.py in Markdown: a table per attack or training steps, model, dtype and batch size.

    TFLOP/s counts the operations needed by the attack or step, two per multiplication, the same for all programs.
    """
    ceiling = ", ".join(f"{dtype} {flops / 1e12:.3g}" for dtype, flops in record["ceiling"].items())
    about = f"{record['machine']}, {record['date']}; linf eps {record['eps']}, {record['devices']} "
    parts = [f"{about}device(s). Matrix products reach, in TFLOP/s on one device: {ceiling or 'not measured'}."]
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in record["speed"]:
        key = (row["what"], row["model"], row["dtype"], row["batch_size"], row.get("steps"))
        groups.setdefault(key, []).append(row)
    for (what, model, dtype, size, steps), rows in groups.items():
        title = f"{what}, {model}, {dtype}, batch of {size}" + (f", {steps} attack steps" if steps else "")
        most = record["devices"] * record["ceiling"][dtype] if dtype in record["ceiling"] else None
        parts.append((_training if "method" in rows[0] else _attack)(title, rows, most))
    if record["not_run"]:
        parts.append(f"Not run for lack of time: {'; '.join(record['not_run'])}.")
    return "\n\n".join(parts)


def _attack(title: str, rows: Sequence[Mapping[str, Any]], most: float | None) -> str:
    """Return a table whose fifth column compares with the first row."""
    header = [title, *_TIMES, f"time / {rows[0]['program']}", *_RATES, "passes", "compiling and first call, s"]
    header += ["MB temporary", "MB in", "MB out", "MB peak of the device"]
    cells = [
        [
            *(row["program"], *_times(row), _quotient(row["seconds"], rows[0]["seconds"]), *_rates(row, most)),
            *("-" if row["passes"] is None else f"{row['passes']:.1f}", _building(row)),
            *(_megabytes((row["memory"] or {}).get(name)) for name in ("temp", "argument", "output")),
            _megabytes(row["device_peak_bytes"]),
        ]
        for row in rows
    ]
    return _known_columns(header, cells)


def _training(title: str, rows: Sequence[Mapping[str, Any]], most: float | None) -> str:
    """Compare each with ours of the same method and with the first; also its multiplications.

    At the same speed, no program can take less time than its multiplications.
    """
    base, ours = rows[0], {row["method"]: row for row in reversed(rows)}
    header = [title, "program", *_TIMES, f"time / {base['program']}", f"time / {base['method']}"]
    header += [f"multiplications / {base['method']}", *_RATES]
    header += ["compiling and first call, s", "attacker's parameters", "MB peak of a step", "MB peak of the device"]
    cells = [
        [
            *(row["method"], row["program"], *_times(row)),
            *(
                "-" if other is row else _quotient(row["seconds"], other["seconds"])
                for other in (ours[row["method"]], base)
            ),
            f"{row['flops'] / base['flops']:.2f}",
            *(*_rates(row, most), _building(row), f"{row['attacker_parameters']:,}"),
            *(_megabytes(row[key]) for key in ("step_peak_bytes", "device_peak_bytes")),
        ]
        for row in rows
    ]
    return _known_columns(header, cells)


def _known_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table without the columns that no row has."""
    columns = [column for column in zip(header, *rows, strict=True) if set(column[1:]) != {"-"}]
    header, *rows = zip(*columns, strict=True)
    return grid(header, rows)


_RATES = ("TFLOP/s", "% of all devices'")


def _rates(row: Mapping[str, Any], most: float | None) -> list[str]:
    if row["flops"] is None:
        return ["-", "-"]
    reached = row["flops"] / statistics.median(row["seconds"])
    return [f"{reached / 1e12:.3g}", f"{100 * reached / most:.1f}" if most else "-"]


def _building(row: Mapping[str, Any]) -> str:
    return f"{row['build_seconds'] + row['first_seconds']:.1f}"


def _megabytes(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e6:,.1f}"


def goals(record: Mapping[str, Any]) -> str:
    """Return experiments/goals.py in Markdown: target and measured ratios, then each measurement."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        theirs = f"{statistics.median(row['theirs']):.4g} ({row['rival']})" if "rival" in row else "-"
        wanted = f"{'at most' if row['most'] else 'at least'} {row['goal']:g}"
        ours, met = f"{statistics.median(row['ours']):.4g}", "yes" if row["met"] else "no"
        return [row["title"], wanted, RATIO.format(**row["ratio"]), f"{len(row['ours'])}", met, ours, theirs]

    header = ["torch's time / ours, or seconds", "goal", "median (range)", "runs", "met", "ours, s", "theirs, s"]
    parts = [grid(header, [cells(row) for row in record["goals"]]), record["bounds"]]
    grown = [row for name in ("growth", "growth_steps") for row in record["records"].get(name, {}).get("speed", [])]
    if grown:
        parts.append(_growth(grown))
    steps = [row for row in record["records"].get("training", {}).get("speed", []) if row["step_peak_bytes"]]
    if steps:
        header = ["training step, resnet20, batch of 128", "program", "MB peak of a step"]
        parts.append(grid(header, [[r["method"], r["program"], _megabytes(r["step_peak_bytes"])] for r in steps]))
    one = next(iter(record["records"].values()))
    about = "The goals are ours, set before the measurements; one is met if the median reaches it."
    return "\n\n".join([f"{one['machine']}, {one['date']}. {about}", *parts])


def _growth(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of training steps with growing batches and numbers of attack steps: a line per step, ours first."""
    steps: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        steps.setdefault((row["method"], row["batch_size"], row["steps"] or 10), []).append(row)
    cells = []
    for (method, size, length), (ours, *theirs) in sorted(steps.items()):
        ratios = (f"{_quotient(row['seconds'], ours['seconds'])} {row['program']}" for row in theirs)
        seconds = f"{statistics.median(ours['seconds']):.4g}"
        cells.append([method, f"{size}", f"{length}", seconds, f"{len(ours['seconds'])}", ", ".join(ratios)])
    return grid(["training step", "batch", "attack steps", "ours, s", "runs", "theirs / ours (range)"], cells)


def scaling(record: Mapping[str, Any]) -> str:
    """Return experiments/scaling.py in Markdown: per number of devices the bytes, time and batch to hide it."""
    rows = [
        [
            *(f"{row['devices']}", f"{row['bandwidth'] / 1e9:,.0f}", f"{row['bytes_sent'] / 1e6:.0f}"),
            *(f"{1e3 * row['seconds']:.1f}", f"{row['hiding_batch']}", f"{row['hiding_batch'] * row['devices']:,}"),
            f"{100 * row['share']:.1f}",
        ]
        for row in record["scaling"]
    ]
    about = (
        f"On paper, not measured: {record['arch']}, a step of PGD-{record['steps']} adversarial training; "
        f"{record['bytes'] / 1e6:.0f} MB of gradients and statistics reduced per step, "
        f"{record['step_flops'] / 1e9:.0f} GFLOP per image, of which {record['backward_flops'] / 1e9:.1f} in the "
        "backward pass that makes the gradients, behind which the all-reduce can hide. Assumed: a device reaches "
        f"{record['flops'] / 1e12:.0f} TFLOP/s, a message waits {1e6 * record['latency']:g} us, one ring."
    )
    header = ["devices", "GB/s per device", "MB sent by each", "ms", "batch per device that hides it", "global batch"]
    header.append(f"% of a step of {record['batch']} images a device, unhidden")
    return f"{about}\n\n{grid(header, rows)}"


def gail_speed(record: Mapping[str, Any]) -> str:
    """Return experiments/gail_speed.py in Markdown: steps of the environment per second, and seconds of compiling."""
    steps = {name: [row["steps_per_second"] for row in rows] for name, rows in record["gail_speed"].items()}
    slowest = min(map(statistics.median, steps.values()))
    cells = []
    for name, rows in record["gail_speed"].items():
        middle, low, high = statistics.median(steps[name]), min(steps[name]), max(steps[name])
        compiling = [row["compile_seconds"] for row in rows if "compile_seconds" in row]
        cells.append([
            name, f"{len(rows)}", f"{middle:,.0f}", f"{low:,.0f}-{high:,.0f}", f"{middle / slowest:.1f}",
            f"{statistics.median(compiling):.1f}" if compiling else "-",
        ])  # fmt: skip
    about = "5,000 steps an iteration of ours, one seed, learning included"
    header = ["GAIL", "rounds", "steps/s", "range", "times the slowest", "compiling, s"]
    return f"{record['environment']}, {about}; {record['machine']}, {record['date']}.\n\n{grid(header, cells)}"
