"""The names of attacks, as reports and `--attacks` use them: `create("pgd100+best+restarts5", ball)`.

`FAMILIES` has a record for each name, `register` adds one, and `parameters(name, ball)` lists an attack's parameters.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from l2ljax import losses, threat
from l2ljax.attacks import auto_pgd, boundary, carlini, gradient, square_search, travelling
from l2ljax.attacks.ascent import close
from l2ljax.attacks.ensemble import VERSIONS, multi_targeted, restarts
from l2ljax.attacks.gradient import PerExampleLoss
from l2ljax.threat import Ball
from l2ljax.types import Attack, L2LError
from l2ljax.values import Range, checked, parse

__all__ = [
    "FAMILIES", "OPTIONS", "PAPERS", "RESERVED", "Family", "Keywords", "check_name", "create", "keywords", "listing",
    "parameters", "register", "table",
]  # fmt: skip

Keywords = Callable[[Ball, int], dict[str, Any]]
"""(ball, N) -> keywords of an attack's function, for the number N in its name: steps, samples or queries."""
PAPERS: dict[str, Keywords] = {
    "l2l": lambda ball, n: {"step_size": ball.eps * 0.003 / 0.031},
    "l2l_v2": lambda ball, n: {"step_size": ball.eps * 0.003 / 0.031, "start": close},
    "rnn": lambda ball, n: {"step_size": ball.eps / 4},
    "l2l_da": lambda ball, n: {"step_size": ball.eps / (12 if n >= 100 else 4)},
    "ait": lambda ball, n: {"step_size": ball.eps / 4},
}
"""PGD in a paper's tables: L2L's step 0.003 at eps 0.031, in 2021 from B(x, 1e-4); RNN-Adv's eps / 4 (its evaluation);
L2L-DA's code; AIT's code, 2/255 at 8/255."""


class Family(NamedTuple):
    """The record of one name and the attacks it denotes."""

    make: Callable[..., Attack]
    """(ball, *, ...) -> the attack. A keyword `keep` gives the name the options +best and +first, a function as default
    of `loss` gives +targeted."""
    parameters: Keywords
    help: str
    """One line for the README and `--help`."""
    n: int | None = None
    """N of a name without a number; None: N is required; 0: N is refused."""
    papers: Mapping[str, Keywords] = {}
    """The keywords that a paper's tables have, by the name after an @."""


def _steps(ball: Ball, n: int) -> dict[str, Any]:
    return {"steps": n} if n else {}


def _sized_steps(ball: Ball, n: int) -> dict[str, Any]:
    return {"steps": n, "step_size": max(2.5 * ball.eps / n, ball.eps / 10)}


FAMILIES = {
    "fgsm": Family(gradient.fgsm, _steps, "one step as long as the radius", 0),
    "pgd": Family(
        gradient.pgd, _sized_steps, papers={name: PAPERS[name] for name in ("l2l", "l2l_v2", "rnn", "l2l_da")},
        help="uniform start, steps of max(2.5 eps / N, eps / 10) or, behind @, as in a paper's tables; last iterate",
    ),
    "margin": Family(
        gradient.pgd, lambda ball, n: {**_sized_steps(ball, n), "loss": functools.partial(losses.margin, kappa=50.0)},
        "the same on the margin loss with kappa = 50: AIT's CW", papers={name: PAPERS[name] for name in ("ait", "l2l")},
    ),
    "momentum": Family(gradient.momentum, _sized_steps, "MI-FGSM, from the image itself", 10),
    "traveller": Family(
        travelling.traveller, _steps, n=20,
        help="RNN-Adv's learned optimizer, trained once on small classifiers of gray digits; linf",
    ),
    "bls": Family(
        gradient.line_search, lambda ball, n: {"steps": n, "max_step": ball.eps},
        "along the raw gradient with backtracking line search", 10,
    ),
    "random": Family(
        gradient.random_noise, lambda ball, n: {"samples": n}, "the strongest of N uniform draws from the ball", 10_000
    ),
    "cw": Family(carlini.l2l_da_cw, _steps, "C&W of L2L-DA's and RNN-Adv's tables", 100),
    "l2l_cw": Family(carlini.l2l_cw, _steps, "C&W of L2L's tables", 100),
    "cw_l2": Family(carlini.cw_l2, _steps, "C&W as published: the least change in l2", 1000),
    "apgd": Family(auto_pgd.apgd, _steps, "AutoAttack's APGD on the cross-entropy", 100),
    "apgd_t": Family(auto_pgd.apgd_targeted, _steps, "AutoAttack's APGD-T, on the targeted DLR loss", 100),
    "fab": Family(boundary.fab_targeted, _steps, "AutoAttack's FAB-T", 100),
    "square": Family(
        square_search.square, lambda ball, n: {"queries": n}, "AutoAttack's Square, random search with N queries", 5000
    ),
}  # fmt: skip
"""The records by name, in the order of `--help`."""
OPTIONS = {
    "NAME+best, NAME+first": "the iterate of largest loss, or the first that fools, in place of the last",
    "NAME+targeted": "towards each of the nine likeliest wrong classes",
    "NAME+restartsN": "N runs; the image of largest margin loss",
    "own, ownN, trained:WORKDIR": "the attacker that the run, or that of WORKDIR, trained, with its own or N steps",
}
"""Options that follow a name in --attacks, and names that no family has."""
RESERVED = ("own", "trained", "paper", *VERSIONS)
"""Names that scripts use otherwise."""


