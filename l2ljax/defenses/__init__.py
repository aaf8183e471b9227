"""Defenses: saddle-point objectives by their `--method` names.

    defense = defenses.create("rnn_adv", classifier, threat.linf(8 / 255), steps=10, axis_name=train.AXIS)

`methods` has the names. `classic` and `single_step` hold defenses without a learned attacker, `l2l`, `recurrent`,
`learned_start`, `interpolation`, `strategy` and `generative` those with one, `one_shot` attackers for a fixed
classifier, `saddle` the objective that they share, `weights` the perturbation of weights that goes with all. All
functions take the network to defend or to attack, the threat, options, and `axis_name`, the axis over which BatchNorm
reduces: `train.AXIS` for `train.make_step`.
"""

from l2ljax.defenses.classic import cw_adv, fgsm_adv, mart, pgd_adv, pgd_bls_adv, plain, stability, trades
from l2ljax.defenses.generative import l2l_da, l2l_star
from l2ljax.defenses.interpolation import ait, ait_l2l
from l2ljax.defenses.l2l import convolutional_l2l
from l2ljax.defenses.learned_start import fgsm_sdi
from l2ljax.defenses.methods import ATTACKERS, METHODS, Method, create, find, options, register, table
from l2ljax.defenses.one_shot import advgan, gap
from l2ljax.defenses.recurrent import rnn_adv, rnn_trades
from l2ljax.defenses.single_step import elle, fgsm_rs, free_adv, n_fgsm
from l2ljax.defenses.strategy import las_at
from l2ljax.defenses.weights import perturbed

__all__ = [
    "ATTACKERS", "METHODS", "Method", "advgan", "ait", "ait_l2l", "convolutional_l2l", "create", "cw_adv", "elle",
    "fgsm_adv", "fgsm_rs", "fgsm_sdi", "find", "free_adv", "gap", "l2l_da", "l2l_star", "las_at", "mart", "n_fgsm",
    "options", "perturbed", "pgd_adv", "pgd_bls_adv", "plain", "register", "rnn_adv", "rnn_trades", "stability",
    "table", "trades",
]  # fmt: skip
__dir__ = lambda: __all__
