"""Settings x seeds on digits, one table of means and lowest: `python experiments/ablation.py --table=methods`.

Writes digits_TABLE.json to a folder. A run that is already in --runs is not trained again."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from l2ljax.files import check_writable, write_json
from l2ljax.report import markdown
from l2ljax.run import experiment
from l2ljax.run.config import Config, resolve
from l2ljax.run.settings import Settings
from l2ljax.runtime.flags import read
from l2ljax.runtime.monitor import script
from l2ljax.runtime.provenance import provenance
from l2ljax.values import Count, Natural

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
            ("N-FGSM", "n_fgsm", {}),
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


@dataclasses.dataclass(frozen=True)
class Flags:
    """The table to make."""

    table: Literal["methods", "rnn", "recipes", "ingredients", "steps", "slim"] = "methods"
    """methods, rnn (RNN-Adv's choices), recipes (the papers' settings and ours), ingredients (averages, schedules, AWP),
    steps (how many an attack needs, by hand and learned, at three radii), or slim (L2L's slim attacker)."""
    seeds: Count = 3
    attacker_width: Count = 16
    """Channels of the L2L methods' attacker (64 in the paper)."""
    attacks: str = "pgd20,pgd100,own"
    epochs: Count | None = None
    val_size: Natural | None = None
    runs: Path = Path("runs/ablation")
    out: Path = Path("runs/ablation")
    """The folder of the JSON, a kept result in experiments/results."""


def main(flags: Flags) -> None:
    """Train the missing runs, and write and print the results."""
    out = flags.out / f"digits_{flags.table}.json"
    check_writable(out)
    runs: dict[str, list[Settings]] = {}
    for name, settings in TABLES[flags.table].items():
        for seed in range(flags.seeds):
            width = flags.attacker_width if settings.get("method", "").endswith("l2l") else None
            folder = flags.runs / flags.table / f"{name}_s{seed}".replace(" ", "_").replace("/", "_")
            chosen = {"attacks": flags.attacks, "epochs": flags.epochs, "val_size": flags.val_size, **settings}
            config = Config(seed=seed, attacker_width=width, workdir=str(folder), **chosen)
            runs.setdefault(name, []).append(resolve("digits", config.method or "rnn_adv", config))
    record = {**provenance(), "rows": {name: list(map(experiment.run_once, seeds)) for name, seeds in runs.items()}}
    write_json(out, record)
    print(markdown.over_seeds(record))


if __name__ == "__main__":
    with script():
        main(read(Flags, str(__doc__)))
