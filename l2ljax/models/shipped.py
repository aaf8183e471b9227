"""The models that come with the library: weights/NAME.npz, both players' arrays, and NAME.json, the model's card.

    card("digits_rnn_adv")["judged"]                                   # {"images": 397, "clean_acc": ...}
    params, batch_stats = restore("digits_rnn_adv", "attacker", like)

A name in the archive is a path, like classifier/params/Conv_0/kernel. A card is the config.json of the run, with its
command, the checksum of the archive, and how the model was judged.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.types import L2LError, Tree, one_line

__all__ = ["PREFIX", "PRETRAINED", "WEIGHTS", "card", "name_of", "named_arrays", "restore", "to_bytes"]

WEIGHTS = Path(__file__).parent / "weights"
NEEDED = (
    "sha256", "judged", "dataset", "method", "arch", "eps", "norm", "options", "dtype", "num_classes", "image_shape",
)  # fmt: skip
PREFIX = "pretrained:"
"""Before a name, where the workdir of a run may stand."""
PRETRAINED = tuple(sorted(path.stem for path in WEIGHTS.glob("*.json")))
"""The names of the models."""


def name_of(workdir: str | Path) -> str | None:
    """Return NAME of pretrained:NAME; None for a workdir."""
    text = str(workdir)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def card(name: str) -> dict[str, Any]:
    """Return a model's card; an unknown name is an L2LError, and so is a damaged card."""
    if name.endswith("@best"):
        raise L2LError(f"{PREFIX}{name}: a pretrained model has one state: leave @best out")
    if name not in PRETRAINED:
        raise L2LError(f"unknown model {name!r}: choose one of {', '.join(PRETRAINED)}")
    text = _read(f"{name}.json")
    try:
        content: dict[str, Any] = json.loads(text)
        if missing := [key for key in NEEDED if key not in content]:
            raise ValueError(f"it has no {missing[0]}")
    except (ValueError, TypeError) as error:
        raise _damaged(f"{name}.json", one_line(error)) from error
    return content


def restore(name: str, player: str, like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Return the (params, batch_stats) of a model's "classifier" or "attacker".

    Args:
      name: one of `PRETRAINED`.
      player: which of the two.
      like: arrays, or their `jax.ShapeDtypeStruct`, in the structure that is wanted.

    Raises:
      L2LError: an unknown name, a damaged file, or one of another network.
    """
    checksum, file = card(name)["sha256"], f"{name}.npz"
    content = _read(file)
    if (found := hashlib.sha256(content).hexdigest()) != checksum:
        raise _damaged(file, f"its SHA-256 is {found[:12]}..., not {checksum[:12]}...")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files if key.startswith(f"{player}/")}
    wanted = {player: {"params": like[0], "batch_stats": like[1]}}
    shapes = [{key: array.shape for key, array in each.items()} for each in (named_arrays(wanted), arrays)]
    if differing := sorted({key for key, _ in shapes[0].items() ^ shapes[1].items()}):
        raise L2LError(f"{PREFIX}{name} holds another {player} ({differing[0]} differs): give one of the same network")
    whole = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(arrays[_path(path)]), wanted)[player]
    return whole["params"], whole["batch_stats"]


def named_arrays(tree: Tree) -> dict[str, Any]:
    """Return a tree's arrays by their paths, like classifier/params/Conv_0/kernel."""
    return {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def to_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Return the .npz archive of arrays by name: the same bytes for the same arrays."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in sorted(arrays.items())})
    return file.getvalue()


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _read(file: str) -> bytes:
    try:
        return (WEIGHTS / file).read_bytes()
    except OSError as error:
        raise _damaged(file, one_line(error)) from error


def _damaged(file: str, why: str) -> L2LError:
    return L2LError(f"{WEIGHTS / file} is damaged ({why}): install l2ljax again")
