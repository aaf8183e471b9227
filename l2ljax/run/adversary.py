"""Train an attacker against a classifier that does not move: a white-box attack that costs one network at test time.

    python experiments/attack.py --attacker=advgan --victim=runs/digits_plain_digits_cnn_s0
    python experiments/digits.py --method=pgd_adv --attacks=pgd20,trained:runs/attack_advgan_...

`main` is the command line, `run` what it does.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from l2ljax import attacks, defenses
from l2ljax.attacks import names
from l2ljax.evaluate import evaluate
from l2ljax.files import locked
from l2ljax.report import markdown
from l2ljax.run.config import Config, resolve
from l2ljax.run.fit import train
from l2ljax.run.results import describe, scored
from l2ljax.run.settings import Settings
from l2ljax.run.setup import EVAL_BATCH, Setup, named_attacks, prepare
from l2ljax.run.trained import read_config
from l2ljax.runtime.flags import checked, read
from l2ljax.runtime.monitor import script
from l2ljax.runtime.workdir import Workdir
from l2ljax.train import TrainState
from l2ljax.types import L2LError
from l2ljax.values import Count, NonNegative, Positive, Range, Seed

__all__ = ["Flags", "learners", "main", "run"]


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags."""

    victim: str
    """The workdir of a run of ours, whose last classifier is attacked, or pretrained:NAME."""
    attacker: str = "l2l_da"
    """One of the names below, like advgan, l2l_da or rnn_adv."""
    attacker_from: str | None = None
    """Start from the trained attacker of this workdir (for fine-tuning)."""
    attacker_width: Count | None = None
    options: str = ""
    """The attacker's options, like steps=10,diversity=0."""
    epochs: Positive = 10
    batch_size: Count = 128
    attacker_lr: NonNegative | None = None
    draws: Annotated[int, Range(1, 10_000)] = 10
    """The number of attacks on each test image, with other latents: the report has the accuracy against all of them
    together (one that fools the image counts), and against the strongest, the mean and the weakest."""
    attacks: str = "pgd20"
    """Other attacks of the report."""
    data_dir: str | None = None
    """By default the victim's."""
    train_size: Count | None = None
    eval_size: Count | None = None
    seed: Seed = 0
    workdir: str | None = None
    """runs/attack_ATTACKER_VICTIM_sSEED by default."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of experiments/attack.py."""
    tables = lambda: {"Attackers": learners(), "Other attacks of the report": names.table()}
    flags = read(Flags, str(__doc__), tables, arguments)
    with script():
        run(flags)


def run(flags: Flags) -> dict[str, Any]:
    """Train the attacker, or go on with it, and report on it.

    Returns:
      The content of report.json: per attack the accuracy that the victim keeps.

    Raises:
      L2LError: bad settings, no victim there, an attacker that learns nothing.
      Interrupted: SIGTERM or Ctrl-C during training; the state is saved.
    """
    settings = _specify(checked(flags))
    setup, start = prepare(settings)
    if not jax.tree.leaves(start.params.attacker):
        raise L2LError(f"{flags.attacker} learns nothing: choose from {learners()}")
    with locked(settings.workdir or ""):
        return _train(flags, setup, start)


def _train(flags: Flags, setup: Setup, start: TrainState) -> dict[str, Any]:
    """Train, attack, write the report and return its content."""
    settings = setup.settings
    workdir = Workdir(Path(settings.workdir or ""), {**settings.saved(), **setup.identity()})
    untrained = jax.tree.map(np.asarray, (start.params.attacker, start.stats.attacker))  # training donates them
    state, _, _, seconds = train(setup, start, workdir)

    logits_fn = setup.logits_fn(state.params, state.stats)
    own: Any = setup.defense.attack  # not None: there are parameters
    named = named_attacks(setup, state.params, state.stats)
    named |= {"random signs": attacks.random_signs(setup.ball), "untrained": own(*untrained)}
    named |= {f"draw {i}": own(state.params.attacker, state.stats.attacker) for i in range(flags.draws)}
    rows: dict[str, dict[str, Any]] = {}
    drawn = []
    for i, (name, attack) in enumerate(named.items()):
        key = jax.random.fold_in(setup.eval_key, i)
        scores = evaluate(logits_fn, setup.eval_split, {name: attack}, key=key, batch_size=EVAL_BATCH)
        if name.startswith("draw "):
            drawn.append(scores.attacks[name])
        else:
            rows |= scored(scores)["attacks"]
    accuracies = [row.robust_acc for row in drawn]
    for which, accuracy in {
        "all draws": float(np.logical_and.reduce([row.correct for row in drawn]).mean()),
        "strongest draw": min(accuracies),
        "mean draw": float(np.mean(accuracies)),
        "weakest draw": max(accuracies),
    }.items():
        rows[which] = {"robust_acc": accuracy, "seconds": drawn[0].seconds, "passes": drawn[0].passes}
    worst = min(row["robust_acc"] for row in rows.values())
    about = {**describe(setup, state, seconds), "victim": flags.victim, "draws": flags.draws}
    result = {**about, **scored(scores), "attacks": rows, "worst_case_acc": worst}
    markdown.write(workdir.path, result, [])
    print(markdown.table([result]))
    return result


def learners() -> str:
    """The attackers and methods that learn, separated by commas."""
    return ", ".join(name for name, record in {**defenses.ATTACKERS, **defenses.METHODS}.items() if record.learns)


def _specify(flags: Flags) -> Settings:
    """Return the settings of the attacker's training: the victim's data, classifier and threat, its own recipe."""
    victim, victim_name = read_config(flags.victim), Path(flags.victim.rpartition(":")[2]).name
    given = {name: value for name, value in dataclasses.asdict(flags).items() if name in Config.__dataclass_fields__}
    given |= {
        "data_dir": flags.data_dir or victim.get("data_dir"),
        "workdir": flags.workdir or f"runs/attack_{flags.attacker}_{victim_name}_s{flags.seed}",
        "attacker": None,  # the method, here
        **{name: victim[name] for name in ("arch", "eps", "norm", "dtype")},
    }
    fixed = {"method": flags.attacker, "schedule": "attacker", "init_from": flags.victim, "val_size": 0, "warmup": 0.0}
    return resolve(victim["dataset"], flags.attacker, Config(**{**given, **fixed}))
