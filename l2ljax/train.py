"""Training: the state of both players, the step that updates them, and the loop around it.

defense = defenses.create("rnn_adv", classifier, ball, axis_name=AXIS)
optimizers = Players(optax.sgd(0.1, momentum=0.9), optax.adam(1e-3))
state = init_state(key, classifier, defense, optimizers, x)
step = make_step(defense, optimizers, schedule="joint")
state, metrics = step(state, batch)
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2ljax.types import Array, Batch, Classifier, Defense, Key, L2LError, Players, Tree

__all__ = [
    "AXIS", "IN_FLIGHT", "SCHEDULES", "Interrupted", "NonFiniteLoss", "Step", "TrainState", "averaged", "due",
    "init_state", "loop", "make_step", "moving_average", "wide_copy",
]  # fmt: skip
__dir__ = lambda: __all__

AXIS = "devices"
"""The pmapped axis: build defenses for `make_step` with `axis_name=AXIS`."""

SCHEDULES = {
    "joint": Players(True, True),
    "alternating": Players(True, True),
    "classifier": Players(True, False),
    "attacker": Players(False, True),
}
"""Name -> the players that move; see `make_step`."""

IN_FLIGHT = 2
"""The largest number of steps in flight on CPU devices; XLA hangs at more than 32 launches, see `devices`."""


class Interrupted(Exception):
    """Training was asked to stop; its state is saved after `step` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class NonFiniteLoss(L2LError):
    """The loss or a player's gradient became NaN or infinite at `step`."""

    def __init__(self, step: int, metric: str, value: float) -> None:
        super().__init__(f"the {metric.replace('_', ' ')} is {value} at step {step}")
        self.step = step


class TrainState(NamedTuple):
    """The complete state of training between steps."""

    step: Array
    """The number of steps taken, int32."""
    params: Players
    stats: Players
    """BatchNorm's running statistics."""
    opt_state: Players
    key: Key
    """The run's key; step s draws from fold_in(key, s)."""
    average: tuple[Tree, ...] = ()
    """The classifier's averaged (params, batch_stats) in a run of `averaged`, in float32 or wider, else empty."""

    @property
    def evaluated(self) -> "TrainState":
        """The state with the averaged classifier, if there is one, in place of the raw one, in the raw one's types."""
        if not self.average:
            return self
        raw = self.params.classifier, self.stats.classifier
        params, stats = jax.tree.map(lambda a, r: a.astype(r.dtype), self.average, raw)
        both = self.params._replace(classifier=params), self.stats._replace(classifier=stats)
        return self._replace(params=both[0], stats=both[1], average=())