@checked
def create(name: str, ball: Ball) -> Attack:
    """Return the attack of that name for that threat.

    A name is one of `FAMILIES`, its number, @ and a paper if it has such step sizes, and options, like
    pgd100@l2l+best+restarts5. +best returns the iterate of largest loss and +first the first misclassified one, instead
    of the last. +targeted runs towards each of the nine likeliest wrong classes, on minus its loss towards that class,
    and on the margin without kappa. +restartsN makes N runs and returns per example the image of largest margin loss
    (`evaluate.run_in_turn` with +first: the first that fools). Attacks without +best and +first choose their iterate
    themselves.

    Raises:
      L2LError: an unknown name, or an option that the attack lacks; the message lists the choices.
    """
    make, chosen, goal, repeats = _read(name, ball)
    made = functools.partial(make, ball, **chosen)
    attack = multi_targeted(lambda loss: made(loss=loss), loss=goal) if goal else made()
    return restarts(attack, repeats) if repeats > 1 else attack


@checked
def parameters(name: str, ball: Ball) -> dict[str, Any]:
    """Return all keywords of a named attack or version of AutoAttack, with defaults, for a report's JSON.

    Raises:
      L2LError: as `create`.
    """
    if name in VERSIONS:
        return {member: _describe(ball, *made) for member, made in VERSIONS[name].attacks.items()}
    make, chosen, goal, repeats = _read(name, ball)
    return {**_describe(ball, make, chosen), "targeted": goal is not None, "restarts": repeats}


def register(
    name: str, make: Callable[..., Attack], *, parameters: Keywords = _steps,
    n: int | None = None, help: str = "",
) -> None:  # fmt: skip
    """Add an attack to the names that `create`, `--attacks` and all reports accept.

        attacks.register("mine", mine)      # with def mine(ball, *, steps=20): mine, mine50, mine50+restarts5

    An attack's `key` may be one key or [B] of them, one per image, which reports give: see `types.example_keys`.

    Args:
      name: letters, digits and underscores.
      make: (ball, *, ...) -> attack. Keywords that `parameters` does not set need defaults; see `Family` for `keep` and
        `loss`.
      parameters: (ball, N) -> keywords of `make` for the number N in the name; `steps` by default.
      n: N of a name without a number; by default the default of `make`'s `steps`.
      help: one line for `--help`.

    Raises:
      L2LError: a taken or invalid name; keywords without a value.
    """
    known = keywords(make)
    if n is None:
        n = known.get("steps", 0 if parameters is _steps else None)
        n = None if n is inspect.Parameter.empty else n
    family = Family(make, parameters, help or (make.__doc__ or "").partition("\n")[0].rstrip("."), n)
    if FAMILIES.get(name) == family:
        return
    check_name("attack", name)
    alike = [o for o in (*FAMILIES, *RESERVED) if re.fullmatch(rf"{name}\d*", o) or re.fullmatch(rf"{o}\d*", name)]
    check_name("attack", name, alike)
    set_by_name = parameters(threat.linf(0.1), n or 1)
    if missing := [key for key, value in known.items() if value is inspect.Parameter.empty and key not in set_by_name]:
        raise L2LError(f"attack {name!r}: give {', '.join(missing)} a default, or set it in `parameters`")
    FAMILIES[name] = family


def check_name(kind: str, name: str, taken: Sequence[str] = ()) -> None:
    """Refuse the name of an attack or a method that is not a word or that clashes with `taken`."""
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise L2LError(f"{kind} {name!r}: name it with letters, digits and underscores")
    if taken:
        raise L2LError(f"{kind} {name!r}: the name {taken[0]} is taken: choose another")


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's parameters after its first, with their defaults, or `inspect.Parameter.empty`."""
    known = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: p.default for p in known if p.kind is not p.VAR_KEYWORD}


