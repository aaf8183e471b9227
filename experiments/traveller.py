"""Train the attack that travels, and compare it with PGD and APGD on classifiers that it never saw.

    python experiments/traveller.py --data-dir=DATA --others=runs/mnist_pgd_adv,runs/cifar10_pgd_adv

It trains the victims (`travel.victims`), then the attack on those of the meta-training, searches the step sizes of PGD
on the same ones, and attacks the held-out victims and the other runs. Nothing that is in --folder is done again.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from l2ljax.files import check_writable, write_files, write_json
from l2ljax.models.shipped import to_bytes
from l2ljax.runtime.flags import launch
from l2ljax.runtime.provenance import provenance
from l2ljax.types import L2LError
from l2ljax.values import Count, Seed, parse_list
from travel import comparison, training
from travel.victims import HELD_OUT, LEARNING, other, prey


@dataclasses.dataclass(frozen=True)
class Flags:
    """Data, lengths and places."""

    data_dir: str | None = None
    """The folder that holds MNIST and CIFAR-10."""
    others: str = ""
    """Workdirs of other runs to attack, separated by commas."""
    steps: Count = 200
    """The steps of the meta-training."""
    batch_size: Count = 16
    search_size: Count = 16
    """Training images of each victim in the search of step sizes."""
    eval_size: Count = 128
    """Test images of each held-out victim."""
    seed: Seed = 0
    folder: Path = Path("runs/traveller")
    """Victims, weights and the rows so far, with the same lengths and seed."""
    out: Path = Path("runs/traveller.json")
    """The result, a kept one if it is in experiments/results."""


def main(flags: Flags) -> None:
    """Train, search, attack, write."""
    check_writable(flags.out)
    given: dict[str, Any] = {"steps": flags.steps, "batch_size": flags.batch_size, "seed": flags.seed}
    lengths = given | {"search_size": flags.search_size, "eval_size": flags.eval_size}
    if (before := kept(flags.folder / "settings.json", lambda: lengths)) != lengths:
        raise L2LError(f"--folder={flags.folder} holds results with {before}, not {lengths}: choose another")
    load = functools.partial(prey, data_dir=flags.data_dir, folder=flags.folder)
    preys = functools.cache(lambda: [load(victim, part="train", size=1000) for victim in LEARNING])
    params, weights = {"untrained": training.drawn(flags.seed)}, flags.folder / "traveller.npz"
    for path, estimate in ((weights, training.evolution), (flags.folder / "by_gradient.npz", training.by_gradient)):
        if not path.exists():
            write_files({path: to_bytes(training.learn(preys(), estimate=estimate, **given))})
        params[path.stem] = dict(np.load(path))
    found = kept(flags.folder / "search.json", lambda: comparison.search(preys(), flags.search_size))
    sizes = {name: row["size"] for name, row in found.items()}
    tried = {victim.name: functools.partial(load, victim, part="test", size=flags.eval_size) for victim in HELD_OUT}
    runs = parse_list(str, flags.others, "--others") if flags.others else []
    tried |= {run: functools.partial(other, run, flags.data_dir, flags.eval_size) for run in runs}
    rows, compare = {}, functools.partial(comparison.compare, params=params, sizes=sizes)
    for name, make in tried.items():
        rows[name] = kept(flags.folder / f"{name.replace('/', '%2F')}.json", functools.partial(compare, make))
        print(name, {attack: round(row["largest_loss"], 4) for attack, row in rows[name].items()}, flush=True)
    write_json(flags.out, {
        **provenance(), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "settings": {name: str(value) for name, value in dataclasses.asdict(flags).items()},
        "learning": [v._asdict() for v in LEARNING], "held_out": {v.name: v._asdict() for v in HELD_OUT},
        "sizes": found, "summary": comparison.summary(rows), "rows": rows,
    })  # fmt: skip


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Return the file's content, made now if it is missing."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())


if __name__ == "__main__":
    launch(main, Flags, __doc__)
