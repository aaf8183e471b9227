"""A whole run: data -> training -> evaluation -> report. The scripts in experiments/ are a call of `main`.

main("cifar10")                                        # reads the command line
run(resolve("digits", "rnn_adv", Config(epochs=3)))    # returns the content of report.json
"""

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from l2ljax import attacks, checkpoint, cost, data, defenses, models, monitor, recipes, report, threat
from l2ljax.config import Config, Run, is_own, methods, resolve
from l2ljax.evaluate import Evaluation, evaluate
from l2ljax.train import AXIS, Interrupted, NonFiniteLoss, Step, TrainState, fit, init_state, make_step
from l2ljax.types import Array, Attack, Batch, Classifier, Defense, Key, L2LError, LogitsFn, Players
from l2ljax.workdir import Workdir

VALIDATION_ATTACK = "pgd10"
EVAL_BATCH = 250


class Best(NamedTuple):
    """The parameters with the highest PGD-10 accuracy on the validation images so far."""

    score: Array
    """That accuracy; -1 before the first validation."""
    step: Array
    params: Players
    stats: Players


class Setup(NamedTuple):
    """What a run is made of."""

    spec: Run
    devices: list[jax.Device]
    ball: threat.Ball
    dataset: data.Dataset
    eval_split: data.Split
    classifier: Classifier
    defense: Defense
    step: Step
    steps: int
    epoch_steps: int
    data_key: Key
    eval_key: Key

    def logits_fn(self, params: Players, stats: Players) -> LogitsFn:
        """The classifier in evaluation mode; other weights do not recompile."""
        variables = {"params": params.classifier, "batch_stats": stats.classifier}
        return jax.tree_util.Partial(self.classifier.logits, variables)