def listing() -> dict[str, str]:
    """Return {forms of a name: help}, N for the number: {"fgsm": ..., "pgdN, pgdN@l2l, ...": ...}."""
    rows = {}
    for name, family in FAMILIES.items():
        numbered = name if family.n == 0 else f"{name}N"
        default = f"; N = {family.n:,} by default" if family.n else ""
        rows[", ".join([numbered, *(f"{numbered}@{paper}" for paper in family.papers)])] = family.help + default
    return rows


def table() -> str:
    """Return the names as text, one a line, and the options that follow a name."""
    rows = listing() | OPTIONS
    width = max(map(len, rows)) + 2
    return "\n".join(f"  {forms:{width}}{help}" for forms, help in rows.items())


def _read(name: str, ball: Ball) -> tuple[Callable[..., Attack], dict[str, Any], PerExampleLoss | None, int]:
    """Return the make, keywords, loss of +targeted, and number of restarts that a name means."""
    families = "|".join(sorted(FAMILIES, key=len, reverse=True))
    match = re.fullmatch(rf"({families})([1-9]\d*)?(?:@(\w+))?((?:\+\w+)*)", name, re.ASCII)
    if match and not _counted(FAMILIES[match[1]], match[2]):
        raise L2LError(f"{name!r}: {match[1]} takes {'no number' if match[2] else f'a number, like {match[1]}20'}")
    if match is None:
        raise L2LError(
            f"unknown attack {name!r}: choose from {', '.join(listing())} (N a number, like pgd20), with options "
            "like pgd20+best; --import=MODULE adds yours, in Python load_attacker(WORKDIR) returns a trained one, and "
            "AutoAttack's versions are for evaluate.py and attacks.autoattack"
        )
    family = FAMILIES[match[1]]
    n = _count(name, match[2]) if match[2] else family.n or 0
    chosen, repeats, goal = family.parameters(ball, n), 1, None
    if match[3] and match[3] not in family.papers:
        has = ", ".join(f"@{paper}" for paper in family.papers) or "no steps of a paper"
        raise L2LError(f"{name!r}: {match[1]} has no @{match[3]}: it has {has}")
    if match[3]:
        chosen |= family.papers[match[3]](ball, n)
    takes = {**keywords(family.make), **chosen}
    options = [*(["best", "first"] if "keep" in takes else []), *(["targeted"] if callable(takes.get("loss")) else [])]
    asked = match[4].split("+")[1:]
    kinds = [option.rstrip("0123456789") for option in asked]
    if len({"keep" if kind in ("best", "first") else kind for kind in kinds}) < len(kinds):
        raise L2LError(f"{name!r}: give each option once, and one of +best and +first")
    for option in asked:
        count = re.fullmatch(r"restarts([1-9][0-9]*)", option)
        if not count and option not in options:
            has = ", ".join([*options, "restartsN"])
            raise L2LError(f"{name!r}: {match[1]} has the options {has}, not {option}")
        if count:
            repeats = _count(name, count[1])
        elif option == "targeted":
            goal = takes["loss"]
            if "kappa" in getattr(goal, "keywords", {}):  # it would clip the side on which a target is far
                goal = chosen["loss"] = functools.partial(goal, kappa=math.inf)
        else:
            chosen["keep"] = option
    return family.make, chosen, goal, repeats


def _count(name: str, digits: str) -> int:
    """Return the number N in a name, 9,999,999 at most: an attack's schedule has an entry for each step."""
    return parse(Annotated[int, Range(1, 9_999_999)], digits, f"the number in {name}")


def _counted(family: Family, number: str | None) -> bool:
    """Return whether a name has the number that its family needs."""
    return number is None if family.n == 0 else bool(number or family.n)


def _describe(ball: Ball, make: Callable[..., Attack], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the function's name and all its keywords as JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, functools.partial):
            return f"{value.func.__name__}({', '.join(f'{k}={v}' for k, v in value.keywords.items())})"
        if callable(value):
            return getattr(value, "__name__", type(value).__name__)
        # without addresses: an evaluation's saved state belongs to this text
        return value if isinstance(value, int | float | str | None) else re.sub(r" at 0x[0-9a-f]+", "", str(value))

    known = {**keywords(make), **chosen}
    values = {name: plain(value) for name, value in known.items() if value is not inspect.Parameter.empty}
    return {"attack": plain(make), "norm": ball.name, "eps": ball.eps, **values}
