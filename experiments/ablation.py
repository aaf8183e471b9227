"""Settings x seeds on digits, one table of means and lowest: `python experiments/ablation.py --table=methods`.

Writes digits_TABLE.json to a folder. A run that is already in --runs is not trained again."""

import dataclasses
from pathlib import Path
from typing import Literal

from l2ljax.files import check_writable, write_json
from l2ljax.report import markdown
from l2ljax.run import experiment
from l2ljax.run.config import Config, resolve
from l2ljax.run.settings import Settings
from l2ljax.runtime.flags import read
from l2ljax.runtime.monitor import script
from l2ljax.runtime.provenance import provenance
from l2ljax.values import Count, Natural
from papers.ablations import TABLES


@dataclasses.dataclass(frozen=True)
class Flags:
    """The table to make."""

    table: Literal["methods", "recipes", "rnn", "ingredients", "steps", "slim"] = "methods"
    """methods, recipes (as released or printed, and ours), rnn (RNN-Adv's choices), ingredients (averages, rates, AWP),
    steps (what an attack needs, by hand and learned, at three radii), or slim (L2L's slim attacker)."""
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
