"""PyTorch checkpoints of residual networks as variables.

    state = torch.load("resnet18.pt", map_location="cpu")              # or any mapping of names to NumPy arrays
    variables = models.from_torch_state("resnet18", state)
    logits = models.create("resnet18").logits(variables, x)

Three naming conventions are known, with or without `module.` before each name:

| | TRADES, RobustBench (Wide ResNets) | kuangliu's pytorch-cifar | torchvision |
|---|---|---|---|
| first layers | `conv1` | `conv1`, `bn1` | `conv1`, `bn1` |
| block i of group g | `block{g}.layer.{i}` | `layer{g}.{i}` | `layer{g}.{i}` |
| its layers | `conv1`, `bn1`, `conv2`, `bn2` | the same | the same |
| its shortcut | `convShortcut` | `shortcut.0`, `shortcut.1` | `downsample.0`, `downsample.1` |
| last layers | `bn1`, `fc` | `linear` | `fc` |

`num_batches_tracked` is ignored, and so is TRADES's `sub_block1`, which its network holds and never runs. A checkpoint
does not give the normalization of images: if the torch network normalizes otherwise, do it before `logits`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.models.resnet import RESNETS
from l2ljax.types import L2LError, Tree, one_line

__all__ = ["CONVENTIONS", "from_torch_state"]


CONVENTIONS = (
    ("block{}.layer.{}.", "convShortcut", "bnShortcut", "fc"),
    ("layer{}.{}.", "shortcut.0", "shortcut.1", "linear"),
    ("layer{}.{}.", "downsample.0", "downsample.1", "fc"),
)
"""The names that differ: of a block, its shortcut's convolution and BatchNorm, and the last layer."""
_LAYERS = {"Conv_0": "conv1", "Conv_1": "conv2", "BatchNorm_0": "bn1", "BatchNorm_1": "bn2"}
_ARRAYS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}  # torch's [out, in, h, w] and [out, in] in our order
_UNREAD = re.compile(r"sub_block1\.|.*\.num_batches_tracked$")


def from_torch_state(arch: str, state: Mapping[str, Any]) -> Tree:
    """Return the variables {"params", "batch_stats"} with a torch network's weights.

    Args:
      arch: a name of `resnet.RESNETS`. The weights give the numbers of classes and channels.
      state: name -> array, or tensor on the CPU, in one of the conventions above: a module's `state_dict()`.

    Raises:
      L2LError: another network; names that are missing or unknown to the network; an array of another shape.
    """
    if arch not in RESNETS:
        raise L2LError(f"{arch} has no map from torch's names: choose one of {', '.join(RESNETS)}")
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise L2LError(f"the weights are a {type(state).__name__}: give module.state_dict(), names -> tensors")
    given = {name.removeprefix("module."): value for name, value in state.items()}
    given = {name: value for name, value in given.items() if not _UNREAD.match(name)}

    def size(axis: int, *names: str) -> int | None:
        return next((np.shape(given[n])[axis] for n in names if n in given and np.ndim(given[n]) > axis), None)

    module = RESNETS[arch](num_classes=size(0, "fc.bias", "linear.bias") or 10)
    image = jnp.zeros((1, 32, 32, size(1, "conv1.weight") or 3))
    leaves, tree = jax.tree.flatten_with_path(jax.eval_shape(module.init, jax.random.key(0), image))
    paths = [[key.key for key in path[1:]] for path, _ in leaves]  # without params and batch_stats
    each = ([_name(path, module.depths, convention) for path in paths] for convention in CONVENTIONS)
    names = max(each, key=lambda names: len(given.keys() & names))
    missing, unknown = sorted(set(names) - given.keys()), sorted(given.keys() - set(names))
    if missing or unknown:
        parts = [f"{verb} {_listed(names)}" for verb, names in (("lack", missing), ("also have", unknown)) if names]
        raise L2LError(f"these are not weights of {arch}: they {' and '.join(parts)}")
    arrays = []
    for name, (_, ours) in zip(names, leaves, strict=True):
        try:
            array = np.asarray(given[name], np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            fix = "give module.float().cpu().state_dict()"
            raise L2LError(f"{name} is no array of floats ({one_line(error)}): {fix}") from error
        array = array.transpose(_AXES.get(array.ndim))
        if array.shape != ours.shape:
            shapes = f"{list(array.shape)}, and {arch} has {list(ours.shape)}"
            raise L2LError(f"{name} is {shapes}, axes in our order: give the weights of that network")
        arrays.append(jnp.asarray(array))
    return jax.tree.unflatten(tree, arrays)


def _name(path: list[str], depths: Sequence[int], convention: Sequence[str]) -> str:
    """Return torch's name of one of our arrays, like PreActBlock_3, Conv_0, kernel."""
    *block, layer, array = path
    places = [(group, i) for group, depth in enumerate(depths, start=1) for i in range(depth)]
    prefix = convention[0].format(*places[int(block[0].rpartition("_")[2])]) if block else ""
    own = dict(zip(("Conv_2", "BatchNorm_2", "Dense_0"), convention[1:], strict=True))
    return f"{prefix}{(_LAYERS | own)[layer]}.{_ARRAYS[array]}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