def main(dataset: str) -> None:
    """The command line of experiments/DATASET.py. An error of ours is one line on stderr and exit status 2."""
    description = f"Adversarial training on {dataset}. Its recipes, of which flags replace entries:"
    config = tyro.cli(Config, description=f"{description}\n\n{recipes.table(dataset)}")
    try:
        specs = [resolve(dataset, method, config) for method in methods(config.method)]
        results = [run(spec) for spec in specs]
        if len(results) > 1:
            print("\n" + report.table(results))
    except L2LError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(f"{stop}: run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def run(spec: Run) -> dict[str, Any]:
    """Train as `spec` says, or go on with it; evaluate; leave everything in its workdir.

    Returns:
      The content of report.json.

    Raises:
      L2LError: bad settings, no data, a workdir of another run, a loss that is not finite, a full disk.
      Interrupted: SIGTERM or Ctrl-C during training; the state is saved.
    """
    setup, state = prepare(spec)
    workdir = Workdir(spec.workdir, spec.saved())
    checkpoints = None if spec.config.no_checkpoint else checkpoint.Checkpoints(spec.workdir / "checkpoints")
    best = Best(jnp.float32(-1), state.step, state.params, state.stats)
    if checkpoints and checkpoints.latest() is not None:
        saved = checkpoints.restore(like={"last": state, "best": best})
        state, best = saved["last"], saved["best"]
        print(f"going on from step {int(state.step)} of {setup.steps}")
    state, best, seconds = _train(setup, state, best, workdir, checkpoints)
    result = _evaluate(setup, state, best, seconds)
    figures = _draw(setup, state, workdir)
    report.write(spec.workdir, result, figures)
    print(report.table([result]))
    print(f"report, figures and checkpoints: {spec.workdir}")
    return result


def prepare(spec: Run) -> tuple[Setup, TrainState]:
    """Everything a run needs, and the state before its first step."""
    config, recipe = spec.config, spec.recipe
    devices = _devices(config.devices, recipe.batch_size)
    ball = threat.BALLS[config.norm](spec.eps)
    dataset = data.load(
        spec.dataset,
        config.data_dir,
        train_size=config.train_size,
        val_size=recipe.val_size,
        seed=config.seed,
    )
    classifier = models.create(recipe.arch, num_classes=dataset.num_classes, dtype=jnp.dtype(config.dtype))
    defense = defenses.create(spec.method, classifier, ball, axis_name=AXIS, **spec.options)
    epoch_steps = data.steps_per_epoch(len(dataset.train.labels), recipe.batch_size)
    optimizers = recipes.optimizers(recipe, epoch_steps)
    k_init, k_data, k_eval = jax.random.split(jax.random.key(config.seed), 3)
    images = jnp.asarray(dataset.train.images[:2], jnp.float32) / 255
    state = init_state(k_init, classifier, defense, optimizers, images)
    if config.attacker_from:
        state = _with_attacker_from(config.attacker_from, state)
    setup = Setup(
        spec=spec,
        devices=devices,
        ball=ball,
        dataset=dataset,
        eval_split=data.Split(*(a[: config.eval_size] for a in dataset.test)),
        classifier=classifier,
        defense=defense,
        step=make_step(defense, optimizers, schedule=config.schedule, devices=devices),
        steps=recipe.epochs * epoch_steps,
        epoch_steps=epoch_steps,
        data_key=k_data,
        eval_key=k_eval,
    )
    return setup, state


def _train(
    setup: Setup, state: TrainState, best: Best, workdir: Workdir, checkpoints: checkpoint.Checkpoints | None
) -> tuple[TrainState, Best, float]:
    """The state after the last step, the best one on the way, and the seconds since `state`."""
    spec, first = setup.spec, int(state.step)
    workdir.forget_after(first)
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
        augment, size = setup.dataset.augment, spec.recipe.batch_size
        return data.stream(setup.dataset.train, setup.data_key, batch_size=size, augment=augment, start=start)

    print(_estimate(setup, state, next(batches(first))[1]), flush=True)
    size = spec.recipe.batch_size
    began = time.perf_counter()
    with (
        monitor.stopping_on_signals() as stopping,
        tqdm(total=setup.steps * size, initial=first * size, unit="img", unit_scale=True, leave=False) as bar,
    ):
        try:
            state = fit(
                state,
                setup.step,
                batches(first),
                steps=setup.steps,
                record=monitor.recorder(bar, size, workdir.record),
                save=save,
                save_every=spec.config.checkpoint_every or setup.epoch_steps,
                validate=validate,
                validate_every=setup.epoch_steps,
                stopping=stopping,
            )
        except NonFiniteLoss as error:
            saved = checkpoints.latest() if checkpoints else None
            last = "no checkpoint is saved" if saved is None else f"the last good checkpoint is that of step {saved}"
            raise L2LError(f"{error}, {last} in {spec.workdir}: lower --lr or --eps, or use float32") from error
        except Interrupted as stop:
            if not checkpoints:
                raise L2LError(f"{stop}; nothing is saved, because of --no-checkpoint") from stop
            raise
    return state, best, time.perf_counter() - began


def _estimate(setup: Setup, state: TrainState, batch: Batch) -> str:
    """How long the run will take on this device, from a few steps and passes of it."""
    logits_fn = setup.logits_fn(state.params, state.stats)
    step = monitor.step_seconds(setup.step, state, batch)
    left = setup.steps - int(state.step)
    n_val, n_test = len(setup.dataset.val.labels), len(setup.eval_split.labels)
    size = min(EVAL_BATCH, n_test)
    x, y = jnp.asarray(setup.eval_split.images[:size], jnp.float32) / 255, setup.eval_split.labels[:size]
    one = monitor.pass_seconds(logits_fn, x, y) / size
    counted = sum(
        cost.passes(attack, logits_fn, x, y) for attack in _attacks(setup, state.params, state.stats).values()
    )
    counts = counted * (2 if n_val else 1) * n_test  # the last parameters and the best ones
    validation = cost.passes(attacks.create(VALIDATION_ATTACK, setup.ball), logits_fn, x, y) * n_val
    reporting = one * (counts + validation * -(-left // setup.epoch_steps))
    spec, device = setup.spec, f"{len(setup.devices)} x {setup.devices[0].device_kind}"
    return (
        f"{spec.method}, {spec.recipe.arch} on {spec.dataset}: {left} steps of {spec.recipe.batch_size} images at "
        f"{1000 * step:.0f} ms on {device}, then evaluation; "
        f"estimate {monitor.duration(left * step + reporting)}, compilation apart"
    )


def _attacks(setup: Setup, params: Players, stats: Players) -> dict[str, Attack]:
    """The report's attacks; `own` is there only where an attacker was trained."""
    found = {}
    for name in setup.spec.attack_names:
        if is_own(name):
            steps = int(name[3:]) if name[3:] else None
            own = setup.defense.attack(params.attacker, stats.attacker, **({"steps": steps} if steps else {}))
            if own is not None:
                found[name] = own
        else:
            found[name] = attacks.create(name, setup.ball)
    return found


def _evaluate(setup: Setup, state: TrainState, best: Best, seconds: float) -> dict[str, Any]:
    """The content of report.json."""
    spec = setup.spec

    def scores(params: Players, stats: Players, whose: str) -> dict[str, Any]:
        with tqdm(total=1 + len(spec.attack_names), leave=False) as bar:

            def progress(name: str) -> None:
                bar.set_description(f"evaluating the {whose} parameters: {name}")
                bar.update()

            result: Evaluation = evaluate(
                setup.logits_fn(params, stats),
                setup.eval_split,
                _attacks(setup, params, stats),
                key=setup.eval_key,
                batch_size=EVAL_BATCH,
                progress=progress,
            )
        rows = {
            name: {"robust_acc": row.robust_acc, "seconds": row.seconds, "passes": row.passes}
            for name, row in result.attacks.items()
        }
        return {
            "clean_acc": result.clean_acc,
            "classes_predicted": result.classes_predicted,
            "attacks": rows,
            "worst_case_acc": result.worst_case_acc,
        }

    result = {
        "method": spec.method,
        "dataset": spec.dataset,
        "arch": spec.recipe.arch,
        "eps": spec.recipe.eps,
        "norm": spec.config.norm,
        "seed": spec.config.seed,
        "epochs": spec.recipe.epochs,
        "eval_size": len(setup.eval_split.labels),
        **scores(state.params, state.stats, "last"),
        "train_seconds": seconds,
        "parameters": {k: _size(v) for k, v in state.params._asdict().items()},
        "versions": versions(),
        "command": shlex.join(sys.argv),
    }
    if best.score >= 0:
        result["best"] = {
            "step": int(best.step),
            "val_robust_acc": float(best.score),
            **scores(best.params, best.stats, "best"),
        }
    return result


def _draw(setup: Setup, state: TrainState, workdir: Workdir) -> list[Path]:
    """Draw the figures; returns their paths."""
    rows = workdir.rows()
    validations = [
        {"step": row["step"], "clean_acc": row["val_clean_acc"], "robust_acc": row["val_robust_acc"]}
        for row in rows
        if "val_clean_acc" in row
    ]
    curves, grid = workdir.figures / "training.png", workdir.figures / "perturbations.png"
    report.training_curves(curves, rows, validations)
    logits_fn = setup.logits_fn(state.params, state.stats)
    x, y = jnp.asarray(setup.eval_split.images[:8], jnp.float32) / 255, setup.eval_split.labels[:8]
    x_adv = jax.jit(attacks.create("pgd20", setup.ball))(logits_fn, setup.eval_key, x, y)
    predictions = np.asarray(jax.jit(lambda f, x: f(x))(logits_fn, x_adv)).argmax(axis=1)
    report.perturbation_grid(grid, x, x_adv, y, predictions, setup.dataset.class_names)
    return [curves, grid]


def versions() -> dict[str, str]:
    """What a result depends on."""
    packages = ("l2ljax", "jax", "jaxlib", "flax", "optax", "numpy")
    found: dict[str, str] = {name: importlib.metadata.version(name) for name in packages}
    return {**found, "python": platform.python_version(), "device": jax.devices()[0].device_kind}


def _with_attacker_from(workdir: str, state: TrainState) -> TrainState:
    """The state with the attacker that another run ended with."""
    saved = checkpoint.Checkpoints(Path(workdir).expanduser() / "checkpoints")
    params = saved.restore(like=state.params.attacker, prefix="['last'].params.attacker")
    stats = saved.restore(like=state.stats.attacker, prefix="['last'].stats.attacker")
    return state._replace(params=state.params._replace(attacker=params), stats=state.stats._replace(attacker=stats))


def _devices(wanted: int | None, batch_size: int) -> list[jax.Device]:
    local = jax.local_devices()
    n = len(local) if wanted is None else wanted
    if n > len(local):
        raise L2LError(f"--devices={n}: this machine has {len(local)}")
    if batch_size % n:
        raise L2LError(
            f"--batch-size={batch_size} does not split over {n} devices: give a multiple of {n}, or --devices"
        )
    return local[:n]


def _size(tree: Mapping[str, Any]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
