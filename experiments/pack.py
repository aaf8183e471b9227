"""Pack a judged run as a model that `models.pretrained` loads.

    python experiments/digits.py --method=rnn_adv --epochs=100 --workdir=runs/digits
    python experiments/evaluate.py --victim=runs/digits@best --attacks=standard,pgd100,own
    python experiments/pack.py --victim=runs/digits@best --name=digits_rnn_adv --out=l2ljax/models/weights

NAME.npz has the weights of both players, NAME.json, the model's card, the run's settings and how it was judged. The
same run gives the same bytes.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax

from l2ljax import defenses
from l2ljax.checkpoint import digest, place
from l2ljax.files import write_files
from l2ljax.models.shipped import named_arrays, to_bytes
from l2ljax.run.judge import evaluation_folder
from l2ljax.run.trained import load_classifier, read_config, restore_attacker
from l2ljax.runtime.flags import launch
from l2ljax.runtime.workdir import ABOUT_REPORTING, read_json
from l2ljax.types import L2LError

LARGEST = 1_500_000


@dataclasses.dataclass(frozen=True)
class Flags:
    """The run and its name."""

    victim: str
    """The workdir of a run that evaluate.py has judged, or WORKDIR@best."""
    name: str
    """Letters, digits and _, like digits_rnn_adv."""
    out: Path = Path("runs/weights")
    """The folder; l2ljax/models/weights ships the model."""


def main(flags: Flags) -> None:
    """Load, check and write."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", flags.name, re.ASCII):
        raise L2LError(f"--name={flags.name}: give small letters, digits and _, like digits_rnn_adv")
    report, settings = read_json(place(flags.victim)[0] / "report.json"), read_config(flags.victim)
    logits_fn, (defense, attacker) = load_classifier(flags.victim), restore_attacker(flags.victim)
    if defense.attack(*attacker) is None:
        attacker = {}, {}  # free_adv's are of a batch
    players = {"classifier": logits_fn.args[0], "attacker": {"params": attacker[0], "batch_stats": attacker[1]}}
    content = to_bytes(named_arrays(players))
    if len(content) > LARGEST:
        raise L2LError(f"{flags.victim} takes {len(content):,} bytes, more than {LARGEST:,}: pack a smaller network")
    card = {
        **{name: value for name, value in settings.items() if name not in ABOUT_REPORTING},
        "options": {**defenses.options(settings["method"]), **settings["options"]},  # whatever the defaults become
        "state": place(flags.victim)[1],
        **{name: report[name] for name in ("command", "parameters", "versions")},
        "judged": judged(flags.victim, settings, digest(logits_fn), learned=bool(jax.tree.leaves(attacker))),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    text = json.dumps(card, indent=2) + "\n"
    write_files({flags.out / f"{flags.name}.npz": content, flags.out / f"{flags.name}.json": text.encode()})
    print(f"{flags.out / flags.name}.npz: {len(content):,} bytes; run the README's tests when it is shipped")


def judged(victim: str, settings: dict[str, Any], weights: str, *, learned: bool) -> dict[str, Any]:
    """Return the card's figures, of the evaluation of these very weights, in their threat, with all that it needs."""
    needed = ["standard", "pgd100", *["own"] * learned]
    fix = f"run experiments/evaluate.py --victim={victim} --attacks={','.join(needed)}"
    file = evaluation_folder(victim) / "robustbench.json"
    if not file.exists():
        raise L2LError(f"{victim} was not judged: {fix}")
    result = read_json(file)
    known = result["provenance"]
    threat = [settings[name] for name in ("dataset", "eps", "norm")]
    if known["model_sha256"] != weights or [result["dataset"], result["eps"], known["norm"]] != threat:
        raise L2LError(f"{file} is of other weights, data or another threat: {fix}")
    if lacking := [name for name in needed if name not in known["attacks"]]:
        raise L2LError(f"{file} has no {', '.join(lacking)}: {fix}")
    kept = ("images", "attacks", "model_sha256", "command", "date")
    return {"clean_acc": float(result["clean_acc"]) / 100, **{name: known[name] for name in kept}}


if __name__ == "__main__":
    launch(main, Flags, __doc__)
