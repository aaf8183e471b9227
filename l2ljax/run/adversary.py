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

from l2ljax import attacks, defenses, models
from l2ljax.attacks import names
from l2ljax.evaluate import AttackRow, evaluate
from l2ljax.files import locked
from l2ljax.report import markdown
from l2ljax.run.config import Config, resolve
from l2ljax.run.results import describe, scored
from l2ljax.run.settings import INGREDIENTS, Settings
from l2ljax.run.setup import EVAL_BATCH, Setup, named_attacks, prepare
from l2ljax.run.trained import read_config
from l2ljax.run.training import train
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
    flags = checked(flags)
    if not defenses.find(flags.attacker).learns:
        raise L2LError(f"{flags.attacker} learns nothing: choose from {learners()}")
    settings = _specify(flags)
    setup, start = prepare(settings)
    with locked(settings.workdir or ""):
        return _train(flags, setup, start)


def _train(flags: Flags, setup: Setup, start: TrainState) -> dict[str, Any]:
    """Train, attack, write the report and return its content."""
    settings = setup.settings
    workdir = Workdir(Path(settings.workdir or ""), {**settings.saved(), **setup.identity()})
    untrained = jax.tree.map(np.asarray, (start.params.attacker, start.stats.attacker))  # training donates them
    state, _, history = train(setup, start, workdir)

    logits_fn = setup.logits_fn(state.params, state.stats)
    own: Any = setup.defense.attack  # not None: there are parameters
    named = named_attacks(setup, state.params, state.stats)
    named |= {"random signs": attacks.random_signs(setup.ball), "untrained": own(*untrained)}
    named |= {f"draw {i}": own(state.params.attacker, state.stats.attacker) for i in range(flags.draws)}
    tried: dict[str, AttackRow] = {}
    for i, (name, attack) in enumerate(named.items()):
        key = jax.random.fold_in(setup.eval_key, i)
        scores = evaluate(logits_fn, setup.eval_split, {name: attack}, key=key, batch_size=EVAL_BATCH)
        tried |= scores.attacks
    draws = [tried.pop(f"draw {i}") for i in range(flags.draws)]
    accuracies, seconds_each, passes, correct = map(list, zip(*draws, strict=True))
    together = np.logical_and.reduce(correct)
    rows = {
        **tried,
        "all draws": AttackRow(float(together.mean()), sum(seconds_each), sum(passes), together),
        "strongest draw": min(draws, key=lambda row: row.robust_acc),
        "mean draw": draws[0]._replace(robust_acc=float(np.mean(accuracies))),
        "weakest draw": max(draws, key=lambda row: row.robust_acc),
    }
    worst = np.logical_and.reduce([together, *(row.correct for row in tried.values())]).mean()
    about = {**describe(setup, state, history), "victim": flags.victim, "draws": flags.draws}
    result = {**about, **scored(scores._replace(attacks=rows, worst_case_acc=float(worst)))}
    markdown.write(workdir.path, result, [])
    print(markdown.table([result]))
    return result


def learners() -> str:
    """The attackers and methods that learn, separated by commas."""
    return ", ".join(name for name, record in {**defenses.ATTACKERS, **defenses.METHODS}.items() if record.learns)


def _specify(flags: Flags) -> Settings:
    """Return the settings of the attacker's training: the victim's data, classifier and threat, its own recipe."""
    victim, victim_name = read_config(flags.victim), Path(flags.victim.rpartition(":")[2]).name
    if victim["arch"] not in models.CLASSIFIERS:
        way = f"fit(network, data, method='{flags.attacker}', schedule='attacker', init_from='{flags.victim}', "
        way += f"ball=threat.{victim['norm']}({victim['eps']}))"
        raise L2LError(f"{flags.victim} holds a {victim['arch']}, a network of yours: attack it in Python, by {way}")
    given = {name: value for name, value in dataclasses.asdict(flags).items() if name in Config.__dataclass_fields__}
    given |= {
        "data_dir": flags.data_dir or victim.get("data_dir"),
        "workdir": flags.workdir or f"runs/attack_{flags.attacker}_{victim_name}_s{flags.seed}",
        "attacker": None,  # the method, here
        **{name: victim[name] for name in ("arch", "eps", "norm", "dtype")},
    }
    fixed = {"method": flags.attacker, "schedule": "attacker", "init_from": flags.victim, "val_size": 0, "warmup": 0.0}
    fixed |= dict.fromkeys(INGREDIENTS, 0)  # the recipe's, for a classifier that learns
    return resolve(victim["dataset"], flags.attacker, Config(**{**given, **fixed}))
