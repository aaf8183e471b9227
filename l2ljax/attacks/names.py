"""The names of attacks, as reports and `--attacks` use them: `create("pgd100+best+restarts5", ball)`.

`parameters(name, ball)` says what stands behind a name.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from l2ljax import losses
from l2ljax.attacks import auto_pgd, boundary, carlini, gradient, square_search
from l2ljax.attacks.ensemble import VERSIONS, restarts, targeted
from l2ljax.attacks.gradient import PerExampleLoss
from l2ljax.threat import Ball
from l2ljax.types import Attack, L2LError

PAPER_STEPS: dict[str, Callable[[float, int], float]] = {
    "l2l": lambda eps, n: eps * 0.003 / 0.031,
    "rnn": lambda eps, n: eps / 4,
    "l2l_da": lambda eps, n: eps / 12 if n >= 100 else eps / 4,
}
"""The step of PGD in a paper's tables, of (eps, steps): L2L 0.003 at eps 0.031; RNN-Adv eps/4; L2L-DA's code."""


class Family(NamedTuple):
    """Attacks of one kind."""

    function: Callable[..., Attack]
    how: Callable[[Ball, int], dict[str, Any]]
    """(ball, N) -> the function's keywords, with N steps, or N samples or queries."""
    n: int | None
    """N where a name has none; pgd and margin have to say it."""
    loss: PerExampleLoss | None = None
    """What is ascended by an attack that takes a `loss`, and so can be aimed at a class."""
    options: tuple[str, ...] = ()
    """Of the names' options those that it has, beside restartsN."""


def _step(ball: Ball, n: int) -> float:
    return max(2.5 * ball.eps / n, ball.eps / 10)


def _steps(ball: Ball, n: int) -> dict[str, Any]:
    return {"steps": n}


def _sized_steps(ball: Ball, n: int) -> dict[str, Any]:
    return {"steps": n, "step_size": _step(ball, n)}


_ce, _margin50 = losses.cross_entropy, functools.partial(losses.margin, kappa=50.0)
_ITERATE = ("best", "first", "targeted")

FAMILIES = {
    "fgsm": Family(gradient.fgsm, lambda ball, n: {}, 1, _ce, _ITERATE),
    "pgd": Family(gradient.pgd, _sized_steps, None, _ce, _ITERATE),
    "margin": Family(
        gradient.pgd, lambda ball, n: {**_sized_steps(ball, n), "loss": _margin50}, None, _margin50, _ITERATE
    ),
    "momentum": Family(gradient.momentum, _sized_steps, 10, _ce, _ITERATE),
    "bls": Family(gradient.line_search, lambda ball, n: {"steps": n, "max_step": ball.eps}, 10, _ce, _ITERATE),
    "random": Family(gradient.random_noise, lambda ball, n: {"samples": n}, 10_000),
    "cw": Family(carlini.l2l_da_cw, _steps, 100, losses.margin, _ITERATE),
    "l2l_cw": Family(carlini.l2l_cw, _steps, 100, losses.margin, ("targeted",)),
    "cw_l2": Family(carlini.cw_l2, _steps, 1000, losses.margin, ("targeted",)),
    "apgd": Family(auto_pgd.apgd, _steps, 100),
    "apgd_t": Family(auto_pgd.apgd_targeted, _steps, 100),
    "fab": Family(boundary.fab_targeted, _steps, 100),
    "square": Family(square_search.square, lambda ball, n: {"queries": n}, 5000),
}
NAMES = (
    "fgsm, pgdN, pgdN@l2l, pgdN@rnn, pgdN@l2l_da, marginN, momentumN, blsN, randomN, cwN, l2l_cwN, cw_l2N, apgdN, "
    "apgd_tN, fabN, squareN (N a number, like pgd20), with options like pgd20+best"
)
_PATTERN = re.compile(
    rf"(?P<family>{'|'.join(sorted(FAMILIES, key=len, reverse=True))})(?P<n>[1-9]\d*)?"
    rf"(?:@(?P<paper>{'|'.join(PAPER_STEPS)}))?(?P<options>(?:\+\w+)*)"
)


