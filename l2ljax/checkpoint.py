"""Checkpoints: any pytree of arrays, saved completely or not at all, and restored bit by bit.

    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(step, state)
    step, state = checkpoints.resume(like=state)     # the newest sound one

A checkpoint is a flat mapping from the leaves' paths to arrays, and a checksum of them all, written by orbax. It can be
read without this library, and reading it runs no code.
"""

import functools
import hashlib
import logging
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.models import shipped
from l2ljax.types import L2LError, Tree, is_key, one_line

__all__ = ["CHECKSUM", "Checkpoints", "Damaged", "digest", "place", "restore_player"]


CHECKSUM = "checksum"
"""The name of the checksum beside the arrays."""


class Damaged(L2LError):
    """The checkpoint of a step cannot be read, or has other arrays than were saved."""

    def __init__(self, step: int, problem: str) -> None:
        super().__init__(f"the checkpoint of step {step} in {problem}")
        self.step = step


class Checkpoints:
    """The checkpoints in one folder; the newest two are kept.

    With several processes (see `runtime.hosts`), each object belongs to one process: one saves, the others need not.
    """

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp  # slow to import, and needed only to save

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs each phase of a save, and errors it raises
        _drop_late_results()
        self.folder = folder.resolve()
        self._args = ocp.args
        alone: dict[str, Any] = {}
        if jax.process_count() > 1:  # else orbax would wait for all processes at every call
            i = jax.process_index()
            alone = {"primary_host": i, "active_processes": {i}, "barrier_sync_key_prefix": f"process_{i}"}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2, create=False, enable_async_checkpointing=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(**alone),
            )  # fmt: skip
            # Else the newest folder, sound or not, decides how all are read.
            handler = ocp.StandardCheckpointHandler(multiprocessing_options=options.multiprocessing_options)
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handler)
        except OSError as error:
            raise L2LError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from error

    def latest(self) -> int | None:
        """Return the newest saved step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Tree) -> None:
        """Save a pytree of arrays and PRNG keys as the given step, unless it is saved already.

        An L2LError says if writing failed (a full disk, say); earlier checkpoints are unchanged.
        """
        if step in self._manager.all_steps():
            return
        flat = _to_flat(tree)
        try:
            self._manager.save(step, args=self._args.StandardSave({**flat, CHECKSUM: _checksum(flat)}))
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            kept = self.latest()
            last = "there is no earlier one" if kept is None else f"that of step {kept} is kept"
            reason = one_line(error, most=2000).rpartition(": ")[2]  # after the folders, that it knows too
            raise L2LError(
                f"could not save the checkpoint of step {step} to {self.folder} ({reason}); {last}: "
                "free some space, then run the same command again to resume"
            ) from error

    def restore(self, *parts: tuple[Tree, *tuple[str, ...]]) -> list[Tree]:
        """Return parts of the newest saved tree: (like, path) -> what lies below that path, with like's structure.

        Of several paths the first that is there is taken. Floats get like's type: averages are saved in float32.

        Raises:
          L2LError: nothing is saved, it is damaged (the message names the last sound step), or it has another
            structure, or other shapes or types.
        """
        step, flat, damaged = self._newest()
        if damaged:
            sound = "no earlier one is" if step is None else f"that of step {step} is"
            raise L2LError(f"{damaged[0]}; {sound} sound: run the training again to go on from there") from damaged[0]
        if step is None:
            raise L2LError(f"no checkpoint in {self.folder}: train first, without --no-checkpoint")
        there = lambda path: any(name.startswith(path) for name in flat)
        chosen = [(like, next(filter(there, paths), paths[-1])) for like, *paths in parts]
        fix = "give a run of the same network and attacker"
        return [self._part(step, _typed(flat, like, path), like, path, fix) for like, path in chosen]

    def resume(self, like: Tree) -> tuple[int, Tree]:
        """Return the newest sound step and its tree, with the structure and types of `like`; (0, like) without one.

        Damaged checkpoints after it are deleted, so that their steps can be saved again; a line on stderr says so.

        Raises:
          L2LError: all are damaged, or the sound one has another structure, or other shapes or types.
        """
        step, flat, damaged = self._newest()
        if step is None and damaged:
            raise L2LError(f"{damaged[0]}, and no earlier one is sound: delete them to start again") from damaged[0]
        if step is None:
            return 0, like
        tree = self._part(step, flat, like)
        for error in damaged:
            print(f"{error}: deleted, to go on from step {step}", file=sys.stderr)
            self._manager.delete(error.step)
        return step, tree

    def _newest(self) -> tuple[int | None, dict[str, Any], list[Damaged]]:
        """Return the newest sound step, None without one, its arrays, and what is wrong with the later ones."""
        damaged: list[Damaged] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, self._read(step), damaged
            except Damaged as error:
                damaged.append(error)
        return None, {}, damaged

    def _read(self, step: int) -> dict[str, Any]:
        """Return the arrays of a step by their names; raise `Damaged` if they are not the saved ones."""
        try:
            flat = self._manager.restore(step, args=self._args.StandardRestore())
            saved = flat.pop(CHECKSUM, None)  # older checkpoints have none
            sound = saved is None or saved == _checksum(flat)
        except Exception as error:  # orbax, tensorstore and JAX have no single one
            raise Damaged(step, f"{self.folder} cannot be read ({one_line(error)})") from error
        if not sound:
            raise Damaged(step, f"{self.folder} is damaged: its arrays have another checksum")
        return flat

    def _part(
        self, step: int, flat: Mapping[str, Any], like: Tree, prefix: str = "", fix: str = "choose another --workdir"
    ) -> Tree:
        saved = {name.removeprefix(prefix): leaf for name, leaf in flat.items() if name.startswith(prefix)}
        wanted, found = ({name: (a.shape, a.dtype) for name, a in tree.items()} for tree in (_to_flat(like), saved))
        differing = sorted({name for name, _ in wanted.items() ^ found.items()})
        if differing:
            raise L2LError(
                f"the checkpoint of step {step} in {self.folder} is of another configuration "
                f"({len(differing)} arrays differ, {differing[0]} first): {fix}"
            )
        return _from_flat(saved, like)


@functools.cache
def _drop_late_results() -> None:
    """After an error orbax closes its event loop, and Python prints a traceback for each array that arrives later."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def place(workdir: str | Path) -> tuple[Path, str]:
    """Return (folder, "last" or "best") of WORKDIR, or of WORKDIR@best: the state that a run's validation chose."""
    text = os.path.expanduser(workdir)
    folder = text.removesuffix("@best")
    return Path(folder), "last" if folder == text else "best"


