"""Attack and training throughput of any model on this machine (`experiments/throughput.py`).

    python experiments/throughput.py --attacks=pgd10,apgd100 --batch-sizes=32,128 --rivals=torchattacks,pyautoattack
    python experiments/throughput.py --model=my.module:make_logits_fn --image-shape 32 32 3
    python experiments/throughput.py --preset=gpu --minutes=9

A cell is an attack, or a training step, on one model with one batch size and dtype: its programs, ours and the rivals',
are timed in turn. The results are written after every round, so one that is stopped leaves complete JSON.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from l2ljax import attacks, cost, defenses, devices, threat
from l2ljax.attacks.names import parameters
from l2ljax.bench import benchmark, rivals
from l2ljax.bench.benchmark import Program
from l2ljax.evaluate.accuracy import as_tree
from l2ljax.models import CLASSIFIERS
from l2ljax.report import figures, tables
from l2ljax.run.results import provenance
from l2ljax.run.setup import load_function
from l2ljax.run.workdir import write_atomically
from l2ljax.train import AXIS
from l2ljax.types import Batch, L2LError, example_keys


@dataclasses.dataclass(frozen=True)
class Flags:
    """What to measure."""

    model: str = "resnet20"
    """Classifiers with random weights, separated by commas, or module:function, a function without arguments that
    returns images -> logits."""
    image_shape: tuple[int, int, int] | None = None
    """Of the images that a module:function takes."""
    attacks: str = "pgd10"
    """Names as in --attacks of the other scripts, separated by commas."""
    steps_of: str = ""
    """Also a training step of these methods, separated by commas."""
    batch_sizes: str = "128"
    dtypes: str = "float32"
    """Of our classifiers: float32, bfloat16."""
    devices: int | None = None
    """Over which each batch is split; by default all local ones. A CPU has one per core, but where training steps are
    measured, and with --devices=1, one for all cores."""
    eps: str = "8/255"
    rivals: str = ""
    """Some of torchattacks, torch (a loop by hand), torch_compile, foolbox, art (pgdN), pyautoattack (apgdN), separated
    by commas: the same attack on the same weights, on residual networks."""
    repeats: int = 7
    minutes: float | None = None
    """When to end, with what is measured by then."""
    out: Path = Path("experiments/results/speed.json")
    """Beside it, a bar chart of the same name."""


def presets() -> dict[str, dict[str, Any]]:
    """Name -> the flags that differ from the defaults. gpu has rivals where torchattacks is installed."""
    rivals = "torchattacks,torch_compile" if importlib.util.find_spec("torchattacks") else ""
    gpu = {
        "model": "wrn_34_10,resnet18", "steps_of": "pgd_adv", "batch_sizes": "256", "dtypes": "bfloat16,float32",
        "rivals": rivals, "repeats": 5, "minutes": 9.0, "out": Path("experiments/results/speed_gpu.json"),
    }  # fmt: skip
    return {"": {}, "gpu": gpu}


class Cell(NamedTuple):
    """What is measured together."""

    model: str
    what: str
    """An attack's name, or STEP with a method's."""
    dtype: str
    batch_size: int

    def title(self) -> str:
        """In words."""
        return f"{self.what}, {self.model}, {self.dtype}, batch of {self.batch_size}"


STEP = "training step of "


def run(flags: Flags) -> dict[str, Any]:
    """Measure, write JSON and a chart, print Markdown.

    Returns:
      The JSON's content: "ceiling", the FLOP/s of matrix products in each dtype, and "speed", a row per program.

    Raises:
      L2LError: an unknown model, attack, method or rival, devices that are not there.
    """
    began, lock = time.monotonic(), threading.Lock()
    if flags.rivals:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants some of a GPU's memory too
    limit = float("inf") if flags.minutes is None else 60 * flags.minutes
    grid = itertools.product(_split(flags.model), _split(flags.dtypes), _split(flags.batch_sizes))
    whats = [*(STEP + name for name in _split(flags.steps_of)), *_split(flags.attacks)]
    cells = [Cell(model, what, dtype, int(size)) for model, dtype, size in grid for what in whats]
    about = {**provenance(), "eps": flags.eps, "devices": len(devices.first(flags.devices))}
    ceiling: dict[str, float] = {}
    measured: dict[Cell, dict[str, dict[str, Any]]] = {}

    def keep() -> dict[str, Any]:
        rows = [(cell, name, row) for cell, rows in measured.items() for name, row in rows.items()]
        found = {
            **about,
            "ceiling": ceiling,
            "speed": [{**cell._asdict(), "program": name, **row} for cell, name, row in rows],
            "not_run": [cell.title() for cell in cells if cell not in measured],
        }
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(flags.out, json.dumps(found, indent=2) + "\n")
        return found

    def finish() -> dict[str, Any]:
        found = keep()
        if measured:
            figures.bars(flags.out.with_suffix(".png"), _bars(measured), "images/s")
        print(tables.tell(found), flush=True)
        return found

    def end() -> None:
        with lock:
            finish()
            os._exit(0)  # nothing else ends a compilation

    watch = threading.Timer(min(limit, threading.TIMEOUT_MAX), end)
    watch.daemon = True
    watch.start()
    longest = 0.0
    with tqdm(cells, leave=False) as bar:
        for cell in bar:
            bar.set_description(cell.title())
            started = time.monotonic()
            if started - began + longest > limit:
                break  # it would hardly get done
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
    """Time the cell's programs in turn; their rows, with what is known of each, go to `after_round`."""
    builders, known = (_step if cell.what.startswith(STEP) else _attack)(cell, flags)
    programs: dict[str, Program] = {}
    about: dict[str, dict[str, Any]] = {}
    for build in builders:
        began = time.perf_counter()
        for name, (program, memory) in build().items():
            programs[name] = program
            about[name] = {**known, "memory": memory, "build_seconds": time.perf_counter() - began}

    def complete(rows: dict[str, dict[str, Any]]) -> None:
        after_round({name: {**row, **about[name], "device_peak_bytes": _peak()} for name, row in rows.items()})

    benchmark.alternate(programs, images=cell.batch_size, repeats=flags.repeats, after_round=complete)


