"""Trained classifiers and attackers: loaded from their workdirs, and attacks by name.

logits_fn = load_classifier("runs/digits_rnn_adv_digits_cnn_s0")
attack = load_attacker("runs/digits_rnn_adv_digits_cnn_s0", steps=40)
logits_fn, attack = load(workdir)               # both at once

A workdir may be WORKDIR@best, the state that the run's validation chose, or pretrained:NAME, a model of
`models.PRETRAINED`.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from l2ljax import attacks, checkpoint, data, defenses, models, threat
from l2ljax.data.functions import call
from l2ljax.models import shipped
from l2ljax.report.markdown import grid, percent
from l2ljax.runtime.workdir import check_network, read_json
from l2ljax.types import Array, Attack, Classifier, Defense, L2LError, Tree

__all__ = [
    "Learned", "check_dataset", "check_threat", "created", "learned", "load", "load_attacker", "load_classifier",
    "load_function", "named_attack", "read_config", "restore_attacker", "table", "trained_attack",
]  # fmt: skip

T = TypeVar("T")
Network = Classifier | nn.Module | nnx.Module


class Learned(NamedTuple):
    """A trained attacker, as its name gives it."""

    workdir: str
    """The workdir of the run that trained it."""
    steps: int | None
    """By default those that it was trained with."""


def learned(name: str, own: str = "") -> Learned | None:
    """Return what own, ownN, trained:WORKDIR or trainedN:WORKDIR means (N steps, own: the workdir `own`), else None."""
    match = re.fullmatch(r"own([1-9][0-9]{0,8})?|trained([1-9][0-9]{0,8})?:(.+)", name)
    if match is None:
        return None
    steps = match[1] or match[2]
    return Learned(match[3] or own, int(steps) if steps else None)


@functools.lru_cache(maxsize=64)
def created(name: str, ball: threat.Ball) -> Attack:
    """Return `attacks.create(name, ball)`, one object for all validations and reports: another is compiled anew."""
    return attacks.create(name, ball)


def named_attack(name: str, ball: threat.Ball, own: Callable[..., T]) -> Attack | T:
    """Return the attack of that name: of `attacks.create`, of a workdir, or for own and ownN `own(steps=N)`."""
    chosen = learned(name)
    if chosen is None:
        return created(name, ball)
    return load_attacker(chosen.workdir, steps=chosen.steps, ball=ball) if chosen.workdir else own(steps=chosen.steps)


def trained_attack(
    defense: Defense, params: Tree, batch_stats: Tree, *, steps: int | None = None, path: bool = False
) -> Attack | None:
    """Return `defense.attack`, by default with the steps that it was trained with."""
    given = {} if steps is None else {"steps": steps}
    return defense.attack(params, batch_stats, **given, path=path)


def load(workdir: str | Path, classifier: Network | None = None) -> tuple[jax.tree_util.Partial, Attack | None]:
    """Return the classifier and the attacker that a run ended with, the attacker None where it learned nothing.

    Args and errors are those of `load_classifier`, and for a run of your own defense, whose attacker only that defense
    can make, those of `load_attacker`.
    """
    logits_fn = load_classifier(workdir, classifier)
    method = {**defenses.METHODS, **defenses.ATTACKERS}.get(read_config(workdir)["method"])
    return logits_fn, load_attacker(workdir) if method is None or method.learns else None


def load_classifier(workdir: str | Path, classifier: Network | None = None) -> jax.tree_util.Partial:
    """Return the classifier that a run ended with, in evaluation mode: images -> logits, its weights as a pytree.

    Args:
      workdir: of the run, also as WORKDIR@best or pretrained:NAME.
      classifier: the trained network, as `fit` takes it; by default one of `models.CLASSIFIERS`.

    Raises:
      L2LError: no run there, or one of another classifier.
    """
    saved = read_config(workdir)
    if classifier is None:
        if saved["arch"] not in models.CLASSIFIERS:
            raise L2LError(
                f"{workdir} holds a {saved['arch']}, a network of yours: give it, as in load('{workdir}', network); "
                "evaluate.py takes a function that does, --victim=MODULE:FUNCTION"
            )
        classifier = models.create(saved["arch"], num_classes=saved["num_classes"], dtype=jnp.dtype(saved["dtype"]))
    classifier, images = models.as_classifier(classifier), jnp.zeros((2, *saved["image_shape"]))
    if "network" in saved:
        check_network(workdir, saved["network"], models.fingerprint(classifier, images))
    like = classifier.init(jax.random.key(0), images)
    params, batch_stats = checkpoint.restore_player(workdir, "classifier", (like["params"], like["batch_stats"]))
    return jax.tree_util.Partial(classifier.logits, {"params": params, "batch_stats": batch_stats})


def load_attacker(
    workdir: str | Path, *, steps: int | None = None, path: bool = False, ball: threat.Ball | None = None
) -> Attack:
    """Return the attacker that a run of a learned method, or one that trained an attacker alone, ended with.

    Args:
      workdir: of the run, also as WORKDIR@best or pretrained:NAME.
      steps: by default those that it was trained with.
      path: return all iterates in place of the last.
      ball: the threat that it must have been trained for.

    Raises:
      L2LError: no run there, or one whose attacker learned nothing, or learned in another threat.
    """
    defense, player = restore_attacker(workdir, ball)
    attack = trained_attack(defense, *player, steps=steps, path=path)
    if attack is None:
        raise L2LError(f"{workdir} is a run of {read_config(workdir)['method']}, whose attacker learns nothing")
    return attack


def restore_attacker(workdir: str | Path, ball: threat.Ball | None = None) -> tuple[Defense, tuple[Tree, Tree]]:
    """Return the defense that trained a run's attacker, and the attacker's (params, batch_stats), empty if it is fixed.

    Args and errors are those of `load_attacker`.
    """
    saved = read_config(workdir)
    trained = check_threat(workdir, saved, ball)
    if saved["method"] not in {**defenses.METHODS, **defenses.ATTACKERS}:
        own = f"{workdir} holds a {saved['method']}, a defense of yours"
        raise L2LError(f"{own}: keep its attack, or register the defense")
    defense = defenses.create(saved["method"], models.create("digits_cnn"), trained, **saved["options"])  # any network
    batch = jnp.zeros((saved.get("batch_size", 1), *saved["image_shape"]))  # free_adv's parameters are of one
    like = defense.init(jax.random.key(0), batch)
    return defense, checkpoint.restore_player(workdir, "attacker", like)


def check_dataset(workdir: str | Path, saved: Mapping[str, Any], name: str) -> None:
    """Raise an L2LError where a run's config.json names other data."""
    if saved["dataset"] != name:
        raise L2LError(f"{workdir} is a run on {saved['dataset']}, not {name}: give one on that")


