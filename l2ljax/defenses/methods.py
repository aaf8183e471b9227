"""The names of methods for `--method`: `create("rnn_adv", classifier, ball, steps=10)`.

`METHODS` has a record for each name, `ATTACKERS` those for a fixed classifier; `register` adds one.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from l2ljax.attacks.names import check_name
from l2ljax.defenses.classic import cw_adv, fgsm_adv, mart, pgd_adv, pgd_bls_adv, plain, stability, trades
from l2ljax.defenses.generative import l2l_da, l2l_star
from l2ljax.defenses.interpolation import ait, ait_l2l
from l2ljax.defenses.l2l import convolutional_l2l
from l2ljax.defenses.learned_start import fgsm_sdi
from l2ljax.defenses.one_shot import advgan, gap
from l2ljax.defenses.recurrent import rnn_adv, rnn_trades
from l2ljax.defenses.single_step import elle, fgsm_rs, free_adv, n_fgsm
from l2ljax.defenses.strategy import las_at
from l2ljax.threat import Ball
from l2ljax.types import Classifier, Defense, L2LError
from l2ljax.values import check

__all__ = ["ATTACKERS", "METHODS", "Make", "Method", "create", "find", "options", "register", "table"]


Make = Callable[..., Defense]
"""(classifier, ball, *, axis_name=None, ...) -> the defense."""


class Method(NamedTuple):
    """The record of one name."""

    make: Make
    options: dict[str, Any]
    """Its keywords for `--options`, numbers and names, with their defaults."""
    kinds: dict[str, Any]
    """Their annotations, as `values.check` and `values.parse` take them."""
    learns: bool
    """Whether its attacker has parameters."""
    help: str
    """A line for `table`, by default the first of the docstring."""


def _record(make: Make, *, learns: bool = False, rest: Make | None = None, help: str = "") -> Method:
    """Return the record of `make`, whose **keywords, if any, are those of `rest`."""
    known = {**(_keywords(rest) if rest else {}), **_keywords(make)}
    known = {p.name: p for p in known.values() if isinstance(p.default, int | float | str | None)}
    options = {name: p.default for name, p in known.items() if name != "axis_name"}
    line = help or (inspect.getdoc(getattr(make, "func", make)) or "-").splitlines()[0]
    return Method(make, options, {name: _kind(known[name]) for name in options}, learns, line)


def _keywords(make: Make) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(make, eval_str=True)
    except NameError:  # an annotation of names that its module imports for type checkers alone
        signature = inspect.signature(make)
    return {p.name: p for p in [*signature.parameters.values()][2:] if p.kind is not p.VAR_KEYWORD}


def _kind(parameter: inspect.Parameter) -> Any:
    """Return the annotation, or without one the default's type; any value that a text can name for None."""
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        return parameter.annotation
    return None | bool | int | float | str if parameter.default is None else type(parameter.default)


def _l2l(inputs: tuple[str, ...], steps: int, help: str) -> Method:
    return _record(functools.partial(convolutional_l2l, inputs=inputs, steps=steps), learns=True, help=help)


