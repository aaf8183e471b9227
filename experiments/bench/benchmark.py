"""Benchmarks: our programs and others', timed in turn in one run, so that their ratios hold on a noisy machine.

    rows = alternate({"scan": lambda: attack(x), "unrolled": lambda: other(x)}, images=128)

`training` and `rivals` build further programs.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2ljax import models, threat
from l2ljax.attacks import gradient, learned
from l2ljax.attacks.ascent import clean
from l2ljax.defenses import saddle
from l2ljax.models import attackers
from l2ljax.models.convolution import stock_convolution
from l2ljax.train import AXIS, init_state, make_step
from l2ljax.types import Attack, Batch, Classifier, Defense, Players, Tree

__all__ = [
    "BALL", "OPTIMIZERS", "Program", "alternate", "compile_clock", "matrix_ceiling", "memory_of", "random_batch",
    "random_images", "step_program", "variants",
]  # fmt: skip

Program = Callable[[], Any]
"""Run once and wait for the result."""
OPTIMIZERS = Players(optax.sgd(0.01, momentum=0.9), optax.adam(1e-3))
"""The optimizers of timed training steps."""
BALL = threat.linf(8 / 255)


def alternate(
    programs: Mapping[str, Program],
    *,
    images: int,
    repeats: int = 7,
    patience: float = 40.0,
    after_round: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, dict[str, Any]]:
    """Time programs in turn: A B C A B C ...; the first call of each, which compiles, separately.

    `repeats` calls of each are counted; a program that would take longer than `patience` seconds in all, by its first
    round, is called fewer times, at least once. `after_round` gets the results so far after each round.

    Returns:
      name -> {"first_seconds", "seconds" (of each counted call), "images_per_second" (by their median)}.
    """
    first = {name: _timed(program) for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            if not times[name] or (len(times[name]) + 1) * times[name][0] < patience:
                times[name].append(_timed(program))
        rates = {name: images / statistics.median(seconds) for name, seconds in times.items()}
        rows: dict[str, dict[str, Any]] = {
            name: {"first_seconds": first[name], "seconds": list(seconds), "images_per_second": rates[name]}
            for name, seconds in times.items()
        }
        after_round(rows)
    return rows


def matrix_ceiling(dtype: str) -> float:
    """Return the largest FLOP/s of a product of square matrices in JAX's default precision, a network's ceiling.

    The matrices have 8192 rows, or 2048 on a CPU; the best of five runs counts.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    seconds = [_timed(lambda: jax.block_until_ready(product(a))) for _ in range(6)]
    return 2 * n**3 / min(seconds[1:])


def memory_of(compiled: Any) -> dict[str, int]:
    """Return the bytes of a compiled program's temporaries, arguments and results, by XLA's analysis."""
    analysis = compiled.memory_analysis()
    return {name: getattr(analysis, f"{name}_size_in_bytes") for name in ("temp", "argument", "output")}


def compile_clock() -> Callable[[], float]:
    """Return a clock of the seconds that JAX has spent on tracing and compiling since this call."""
    total = [0.0]

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            total[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: total[0]


def variants(size: int, *, repeats: int, width: int, stock_scan: bool) -> dict[str, dict[str, Any]]:
    """Time PGD and training steps of resnet20 with each convolution, the attack as a scan and unrolled.

    `size` is the batch's, `width` that of L2L's attacker. `stock_scan` adds the stock convolution inside a scan, which
    takes minutes on a CPU.
    """
    classifier, variables, batch = random_batch("resnet20", size)
    rule = gradient.steepest_ascent(BALL, 2 / 255)

    def attack(unroll: bool) -> Program:
        run: Attack = jax.jit(gradient.gradient_attack(BALL, rule, steps=10, unroll=unroll))
        logits_fn = jax.tree_util.Partial(classifier.logits, variables)
        return lambda: jax.block_until_ready(run(logits_fn, jax.random.key(0), *batch))

    def training(player: Any, **options: Any) -> Callable[[bool], Program]:
        game = lambda unroll: saddle.unrolled(
            classifier, player, BALL, saddle.adversarial(), unroll=unroll, axis_name=AXIS, **options
        )
        return lambda unroll: step_program(classifier, batch, game(unroll))

    wide = learned.convolutional(attackers.create("wide", width=width), inputs=("image", "gradient"))
    groups = {
        "PGD-10": attack,
        "training step of pgd_adv": training(learned.fixed(rule), steps=10),
        "training step of grad_l2l": training(wide, steps=1, start=clean),
    }
    kinds = [("own", False), ("own", True), ("stock", True), ("stock", False)][: 3 + stock_scan]
    results = {}
    for group, build in groups.items():
        programs = {f"{name}, {'unrolled' if u else 'scan'}": _with_convolution(name, build(u)) for name, u in kinds}
        results[f"{group}, resnet20"] = alternate(programs, images=size, repeats=repeats)
    return results


def _with_convolution(name: str, program: Program) -> Program:
    """Return the program under that convolution, which takes effect when its first call traces."""

    def run() -> Any:
        with stock_convolution() if name == "stock" else contextlib.nullcontext():
            return program()

    return run


def random_batch(arch: str, size: int, *, dtype: str = "float32") -> tuple[Classifier, Tree, Batch]:
    """Return a classifier with its initial variables, and uniform images of its shape."""
    classifier, batch = models.create(arch, dtype=jnp.dtype(dtype)), random_images(arch, size)
    return classifier, classifier.init(jax.random.key(1), batch.x), batch


def random_images(arch: str, size: int) -> Batch:
    """Return uniform images of a classifier's shape."""
    grey, large = (28, 28, 1), (224, 224, 3)
    shapes = {"digits_cnn": (8, 8, 1), "small_cnn": grey, "lenet5": grey, "resnet18_imagenet": large}
    x = jax.random.uniform(jax.random.key(0), (size, *shapes.get(arch, (32, 32, 3))))
    return Batch(x, jnp.arange(size) % 10)


def step_program(
    classifier: Classifier,
    batch: Batch,
    defense: Defense,
    *,
    schedule: str = "joint",
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Return a training step on some devices, by default one (see `make_step`)."""
    state = init_state(jax.random.key(0), classifier, defense, OPTIMIZERS, batch.x)
    step = make_step(defense, OPTIMIZERS, schedule=schedule, devices=devices or jax.local_devices()[:1])

    def program() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    return program


def _timed(program: Program) -> float:
    began = time.perf_counter()
    program()
    return time.perf_counter() - began