def create(name: str, ball: Ball) -> Attack:
    """The attack of that name at that threat.

    pgdN and its kin: uniform start in the ball (momentum: the image), step max(2.5 eps / N, eps / 10), last iterate.
    marginN is PGD on the margin loss with kappa = 50. pgdN@PAPER takes the step of that paper's tables. cw is the C&W
    of L2L-DA's and RNN-Adv's tables, l2l_cw that of L2L's, cw_l2 the original; apgd_t and fab are targeted as in
    AutoAttack. Without a number, momentum and bls have 10 steps, random 10,000 samples (L2L's), cw, l2l_cw, apgd,
    apgd_t and fab 100 steps, cw_l2 1,000, square 5,000 queries.

    Options follow, like pgd100+best+restarts5. +best returns the iterate of largest loss and +first the first that is
    misclassified, instead of the last; +targeted runs towards each of the nine likeliest wrong classes; +restartsN
    runs it N times. Of several runs the image of largest margin loss is returned, per example. The attacks without
    +best and +first choose their iterate by themselves.

    Raises:
      L2LError: an unknown name, or an option that the attack does not have; the message lists what there is.
    """
    chosen = _read(name, ball)
    make = functools.partial(chosen.function, ball)
    if chosen.targeted:
        attack = targeted(lambda loss: make(**{**chosen.how, "loss": loss}), loss=chosen.targeted)
    else:
        attack = make(**chosen.how)
    return restarts(attack, chosen.restarts) if chosen.restarts > 1 else attack


def parameters(name: str, ball: Ball) -> dict[str, Any]:
    """What an attack of `create` or a version of AutoAttack is, default values included; for a report's JSON.

    Raises:
      L2LError: as `create`.
    """
    if name in VERSIONS:
        return {member: _told(ball, make, how) for member, (make, how) in VERSIONS[name].attacks.items()}
    chosen = _read(name, ball)
    aimed = {"targeted": chosen.targeted is not None, "restarts": chosen.restarts}
    return {**_told(ball, chosen.function, chosen.how), **aimed}


class _Chosen(NamedTuple):
    """What a name says."""

    function: Callable[..., Attack]
    how: dict[str, Any]
    targeted: PerExampleLoss | None
    restarts: int


def _read(name: str, ball: Ball) -> _Chosen:
    unknown = L2LError(f"unknown attack {name!r}: choose of {NAMES}, own, ownN")
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise unknown
    family = FAMILIES[match["family"]]
    n = int(match["n"] or family.n or 0)
    if n == 0 or (match["n"] and match["family"] == "fgsm") or (match["paper"] and match["family"] != "pgd"):
        raise unknown
    how, repeats, goal = family.how(ball, n), 1, None
    if match["paper"]:
        how["step_size"] = PAPER_STEPS[match["paper"]](ball.eps, n)
    for option in match["options"].split("+")[1:]:
        count = re.fullmatch(r"restarts([1-9]\d*)", option)
        if not count and option not in family.options:
            has = ", ".join([*family.options, "restartsN"])
            raise L2LError(f"{name!r}: {match['family']} has the options {has}, not {option}")
        if count:
            repeats = int(count[1])
        elif option == "targeted":
            goal = family.loss
        else:
            how["keep"] = option
    return _Chosen(family.function, how, goal, repeats)


def _told(ball: Ball, function: Callable[..., Attack], how: dict[str, Any]) -> dict[str, Any]:
    """The attack's name, and all its keywords with numbers and names for values."""
    found = inspect.signature(function).parameters
    others = any(p.kind is p.VAR_KEYWORD for p in found.values())  # they are those of gradient_attack
    known = {**(inspect.signature(gradient.gradient_attack).parameters if others else {}), **found}
    defaults = {name: p.default for name, p in known.items() if p.default is not p.empty}

    def tell(value: Any) -> Any:
        if isinstance(value, functools.partial):
            return f"{value.func.__name__}({', '.join(f'{k}={v}' for k, v in value.keywords.items())})"
        return value.__name__ if callable(value) else value

    chosen = {name: tell(value) for name, value in {**defaults, **how}.items()}
    return {"attack": function.__name__, "norm": ball.name, "eps": ball.eps, **chosen}
