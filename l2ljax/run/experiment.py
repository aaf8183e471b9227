"""A whole run: data -> training -> evaluation -> report. The scripts in experiments/ are a call of `main`.

main("cifar10")                                        # reads the command line
run(resolve("digits", "rnn_adv", Config(epochs=3)))    # returns the content of report.json
"""

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from tqdm import tqdm

from l2ljax import attacks, checkpoint, cost, data
from l2ljax.attacks import names
from l2ljax.evaluate import evaluate
from l2ljax.report import markdown
from l2ljax.run import recipes, seeds
from l2ljax.run.config import Config, Run, methods
from l2ljax.run.results import Best, draw, summarize
from l2ljax.run.setup import EVAL_BATCH, Setup, named_attacks, prepare
from l2ljax.runtime import hosts, imports, monitor
from l2ljax.runtime.workdir import Workdir
from l2ljax.train import Interrupted, NonFiniteLoss, TrainState, fit
from l2ljax.types import Batch, L2LError

__all__ = ["main", "run", "run_once", "train"]

VALIDATION_ATTACK = "pgd10"


def main(dataset: str) -> None:
    """The command line of experiments/DATASET.py. An error of ours is one line on stderr and exit status 2."""
    arguments = imports.load()
    description = f"Adversarial training on {dataset}. Its recipes, of which flags replace entries:"
    tables = f"{recipes.table(dataset)}\n\nIts attacks:\n\n{names.table()}\n\n{imports.HELP}"
    config = tyro.cli(Config, args=arguments, description=f"{description}\n\n{tables}")
    with (
        monitor.script(config.devices),
        hosts.joined(
            config.coordinator,
            config.num_processes,
            config.process_id,
            distributed=config.distributed,
            heartbeat_timeout=config.heartbeat_timeout,
        ),
    ):
        specs = {method: seeds.plan(dataset, method, config) for method in methods(config.method)}
        if config.seeds > 1:
            rows = {method: [run_once(spec) for spec in of] for method, of in specs.items()}
            folder, summary = hosts.on_first(seeds.write, dataset, config, rows)
            print(f"\n{summary}\nreport over seeds: {folder}")
            return
        results = [run(spec) for of in specs.values() for spec in of]
        if len(results) > 1:
            print("\n" + markdown.table(results))


def run_once(spec: Run) -> dict[str, Any]:
    """What `run` returns, or returned when it was run before."""
    report: dict[str, Any] | None = hosts.on_first(lambda: seeds.finished(spec))
    return run(spec) if report is None else report


def run(spec: Run) -> dict[str, Any]:
    """Train as `spec` says, or go on with it; evaluate; leave everything in its workdir.

    Of many processes (see `hosts`) all train; process 0 alone evaluates, on its own devices, and touches the workdir,
    while the others wait. What a run reads (data, --init-from, --attacker-from, trained:) all of them read.

    Returns:
      The content of report.json.

    Raises:
      L2LError: bad settings, no data, a workdir of another run, a loss that is not finite, a full disk.
      Interrupted: SIGTERM or Ctrl-C during training; the state is saved.
    """
    setup, state = prepare(spec)
    workdir = hosts.on_first(Workdir, spec.workdir, {**spec.saved(), **setup.hardware()})
    state, best, seconds = train(setup, state, workdir)

    def write_report() -> dict[str, Any]:
        result = summarize(setup, state, best, seconds)
        figures = draw(setup, state, workdir)
        markdown.write(spec.workdir, result, figures)
        return result

    result = hosts.on_first(write_report)
    print(markdown.table([result]))
    print(f"report, figures and checkpoints: {spec.workdir}")
    return result


