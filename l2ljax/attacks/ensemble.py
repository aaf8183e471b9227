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
from l2ljax.attacks import apgd, fab, square
from l2ljax.attacks.gradient import keep_stronger
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn, example_keys, fold_in


def best_of(attacks: Sequence[Attack]) -> Attack:
    """Per example the result of largest margin loss: misclassified if any of the attacks makes it so."""

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))
        best, best_margin = x, losses.margin(logits_fn(x), y)
        for i, member in enumerate(attacks):
            best, best_margin = keep_stronger(
                logits_fn, y, (best, best_margin), member(logits_fn, fold_in(keys, i), x, y)
            )
        return best

    return attack


def restarts(attack: Attack, n: int) -> Attack:
    """`attack` n times with different keys, per example the result of largest margin loss."""

    def restarted(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))

        def again(best: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            return keep_stronger(logits_fn, y, best, attack(logits_fn, fold_in(keys, i), x, y)), None

        first = (x, losses.margin(logits_fn(x), y))
        return jax.lax.scan(again, first, jnp.arange(n))[0][0]

    return restarted


def cascade(attacks: Sequence[Attack]) -> Attack:
    """Per example what the first attack makes that fools the model, or the clean image where none does.

    The pure form of attacking the survivors only: all examples go through all attacks, fooled ones are left as they
    are. An example that is misclassified from the start stays clean.
    """

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        keys = example_keys(key, len(x))
        x_adv, fooled = x, losses.accuracy(logits_fn(x), y) == 0
        for i, member in enumerate(attacks):
            candidate = member(logits_fn, fold_in(keys, i), x, y)
            wins = ~fooled & (losses.accuracy(logits_fn(candidate), y) == 0)
            x_adv = jnp.where(wins.reshape(-1, *[1] * (x.ndim - 1)), candidate, x_adv)
            fooled = fooled | wins
        return x_adv

    return attack


def transfer(attack: Attack, surrogate: LogitsFn) -> Attack:
    """`attack` on another model, whatever model it is asked about: a black-box attack."""
    return lambda logits_fn, key, x, y: attack(surrogate, key, x, y)


VERSIONS: dict[str, Callable[[Ball], dict[str, Attack]]] = {
    "standard": lambda ball: {
        "apgd-ce": apgd.apgd(ball),
        "apgd-t": apgd.apgd_targeted(ball),
        "fab-t": fab.fab_targeted(ball),
        "square": square.square(ball),
    },
    "plus": lambda ball: {
        "apgd-ce": apgd.apgd(ball, restarts=5),
        "apgd-dlr": apgd.apgd(ball, loss="dlr", restarts=5),
        "fab": fab.fab(ball, restarts=5),
        "square": square.square(ball),
        "apgd-t": apgd.apgd_targeted(ball),
        "fab-t": fab.fab_targeted(ball),
    },
    "rand": lambda ball: {"apgd-ce": apgd.apgd(ball, eot=20), "apgd-dlr": apgd.apgd(ball, loss="dlr", eot=20)},
}
"""Version -> its attacks, in order. `rand` is for stochastic models, called as logits_fn(x, keys [B])."""

TARGETED: dict[str, Callable[..., Attack]] = {"apgd-t": apgd.apgd_targeted, "fab-t": fab.fab_targeted}


class Stage(NamedTuple):
    """A part of AutoAttack after which fooled examples can be dropped."""

    name: str
    attack: Attack


def autoattack(ball: Ball, version: str = "standard") -> Attack:
    """AutoAttack as one pure `Attack`: an adversarial image where one is found, else the clean one.

    Args:
      ball: linf or l2.
      version: standard (APGD-CE, APGD-T, FAB-T, Square with 5,000 queries), plus, or rand.

    Raises:
      L2LError: an unknown version; when called, a model with fewer than four classes.
    """
    return cascade(list(_version(version)(ball).values()))


@functools.lru_cache(maxsize=8)
def stages(ball: Ball, version: str, *, num_classes: int) -> tuple[Stage, ...]:
    """AutoAttack in parts: one per attack, and one per target class of a targeted attack.

    The parts of one attack are one compiled program, of which the target's rank is an argument; asked for again with
    the same ball, they are the same parts, and nothing compiles again.
    """
    found = []
    for name, attack in _version(version)(ball).items():
        if name in TARGETED:
            towards = functools.partial(_towards, TARGETED[name], ball)
            ranks = range(min(9, num_classes - 1))
            found += [Stage(name, jax.tree_util.Partial(towards, jnp.int32(rank))) for rank in ranks]
        else:
            found.append(Stage(name, jax.tree_util.Partial(attack)))
    return tuple(found)


def _towards(
    make: Callable[..., Attack], ball: Ball, rank: Array, logits_fn: LogitsFn, key: Key, x: Array, y: Array
) -> Array:
    return make(ball, target_classes=1, first=rank)(logits_fn, key, x, y)


def _version(name: str) -> Callable[[Ball], dict[str, Any]]:
    if name not in VERSIONS:
        raise L2LError(f"unknown version {name!r} of AutoAttack: choose of {', '.join(VERSIONS)}")
    return VERSIONS[name]
