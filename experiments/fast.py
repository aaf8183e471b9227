"""AutoAttack's versions standard and fast: verdicts and passes. `python experiments/fast.py --victims=WORKDIR,...`.

Both attack the same images of each run: its first test images, then training images. WORKDIR@scaled stands for 100
times its logits, whose cross-entropy saturates, and WORKDIR@quantized for pixels rounded to 16 levels, with gradients
of 0. A pass is a forward and a backward pass over one image, either alone a half; all that run are counted, with those
of copies that fill batches.
"""

import dataclasses
from pathlib import Path
from typing import Any

from bench import passes
from l2ljax.files import check_writable, write_json
from l2ljax.runtime.flags import launch
from l2ljax.runtime.provenance import provenance
from l2ljax.runtime.workdir import read_json
from l2ljax.types import L2LError
from l2ljax.values import Count, parse_list


@dataclasses.dataclass(frozen=True)
class Flags:
    """The models and the images."""

    victims: str
    """Workdirs, separated by commas; each may end with @scaled or @quantized."""
    data_dir: str | None = None
    images: Count = 300
    batch_size: Count | None = None
    """By default `run_standard_evaluation`'s own."""
    seeds: Count = 2
    """Runs of each version with other seeds; the spread of the standard one's is the yardstick."""
    out: Path = Path("runs/fast.json")
    """The JSON file, a kept result if it is in experiments/results. Other victims in it stay."""


def main(flags: Flags) -> None:
    """Judge each victim and write the results after each."""
    check_writable(flags.out)
    settings = {name: getattr(flags, name) for name in ("data_dir", "images", "batch_size", "seeds")}
    verdicts_in(flags.out)
    for name in parse_list(str, flags.victims, "--victims"):
        row = {"command": provenance()["command"], **passes.judge(name, **settings)}
        print(row, flush=True)
        write_json(flags.out, {**provenance(), "verdicts": {**verdicts_in(flags.out), name: row}})


def verdicts_in(path: Path) -> dict[str, Any]:
    """Return victim -> row of the file, read anew: another process may have added some; an L2LError for another's."""
    kept = read_json(path, "name another file") if path.exists() else {"verdicts": {}}
    if not isinstance(rows := kept.get("verdicts"), dict):
        raise L2LError(f"--out={path} holds another result: name another file")
    return rows


if __name__ == "__main__":
    launch(main, Flags, __doc__)
