"""Checkpoints: any pytree of arrays, saved completely or not at all, and restored bit by bit.

    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(step, state)
    state = checkpoints.restore(like=state)          # the newest step

A checkpoint is a flat mapping from the leaves' paths to arrays, written by orbax. It can be read without this library,
and reading it runs no code.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2ljax.types import L2LError, Tree, is_key

__all__ = ["Checkpoints", "restore_player"]


class Checkpoints:
    """The checkpoints in one folder; the newest two are kept.

    With several processes (see `runtime.hosts`), each object belongs to one process: one saves, the others need not.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        import orbax.checkpoint as ocp  # slow to import, and needed only to save

        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every phase of a save
        self.folder = folder.resolve()
        self._args = ocp.args
        alone: dict[str, Any] = {}
        if jax.process_count() > 1:  # else orbax would wait for all processes at every call
            i = jax.process_index()
            alone = {"primary_host": i, "active_processes": {i}, "barrier_sync_key_prefix": f"process_{i}"}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    enable_async_checkpointing=False,
                    create=False,
                    multiprocessing_options=ocp.options.MultiprocessingOptions(**alone),
                ),
            )
        except OSError as error:
            raise L2LError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from error

    def latest(self) -> int | None:
        """Return the newest saved step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Tree) -> None:
        """Save a pytree of arrays and PRNG keys as the given step, unless it is saved already.

        Raises:
          L2LError: writing failed (a full disk, say); earlier checkpoints are unchanged.
        """
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(step, args=self._args.StandardSave(_to_flat(tree)))
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            kept = self.latest()
            last = "there is no earlier one" if kept is None else f"that of step {kept} is kept"
            raise L2LError(
                f"could not save the checkpoint of step {step} to {self.folder} ({_first_line(error)}); {last}: "
                "free some space, then run the same command again to resume"
            ) from error

    def restore(self, like: Tree, prefix: str = "") -> Tree:
        """Return the newest saved tree, or its part below the path `prefix`, with the structure and types of `like`.

        Raises:
          L2LError: nothing is saved, or the saved tree has another structure or other shapes.
        """
        step = self.latest()
        if step is None:
            raise L2LError(f"no checkpoint in {self.folder}: train first, without --no-checkpoint")
        wanted = _to_flat(like)
        try:
            whole = self._manager.restore(step, args=self._args.StandardRestore())
        except (OSError, ValueError, KeyError) as error:
            raise L2LError(
                f"the checkpoint of step {step} in {self.folder} cannot be read ({_first_line(error)}): "
                "delete its folder to resume from the one before"
            ) from error
        saved = {name.removeprefix(prefix): leaf for name, leaf in whole.items() if name.startswith(prefix)}
        differing = sorted(
            name
            for name in wanted.keys() | saved.keys()
            if name not in wanted or name not in saved or np.shape(saved[name]) != wanted[name].shape
        )
        if differing:
            raise L2LError(
                f"the checkpoint of step {step} in {self.folder} is of another configuration "
                f"({len(differing)} arrays differ, {differing[0]} first): choose another --workdir"
            )
        return _from_flat(saved, like)

    def close(self) -> None:
        """Release orbax's resources."""
        self._manager.close()


def restore_player(workdir: str | Path, player: str, like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Return the (params, batch_stats) of "classifier" or "attacker" with which the run in a workdir ended.

    Args:
      workdir: of the run.
      player: its name in `Players`.
      like: (params, batch_stats) of the same structure and types.

    Raises:
      L2LError: no checkpoint there, or one of another network.
    """
    folder = Path(workdir).expanduser() / "checkpoints"
    if not folder.is_dir():
        raise L2LError(f"no checkpoint in {folder}: train first, without --no-checkpoint")
    saved = Checkpoints(folder)
    params, batch_stats = like
    return (
        saved.restore(like=params, prefix=f"['last'].params.{player}"),
        saved.restore(like=batch_stats, prefix=f"['last'].stats.{player}"),
    )


def _to_flat(tree: Tree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        for path, leaf in leaves
    }


def _from_flat(flat: dict[str, Any], like: Tree) -> Tree:
    def restore(path: Any, leaf: Any) -> Any:
        saved = flat[jax.tree_util.keystr(path)]
        return jax.random.wrap_key_data(saved) if is_key(leaf) else jax.numpy.asarray(saved)

    return jax.tree_util.tree_map_with_path(restore, like)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
