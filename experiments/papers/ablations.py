"""The tables of experiments/ablation.py: name -> row -> the flags that differ from the recipe `ours` on digits."""

from typing import Any

__all__ = ["TABLES"]

_CHEAP = {"steps": 3}
_ONECYCLE = {"lr_schedule": "onecycle", "lr": 3e-3}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "methods": {
        **{method: {"method": method} for method in ("plain", "pgd_adv", "rnn_adv")},
        "rnn_adv, phi frozen at its start": {"attacker_lr": 0.0},
        **{method: {"method": method} for method in ("naive_l2l", "grad_l2l", "two_step_l2l")},
    },
    "rnn": {
        "default: scale 1, example, weights t": {},
        "scale 0.25": {"options": "scale=0.25"},
        "scale 5 = 1/eps, the paper's": {"options": "scale=5"},
        "gradient not normalized, the paper's": {"options": "normalize=none"},
        "scale 5 and not normalized, as printed": {"options": "scale=5,normalize=none"},
        "weights final": {"options": "weights=final"},
        "biases": {"options": "biases=True"},
        "phi's learning rate 1e-3": {"attacker_lr": 1e-3},
    },
    "recipes": {
        "grad_l2l, joint": {"method": "grad_l2l"},
        "grad_l2l, alternating": {"method": "grad_l2l", "schedule": "alternating"},
        "two_step_l2l, joint": {"method": "two_step_l2l"},
        "two_step_l2l, alternating": {"method": "two_step_l2l", "schedule": "alternating"},
        "rnn_adv, ours": {},
        "rnn_adv, as printed": {"options": "scale=5,normalize=none"},
    },
    "ingredients": {
        "ours without them": {**_CHEAP, "lr_schedule": "constant"},
        "EMA 0.99": {**_CHEAP, "lr_schedule": "constant", "ema": 0.99},
        "onecycle": {**_CHEAP, **_ONECYCLE},
        "cosine": {**_CHEAP, "lr_schedule": "cosine"},
        "onecycle, EMA 0.99": {**_CHEAP, **_ONECYCLE, "ema": 0.99},
        "onecycle, EMA 0.99, smoothing 0.1": {**_CHEAP, **_ONECYCLE, "ema": 0.99, "label_smoothing": 0.1},
        "onecycle, EMA 0.99, AWP 0.005": {**_CHEAP, **_ONECYCLE, "ema": 0.99, "awp": 0.005},
        "onecycle, EMA 0.99, Cutout 2": {**_CHEAP, **_ONECYCLE, "ema": 0.99, "cutout": 2},
    },
    "steps": {
        f"{name}, eps {eps}": {"method": method, "eps": eps, **chosen}
        for eps in ("0.1", "0.2", "0.3")
        for name, method, chosen in (
            ("N-FGSM", "n_fgsm", dict[str, Any]()),
            ("FGSM-RS", "fgsm_rs", {}),
            ("FGSM-SDI", "fgsm_sdi", {}),
            *(
                (
                    f"PGD, {steps} steps of {size} eps",
                    "pgd_adv",
                    {"steps": steps, "options": f"step_size={size * float(eps):g}"},
                )
                for steps, size in ((2, 0.75), (3, 0.5), (10, 0.25))
            ),
            *((f"RNN-Adv, {steps} steps", "rnn_adv", {"steps": steps}) for steps in (2, 3, 10)),
        )
    },
    "slim": {
        "wide": {"method": "grad_l2l", "attacker": "wide"},
        "slim": {"method": "grad_l2l", "attacker": "slim"},
        "slim without the skip": {"method": "grad_l2l", "attacker": "slim_no_skip"},
    },
}
