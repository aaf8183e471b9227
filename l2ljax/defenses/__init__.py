"""Defenses: saddle-point objectives by the names that `--method` takes.

    defense = defenses.create("rnn_adv", classifier, threat.linf(8 / 255), steps=10)

`classic` holds those without a learned attacker, `l2l`, `interpolation` and `generative` those
with one, `one_shot` attackers for a classifier that does not move, `saddle` the objective that they share.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from l2ljax.defenses.classic import cw_adv, fgsm_adv, pgd_adv, pgd_bls_adv, plain, stability, trades
from l2ljax.defenses.generative import l2l_da, l2l_star
from l2ljax.defenses.interpolation import ait, ait_l2l
from l2ljax.defenses.l2l import convolutional_l2l, rnn_adv, rnn_trades
from l2ljax.defenses.one_shot import advgan, gap
from l2ljax.threat import Ball
from l2ljax.types import Classifier, Defense, L2LError


def _l2l(inputs: tuple[str, ...], steps: int) -> Callable[..., Defense]:
    return functools.partial(convolutional_l2l, inputs=inputs, steps=steps)


METHODS: dict[str, Callable[..., Defense]] = {
    "plain": plain,
    "fgsm_adv": fgsm_adv,
    "pgd_adv": pgd_adv,
    "pgd_bls_adv": pgd_bls_adv,
    "cw_adv": cw_adv,
    "trades": trades,
    "stability": stability,
    "naive_l2l": _l2l(("image",), 1),
    "grad_l2l": _l2l(("image", "gradient"), 1),
    "two_step_l2l": _l2l(("image", "gradient"), 2),
    "grad_only_l2l": _l2l(("gradient",), 1),
    "two_step_grad_only_l2l": _l2l(("gradient",), 2),
    "ait": ait,
    "ait_l2l": ait_l2l,
    "rnn_adv": rnn_adv,
    "rnn_trades": rnn_trades,
    "l2l_da": l2l_da,
    "l2l_star": l2l_star,
}
"""What `--method` takes."""
ATTACKERS: dict[str, Callable[..., Defense]] = {
    "advgan": advgan,
    "gap": gap,
    "gap_universal": functools.partial(gap, universal=True),
}
"""Attackers for a classifier that does not move; every learned attacker of `METHODS` serves for that too."""
_ALL = {**METHODS, **ATTACKERS}


def options(method: str) -> dict[str, Any]:
    """The keyword arguments of a method with their defaults.

    Raises:
      L2LError: an unknown method.
    """
    if method not in _ALL:
        raise L2LError(
            f"unknown method {method!r}: choose one of {', '.join(METHODS)} (to attack: {', '.join(ATTACKERS)})"
        )
    factories = [
        _ALL[method],
        *([rnn_adv] if method == "rnn_trades" else []),
    ]  # passes on what it does not name
    return {
        p.name: p.default
        for factory in factories
        for p in inspect.signature(factory).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("axis_name", "criterion", "inputs")
    }


def create(method: str, classifier: Classifier, ball: Ball, *, axis_name: str | None = None, **chosen: Any) -> Defense:
    """The defense of that name.

    Args:
      method: a key of `METHODS`.
      classifier: the network to defend.
      ball: the threat.
      axis_name: the pmapped axis over which training takes its statistics, if any.
      **chosen: of `options(method)`, what is to differ from the defaults.

    Raises:
      L2LError: an unknown method, or an option that it does not have.
    """
    known = options(method)
    for name in chosen:
        if name not in known:
            raise L2LError(f"method {method} has no option {name!r}: it has {', '.join(known) or 'none'}")
    return _ALL[method](classifier, ball, axis_name=axis_name, **chosen)