Built = dict[str, tuple[Program, dict[str, int] | None]]
"""Name -> (program, see `benchmark.memory_of`; None where that is not known)."""


def _attack(cell: Cell, flags: Flags) -> tuple[list[Callable[[], Built]], dict[str, Any]]:
    """(what builds the programs of an attack, what is known of it)."""
    logits_fn, x = _victim(cell, flags)
    y = jax.jit(lambda f, x: f(x).argmax(axis=1))(logits_fn, x)  # so that no example is fooled from the start
    ball, key = threat.linf(threat.parse_eps(flags.eps)), jax.random.key(0)
    attack = attacks.create(cell.what, ball)
    marked = jax.tree_util.Partial(cost.mark(logits_fn))
    known = {
        "passes": cost.passes(attack, logits_fn, x, y),
        "flops": 2 * cost.multiplications(lambda x: attack(marked, key, x, y), x),
    }

    def ours() -> Built:
        batch = devices.spread((example_keys(key, len(x)), x, y), flags.devices)
        args = (devices.copied(logits_fn, flags.devices), *batch)
        compiled = jax.jit(devices.on_each(attack, count=flags.devices)).lower(*args).compile()
        return {"l2ljax": (lambda: jax.block_until_ready(compiled(*args)), benchmark.memory_of(compiled))}

    builders: list[Callable[[], Built]] = [ours]
    told = parameters(cell.what, ball)
    if flags.rivals and cell.model not in CLASSIFIERS:
        raise L2LError(f"--rivals attack our residual networks, not {cell.model}: leave them out")
    if told.get("keep", "last") == "last" and not told["targeted"] and told["restarts"] == 1:
        steps, step_size = told.get("steps", 0), told.get("step_size")
        weights = logits_fn.args[0] if flags.rivals else None
        task = rivals.Task(cell.model, weights, Batch(x, y), told["attack"], ball.eps, steps, step_size, cell.dtype)
        builders += [functools.partial(_rival, name, task) for name in _split(flags.rivals)]
    return builders, known


def _rival(name: str, task: rivals.Task) -> Built:
    try:
        return {title: (program, None) for title, program in rivals.programs(name, task).items()}
    except rivals.Unavailable as error:
        tqdm.write(f"left out: {error}")
        return {}


def _step(cell: Cell, flags: Flags) -> tuple[list[Callable[[], Built]], dict[str, Any]]:
    """The same of a training step."""
    method = cell.what.removeprefix(STEP)
    classifier, _, batch = benchmark.random_batch(cell.model, cell.batch_size, dtype=cell.dtype)
    ball = threat.linf(threat.parse_eps(flags.eps))

    def ours() -> Built:
        defense = defenses.create(method, classifier, ball, axis_name=AXIS)
        local = devices.first(flags.devices)
        return {"l2ljax": (benchmark.step_program(classifier, batch, defense, devices=local), None)}

    counted, _ = benchmark.step_multiplications(classifier, batch, defenses.create(method, classifier, ball))
    return [ours], {"passes": None, "flops": 2 * counted}


def _victim(cell: Cell, flags: Flags) -> tuple[Any, Any]:
    """(the model, images [batch size, H, W, C])."""
    if ":" not in cell.model:
        classifier, variables, batch = benchmark.random_batch(cell.model, cell.batch_size, dtype=cell.dtype)
        return jax.tree_util.Partial(classifier.logits, variables), batch.x
    if flags.image_shape is None:
        raise L2LError(f"--model={cell.model} needs --image-shape, like --image-shape 32 32 3")
    x = jax.random.uniform(jax.random.key(0), (cell.batch_size, *flags.image_shape))
    return as_tree(load_function(cell.model)), x


def _peak() -> int | None:
    """The most bytes that this process has had on the first device so far, where the device tells."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _split(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _bars(
    measured: Mapping[Cell, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Cell -> program -> images per second: by the median, the slowest and the fastest run."""

    def ends(cell: Cell, row: Mapping[str, Any]) -> tuple[float, float, float]:
        return row["images_per_second"], cell.batch_size / max(row["seconds"]), cell.batch_size / min(row["seconds"])

    return {cell.title(): {name: ends(cell, row) for name, row in rows.items()} for cell, rows in measured.items()}
