"""Attack and training throughput of any model on this machine (`experiments/throughput.py`).

    python experiments/throughput.py --attacks=pgd10,apgd100 --batch-sizes=32,128 --rivals=torchattacks,pyautoattack
    python experiments/throughput.py --model=my.module:make_logits_fn --image-shape 32 32 3
    python experiments/throughput.py --train=plain,pgd_adv,rnn_adv,grad_l2l:alternating --rivals=torch --memory
    python experiments/throughput.py --preset=gpu --minutes=9

A cell is an attack, or the training steps of some methods, on one model with one batch size and dtype: our programs and
the rivals' are timed in turn, training steps on a CPU beside rivals in a process each. The results are written after
every round, so a stopped run leaves complete JSON.
"""

import functools
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from bench import benchmark, processes, rivals, training
from bench.benchmark import Program
from bench.cells import TRAINING, Cell, Flags, cells, presets, split
from l2ljax import attacks, cost, devices, threat
from l2ljax.attacks.names import parameters
from l2ljax.attacks.solver import as_tree
from l2ljax.files import check_writable, write_json
from l2ljax.run.trained import load_function
from l2ljax.runtime.provenance import provenance
from l2ljax.types import Batch, example_keys
from papers import figures, speeds, tables

__all__ = ["TRAINING", "Build", "Built", "Cell", "Flags", "presets", "run"]


def run(flags: Flags) -> dict[str, Any]:
    """Measure, write JSON and a chart, print Markdown.

    Returns:
      The JSON's content: "ceiling", the FLOP/s of matrix products in each dtype, and "speed", a row per program.

    Raises:
      L2LError: an unknown model, attack, method or rival, or too few devices.
    """
    began, lock = time.monotonic(), threading.Lock()
    if flags.rivals:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs some of a GPU's memory too
    else:
        devices.keep_freed_memory()  # as the scripts of training do
    limit = float("inf") if flags.minutes is None else 60 * flags.minutes
    wanted = cells(flags)
    check_writable(flags.out)
    about = {**provenance(), "eps": flags.eps, "devices": len(devices.first(flags.devices))}
    ceiling: dict[str, float] = {}
    measured: dict[Cell, dict[str, dict[str, Any]]] = {}

    def keep() -> dict[str, Any]:
        speed = [
            cell._asdict() | {"program": name} | row for cell, rows in measured.items() for name, row in rows.items()
        ]
        not_run = [cell.title() for cell in wanted if cell not in measured]
        record = {**about, "ceiling": ceiling, "speed": speed, "not_run": not_run}
        write_json(flags.out, record)
        return record

    def finish() -> dict[str, Any]:
        record = keep()
        if measured:
            figures.bars(flags.out.with_suffix(".png"), _bars(measured), "images/s")
        print(tables.tell(record), flush=True)
        return record

    def end() -> None:
        with lock:
            finish()
            os._exit(0)  # nothing else interrupts a compilation

    watch = threading.Timer(min(limit, threading.TIMEOUT_MAX), end)
    watch.daemon = True
    watch.start()
    longest = 0.0
    with tqdm(wanted, leave=False) as bar:
        for cell in bar:
            bar.set_description(cell.title())
            if (started := time.monotonic()) - began + longest > limit:
                break  # it would hardly finish
            if cell.dtype not in ceiling:
                ceiling[cell.dtype] = benchmark.matrix_ceiling(cell.dtype)

            def after_round(rows: dict[str, dict[str, Any]], cell: Cell = cell) -> None:
                with lock:
                    measured[cell] = rows
                    keep()

            _measure(cell, flags, after_round)
            longest = max(longest, time.monotonic() - started)
    with lock:
        watch.cancel()
        return finish()


def _measure(cell: Cell, flags: Flags, after_round: Callable[[dict[str, dict[str, Any]]], None]) -> None:
    """Time the cell's programs in turn; pass their rows, with known figures, to `after_round`."""
    programs: dict[str, Program] = {}
    about: dict[str, dict[str, Any]] = {}
    for build, known in (_training if cell.what == TRAINING else _attack)(cell, flags):
        began = time.perf_counter()
        for name, (program, memory) in build().items():
            title = f"{known['method']}, {name}" if "method" in known else name
            row = {"program": name, **known, "memory": memory, "build_seconds": time.perf_counter() - began}
            programs[title], about[title] = program, row

    def complete(rows: dict[str, dict[str, Any]]) -> None:
        first: dict[str | None, dict[str, Any]] = {}
        for name, row in rows.items():
            row |= {**about[name], "device_peak_bytes": _peak()}
            ours = first.setdefault(row.get("method"), row)
            row["time_over_ours"] = speeds.quotient(row["seconds"], ours["seconds"])
        after_round(rows)

    benchmark.alternate(programs, images=cell.batch_size, repeats=flags.repeats, after_round=complete)


