"""Attacks: pure functions (logits_fn, key, x, y) -> x_adv that jit and compose.

    attack = jax.jit(attacks.pgd(threat.linf(8 / 255), step_size=2 / 255, steps=10))
    x_adv = attack(jax.tree_util.Partial(clf.logits, variables), key, x, y)   # other weights do not recompile

`entrance` checks what an attack is given, `ascent` is the loop. `gradient`, `carlini`, `auto_pgd`, `boundary` and
`square_search` hold attacks without parameters, `learned` those with parameters, `travelling` one whose parameters come
with the package. `adaptive_ascent` is APGD's loop, `sparse_ascent` that in l1, `square_budget` Square with early
stopping. `selection` keeps the stronger image and ranks wrong classes. `ensemble` has the combinators and AutoAttack.
`solver` splits an attack into pieces, between which a host may stop. `create(name, ball)` makes an attack from its name
in `names`.
"""

from l2ljax.attacks.ascent import Ascent, ascend, clean, gaussian, uniform
from l2ljax.attacks.auto_pgd import apgd, apgd_targeted
from l2ljax.attacks.boundary import fab, fab_targeted, minimal_perturbation
from l2ljax.attacks.carlini import cw_l2, l2l_cw, l2l_da_cw
from l2ljax.attacks.ensemble import autoattack, best_of, cascade, multi_targeted, restarts, targeted, transfer
from l2ljax.attacks.gradient import (
    backtracking,
    fgsm,
    gradient_attack,
    line_search,
    momentum,
    pgd,
    random_noise,
    random_signs,
    steepest_ascent,
)
from l2ljax.attacks.names import FAMILIES, Family, create, parameters, register
from l2ljax.attacks.square_budget import square_on_budget
from l2ljax.attacks.square_search import square
from l2ljax.attacks.travelling import traveller

__all__ = [
    "FAMILIES", "Ascent", "Family", "apgd", "apgd_targeted", "ascend", "autoattack", "backtracking", "best_of",
    "cascade", "clean", "create", "cw_l2", "fab", "fab_targeted", "fgsm", "gaussian", "gradient_attack", "l2l_cw",
    "l2l_da_cw", "line_search", "minimal_perturbation", "momentum", "multi_targeted", "parameters", "pgd",
    "random_noise", "random_signs", "register", "restarts", "square", "square_on_budget", "steepest_ascent", "targeted",
    "transfer", "traveller", "uniform",
]  # fmt: skip
__dir__ = lambda: __all__
