"""One training step for benchmarks: ours or a rival's in torch, and its multiplications.

task = training.Task("resnet20", "float32", 128, "grad_l2l:alternating", eps=8 / 255, attacker_width=16)
programs = training.builders(task, rival=True)          # name -> what builds the program
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench import benchmark, rivals
from bench.benchmark import Program
from l2ljax import cost, defenses, devices, models, threat
from l2ljax.train import AXIS, SCHEDULES, TrainState, init_state
from l2ljax.types import Array, Batch, Classifier, Defense, L2LError, Tree, example_keys

__all__ = ["Task", "builders", "defense", "known", "network", "options", "ours"]


class Task(NamedTuple):
    """A training step of one method."""

    arch: str
    dtype: str
    batch_size: int
    method: str
    """METHOD (joint) or METHOD:SCHEDULE."""
    eps: float
    steps: int | None = None
    """Steps of the attack, by default the method's; methods without steps ignore it."""
    attacker_width: int | None = None
    """Width of a convolutional attacker, by default the papers'."""

    @property
    def name(self) -> str:
        """The method without the schedule."""
        return self.method.partition(":")[0]

    @property
    def schedule(self) -> str:
        """One of `train.SCHEDULES`; another raises an L2LError."""
        chosen = self.method.partition(":")[2] or "joint"
        if chosen not in SCHEDULES:
            raise L2LError(f"unknown schedule in {self.method}: choose METHOD:{', METHOD:'.join(SCHEDULES)}")
        return chosen


def options(task: Task) -> dict[str, Any]:
    """Return the method's options: its defaults and the task's."""
    known = defenses.options(task.name)
    chosen = {"steps": task.steps, "attacker_width": task.attacker_width}
    return known | {name: value for name, value in chosen.items() if name in known and value is not None}


def network(task: Task) -> tuple[Classifier, Batch]:
    """Return the classifier and its training images."""
    return models.create(task.arch, dtype=jnp.dtype(task.dtype)), benchmark.random_images(task.arch, task.batch_size)


def defense(task: Task, classifier: Classifier, axis_name: str | None = AXIS) -> Defense:
    """Return the task's defense."""
    return defenses.create(task.name, classifier, threat.linf(task.eps), axis_name=axis_name, **options(task))


def ours(task: Task, count: int | None = None) -> Program:
    """Return our step on the first `count` local devices; on all by default."""
    classifier, batch = network(task)
    return benchmark.step_program(
        classifier, batch, defense(task, classifier), schedule=task.schedule, devices=devices.first(count)
    )


def known(task: Task) -> dict[str, Any]:
    """Count the work of a step without running it.

    Returns:
      "flops", two per multiplication of convolutions and matrix products, the attacker's included, and
      "attacker_parameters".
    """
    classifier, batch = network(task)
    alone = defense(task, classifier, axis_name=None)
    modes = ("classifier", "attacker") if task.schedule == "alternating" else (task.schedule,)
    start = lambda key: init_state(key, classifier, alone, benchmark.OPTIMIZERS, batch.x)
    state = jax.eval_shape(start, jax.random.key(0))

    def gradient(state: TrainState, mode: str) -> Tree:
        def objective(moved: dict[str, Tree]) -> Array:
            keys = example_keys(state.key, len(batch.x))
            return alone.objective(state.params._replace(**moved), state.stats, keys, batch, mode)[0]

        moving = [name for name, moves in SCHEDULES[mode]._asdict().items() if moves]
        return jax.grad(objective)({name: getattr(state.params, name) for name in moving})

    counted = [cost.multiplications(cost.mark(functools.partial(gradient, mode=mode)), state) for mode in modes]
    return {
        "flops": 2 * sum(counted), "attacker_parameters": sum(p.size for p in jax.tree.leaves(state.params.attacker)),
    }  # fmt: skip


def builders(task: Task, *, rival: bool, count: int | None = None) -> dict[str, Callable[[], Program]]:
    """Return name -> builder of our step, and of torch's if requested, after `torch_training.check`."""
    programs: dict[str, Callable[[], Program]] = {"l2ljax": functools.partial(ours, task, count)}
    if rival:
        torch_training = rivals.package("bench.torch_training")
        for which in torch_training.check(task):
            name = ", ".join(filter(None, [rivals.named("torch"), which]))
            programs[name] = functools.partial(torch_training.program, task, which)
    return programs
