"""The training of a run: validation, checkpoints and metrics around the loop of `train`, in a workdir or in memory.

state, best, history = train(setup, state, workdir)     # setup, state: of `setup.prepare`
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from l2ljax import checkpoint, data
from l2ljax.run.estimate import estimate
from l2ljax.run.setup import Setup
from l2ljax.run.validation import Best, restored, validate
from l2ljax.runtime import hosts, monitor
from l2ljax.runtime.workdir import ALARM, Workdir
from l2ljax.train import Interrupted, NonFiniteLoss, TrainState, due, loop
from l2ljax.types import Batch, L2LError

__all__ = ["train"]


def train(setup: Setup, state: TrainState, workdir: Workdir | None) -> tuple[TrainState, Best, list[dict[str, Any]]]:
    """Train from `state`, which is donated, or from the workdir's newest checkpoint.

    Returns:
      The state after the last step, the best one on the way, and the rows of all steps.

    Raises:
      L2LError, Interrupted: as `fit` does.
    """
    settings, history = setup.settings, list[dict[str, Any]]()
    ends = settings.on_overfitting in ("stop", "restore")
    best = Best(jnp.float32(-1), state.step, state.params, state.stats)
    checkpoints = None

    def restore() -> None:
        nonlocal checkpoints, state, best
        if workdir and not settings.no_checkpoint:
            checkpoints = checkpoint.Checkpoints(workdir.path / "checkpoints")
            step, saved = checkpoints.resume(like={"last": state, "best": best})
            state, best = saved["last"], saved["best"]
            if step:
                print(f"going on from step {step} of {setup.steps}")
        if workdir:
            workdir.forget_after(int(state.step))
            history.extend(workdir.rows())

    def save() -> None:
        if checkpoints:
            checkpoints.save(int(state.step), {"last": state, "best": best})

    hosts.on_first(restore)
    state, best = hosts.from_first((state, best))
    alarm = hosts.on_first(lambda: ends and ALARM in (history or [{}])[-1])
    if alarm or int(state.step) == setup.steps:
        return state, best, history
    best = jax.tree.map(jnp.copy, best)  # the state's own buffers are donated to the first step
    if workdir:
        print(estimate(setup, state, next(_batches(setup, int(state.step)))[1]), flush=True)
    save_every = settings.checkpoint_every or setup.epoch_steps
    before = time.perf_counter()
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_progress(setup, int(state.step)))
        asked = stack.enter_context(monitor.stopping_on_signals()) if workdir else lambda: False
        stack.enter_context(_ending(setup.settings.no_checkpoint, workdir, checkpoints, save))
        stopping = hosts.agreed(asked)
        for step, until in setup.phases:
            batches, every = _batches(setup, int(state.step)), (setup.epoch_steps, save_every)
            steps = loop(state, step, batches, steps=until, every=every, stopping=stopping)
            for state, rows in steps:
                done = rows[-1]["step"]
                if due(done, setup.epoch_steps, steps=until):
                    scores = hosts.on_first(validate, setup, state, [*history, *rows])
                    rows[-1] |= scores
                    if scores and scores["val_robust_acc"] > best.score:
                        good = state.evaluated
                        best = Best(jnp.float32(scores["val_robust_acc"]), state.step, good.params, good.stats)
                        best = jax.tree.map(jnp.copy, best)  # training donates the state
                now = time.perf_counter()
                rows[-1]["seconds"], before = now - before, now
                history += rows
                if workdir and hosts.is_first():
                    workdir.record(rows)
                monitor.show(bar, rows, settings.batch_size)
                alarm = ends and ALARM in rows[-1]
                if alarm and settings.on_overfitting == "restore":
                    state = restored(state, best)
                if alarm or due(done, save_every, steps=until):
                    hosts.on_first(save)
                if alarm:
                    return state, best, history
    return state, best, history


def _progress(setup: Setup, start: int) -> Any:
    """Return the bar of images per second, on a terminal of process 0 alone."""
    hidden, size = None if hosts.is_first() else True, setup.settings.batch_size  # None: shown on a terminal alone
    total, initial = setup.steps * size, start * size
    return tqdm(total=total, initial=initial, unit="img", unit_scale=True, leave=False, disable=hidden)


@contextlib.contextmanager
def _ending(
    no_checkpoint: bool, workdir: Workdir | None, checkpoints: checkpoint.Checkpoints | None, save: Callable[[], None]
) -> Iterator[None]:
    """Save the state where training is interrupted, and say what is saved where its loss is not finite."""
    try:
        yield
    except NonFiniteLoss as error:
        if not hosts.is_first():
            raise  # process 0 knows the checkpoints
        saved = checkpoints.latest() if checkpoints else None
        last = "no checkpoint is saved" if saved is None else f"the last good checkpoint is that of step {saved}"
        place = f" in {workdir.path}" if workdir else ""
        raise L2LError(f"{error}, {last}{place}: lower --lr or --eps, or use float32") from error
    except Interrupted as stop:
        if no_checkpoint:
            raise L2LError(f"{stop}; nothing is saved, because of --no-checkpoint") from stop
        hosts.on_first(save)
        raise


def _batches(setup: Setup, start: int) -> Iterator[tuple[int, Batch]]:
    """Return this process's part of the batches from step `start` on."""
    dataset, settings = setup.dataset, setup.settings
    augment, size = settings.augment or dataset.augment, settings.batch_size
    part, times = hosts.part(), settings.replays or 1
    first = start // times
    batches = data.stream(dataset.train, setup.data_key, batch_size=size, augment=augment, start=first, part=part)
    mixing = data.Mixing(settings.cutout or 0, settings.cutmix or 0, settings.label_smoothing or 0)
    if any(mixing):
        batches = data.mixed(batches, setup.data_key, mixing, setup.num_logits, part)
    return data.repeated(batches, times, start)
