"""Benchmarks: our programs and others', timed in turn in one run, so that their ratios hold on a noisy machine.

    rows = alternate({"scan": lambda: attack(x), "unrolled": lambda: other(x)}, images=128)

`training` and `rivals` build further programs.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2ljax import models, threat
from l2ljax.attacks import gradient, learned
from l2ljax.attacks.ascent import clean
from l2ljax.defenses import saddle
from l2ljax.models import attackers
from l2ljax.models.layers import stock_convolution
from l2ljax.train import AXIS, init_state, make_step
from l2ljax.types import Attack, Batch, Classifier, Defense, Players, Tree

__all__ = [
    "BALL", "OPTIMIZERS", "STEP", "Program", "alternate", "attack_programs", "compile_clock",
    "grad_l2l", "matrix_ceiling", "memory_of", "pgd_adv", "random_batch", "random_images", "step_program",
    "training_programs",
]  # fmt: skip

Program = Callable[[], Any]
"""Run once and wait for the result."""
OPTIMIZERS = Players(optax.sgd(0.01, momentum=0.9), optax.adam(1e-3))
"""The optimizers of timed training steps."""
BALL = threat.linf(8 / 255)
STEP = 2 / 255


def alternate(
    programs: Mapping[str, Program],
    *,
    images: int,
    repeats: int = 7,
    patience: float = 40.0,
    after_round: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, dict[str, Any]]:
    """Time programs in turn: A B C A B C ...

    Args:
      programs: name -> program. The first call, which compiles, is timed separately.
      images: images per call.
      repeats: counted calls of each; a program that would take longer than `patience` seconds in all, by its first
        round, is called fewer times, at least once.
      patience: in seconds.
      after_round: gets the results so far after each round.

    Returns:
      name -> {"first_seconds", "seconds" (of each counted call), "images_per_second" (by their median)}.
    """
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for name, program in programs.items():
        first[name] = _timed(program)
    for _ in range(repeats):
        for name, program in programs.items():
            if not times[name] or (len(times[name]) + 1) * times[name][0] < patience:
                times[name].append(_timed(program))
        rows = {
            name: {
                "first_seconds": first[name],
                "seconds": list(seconds),
                "images_per_second": images / statistics.median(seconds),
            }
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
    seconds = [_timed(functools.partial(_wait_for, product, a)) for _ in range(6)]
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


def attack_programs(
    classifier: Classifier, variables: Tree, batch: Batch, steps: int, stock: bool
) -> dict[str, Program]:
    """Return PGD with each convolution, as a scan and unrolled; `stock` adds the stock convolution inside a scan."""
    args = (jax.tree_util.Partial(classifier.logits, variables), jax.random.key(0), *batch)

    def compiled(attack: Attack, convolution: str) -> Program:
        with _convolution(convolution):
            run = jax.jit(attack).lower(*args)
        return functools.partial(_wait_for, run.compile(), *args)

    def pgd(unroll: bool) -> Attack:
        return gradient.gradient_attack(BALL, gradient.steepest_ascent(BALL, STEP), steps=steps, unroll=unroll)

    return {
        f"{convolution}, {'unrolled' if unroll else 'scan'}": compiled(pgd(unroll), convolution)
        for convolution, unroll in _variants(stock)
    }


def training_programs(
    classifier: Classifier, batch: Batch, defense: Callable[[bool], Defense], stock: bool
) -> dict[str, Program]:
    """Return joint training steps with each convolution, the attack as a scan and unrolled."""
    programs = {}
    for convolution, unroll in _variants(stock):
        programs[f"{convolution}, {'unrolled' if unroll else 'scan'}"] = step_program(
            classifier, batch, defense(unroll), convolution=convolution
        )
    return programs


def pgd_adv(classifier: Classifier, steps: int, unroll: bool) -> Defense:
    """Return the benchmark's PGD adversarial training."""
    rule = learned.fixed(gradient.steepest_ascent(BALL, STEP))
    return saddle.unrolled(classifier, rule, BALL, saddle.adversarial(), steps=steps, unroll=unroll, axis_name=AXIS)


def grad_l2l(classifier: Classifier, width: int, unroll: bool) -> Defense:
    """Return Grad L2L with a wide attacker of the given width."""
    network = attackers.create("wide", width=width)
    player = learned.convolutional(network, inputs=("image", "gradient"))
    return saddle.unrolled(
        classifier, player, BALL, saddle.adversarial(), steps=1, start=clean, unroll=unroll, axis_name=AXIS
    )


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
    convolution: str = "own",
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Return a training step on some devices, by default one (see `make_step`)."""
    state = init_state(jax.random.key(0), classifier, defense, OPTIMIZERS, batch.x)
    step = make_step(defense, OPTIMIZERS, schedule=schedule, devices=devices or jax.local_devices()[:1])

    def program() -> None:
        nonlocal state
        with _convolution(convolution):  # takes effect when the first call traces
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return program


def _wait_for(function: Callable[..., Any], *args: Any) -> None:
    jax.block_until_ready(function(*args))


def _variants(stock: bool) -> Iterator[tuple[str, bool]]:
    yield from [("own", False), ("own", True), ("stock", True)]
    if stock:
        yield ("stock", False)


def _convolution(name: str) -> contextlib.AbstractContextManager[Any]:
    return stock_convolution() if name == "stock" else contextlib.nullcontext()


def _timed(program: Program) -> float:
    began = time.perf_counter()
    program()
    return time.perf_counter() - began
