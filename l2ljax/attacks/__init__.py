"""Attacks: pure functions (logits_fn, key, x, y) -> x_adv that jit and compose.

    attack = jax.jit(attacks.pgd(threat.linf(8 / 255), step_size=2 / 255, steps=10))
    x_adv = attack(jax.tree_util.Partial(clf.logits, variables), key, x, y)   # other weights do not recompile

`ascent` is the loop; `gradient`, `carlini`, `apgd`, `fab` and `square` are attacks without parameters, `learned` those
with; `ensemble` has the combinators and AutoAttack. `create(name, ball)` knows the names that reports and `--attacks`
use.
"""

import functools
import re
from collections.abc import Callable

from l2ljax import losses
from l2ljax.attacks import apgd, carlini, fab, square
from l2ljax.attacks.ascent import Ascent, ascend, clean, gaussian, uniform
from l2ljax.attacks.carlini import cw_l2, l2l_cw, l2l_da_cw
from l2ljax.attacks.ensemble import autoattack, best_of, cascade, restarts, transfer
from l2ljax.attacks.gradient import fgsm, gradient_attack, line_search, momentum, pgd, random_noise, random_signs
from l2ljax.threat import Ball
from l2ljax.types import Attack, L2LError

__all__ = [
    "Ascent", "apgd", "ascend", "autoattack", "best_of", "carlini", "cascade", "clean", "create", "cw_l2", "fab",
    "fgsm", "gaussian", "gradient_attack", "l2l_cw", "l2l_da_cw", "line_search", "momentum", "pgd", "random_noise",
    "random_signs", "restarts", "square", "transfer", "uniform",
]  # fmt: skip

PAPER_STEPS: dict[str, Callable[[float, int], float]] = {
    "l2l": lambda eps, n: eps * 0.003 / 0.031,
    "rnn": lambda eps, n: eps / 4,
    "l2l_da": lambda eps, n: eps / 12 if n >= 100 else eps / 4,
}
"""The step of PGD in a paper's tables, of (eps, steps): L2L 0.003 at eps 0.031; RNN-Adv eps/4; L2L-DA's code."""

FAMILIES: dict[str, Callable[[Ball, int], Attack]] = {
    "pgd": lambda ball, n: pgd(ball, step_size=max(2.5 * ball.eps / n, ball.eps / 10), steps=n),
    "margin": lambda ball, n: pgd(
        ball,
        step_size=max(2.5 * ball.eps / n, ball.eps / 10),
        steps=n,
        loss=functools.partial(losses.margin, kappa=50.0),
    ),
    "momentum": lambda ball, n: momentum(ball, step_size=max(2.5 * ball.eps / n, ball.eps / 10), steps=n),
    "bls": lambda ball, n: line_search(ball, max_step=ball.eps, steps=n),
    "random": lambda ball, n: random_noise(ball, samples=n),
    "cw": lambda ball, n: l2l_da_cw(ball, steps=n),
    "apgd": lambda ball, n: apgd.apgd(ball, steps=n),
    "fab": lambda ball, n: fab.fab_targeted(ball, steps=n),
    "square": lambda ball, n: square.square(ball, queries=n),
}
"""Family -> attack of (ball, N), for names like pgd20: N steps, or N samples of random noise."""

DEFAULT_N = {"momentum": "10", "bls": "10", "random": "10000", "apgd": "100", "fab": "100", "square": "5000"}
"""N where a name has none."""

NAMES = (
    "fgsm, pgdN, pgdN@l2l, pgdN@rnn, pgdN@l2l_da, marginN, momentumN, blsN, randomN, cwN, apgdN, fabN, "
    "squareN (N a number, like pgd20)"
)


def create(name: str, ball: Ball) -> Attack:
    """The attack of that name at that threat.

    pgdN and its kin: uniform start in the ball (momentum: the image), step max(2.5 eps / N, eps / 10), last iterate.
    marginN is PGD on the margin loss with kappa = 50. pgdN@PAPER takes the step of that paper's tables. momentum and
    bls alone are 10 steps, random 10,000 samples (L2L's).

    Raises:
      L2LError: an unknown name; the message lists the known ones.
    """
    if name == "fgsm":
        return fgsm(ball)
    match = re.fullmatch(r"([a-z]+?)([1-9]\d*)(?:@(\w+))?", name + DEFAULT_N.get(name, ""))
    if match and match[1] in FAMILIES:
        family, n, paper = match[1], int(match[2]), match[3]
        if paper is None:
            return FAMILIES[family](ball, n)
        if family == "pgd" and paper in PAPER_STEPS:
            return pgd(ball, step_size=PAPER_STEPS[paper](ball.eps, n), steps=n)
    raise L2LError(f"unknown attack {name!r}: choose of {NAMES}, own, ownN")