Built = dict[str, tuple[Program, dict[str, int] | None]]
"""Name -> (program, see `benchmark.memory_of`; None if unknown)."""
Build = tuple[Callable[[], Built], dict[str, Any]]
"""(a function that builds programs, their known figures)."""


def _attack(cell: Cell, flags: Flags) -> list[Build]:
    """Return the programs of an attack, ours first."""
    logits_fn, x = _victim(cell, flags)
    y = jax.jit(lambda f, x: f(x).argmax(axis=1))(logits_fn, x)  # no example is fooled from the start
    ball, key = threat.linf(threat.parse_eps(flags.eps)), jax.random.key(0)
    attack = attacks.create(cell.what, ball)
    marked = jax.tree_util.Partial(cost.mark(logits_fn))
    flops = 2 * cost.multiplications(lambda x: attack(marked, key, x, y), x)
    known = {
        "passes": cost.passes(attack, logits_fn, x, y),
        "flops": flops if math.isfinite(flops) else None,  # of a loop whose length depends on the images
    }

    def ours() -> Built:
        batch = devices.shard((example_keys(key, len(x)), x, y), flags.devices)
        args = (devices.replicate(logits_fn, flags.devices), *batch)
        compiled = jax.jit(devices.on_each(attack, count=flags.devices)).lower(*args).compile()
        return {"l2ljax": (lambda: jax.block_until_ready(compiled(*args)), benchmark.memory_of(compiled))}

    builders: list[Callable[[], Built]] = [ours]
    names, settings = rivals.split(flags.rivals), parameters(cell.what, ball)
    if names and settings.get("keep", "last") == "last" and not settings["targeted"] and settings["restarts"] == 1:
        steps, step_size = settings.get("steps", 0), settings.get("step_size")
        task = rivals.Task(
            cell.model, logits_fn.args[0], Batch(x, y), settings["attack"], ball.eps, steps, step_size, cell.dtype
        )
        builders += [functools.partial(_rival, name, task) for name in names]
    return [(build, known) for build in builders]


def _rival(name: str, task: rivals.Task) -> Built:
    try:
        return {title: (program, None) for title, program in rivals.programs(name, task).items()}
    except rivals.Unavailable as error:
        tqdm.write(f"left out: {error}")
        return {}


def _training(cell: Cell, flags: Flags) -> list[Build]:
    """Return the training steps of all methods, each with ours first."""
    builds: list[Build] = []
    eps, rival = threat.parse_eps(flags.eps), "torch" in rivals.split(flags.rivals)
    for method in split(flags.train):
        task = training.Task(cell.model, cell.dtype, cell.batch_size, method, eps, cell.steps, flags.attacker_width)
        known = {"method": method, **training.known(task)}
        for name, build in training.builders(task, rival=rival, count=flags.devices).items():
            peak = processes.peak_bytes(build) if flags.memory else None
            make = functools.partial(_built, name, build, apart=bool(flags.rivals) and jax.default_backend() == "cpu")
            builds.append((make, {**known, "step_peak_bytes": peak}))
    return builds


def _built(name: str, build: Callable[[], Program], *, apart: bool) -> Built:
    """Build a training step, or, `apart`, let a process of its own do so; an accelerator's memory is one process's."""
    return {name: (processes.apart(build, like_a_script=name == "l2ljax") if apart else build(), None)}


def _victim(cell: Cell, flags: Flags) -> tuple[Any, Any]:
    """Return (the model, images [batch size, H, W, C])."""
    if ":" not in cell.model:
        classifier, variables, batch = benchmark.random_batch(cell.model, cell.batch_size, dtype=cell.dtype)
        return jax.tree_util.Partial(classifier.logits, variables), batch.x
    x = jax.random.uniform(jax.random.key(0), (cell.batch_size, *(flags.image_shape or ())))
    return as_tree(load_function(cell.model)), x


def _peak() -> int | None:
    """Return the most bytes in use so far on the first device, if the device reports them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _bars(measured: Mapping[Cell, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return cell -> program -> images per second: by the median, the slowest and the fastest run."""

    def ends(cell: Cell, row: Mapping[str, Any]) -> tuple[float, ...]:
        return row["images_per_second"], cell.batch_size / max(row["seconds"]), cell.batch_size / min(row["seconds"])

    return {cell.title(): {name: ends(cell, row) for name, row in rows.items()} for cell, rows in measured.items()}
