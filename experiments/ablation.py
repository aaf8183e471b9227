"""Settings x seeds on digits, one table of means and lowest: `python experiments/ablation.py --table=methods`.

Writes JSON to experiments/results/digits_TABLE.json. A run that is already in --runs is not trained again."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from l2ljax.files import write_json
from l2ljax.report import markdown
from l2ljax.run import experiment
from l2ljax.run.config import Config, resolve
from l2ljax.runtime.monitor import script
from l2ljax.runtime.provenance import provenance
from l2ljax.runtime.workdir import read_json

TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "methods": {
        "plain": {"method": "plain"},
        "pgd_adv": {"method": "pgd_adv"},
        "rnn_adv": {},
        "rnn_adv, phi frozen at its start": {"attacker_lr": 0.0},
        "naive_l2l": {"method": "naive_l2l"},
        "grad_l2l": {"method": "grad_l2l"},
        "two_step_l2l": {"method": "two_step_l2l"},
    },
    "rnn": {
        "default: scale 1, example, weights t": {},
        "scale 0.25": {"options": "scale=0.25"},
        "scale 5 = 1/eps, the paper's": {"options": "scale=5"},
        "gradient not normalized, the paper's": {"options": "normalize=none"},
        "weights final": {"options": "weights=final"},
        "biases": {"options": "biases=True"},
        "phi's learning rate 1e-3": {"attacker_lr": 1e-3},
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

    table: str = "methods"
    """methods, rnn (RNN-Adv's choices), or slim (L2L's slim attacker)."""
    seeds: int = 3
    attacker_width: int = 16
    """Channels of the L2L methods' attacker (64 in the paper)."""
    attacks: str = "pgd20,pgd100,own"
    epochs: int | None = None
    val_size: int | None = None
    runs: Path = Path("runs/ablation")
    out: Path = Path("experiments/results")


def main(flags: Flags) -> None:
    """Train the missing runs, and write and print the results."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, settings in TABLES[flags.table].items():
        for seed in range(flags.seeds):
            width = flags.attacker_width if settings.get("method", "").endswith("l2l") else None
            folder = flags.runs / flags.table / f"{name}_s{seed}".replace(" ", "_").replace("/", "_")
            config = Config(
                **{"method": "rnn_adv", **settings},
                seed=seed,
                attacks=flags.attacks,
                epochs=flags.epochs,
                val_size=flags.val_size,
                attacker_width=width,
                no_checkpoint=True,
                workdir=str(folder),
            )
            done = folder / "report.json"
            spec = resolve("digits", config.method, config)
            result = read_json(done) if done.exists() else experiment.run(spec)
            rows.setdefault(name, []).append(result)
    record = {**provenance(), "rows": rows}
    write_json(flags.out / f"digits_{flags.table}.json", record)
    print(markdown.over_seeds(record))


if __name__ == "__main__":
    with script():
        main(tyro.cli(Flags, description=__doc__))