def restore_player(workdir: str | Path, player: str, like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Return the (params, batch_stats) of "classifier" or "attacker" with which the run in a workdir ended.

    A workdir is named as for `place`, or as pretrained:NAME. Of a classifier with an average, the average is taken.
    They have the structure and types of `like`; no checkpoint, no validated state, or one of another network, is an
    L2LError.
    """
    if (name := shipped.name_of(workdir)) is not None:
        return shipped.restore(name, player, like)
    folder, which = place(workdir)
    if not (folder / "checkpoints").is_dir():
        raise L2LError(f"no checkpoint in {folder / 'checkpoints'}: give the workdir of a run that saved one")
    saved = Checkpoints(folder / "checkpoints")
    paths: list[tuple[str, ...]] = [(f"['{which}'].{kind}.{player}",) for kind in ("params", "stats")]
    if player == "classifier" and which == "last":
        paths = [(f"['last'].average[{i}]", *path) for i, path in enumerate(paths)]
    score = [(np.float32(0), "['best'].score")] if which == "best" else []
    restored = saved.restore(*((tree, *path) for tree, path in zip(like, paths, strict=True)), *score)
    if score and restored[2] < 0:
        raise L2LError(f"{folder} chose no state in validation: leave out @best")
    return restored[0], restored[1]


def digest(arrays: Any, *texts: str) -> str:
    """Return the SHA-256 of a tree's arrays, like the weights in a `jax.tree_util.Partial`, and of texts."""
    total = hashlib.sha256()
    leaves = [jax.random.key_data(a) if is_key(a) else a for a in jax.tree.leaves(arrays)]
    for content in (*(np.ascontiguousarray(a).tobytes() for a in leaves), *map(str.encode, texts)):
        total.update(content)
    return total.hexdigest()


def _checksum(flat: Mapping[str, Any]) -> np.ndarray:
    """Return the CRC-32 of all arrays with their names, shapes and types."""
    total = 0
    for name, leaf in sorted(flat.items()):
        array = np.asarray(leaf)
        total = zlib.crc32(array.tobytes(), zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total))
    return np.asarray(total, np.uint32)


def _to_flat(tree: Tree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {jax.tree_util.keystr(path): jax.random.key_data(leaf) if is_key(leaf) else leaf for path, leaf in leaves}
    return {name: np.asarray(leaf) for name, leaf in arrays.items() if np.size(leaf)}  # orbax takes no empty ones


def _typed(flat: Mapping[str, Any], like: Tree, prefix: str) -> dict[str, Any]:
    """Return the arrays, floats below `prefix` in the types that `like` has for them."""
    wanted = {prefix + name: leaf.dtype for name, leaf in _to_flat(like).items()}
    is_float = lambda dtype: jnp.issubdtype(dtype, jnp.floating)
    return {
        name: leaf.astype(wanted[name]) if name in wanted and is_float(leaf.dtype) and is_float(wanted[name]) else leaf
        for name, leaf in flat.items()
    }


def _from_flat(flat: dict[str, Any], like: Tree) -> Tree:
    def restore(path: Any, leaf: Any) -> Any:
        if not np.size(leaf):
            return leaf
        saved = flat[jax.tree_util.keystr(path)]
        if is_key(leaf):
            return jax.random.wrap_key_data(saved, impl=jax.random.key_impl(leaf))
        return jnp.asarray(saved)

    return jax.tree_util.tree_map_with_path(restore, like)