METHODS = {
    "plain": _record(plain),
    "fgsm_adv": _record(fgsm_adv),
    "fgsm_rs": _record(fgsm_rs),
    "n_fgsm": _record(n_fgsm),
    "elle": _record(elle),
    "free_adv": _record(free_adv),
    "pgd_adv": _record(pgd_adv),
    "pgd_bls_adv": _record(pgd_bls_adv),
    "cw_adv": _record(cw_adv),
    "trades": _record(trades),
    "mart": _record(mart),
    "stability": _record(stability),
    "naive_l2l": _l2l(("image",), 1, "Train on a convolutional attacker that sees the image."),
    "grad_l2l": _l2l(("image", "gradient"), 1, "Train on a convolutional attacker that sees image and gradient."),
    "two_step_l2l": _l2l(("image", "gradient"), 2, "Train on two steps of one that sees image and gradient."),
    "grad_only_l2l": _l2l(("gradient",), 1, "Train on a convolutional attacker that sees the gradient alone."),
    "two_step_grad_only_l2l": _l2l(("gradient",), 2, "Train on two steps of one that sees the gradient alone."),
    "ait": _record(ait),
    "ait_l2l": _record(ait_l2l, learns=True),
    "rnn_adv": _record(rnn_adv, learns=True),
    "rnn_trades": _record(rnn_trades, learns=True, rest=rnn_adv),
    "fgsm_sdi": _record(fgsm_sdi, learns=True),
    "las_at": _record(las_at, learns=True),
    "l2l_da": _record(l2l_da, learns=True),
    "l2l_star": _record(
        l2l_star, learns=True, help="Train on L2L-DA's baseline: one shot from image and gradient, deterministic."
    ),
}
"""The records by `--method` name."""
ATTACKERS = {
    "advgan": _record(advgan, learns=True),
    "gap": _record(gap, learns=True),
    "gap_universal": _record(functools.partial(gap, universal=True), learns=True),
}
"""Attackers for a fixed classifier; every method with a learned attacker serves too."""


def register(name: str, make: Make, *, learns: bool = False) -> None:
    """Add a method to the names that `create`, `--method` and all reports accept.

        defenses.register("mine", mine)    # def mine(classifier, ball, *, beta=1.0, axis_name=None): ...

    Its options are the keywords whose defaults are numbers, names or None. They are checked by their annotations (see
    `values`), or by the types of their defaults. A data set without a recipe for it in `run.recipes` uses that of
    pgd_adv.

    Args:
      name: letters, digits and underscores.
      make: see `Make`; `axis_name` is the pmapped axis, in training.
      learns: whether its attacker has parameters, so that it can attack as `own` and attack.py can train it.

    Raises:
      L2LError: a taken or invalid name; keywords without a default; no `axis_name`.
    """
    record, known = _record(make, learns=learns), _keywords(make)
    if METHODS.get(name) == record:
        return
    check_name("method", name, [other for other in (*METHODS, *ATTACKERS, "all") if other == name])
    if missing := [key for key, p in known.items() if p.default is p.empty]:
        raise L2LError(f"method {name!r}: give {', '.join(missing)} a default")
    if "axis_name" not in known:
        raise L2LError(f"method {name!r}: give it a keyword axis_name=None, the axis that `saddle.unrolled` takes")
    METHODS[name] = record


def find(name: str) -> Method:
    """Return the record of a method or an attacker; raise an L2LError if it is unknown."""
    records = {**METHODS, **ATTACKERS}
    if name not in records:
        known = f"{', '.join(METHODS)} (to attack: {', '.join(ATTACKERS)})"
        raise L2LError(f"unknown method {name!r}: choose one of {known}; --import=MODULE adds yours")
    return records[name]


def options(method: str) -> dict[str, Any]:
    """Return the options of a method with their defaults; raise an L2LError if it is unknown."""
    return dict(find(method).options)


def table() -> str:
    """Return each method with its line of help, and below it its options, as text."""
    lines = []
    for name, record in METHODS.items():
        lines.append(f"  {name:24}{record.help}")
        if record.options:
            lines.append(" " * 26 + ", ".join(f"{option}={value}" for option, value in record.options.items()))
    return "\n".join(lines)


def create(method: str, classifier: Classifier, ball: Ball, *, axis_name: str | None = None, **chosen: Any) -> Defense:
    """Return the defense of that name.

    Args:
      method: a key of `METHODS` or `ATTACKERS`.
      classifier: the network to defend.
      ball: the threat.
      axis_name: the pmapped axis, in training.
      **chosen: those of `options(method)` that differ from the defaults.

    Raises:
      L2LError: an unknown method, an option that it lacks, or one of another type or range.
    """
    record = find(method)
    if lacking := [name for name in chosen if name not in record.options]:
        raise L2LError(f"method {method} has no option {lacking[0]!r}: it has {', '.join(record.options) or 'none'}")
    chosen = {name: check(record.kinds[name], value, name) for name, value in chosen.items()}
    return record.make(classifier, ball, axis_name=axis_name, **chosen)
