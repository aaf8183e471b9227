"""Attacks made of attacks: combinators, and AutoAttack (Croce & Hein, 2020), the standard for robust accuracy.

x_adv = jax.jit(autoattack(threat.linf(8 / 255)))(logits_fn, key, x, y)       # the pure form
evaluate.run_standard_evaluation(logits_fn, x, y, ball=ball, key=key)          # on the host: faster, resumable
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2ljax import losses
from l2ljax.attacks import auto_pgd as apgd
from l2ljax.attacks import boundary as fab
from l2ljax.attacks import square_search as square
from l2ljax.attacks.gradient import PerExampleLoss, keep_stronger, likeliest_wrong
from l2ljax.attacks.solver import one_by_one
from l2ljax.threat import Ball, spread
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn, example_keys, fold_in

__all__ = [
    "TARGETED", "VERSIONS", "Version", "autoattack", "best_of", "cascade", "misclassified", "multi_targeted",
    "restarts", "stages", "targeted", "transfer", "version_named",
]  # fmt: skip


def best_of(attacks: Sequence[Attack]) -> Attack:
    """Per example the result of largest margin loss: misclassified if any of the attacks makes it so."""

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))
        best = x, losses.margin(logits_fn(x), y)
        for i, member in enumerate(attacks):
            best = keep_stronger(logits_fn, y, best, member(logits_fn, fold_in(keys, i), x, y))
        return best[0]

    return one_by_one(attack, attacks)


def restarts(attack: Attack, n: int) -> Attack:
    """`attack` n times with different keys, per example the result of largest margin loss.

    On the host (see `solver`) one that stops at success leaves out, from run to run, the examples that it has fooled.
    """

    def restarted(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))

        def again(best: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            return keep_stronger(logits_fn, y, best, attack(logits_fn, fold_in(keys, i), x, y)), None

        first = (x, losses.margin(logits_fn(x), y))
        return jax.lax.scan(again, first, jnp.arange(n))[0][0]

    return one_by_one(restarted, [attack] * n)


def targeted(attack: Attack, target: int | Array | None = None) -> Attack:
    """`attack` with another aim: that the model answers with the class `target`.

        targeted(pgd(ball, step_size=2 / 255, steps=20), 3)
        targeted(apgd(ball))(logits_fn, key, x, target)              # in place of the labels, a class for each image

    An example is fooled where the target's logit is the largest, whatever its label: that is where +first and APGD
    stop, and what `restarts` and `best_of` count, inside of `targeted` (FAB, Square and the like return the image
    itself where they do not get there). The attack sees a model of the two classes "another" and "target",

        z' = (0, z_t - max_{k != t} z_k),

    which it is to lead from the first to the second. So the margin loss is z_t - max_{k != t} z_k, and the
    cross-entropy, log(1 + exp(that)), has its gradient, scaled. It serves all attacks but those that need more classes
    (DLR, APGD-T) and the learned ones that read labels.

    Args:
      attack: of one aim, like `pgd`, `apgd`, `fab`, `square`, or `restarts` of them.
      target: the class to reach, or one for each example [B]; without it the attack's labels are the targets.

    Raises:
      L2LError: a target that the model does not have (when called).
    """

    def towards(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        goal = y if target is None else jnp.broadcast_to(jnp.asarray(target), y.shape)

        def reaches(x: Array) -> Array:
            logits = logits_fn(x)
            if type(target) is int and not 0 <= target < logits.shape[1]:
                raise L2LError(f"target={target}: the model has the classes 0..{logits.shape[1] - 1}")
            gap = -losses.margin(logits, goal)
            return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

        return attack(reaches, key, x, jnp.zeros_like(goal))

    return towards


def multi_targeted(
    make: Callable[[PerExampleLoss], Attack],
    *,
    loss: PerExampleLoss = losses.cross_entropy,
    target_classes: int = 9,
) -> Attack:
    """An attack towards each of the likeliest wrong classes in turn, per example the result of largest margin loss.

        multi_targeted(lambda loss: pgd(ball, step_size=2 / 255, steps=20, loss=loss))

    Towards a class t the loss to ascend is -L(logits, t), whatever the label. The classes are those of largest logit
    at the clean image, in that order, as in APGD-T.

    Args:
      make: loss -> attack.
      loss: L, (logits [B, K], classes [B]) -> [B], which is small where the class is likely.
      target_classes: how many, or all K - 1 if those are fewer.
    """

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys, clean = example_keys(key, len(x)), logits_fn(x)

        def towards(best: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            i, target = at
            member = make(lambda logits, _: -loss(logits, target))
            return keep_stronger(logits_fn, y, best, member(logits_fn, fold_in(keys, i), x, y)), None

        targets = likeliest_wrong(clean, y, target_classes)
        first = (x, losses.margin(clean, y))
        return jax.lax.scan(towards, first, (jnp.arange(len(targets)), targets))[0][0]

    return attack


def cascade(attacks: Sequence[Attack], *, stochastic: bool = False) -> Attack:
    """Per example what the first attack makes that fools the model, or the clean image where none does.

    The pure form of attacking the survivors only: all examples go through all attacks, fooled ones are left as they
    are. An example that is misclassified from the start stays clean.

    Args:
      attacks: in their order.
      stochastic: the model is logits_fn(x, keys [B]); of each image one draw decides.
    """

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))
        x_adv, fooled = x, misclassified(logits_fn, keys, x, y, stochastic=stochastic)
        for i, member in enumerate(attacks):
            own = fold_in(keys, i)
            candidate = member(logits_fn, own, x, y)
            wins = ~fooled & misclassified(logits_fn, own, candidate, y, stochastic=stochastic)
            x_adv = jnp.where(spread(wins, x), candidate, x_adv)
            fooled = fooled | wins
        return x_adv

    return attack


def misclassified(logits_fn: Callable[..., Array], keys: Key, x: Array, y: Array, *, stochastic: bool) -> Array:
    """Whether the model is wrong [B]; a stochastic one, called as logits_fn(x, keys [B]), in one draw."""
    logits = logits_fn(x, keys) if stochastic else logits_fn(x)
    return losses.accuracy(logits, y) == 0


def transfer(attack: Attack, surrogate: LogitsFn) -> Attack:
    """`attack` on another model, whatever model it is asked about: a black-box attack."""
    return lambda logits_fn, key, x, y: attack(surrogate, key, x, y)


class Version(NamedTuple):
    """A version of AutoAttack."""

    attacks: dict[str, tuple[Callable[..., Attack], dict[str, Any]]]
    """Name -> (the function that makes it of a ball, its keywords that are not the defaults), in order."""
    stochastic: bool = False
    """For models with randomness, called as logits_fn(x, keys [B])."""


VERSIONS = {
    "standard": Version(
        {
            "apgd-ce": (apgd.apgd, {}),
            "apgd-t": (apgd.apgd_targeted, {}),
            "fab-t": (fab.fab_targeted, {}),
            "square": (square.square, {}),
        }
    ),
    "plus": Version(
        {
            "apgd-ce": (apgd.apgd, {"restarts": 5}),
            "apgd-dlr": (apgd.apgd, {"loss": "dlr", "restarts": 5}),
            "fab": (fab.fab, {"restarts": 5}),
            "square": (square.square, {}),
            "apgd-t": (apgd.apgd_targeted, {}),
            "fab-t": (fab.fab_targeted, {}),
        }
    ),
    "rand": Version(
        {"apgd-ce": (apgd.apgd, {"eot": 20}), "apgd-dlr": (apgd.apgd, {"loss": "dlr", "eot": 20})}, stochastic=True
    ),
}
TARGETED = (apgd.apgd_targeted, fab.fab_targeted)


def autoattack(ball: Ball, version: str = "standard") -> Attack:
    """AutoAttack as one pure `Attack`: an adversarial image where one is found, else the clean one.

    Args:
      ball: linf or l2.
      version: standard (APGD-CE, APGD-T, FAB-T, Square with 5,000 queries), plus, or rand, which is for stochastic
        models, called as logits_fn(x, keys [B]).

    Raises:
      L2LError: an unknown version; when called, a model with fewer than four classes.
    """
    found = version_named(version)
    members = [make(ball, **how) for make, how in found.attacks.values()]
    return cascade(members, stochastic=found.stochastic)


@functools.lru_cache(maxsize=8)
def stages(ball: Ball, version: str, *, num_classes: int) -> tuple[tuple[str, Attack], ...]:
    """AutoAttack in parts, named: one per attack, and one per target class of a targeted attack.

    The parts of one attack are one compiled program, of which the target's rank is an argument; asked for again with
    the same ball, they are the same parts, and nothing compiles again.
    """
    found = []
    for name, (make, how) in version_named(version).attacks.items():
        if make in TARGETED:
            towards = functools.partial(_towards, functools.partial(make, ball, **how))
            ranks = range(min(9, num_classes - 1))
            found += [(name, jax.tree_util.Partial(towards, jnp.int32(rank))) for rank in ranks]
        else:
            found.append((name, jax.tree_util.Partial(make(ball, **how))))
    return tuple(found)


def _towards(make: Callable[..., Attack], rank: Array, logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
    return make(target_classes=1, first=rank)(logits_fn, key, x, y)


def version_named(name: str) -> Version:
    """The version of that name; an unknown one is an L2LError."""
    if name not in VERSIONS:
        raise L2LError(f"unknown version {name!r} of AutoAttack: choose of {', '.join(VERSIONS)}")
    return VERSIONS[name]
