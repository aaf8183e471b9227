"""AutoAttack against pyautoattack: `python experiments/autoattack_speed.py --victim=WORKDIR`.

The same weights and images, the first test images of a resnet20; ours once more at first, to compile. Run it alone.
"""

import dataclasses
import datetime
import json
import os
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from l2ljax import data, models, rivals, threat
from l2ljax.evaluate import run_standard_evaluation
from l2ljax.results import versions
from l2ljax.setup import load_classifier
from l2ljax.types import Batch, L2LError
from l2ljax.workdir import read_json


@dataclasses.dataclass(frozen=True)
class Flags:
    """What to attack."""

    victim: str
    """The workdir of a run with a resnet20."""
    data_dir: str | None = None
    images: int = 256
    batch_size: int = 256
    eps: str = "8/255"
    attacks: str = "apgd-ce,apgd-t,fab-t,square"
    repeats: int = 1
    out: Path = Path("experiments/results/autoattack_speed.json")


def main(flags: Flags) -> None:
    """Time both, compare what they leave standing, write."""
    saved = read_json(Path(flags.victim) / "config.json")
    split = data.load(saved["dataset"], flags.data_dir or saved["data_dir"]).test
    x, y = np.float32(split.images[: flags.images]) / 255, split.labels[: flags.images]
    logits_fn, ball, names = load_classifier(flags.victim), threat.linf(threat.parse_eps(flags.eps)), flags.attacks
    settings = {"eps": ball.eps, "attacks": tuple(names.split(",")), "batch_size": flags.batch_size}
    (variables,) = logits_fn.args
    name, program = rivals.pyautoattack_standard(models.create("resnet20"), variables, Batch(x, y), **settings)

    def ours() -> np.ndarray:
        options = {"ball": ball, "key": jax.random.key(0), "batch_size": flags.batch_size, "progress": print}
        return run_standard_evaluation(logits_fn, x, y, only=names.split(","), **options).robust

    robust, seconds = {}, {"ours, compiling": [], "ours": [], name: []}
    for repeat in range(flags.repeats):
        for row, run in ([("ours, compiling", ours)] if repeat == 0 else []) + [("ours", ours), (name, program)]:
            began = time.perf_counter()
            robust[row] = run()
            seconds[row].append(time.perf_counter() - began)
            print(f"{row}: {seconds[row][-1]:.1f} s, {robust[row].mean():.2%} robust", flush=True)
    found = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}",
        "versions": versions(),
        "images": flags.images,
        "seconds": seconds,
        "robust": {row: int(r.sum()) for row, r in robust.items()},
        "differing": int((robust["ours"] != robust[name]).sum()),
    }
    flags.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Flags, description=__doc__))
    except L2LError as error:
        sys.exit(f"error: {error}")
