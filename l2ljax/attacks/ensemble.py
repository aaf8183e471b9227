"""Attacks made of attacks: combinators, and AutoAttack (Croce & Hein, 2020), the standard for robust accuracy.

x_adv = jax.jit(autoattack(threat.linf(8 / 255)))(logits_fn, key, x, y)       # the pure form
evaluate.run_standard_evaluation(logits_fn, x, y, ball=ball, key=key)          # on the host: faster, resumable
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from l2ljax import losses
from l2ljax.attacks.auto_pgd import apgd, apgd_targeted
from l2ljax.attacks.boundary import fab, fab_targeted
from l2ljax.attacks.entrance import entered, reach, sound
from l2ljax.attacks.gradient import PerExampleLoss
from l2ljax.attacks.selection import keep_stronger, likeliest_wrong, strongest
from l2ljax.attacks.solver import as_tree, one_by_one, unjitted
from l2ljax.attacks.square_budget import square_on_budget
from l2ljax.attacks.square_search import square
from l2ljax.threat import Ball, choose
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn, fold_in
from l2ljax.values import Count, check, checked

__all__ = [
    "CLASSES", "TARGETED", "VERSIONS", "Version", "autoattack", "best_of", "cascade", "check_attacks",
    "multi_targeted", "restarts", "stages", "targeted", "transfer",
]  # fmt: skip


def best_of(attacks: Sequence[Attack]) -> Attack:
    """Return per example the result of largest margin loss: misclassified if any of the attacks succeeds.

    No attacks are an L2LError.
    """
    attacks = _one_or_more("best_of", attacks)

    @entered
    def attack(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        best = x, losses.margin(logits_fn(x), y)
        for i, member in enumerate(attacks):
            best = keep_stronger(logits_fn, y, best, member(logits_fn, fold_in(keys, i), x, y))
        return best[0]

    return one_by_one(attack, attacks)


@checked
def restarts(attack: Attack, n: Count) -> Attack:
    """Run `attack` n times with different keys; return per example the result of largest margin loss.

    On the host (see `solver`), an attack that stops at success skips the examples that earlier runs fooled.
    """

    attack = unjitted(attack)

    @entered
    def restarted(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        first = (x, losses.margin(logits_fn(x), y))
        return strongest(logits_fn, y, first, lambda i: attack(logits_fn, fold_in(keys, i), x, y), jnp.arange(n))

    return one_by_one(restarted, [attack] * n)


@checked
def targeted(attack: Attack, target: int | Array | None = None) -> Attack:
    """Aim `attack` at making the model answer with the class `target`.

        targeted(pgd(ball, step_size=2 / 255, steps=20), 3)
        targeted(apgd(ball))(logits_fn, key, x, target)              # a class per image in place of the labels

    An example is fooled if the target's logit is the largest, whatever its label. +first and APGD stop at that, and
    `restarts` and `best_of` inside `targeted` count it; FAB, Square and the like return the clean image if they fail.
    The attack sees a model of the two classes "another" and "target",

        z' = (0, z_t - max_{k != t} z_k),

    and leads it from the first to the second. So the margin loss is z_t - max_{k != t} z_k, and the cross-entropy,
    log(1 + exp(that)), has its gradient, scaled. All attacks can be targeted except those that need more classes (DLR,
    APGD-T) and learned attacks that read labels.

    Args:
      attack: an untargeted attack, like `pgd`, `apgd`, `fab`, `square`, or `restarts` of them.
      target: the class to reach, or one per example [B]; by default the attack's labels are the targets.

    Raises:
      L2LError: a target that is no integer, nor an array of them; when called, a class that the model lacks.
    """
    if not (target is None or type(target) is int or jnp.issubdtype(getattr(target, "dtype", object), jnp.integer)):
        raise L2LError(f"target={target!r}: give a class, an integer, or an array of one per image")

    attack = unjitted(attack)

    @entered
    def towards(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        goal = y if target is None else jnp.asarray(target)
        if goal.shape not in ((), y.shape):
            raise L2LError(f"the targets have the shape {list(goal.shape)}: give one class, or one per image")
        goal = jnp.broadcast_to(goal, y.shape)

        def reaches(x: Array) -> Array:
            logits = logits_fn(x)
            if target is not None and not 0 <= reach(target)[0] <= reach(target)[1] < logits.shape[1]:
                raise L2LError(f"target={target}: the model has the classes 0..{logits.shape[1] - 1}")
            gap = -losses.margin(logits, goal)
            return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

        return attack(reaches, keys, x, jnp.zeros_like(goal))

    return towards


@checked
def multi_targeted(
    make: Callable[[PerExampleLoss], Attack], *, loss: PerExampleLoss = losses.cross_entropy, target_classes: Count = 9
) -> Attack:
    """Attack towards each of the likeliest wrong classes in turn; return per example the result of largest margin loss.

        multi_targeted(lambda loss: pgd(ball, step_size=2 / 255, steps=20, loss=loss))

    The loss towards a class t is -L(logits, t), whatever the label. The classes are those of largest logit at the clean
    image, in that order, as in APGD-T.

    Args:
      make: loss -> attack.
      loss: L, (logits [B, K], classes [B]) -> [B], small for a likely class.
      target_classes: number of classes, or as many as there are.
    """

    @entered
    def attack(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        clean = logits_fn(x)

        def towards(at: tuple[Array, Array]) -> Array:
            i, target = at
            return make(lambda logits, _: -loss(logits, target))(logits_fn, fold_in(keys, i), x, y)

        targets = likeliest_wrong(clean, y, target_classes)
        return strongest(logits_fn, y, (x, losses.margin(clean, y)), towards, (jnp.arange(len(targets)), targets))

    return attack


def cascade(attacks: Sequence[Attack], *, stochastic: bool = False) -> Attack:
    """Return per example the result of the first attack that fools the model, or the clean image if none does.

    All examples go through all attacks, but fooled ones stay as they are; one misclassified from the start stays clean.

    Args:
      attacks: in order.
      stochastic: whether the model is logits_fn(x, keys [B]); one draw decides for each image.

    Raises:
      L2LError: no attacks.
    """
    attacks = _one_or_more("cascade", attacks)

    @entered
    def attack(logits_fn: Callable[..., Array], keys: Key, x: Array, y: Array) -> Array:
        def wrong(keys: Key, x: Array) -> Array:
            return losses.accuracy(logits_fn(x, keys) if stochastic else logits_fn(x), y) == 0

        x_adv, fooled = x, wrong(keys, x)
        for i, member in enumerate(attacks):
            own = fold_in(keys, i)
            candidate = sound(member(logits_fn, own, x, y), x)
            wins = ~fooled & wrong(own, candidate)
            x_adv, fooled = choose(wins, candidate, x_adv), fooled | wins
        return x_adv

    return attack


def _one_or_more(name: str, attacks: Sequence[Attack]) -> tuple[Attack, ...]:
    if not (attacks := tuple(attacks)):
        raise L2LError(f"{name} has no attacks: give one or more")
    return tuple(unjitted(check(Attack, attack, f"an attack of {name}")) for attack in attacks)


def transfer(attack: Attack, surrogate: LogitsFn) -> Attack:
    """Return a black-box attack: `attack` on `surrogate`, whatever model it is given; a pytree of their arrays."""
    return Partial(_transferred, as_tree(attack), as_tree(surrogate))


def _transferred(attack: Attack, surrogate: LogitsFn, logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
    return attack(surrogate, key, x, y)


class Version(NamedTuple):
    """A version of AutoAttack."""

    attacks: dict[str, tuple[Callable[..., Attack], dict[str, Any]]]
    """Name -> (constructor from a ball, its non-default keywords), in order."""
    stochastic: bool = False
    """Whether it serves stochastic models, called as logits_fn(x, keys [B])."""


VERSIONS = {
    "standard": Version({
        "apgd-ce": (apgd, {}), "apgd-t": (apgd_targeted, {}), "fab-t": (fab_targeted, {}), "square": (square, {}),
    }),
    "plus": Version({
        "apgd-ce": (apgd, {"restarts": 5}), "apgd-dlr": (apgd, {"loss": "dlr", "restarts": 5}),
        "fab": (fab, {"restarts": 5}), "square": (square, {}),
        "apgd-t": (apgd_targeted, {}), "fab-t": (fab_targeted, {}),
    }),
    "fast": Version({
        "apgd-ce": (apgd, {"steps": 10}),
        "apgd-t": (apgd_targeted, {"target_classes": 3, "order": "nearest"}),
        "square": (square_on_budget, {}),
    }),
    "rand": Version(
        {"apgd-ce": (apgd, {"eot": 20}), "apgd-dlr": (apgd, {"loss": "dlr", "eot": 20})}, stochastic=True
    ),
}  # fmt: skip
TARGETED = (apgd_targeted, fab_targeted)
CLASSES = {"apgd-t": 4, "apgd-dlr": 3}
"""The least number of classes of an attack, for its DLR loss; the others need two."""


@checked
def autoattack(ball: Ball, version: str = "standard") -> Attack:
    """Return AutoAttack as one pure `Attack`: an adversarial image per example, or the clean one.

    Args:
      ball: linf or l2.
      version: standard (APGD-CE, APGD-T, FAB-T, Square with 5,000 queries), fast (APGD-T towards the three nearest
        classes, see `nearest_wrong`, and `square_on_budget`: a fifth of the passes where images stand), plus, or rand
        (for stochastic models, called as logits_fn(x, keys [B])).

    Raises:
      L2LError: an unknown version, an l1 ball; when called, a model with fewer than four classes.
    """
    check_attacks(version, ball)
    attacks, stochastic = VERSIONS[version]
    whole = cascade([make(ball, **keywords) for make, keywords in attacks.values()], stochastic=stochastic)

    @entered
    def attack(logits_fn: Callable[..., Array], keys: Key, x: Array, y: Array) -> Array:
        check_attacks(version, ball, (), jax.eval_shape(logits_fn, x, *[keys] * stochastic).shape[1])
        return whole(logits_fn, keys, x, y)

    return attack


def check_attacks(version: str, ball: Ball, only: Collection[str] = (), classes: int = 4) -> None:
    """Check that a version has the attacks `only`, and the model the classes that those, or all, need.

    Raises:
      L2LError: an unknown version or name; all attacks in an l1 ball; an attack whose loss needs more classes than
        the model has.
    """
    known = VERSIONS[check(Literal["standard", "fast", "plus", "rand"], version, "version")].attacks
    if not isinstance(only, Collection):
        raise L2LError(f"only={only}: give names of attacks out of {', '.join(known)}, or () for all")
    if unknown := sorted({str(name) for name in only} - set(known)):
        raise L2LError(f"{version} has no attack {', '.join(unknown)}: choose from {', '.join(known)}")
    if ball.name == "l1" and not only:
        raise L2LError(f"{version}: AutoAttack has no attacks in l1 but APGD: give linf or l2, or attack with apgd")
    names = [name for name in known if name in only or not only]
    able = [name for name in names if CLASSES.get(name, 2) <= classes]
    if able != names:
        needs = ", ".join(f"{name} needs {CLASSES[name]}" for name in names if name not in able)
        fix = f"evaluate.run_standard_evaluation(..., only={able})" if able else "choose another attack"
        raise L2LError(f"the model has {classes} classes and {needs}: {fix}")


@functools.lru_cache(maxsize=8)
def stages(
    ball: Ball, version: str, *, num_classes: int, only: tuple[str, ...] = ()
) -> tuple[tuple[str, Attack], ...]:  # fmt: skip
    """Split AutoAttack, or the attacks `only` of it, into named parts: an attack each, or a target class of one.

    The parts of one attack share one compiled program, with the target's rank as an argument. Calls with the same ball
    return the same parts, so that nothing compiles again.
    """
    parts: list[tuple[str, Attack]] = []
    for name, (make, keywords) in VERSIONS[version].attacks.items():
        if only and name not in only:
            continue
        if make in TARGETED:
            towards = functools.partial(_towards, functools.partial(make, ball, **keywords))
            ranks = range(min(keywords.get("target_classes", 9), num_classes - 1))
            parts += [(name, Partial(towards, jnp.int32(rank))) for rank in ranks]
        else:
            parts.append((name, make(ball, **keywords)))
    return tuple(parts)


def _towards(make: Callable[..., Attack], rank: Array, logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
    return make(target_classes=1, first=rank)(logits_fn, key, x, y)
