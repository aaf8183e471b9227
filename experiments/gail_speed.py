"""GAIL's speed against HumanCompatibleAI's imitation: `python experiments/gail_speed.py --imitation=PYTHON`.

PYTHON is the interpreter of an environment with `pip install imitation==1.0.1`, which does not work with gymnasium 1.x.
The result is in steps of the environment per second, learning included; run it alone on the machine.
"""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from bench.goals import output_of
from l2ljax.files import check_writable, write_json
from l2ljax.gail import experiment
from l2ljax.gail.setup import Config
from l2ljax.runtime.flags import launch
from l2ljax.runtime.provenance import provenance
from l2ljax.types import L2LError
from l2ljax.values import LARGEST, Count, Range
from papers import speeds

RIVAL = Path(__file__).parent / "imitation_gail.py"


@dataclasses.dataclass(frozen=True)
class Flags:
    """The measurements."""

    imitation: str | None = None
    """The interpreter; without it only ours is measured."""
    env: str = "CartPole-v1"
    iterations: Annotated[int, Range(26, LARGEST)] = 150
    """More than one program's 25, the first of which compiles."""
    rival_steps: Count = 100_000
    rounds: Count = 3
    out: Path = Path("runs/gail_speed.json")
    """The JSON file, a kept result if it is in experiments/results."""


def main(flags: Flags) -> None:
    """Measure both in turn, write and print."""
    if flags.imitation and not shutil.which(flags.imitation):
        raise L2LError(f"--imitation={flags.imitation}: no such program; name the environment's Python")
    check_writable(flags.out)
    rounds: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(flags.rounds):
            for hidden in ("64,32", "100,100"):
                config = Config(
                    env=flags.env, updater="adam", controls="none", seeds=1, iterations=flags.iterations, hidden=hidden,
                    checkpoint_every=0, expert=Path(folder, "expert.npz"), workdir=Path(folder, f"{hidden}_{round_}"),
                )  # fmt: skip
                result = experiment.run(config)
                speed = result["arms"]["adam"]
                steps = speed["iterations_per_second"] * result["pairs"]
                row = {"steps_per_second": steps, "compile_seconds": speed["compile_seconds"]}
                rounds.setdefault(f"ours, nets {hidden}", []).append(row)
            if flags.imitation:
                command = [flags.imitation, str(RIVAL), flags.env, str(flags.rival_steps)]
                printed = output_of(command).splitlines()
                row = json.loads(printed[-1]) if printed else {}
                if "name" not in row:
                    raise L2LError(f"{' '.join(command)} printed no result")
                rounds.setdefault(row.pop("name"), []).append(row)
    record = {**provenance(), "environment": flags.env, "gail_speed": rounds}
    record["command"] = record["command"].replace(str(flags.imitation), "PYTHON")
    write_json(flags.out, record)
    print(speeds.gail_speed(record))


if __name__ == "__main__":
    launch(main, Flags, __doc__)