def init_state(key: Key, classifier: Classifier, defense: Defense, optimizers: Players, x: Array) -> TrainState:
    """Return the state before the first step. Of `x` [B, H, W, C], only the shape matters."""
    k_classifier, k_attacker, k_steps = jax.random.split(key, 3)
    variables = classifier.init(k_classifier, x)
    attacker_params, attacker_stats = defense.init(k_attacker, x)
    params = Players(variables["params"], attacker_params)
    opt_state = Players(*(jax.jit(o.init)(p) for o, p in zip(optimizers, params, strict=True)))
    stats = Players(variables["batch_stats"], attacker_stats)
    return TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state, k_steps)


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_step(
    defense: Defense, optimizers: Players, *, schedule: str = "joint", devices: Sequence[jax.Device] | None = None
) -> Step:
    """Return the training step: theta descends the defense's objective, phi ascends it, with one optax update each.

    joint:        (g_theta, g_phi) = grad J(theta, phi);  theta <- theta - a g_theta,  phi <- phi + b g_phi.
    alternating:  theta first; the attack is repeated with the new theta, and phi steps on that
                  (the released L2L code; see `defenses.saddle` for its BatchNorm modes).
    classifier:   theta alone moves.
    attacker:     phi alone moves; theta and its statistics are frozen.

    The batch is split evenly over the devices; gradients, statistics and metrics are averaged over them. Each example
    draws from a key folded from the step and its position in the *whole* batch, so the result does not depend on the
    number of devices. Of several processes (see `hosts`), each takes its part of the batch, in the order of the
    processes, and has a copy of the state on its own devices. The given state is donated: continue with the returned
    one. A step returns before it is done, but on several CPU devices it first waits until at most `IN_FLIGHT` are
    running.

    Args:
      defense: built with `axis_name=AXIS`; without it, BatchNorm sees each device's part of the batch alone.
      optimizers: optax optimizers of (classifier, attacker).
      schedule: "joint", "alternating", "classifier" or "attacker".
      devices: where to run, equally many of each process, in the order of the processes; all by default.

    Returns:
      (state, batch) -> (state, metrics), metrics a flat dict of scalars. A batch that this process's devices do not
      divide raises an L2LError.
    """
    if schedule not in SCHEDULES:
        raise L2LError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    devices = devices or sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    local = [device for device in devices if device.process_index == jax.process_index()]

    def descend(state: TrainState, keys: Key, batch: Batch, mode: str) -> tuple[TrainState, dict]:
        """Update the players that move in that mode, on one perturbation."""
        moving = [name for name, moves in zip(Players._fields, SCHEDULES[mode], strict=True) if moves]

        def objective(moved: list[Tree]) -> tuple[Array, Any]:
            params = state.params._replace(**dict(zip(moving, moved, strict=True)))
            return defense.objective(params, state.stats, keys, batch, mode)

        gradients, (stats, metrics) = jax.grad(objective, has_aux=True)([getattr(state.params, n) for n in moving])
        gradients, metrics = jax.lax.pmean((gradients, metrics), AXIS)
        stats = jax.tree.map(_mean, stats)
        params, opt_state = state.params, state.opt_state
        for name, gradient in zip(moving, gradients, strict=True):
            if name == "attacker":
                gradient = jax.tree.map(jnp.negative, gradient)  # optax descends, the attacker ascends
            before, optimizer = getattr(params, name), getattr(optimizers, name)
            updates, moments = optimizer.update(gradient, getattr(opt_state, name), before)
            params = params._replace(**{name: optax.apply_updates(before, updates)})
            opt_state = opt_state._replace(**{name: moments})
            metrics[f"{name}_gradient_norm"] = optax.tree.norm(gradient)
        return state._replace(params=params, stats=stats, opt_state=opt_state), metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        size = len(batch.x)
        positions = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, state.step), positions)
        if schedule == "alternating":
            state, metrics = descend(state, keys, batch, "classifier")
            state, attacked = descend(state, keys, batch, "attacker")
            metrics |= {"attacker_gradient_norm": attacked["attacker_gradient_norm"]}
        else:
            state, metrics = descend(state, keys, batch, schedule)
        return state._replace(step=state.step + 1), metrics

    # pmap wraps shard_map in JAX today, and needs no mesh or specs from the code that it maps.
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=list(devices))

    mesh = jax.sharding.Mesh(np.array(local), (AXIS,))  # pmap takes and returns each process's own copies and shards
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    under_way: deque[dict[str, Array]] = deque()
    bounded = len(devices) > 1 and local[0].platform == "cpu"

    def sharded_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        size, n = len(batch.x), len(local)
        if size == 0 or size % n:
            raise L2LError(f"a batch of {size} does not split over {n} devices: give a multiple of {n}")
        shards = jax.tree.map(lambda a: a.reshape(n, size // n, *a.shape[1:]), batch)
        # Placed as pmap returns them: arrays placed otherwise would compile a second program at the first step.
        state, metrics = mapped(jax.device_put(state, everywhere), jax.device_put(Batch(*shards), split))
        if bounded:
            under_way.append(metrics)
            if len(under_way) > IN_FLIGHT:
                jax.block_until_ready(under_way.popleft())
        return state, metrics

    return sharded_step


def averaged(step: Step, average: Callable[[TrainState], tuple[Tree, Tree]]) -> Step:
    """Return the step that also keeps an average of the classifier, like `moving_average`, in `TrainState.average`.

    Training does not see it, so that it leaves the raw parameters' bits as they are. Begin with copies, as a step is
    given the state's buffers: `state._replace(average=wide_copy((params, batch_stats)))`.

    Args:
      step: from `make_step`.
      average: (state after the step, with the average before it) -> the classifier's averaged (params, batch_stats).

    Raises:
      L2LError: when called, a state without an average.
    """

    @jax.jit
    def kept(state: TrainState) -> tuple[Tree, ...]:
        return jax.tree.map(lambda new, old: new.astype(old.dtype), average(state), state.average)

    def stepped(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        before = state.average
        if not before:
            raise L2LError("the state has no average: begin with state._replace(average=...), see train.averaged")
        state, metrics = step(state._replace(average=()), batch)
        raw = state.params.classifier, state.stats.classifier
        before = jax.device_put(before, jax.tree.map(lambda a: a.sharding, raw))
        return state._replace(average=kept(state._replace(average=before))), metrics

    return stepped


def wide_copy(classifier: Tree) -> Tree:
    """Return a copy to begin an average with: floats in float32 or wider, as half precision would lose small steps."""

    def copied(a: Array) -> Array:
        wide = jnp.promote_types(a.dtype, jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        return jnp.array(a, dtype=wide, copy=True)

    return jax.tree.map(copied, classifier)


def moving_average(decay: float) -> Callable[[TrainState], tuple[Tree, Tree]]:
    """Return the exponential moving average of parameters and batch statistics, for `averaged`.

        a_t = d_t a_{t-1} + (1 - d_t) theta_t,    d_t = min(decay, (1 + t) / (10 + t)),    t = 1, 2, ...

    Integers, as counters in the statistics, are the newest. The ramp of d_t forgets the random start; it is
    TensorFlow's. Averages of adversarially trained weights: Gowal et al. (2020), section 4.5.
    """

    def average(state: TrainState) -> tuple[Tree, Tree]:
        kept = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        raw = state.params.classifier, state.stats.classifier
        mean = lambda new, old: optax.incremental_update(new, old, 1 - kept)
        return jax.tree.map(lambda n, o: mean(n, o) if jnp.issubdtype(n.dtype, jnp.inexact) else n, raw, state.average)

    return average


def loop(
    state: TrainState, step: Step, batches: Iterable[tuple[int, Batch]], *, steps: int, every: Sequence[int],
    stopping: Callable[[], bool] = lambda: False, flush_seconds: float = 1.0,
) -> Iterator[tuple[TrainState, list[dict[str, float]]]]:  # fmt: skip
    """Train until `state.step == steps`, in a loop on the host that keeps the device busy.

        for state, rows in loop(state, step, batches, steps=1000, every=(100,)):
            record(rows)
            if due(rows[-1]["step"], 100, steps=1000): ...      # validate, save

    Metrics stay on the device until `flush_seconds` have passed or a step is due; then they are checked. A call is one
    step: ten in one compiled scan took 0.94 of the time of plain training (digits_cnn, batches of 100, two CPU cores),
    and the same time in PGD training.

    Args:
      state: the state to continue from; donated.
      step: from `make_step`.
      batches: (step, batch), from `state.step` on (`data.stream`).
      steps: the number of the last step.
      every: yield after each multiple of these steps.
      stopping: called after each step, the last one too; once true, the loop yields and then raises `Interrupted`.
      flush_seconds: the longest wait of metrics.

    Yields:
      (state, rows), after the steps that are `due` and about each second. The state is donated to the next step. Rows
      {"step": s, metric: value, ...} come each once and in order.

    Raises:
      NonFiniteLoss: the loss, or the norm of a gradient, is not finite; also where the optimizer skips such gradients.
      Interrupted: `stopping()`; the state yielded last is the one after that step.
    """
    pending: list[tuple[int, dict[str, Array]]] = []
    flushed = time.monotonic()
    for index, batch in batches:
        if index >= steps:
            break
        state, metrics = step(state, batch)
        done = index + 1
        pending.append((done, metrics))
        stop = stopping()
        if not (stop or any(due(done, n, steps=steps) for n in every) or time.monotonic() - flushed > flush_seconds):
            continue
        rows = [{"step": s, **{k: float(v) for k, v in metrics.items()}} for s, metrics in jax.device_get(pending)]
        pending.clear()
        finite = list(itertools.takewhile(lambda row: not _not_finite(row), rows))
        if finite:
            yield state, finite
        if len(finite) < len(rows):
            bad = rows[len(finite)]
            raise NonFiniteLoss(int(bad["step"]), *_not_finite(bad)[0])
        if stop or (done == steps and stopping()):  # the second while the last step was validated and saved
            raise Interrupted(done)
        flushed = time.monotonic()


def _mean(a: Array) -> Array:
    """Return the mean over the devices, or integers, like a count of passes, which are the same on all."""
    return jax.lax.pmean(a, AXIS) if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else a


def _not_finite(row: dict[str, float]) -> list[tuple[str, float]]:
    """Return the loss and the norms of the gradients that are not finite; the latter spoil the parameters first."""
    watched = ["loss", *(name for name in row if name.endswith("gradient_norm"))]
    return [(name, row[name]) for name in watched if not np.isfinite(row[name])]


def due(step: int | float, every: int, *, steps: int) -> bool:
    """Return whether `step` is a multiple of `every`, or the last one."""
    return step == steps or step % every == 0
