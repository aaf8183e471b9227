"""A run's length, estimated before it begins: `estimate(setup, state, batch)`."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import attacks, cost, data, devices, losses
from l2ljax.run.setup import EVAL_BATCH, Setup, named_attacks
from l2ljax.runtime import monitor
from l2ljax.train import Step, TrainState
from l2ljax.types import Array, Batch, LogitsFn

__all__ = ["estimate"]

REPEATS = 3
"""The number of timed steps, and of timed passes."""


def estimate(setup: Setup, state: TrainState, batch: Batch) -> str:
    """Return how long the run will take on this device, from a few steps and passes of it."""
    began, logits_fn = time.perf_counter(), setup.logits_fn(state.params, state.stats)
    step = _step_seconds(setup.phases[-1][0], state, batch)
    compiling = time.perf_counter() - began
    left, n_val, n_test = setup.steps - int(state.step), len(setup.dataset.val.labels), len(setup.eval_split.labels)
    n_val *= setup.settings.selection != "last"
    rows = np.resize(np.arange(n_test), devices.round_up(min(EVAL_BATCH, n_test)))
    x, y = devices.shard((data.pixels(setup.eval_split.images[rows]), setup.eval_split.labels[rows]))
    reported, selecting = named_attacks(setup, state.params, state.stats), setup.settings.selection_attack
    named = reported | ({selecting: attacks.create(selecting, setup.ball)} if n_val else {})
    passes = {name: cost.passes(attack, logits_fn, x, y) for name, attack in named.items()}
    averaged = bool(state.average)  # then the raw parameters are validated and reported, too
    counts = sum(passes[name] or 0 for name in reported) * (1 + bool(n_val) + averaged) * n_test
    validation = (1 + (passes.get(selecting) or 0)) * n_val * (1 + averaged)  # 1: that of FGSM
    unknown = [name for name, count in passes.items() if count is None]
    seconds = _pass_seconds(devices.replicate(logits_fn), x, y) / len(x)
    reporting = seconds * (counts + validation * -(-left // setup.epoch_steps))
    compiling *= len(reported) + bool(n_val)  # each attack is a program about as large as the step
    total, of_it = (monitor.duration(s) for s in (left * step + reporting + compiling, compiling))
    settings, device = setup.settings, f"{len(setup.devices)} x {setup.devices[0].device_kind}"
    return (
        f"{settings.method}, {settings.arch} on {settings.dataset} ({setup.dataset.sizes}), recipe {settings.recipe} "
        f"({settings.source}), {settings.training}: {left} steps of {settings.batch_size} images at "
        f"{1000 * step:.0f} ms on {device}, then evaluation; estimate {total}, {of_it} of it to compile"
        + (f"; without {', '.join(unknown)}, whose passes depend on the images" if unknown else "")
    )


def _step_seconds(step: Step, state: TrainState, batch: Batch) -> float:
    """Return the seconds of one training step after compilation, measured on a copy of the state."""
    state, _ = step(jax.tree.map(jnp.copy, state), batch)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(REPEATS):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / REPEATS


def _pass_seconds(logits_fn: LogitsFn, x: Array, y: Array) -> float:
    """Return the seconds of one pass (forward and input gradient) over a batch, without compilation."""

    @jax.jit
    @devices.on_each
    def one(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        return jax.grad(lambda x: losses.cross_entropy(logits_fn(x), y).sum())(x)

    one(logits_fn, x, y).block_until_ready()
    began = time.perf_counter()
    for _ in range(REPEATS):
        one(logits_fn, x, y).block_until_ready()
    return (time.perf_counter() - began) / REPEATS
