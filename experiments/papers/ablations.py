"""The tables of experiments/ablation.py: name -> row -> flags on top of the recipe `ours` on digits.

All but "methods" set the rate and Cutout, too: a later choice of the recipe leaves them as they are.
"""

from collections.abc import Mapping
from typing import Any

from papers import effort

__all__ = ["TABLES", "TITLES", "passes"]

_Rows = dict[str, dict[str, Any]]
_CONSTANT: dict[str, Any] = {"lr": 1e-3, "lr_schedule": "constant", "cutout": 0}
_CYCLE = {"lr": 3e-3, "lr_schedule": "onecycle", "cutout": 0}


def _each(shared: dict[str, Any], rows: _Rows) -> _Rows:
    """Return rows that begin with the shared flags."""
    return {name: {**shared, **chosen} for name, chosen in rows.items()}


def _attacks(eps: float) -> _Rows:
    """Return training attacks inside a ball, one step by hand and learned, and several."""
    sizes = {2: 0.75, 3: 0.5, 10: 0.25}
    by_hand: _Rows = {
        f"PGD, {n} steps of {size} eps": {"method": "pgd_adv", "steps": n, "options": f"step_size={size * eps:g}"}
        for n, size in sizes.items()
    }
    learned: _Rows = {f"RNN-Adv, {n} steps": {"method": "rnn_adv", "steps": n} for n in sizes}
    one_step: _Rows = {name: {"method": name.lower().replace("-", "_")} for name in ("N-FGSM", "FGSM-RS", "FGSM-SDI")}
    return {f"{name}, eps {eps}": {"eps": str(eps), **row} for name, row in {**one_step, **by_hand, **learned}.items()}


TABLES: dict[str, _Rows] = {
    "methods": {
        **{method: {"method": method} for method in (
            "plain", "fgsm_rs", "n_fgsm", "pgd_adv", "trades", "rnn_adv", "rnn_trades", "fgsm_sdi", "naive_l2l",
            "grad_l2l", "two_step_l2l",
        )},
        "rnn_adv, phi frozen at its start": {"attacker_lr": 0.0},
    },
    "recipes": _each(_CONSTANT, {
        "grad_l2l, joint": {"method": "grad_l2l"},
        "grad_l2l, alternating": {"method": "grad_l2l", "schedule": "alternating"},
        "two_step_l2l, joint": {"method": "two_step_l2l"},
        "two_step_l2l, alternating": {"method": "two_step_l2l", "schedule": "alternating"},
        "rnn_adv, ours": {},
        "rnn_adv, as printed": {"options": "scale=5,normalize=none"},
    }),
    "rnn": _each(_CONSTANT, {
        "default: scale 1, example, weights t": {},
        "scale 0.25": {"options": "scale=0.25"},
        "scale 5 = 1/eps, the paper's": {"options": "scale=5"},
        "gradient not normalized, the paper's": {"options": "normalize=none"},
        "weights final": {"options": "weights=final"},
        "biases": {"options": "biases=True"},
        "phi's learning rate 1e-3": {"attacker_lr": 1e-3},
    }),
    "ingredients": _each({"steps": 3}, {
        "constant rate": _CONSTANT,
        "constant rate, EMA 0.99": {**_CONSTANT, "ema": 0.99},
        "onecycle": _CYCLE,
        "onecycle, EMA 0.99": {**_CYCLE, "ema": 0.99},
        "onecycle, AWP 0.005": {**_CYCLE, "awp": 0.005},
        "onecycle, smoothing 0.1": {**_CYCLE, "label_smoothing": 0.1},
        "onecycle, Cutout 2": {**_CYCLE, "cutout": 2},
        "onecycle, smoothing 0.1, Cutout 2": {**_CYCLE, "label_smoothing": 0.1, "cutout": 2},
    }),
    "steps": _each(_CONSTANT, {name: row for eps in (0.1, 0.2, 0.3) for name, row in _attacks(eps).items()}),
    "slim": _each(_CONSTANT, {
        "wide": {"method": "grad_l2l", "attacker": "wide"},
        "slim": {"method": "grad_l2l", "attacker": "slim"},
        "slim without the skip": {"method": "grad_l2l", "attacker": "slim_no_skip"},
    }),
}  # fmt: skip
TITLES = {
    "methods": "digits: methods as `ours` (one-cycle rate to 3e-3, Cutout 2), the L2L ones with attackers of width 16",
    "recipes": "digits: as released or printed, and ours, at a constant rate of 1e-3 without Cutout; L2L's attackers "
    "of width 16",
    "rnn": "digits: RNN-Adv's choices, at a constant rate of 1e-3 without Cutout",
    "ingredients": "digits: ingredients of training, RNN-Adv with 3 steps, constant rate of 1e-3 or one-cycle to 3e-3",
    "steps": "digits: the attack in training, at a constant rate of 1e-3 without Cutout",
    "slim": "digits: L2L's attackers at width 16, at a constant rate of 1e-3 without Cutout",
}
"""Table -> its title in BENCHMARKS.md."""


def passes(row: str) -> float:
    """Return a row's forward and backward passes of a training step; rows of one name in two tables are alike."""
    chosen: Mapping[str, Any] = next(rows[row] for rows in TABLES.values() if row in rows)
    return effort.training(
        "digits", "digits_cnn", chosen.get("method", "rnn_adv"), epochs=1, images=1, steps=chosen.get("steps"),
        schedule=chosen.get("schedule", "joint"), awp=chosen.get("awp", 0.0),
    ).passes  # fmt: skip