def train(setup: Setup, state: TrainState, workdir: Workdir) -> tuple[TrainState, Best, float]:
    """The state after the last step, the best one on the way, and the seconds since `state`, which is donated.

    Goes on from the workdir's newest checkpoint where there is one. Raises what `run` does.
    """
    spec = setup.spec
    best = Best(jnp.float32(-1), state.step, state.params, state.stats)
    checkpoints = None

    def restore() -> None:
        nonlocal checkpoints, state, best
        if not spec.config.no_checkpoint:
            checkpoints = checkpoint.Checkpoints(spec.workdir / "checkpoints")
            if checkpoints.latest() is not None:
                saved = checkpoints.restore(like={"last": state, "best": best})
                state, best = saved["last"], saved["best"]
                print(f"going on from step {int(state.step)} of {setup.steps}")
        workdir.forget_after(int(state.step))

    hosts.on_first(restore)
    state, best = hosts.from_first((state, best))
    first = int(state.step)
    if first == setup.steps:
        return state, best, 0.0
    best = jax.tree.map(jnp.copy, best)  # the state's own buffers are donated to the first step
    attack = {VALIDATION_ATTACK: attacks.create(VALIDATION_ATTACK, setup.ball)}

    def validate(state: TrainState) -> dict[str, float]:
        nonlocal best
        if not len(setup.dataset.val.labels):
            return {}
        logits_fn = setup.logits_fn(state.params, state.stats)
        scores = evaluate(logits_fn, setup.dataset.val, attack, key=setup.eval_key, batch_size=EVAL_BATCH)
        if scores.worst_case_acc > best.score:
            now = Best(jnp.float32(scores.worst_case_acc), state.step, state.params, state.stats)
            best = jax.tree.map(jnp.copy, now)
        return {"val_clean_acc": scores.clean_acc, "val_robust_acc": scores.worst_case_acc}

    def save(state: TrainState) -> None:
        if checkpoints:
            checkpoints.save(int(state.step), {"last": state, "best": best})

    def batches(start: int) -> Iterator[tuple[int, Batch]]:
        augment, size = spec.recipe.augment or setup.dataset.augment, spec.recipe.batch_size
        return data.stream(
            setup.dataset.train, setup.data_key, batch_size=size, augment=augment, start=start, part=hosts.part()
        )

    print(_estimate(setup, state, next(batches(first))[1]), flush=True)
    size = spec.recipe.batch_size
    began = time.perf_counter()
    with (
        monitor.stopping_on_signals() as stopping,
        tqdm(
            total=setup.steps * size,
            initial=first * size,
            unit="img",
            unit_scale=True,
            leave=False,
            disable=not hosts.is_first(),
        ) as bar,
    ):
        record = workdir.record if hosts.is_first() else lambda rows: None
        try:
            for step, until in setup.phases:
                state = fit(
                    state,
                    step,
                    batches(int(state.step)),
                    steps=until,
                    record=monitor.recorder(bar, size, record),
                    save=functools.partial(hosts.on_first, save),
                    save_every=spec.config.checkpoint_every or setup.epoch_steps,
                    validate=functools.partial(hosts.on_first, validate),
                    validate_every=setup.epoch_steps,
                    stopping=hosts.agreed(stopping),
                )
        except NonFiniteLoss as error:
            if not hosts.is_first():
                raise  # process 0 knows the checkpoints
            saved = checkpoints.latest() if checkpoints else None
            last = "no checkpoint is saved" if saved is None else f"the last good checkpoint is that of step {saved}"
            raise L2LError(f"{error}, {last} in {spec.workdir}: lower --lr or --eps, or use float32") from error
        except Interrupted as stop:
            if spec.config.no_checkpoint:
                raise L2LError(f"{stop}; nothing is saved, because of --no-checkpoint") from stop
            raise
    return state, best, time.perf_counter() - began


def _estimate(setup: Setup, state: TrainState, batch: Batch) -> str:
    """How long the run will take on this device, from a few steps and passes of it."""
    logits_fn = setup.logits_fn(state.params, state.stats)
    step = monitor.step_seconds(setup.phases[-1][0], state, batch)
    left = setup.steps - int(state.step)
    n_val, n_test = len(setup.dataset.val.labels), len(setup.eval_split.labels)
    size = min(EVAL_BATCH, n_test)
    x, y = jnp.asarray(data.pixels(setup.eval_split.images[:size])), setup.eval_split.labels[:size]
    one = monitor.pass_seconds(logits_fn, x, y) / size
    counted = sum(
        cost.passes(attack, logits_fn, x, y) for attack in named_attacks(setup, state.params, state.stats).values()
    )
    counts = counted * (2 if n_val else 1) * n_test  # the last parameters and the best ones
    validation = cost.passes(attacks.create(VALIDATION_ATTACK, setup.ball), logits_fn, x, y) * n_val
    reporting = one * (counts + validation * -(-left // setup.epoch_steps))
    spec, device = setup.spec, f"{len(setup.devices)} x {setup.devices[0].device_kind}"
    return (
        f"{spec.method}, {spec.recipe.arch} on {spec.dataset}, trained as in {spec.recipe.source}: {left} steps of "
        f"{spec.recipe.batch_size} images at "
        f"{1000 * step:.0f} ms on {device}, then evaluation; "
        f"estimate {monitor.duration(left * step + reporting)}, compilation apart"
    )