def check_threat(workdir: str | Path, saved: Mapping[str, Any], ball: threat.Ball | None) -> threat.Ball:
    """Return the threat of a run's config.json; raise an L2LError where it must be another one."""
    theirs = threat.create(saved["norm"], saved["eps"])
    if ball is not None and (theirs.name, theirs.eps) != (ball.name, ball.eps):
        asked = f"{saved['norm']}, eps {saved['eps']}, not {ball.name}, {ball.eps:.4g}"
        raise L2LError(f"{workdir} attacks in {asked}: give one of the same threat")
    return theirs


def load_function(name: str) -> Callable[..., Array]:
    """Return the function images -> logits that MODULE:FUNCTION returns; an L2LError says if there is none."""
    function = call(name, wanted := "a function of images that returns their logits")
    if not callable(function):
        raise L2LError(f"{name} returned a {type(function).__name__}: let it return {wanted}")
    return function


KINDS = {"dataset": str, "method": str, "arch": str, "eps": str, "norm": str, "options": dict, "dtype": str}


def read_config(workdir: str | Path, *names: str) -> dict[str, Any]:
    """Return a run's config.json, with these settings, by default all that make its players.

    It is completed where its data set is one of the library's. A file of another kind is an L2LError. Of a model of
    `models.PRETRAINED` it is the card.
    """
    if (name := shipped.name_of(workdir)) is not None:
        return shipped.card(name)
    if str(workdir) in models.PRETRAINED and not Path(workdir).exists():
        raise L2LError(f"there is no folder {workdir}: give one, or {shipped.PREFIX}{workdir}")
    saved = read_json(checkpoint.place(workdir)[0] / "config.json")
    for name in names or KINDS:
        if not isinstance(saved.get(name), KINDS[name]) or (name == "norm" and saved[name] not in threat.BALLS):
            fix = "give the workdir of a run that trained a classifier"
            raise L2LError(f"{workdir}/config.json has no {name}: {fix}")
    if not names and saved.get("image_shape") is None:
        known = data.source(saved["dataset"])
        saved |= {"num_classes": len(known.classes), "image_shape": known.image_shape}
    return saved


def table() -> str:
    """Return the models that come with the library as a table: their training, and accuracies in percent."""
    header = ["pretrained:", "data", "network", "method", "eps", "epochs", "images"]
    rows = []
    for name in models.PRETRAINED:
        card = shipped.card(name)
        judged, norm = card["judged"], "" if card["norm"] == "linf" else f" in {card['norm']}"
        about = [card["dataset"], card["arch"], card["method"], f"{card['eps']}{norm}", f"{card['epochs']:g}"]
        robust = [judged["attacks"].get(attack) for attack in ("pgd100", "own", "standard")]
        rows.append([f"`{name}`", *about, f"{judged['images']:,}", *map(percent, [judged["clean_acc"], *robust])])
    return grid([*header, "clean", "PGD-100", "own", "AutoAttack"], rows)
