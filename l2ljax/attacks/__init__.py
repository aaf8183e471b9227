"""Attacks: pure functions (logits_fn, key, x, y) -> x_adv that jit and compose.

    attack = jax.jit(attacks.pgd(threat.linf(8 / 255), step_size=2 / 255, steps=10))
    x_adv = attack(jax.tree_util.Partial(clf.logits, variables), key, x, y)   # other weights do not recompile

`ascent` is the loop; `gradient`, `carlini`, `apgd`, `fab` and `square` are attacks without parameters, `learned` those
with; `ensemble` has the combinators and AutoAttack. `create(name, ball)` knows the `names` that reports and `--attacks`
use.
"""

from l2ljax.attacks import apgd, carlini, fab, square
from l2ljax.attacks.ascent import Ascent, ascend, clean, gaussian, uniform
from l2ljax.attacks.carlini import cw_l2, l2l_cw, l2l_da_cw
from l2ljax.attacks.ensemble import autoattack, best_of, cascade, restarts, targeted, transfer
from l2ljax.attacks.gradient import fgsm, gradient_attack, line_search, momentum, pgd, random_noise, random_signs
from l2ljax.attacks.names import create

__all__ = [
    "Ascent", "apgd", "ascend", "autoattack", "best_of", "carlini", "cascade", "clean", "create", "cw_l2", "fab",
    "fgsm", "gaussian", "gradient_attack", "l2l_cw", "l2l_da_cw", "line_search", "momentum", "pgd",
    "random_noise", "random_signs", "restarts", "square", "targeted", "transfer", "uniform",
]  # fmt: skip
