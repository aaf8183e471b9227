"""Validation during training: the best parameters so far, and the alarm for catastrophic overfitting.

row = validate(setup, state, history)          # on the images held out; history: the rows of metrics before
if ALARM in row:                               # the network resists one step of attack, and no longer several
    state = restored(state, best)
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from l2ljax.evaluate import evaluate
from l2ljax.run.setup import EVAL_BATCH, Setup
from l2ljax.run.trained import created
from l2ljax.runtime.workdir import ALARM
from l2ljax.train import TrainState, wide_copy
from l2ljax.types import Array, Players

__all__ = ["Best", "overfits", "restored", "validate"]


class Best(NamedTuple):
    """The evaluated parameters (of `TrainState.evaluated`) with the highest accuracy under the selection's attack."""

    score: Array
    """That accuracy; -1 before the first validation."""
    step: Array
    params: Players
    stats: Players


def validate(setup: Setup, state: TrainState, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return accuracies on the images on which the best parameters are chosen; {} without any.

    They are val_clean_acc, val_robust_acc (under the selection's attack) and val_single_step_acc (under FGSM), those of
    the raw parameters as raw_val_* where an average is evaluated, and `ALARM` where these overfit; it is printed once.
    """
    if setup.settings.selection == "last" or not len(setup.dataset.val.labels):
        return {}
    name, val, key = setup.settings.selection_attack, setup.dataset.val, setup.eval_key
    tried = {attack: created(attack, setup.ball) for attack in (name, "fgsm")}

    def scores(prefix: str, state: TrainState) -> dict[str, float]:
        logits_fn = setup.logits_fn(state.params, state.stats)
        found = evaluate(logits_fn, val, tried, key=key, batch_size=EVAL_BATCH)
        robust, single = (found.attacks[attack].robust_acc for attack in (name, "fgsm"))
        named = {"clean_acc": found.clean_acc, "robust_acc": robust, "single_step_acc": single}
        return {f"{prefix}_{accuracy}": value for accuracy, value in named.items()}

    row = {**scores("val", state.evaluated), **(scores("raw_val", state) if state.average else {})}
    begun = setup.phases[-2][1] if len(setup.phases) > 1 else 0  # a warm-up is plain training, which resists nothing
    plain = setup.settings.method == "plain" or state.step <= begun
    good = None if plain else overfits([past for past in history if past["step"] > begun], row)
    if good is None:
        return row
    if not any(ALARM in past for past in history):
        ends = setup.settings.on_overfitting in ("stop", "restore")
        ending = ", and training ends" if ends else "; with on_overfitting stop or restore training would end here"
        print(
            f"step {state.step}: catastrophic overfitting: the network learns to resist FGSM, but resists {name} less "
            f"than at step {good}; the best parameters so far are kept{ending}",
            file=sys.stderr,
        )
    return {**row, ALARM: 1.0}


def overfits(history: Sequence[Mapping[str, float]], row: Mapping[str, float]) -> int | None:
    """Return the step of the best validation so far if training overfits catastrophically since, else None.

    Wong et al. (2020), section 5.3: within an epoch, networks trained on one step learn to resist that alone. Here: the
    accuracy under several steps has fallen from its best while that under FGSM has not, and either it is half of it or
    less, by 10 points or more, or it was never much: now a quarter of that under FGSM, which is above one half. The 10
    points, which keep out what is chance, are not needed where labels leak (Kurakin et al., 2017): since the last
    validation, training classified more images correctly after its own attack than before.

    Args:
      history: the rows of metrics before, with those of training since the last validation.
      row: that of the validation, of `validate`.
    """
    prefix = "raw_val" if "raw_val_robust_acc" in row else "val"  # an average hides it for a while
    robust, single = f"{prefix}_robust_acc", f"{prefix}_single_step_acc"
    good = max((past for past in history if robust in past), key=lambda past: past[robust], default=None)
    if good is None or row[robust] >= good[robust] or row[single] < good[single]:
        return None
    since = itertools.takewhile(lambda past: robust not in past, reversed(history))
    both = [past for past in since if {"accuracy", "robust_accuracy"} <= past.keys()]
    leaking = sum(past["robust_accuracy"] - past["accuracy"] for past in both) > 0
    collapsed = row[robust] <= min(good[robust] / 2, good[robust] - 0.1 * (not leaking))
    never = row[robust] < row[single] / 4 and row[single] > 0.5
    return int(good["step"]) if collapsed or never else None


def restored(state: TrainState, best: Best) -> TrainState:
    """Return the state with the best parameters in place of its own, and in place of its average."""
    average = wide_copy((best.params.classifier, best.stats.classifier)) if state.average else ()
    return state._replace(params=best.params, stats=best.stats, average=average)
