"""A run's results: the content of report.json, and figures."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from l2ljax import attacks, data
from l2ljax.evaluate import Evaluation, evaluate
from l2ljax.report import figures
from l2ljax.run.setup import EVAL_BATCH, Setup, named_attacks
from l2ljax.run.validation import Best
from l2ljax.runtime.provenance import command, versions
from l2ljax.runtime.workdir import ALARM, Workdir
from l2ljax.train import TrainState
from l2ljax.types import Players

__all__ = ["describe", "draw", "scored", "summarize"]


def summarize(setup: Setup, state: TrainState, best: Best, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of report.json."""

    def scores(whose: str, params: Players, stats: Players) -> dict[str, Any]:
        with tqdm(total=1 + len(setup.settings.attacks), leave=False, disable=None) as bar:

            def progress(name: str) -> None:
                bar.set_description(f"evaluating the {whose} parameters: {name}")
                bar.update()

            named, logits_fn = named_attacks(setup, params, stats), setup.logits_fn(params, stats)
            split, key = setup.eval_split, setup.eval_key
            return scored(evaluate(logits_fn, split, named, key=key, batch_size=EVAL_BATCH, progress=progress))

    evaluated = state.evaluated
    last = scores("last", evaluated.params, evaluated.stats)
    result = {**describe(setup, state, history), **last}
    went_back = setup.settings.on_overfitting == "restore" and ALARM in (history or [{}])[-1]
    if state.average and not went_back:  # the state restored is the best average
        result["raw"] = scores("raw", state.params, state.stats)
    if best.score >= 0:
        same = best.step == state.step
        about = {"step": int(best.step), "val_robust_acc": float(best.score)}
        result["best"] = {**about, **(last if same else scores("best", best.params, best.stats))}
    return result


def scored(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as the reports have it, without attacks no worst case."""
    attacked = {
        name: {"robust_acc": row.robust_acc, "seconds": row.seconds, "passes": row.passes}
        for name, row in evaluation.attacks.items()
    }
    worst = evaluation.worst_case_acc if attacked else None
    about = {"clean_acc": evaluation.clean_acc, "classes_predicted": evaluation.classes_predicted}
    return {**about, "worst_case_acc": worst, "attacks": attacked}


def describe(setup: Setup, state: TrainState, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what report.json says about the run itself; the seconds are those of all processes that trained it."""
    settings = setup.settings
    names = ("recipe", "method", "schedule", "selection", "dataset", "arch", "eps", "norm", "seed", "epochs")
    sizes = {player: optax.tree.size(tree) for player, tree in state.params._asdict().items()}
    return {
        **{name: getattr(settings, name) for name in names},
        "training": settings.training,
        "eval_size": len(setup.eval_split.labels),
        "train_seconds": sum(row.get("seconds", 0.0) for row in history),
        **({"ended_at": int(state.step)} if state.step < setup.steps else {}),  # catastrophic overfitting ended it
        "parameters": sizes,
        "versions": versions(),
        "command": command(),
    }


def draw(setup: Setup, state: TrainState, workdir: Workdir) -> list[Path]:
    """Draw the figures; returns their paths."""
    curves, grid = workdir.figures / "training.png", workdir.figures / "perturbations.png"
    settings = setup.settings
    title = f"{settings.method}: {settings.arch} on {settings.dataset}, {settings.norm} eps {settings.eps}"
    figures.training_curves(curves, workdir.rows(), title)
    state = state.evaluated
    logits_fn = setup.logits_fn(state.params, state.stats)
    x, y = jnp.asarray(data.pixels(setup.eval_split.images[:8])), setup.eval_split.labels[:8]
    x_adv = jax.jit(attacks.create("pgd20", setup.ball))(logits_fn, setup.eval_key, x, y)
    predictions = np.asarray(jax.jit(lambda f, x: f(x))(logits_fn, x_adv)).argmax(axis=1)
    figures.perturbation_grid(grid, x, x_adv, y, predictions, setup.dataset.class_names, "pgd20")
    return [curves, grid]
