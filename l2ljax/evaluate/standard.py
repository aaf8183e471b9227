"""Attacks in turn on the surviving examples, on the host, in batches of a few sizes, resumable: AutoAttack and others.

result = run_standard_evaluation(logits_fn, x, y, ball=threat.linf(8 / 255), key=jax.random.key(0))
result.robust_acc, result.x_adv
result = run_in_turn(logits_fn, x, y, {"pgd20": attacks.create("pgd20", ball)}, key=jax.random.key(0))
"""

import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from l2ljax.attacks.ensemble import VERSIONS, check_attacks, stages
from l2ljax.attacks.entrance import check_floats
from l2ljax.attacks.solver import solvers
from l2ljax.checkpoint import digest
from l2ljax.evaluate.loop import STANDS, Progress, Turn, attack_in_turn, clean_logits, job_of, named_attacks
from l2ljax.files import write_files
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Key, L2LError, one_key, one_line
from l2ljax.values import Count, checked

__all__ = ["SAVE_SECONDS", "InTurn", "default_batch_size", "run_in_turn", "run_standard_evaluation"]

SAVE_SECONDS = 20.0


class InTurn(NamedTuple):
    """The result of attacks in turn on N examples."""

    clean_acc: float
    robust_acc: float
    """Fraction of examples that no attack fools."""
    after: dict[str, float]
    """Attack -> the fraction left after it and all before it."""
    seconds: dict[str, float]
    """Attack -> seconds of its batches, without compilation."""
    x_adv: np.ndarray
    """[N, H, W, C]: an adversarial image if an attack succeeded, else the clean one."""
    robust: np.ndarray
    """bool [N], whether no attack fools the model on it."""

    def __repr__(self) -> str:
        """Return the accuracies alone."""
        return f"InTurn(clean_acc={self.clean_acc:.4f}, robust_acc={self.robust_acc:.4f}, after={self.after})"


@checked
def run_standard_evaluation(
    logits_fn: Callable[..., Array], x: Array | np.ndarray, y: Array | np.ndarray, *, ball: Ball,
    version: str = "standard", only: str | Sequence[str] = (), key: Key, batch_size: Count | None = None,
    state_path: str | Path | None = None, progress: Callable[[str], None] = lambda text: None,
) -> InTurn:  # fmt: skip
    """Run AutoAttack (Croce & Hein, 2020) on any JAX model. Targeted attacks drop fooled examples after each class.

    Args:
      logits_fn: for the version "rand" a stochastic model, called as logits_fn(x, keys [B]).
      x: as in `run_in_turn`, like all that is not named here.
      y: labels [N].
      ball: the threat.
      version: "standard", "fast", "plus" or "rand", see `attacks.autoattack`.
      only: names of attacks of that version, or one; no others run. A model of two or three classes needs it.

    Raises:
      L2LError: what `run_in_turn` raises, an unknown version or attack; before the first attack, a model with too few
        classes for one, with those that it has enough for.
    """
    only = (only,) if isinstance(only, str) else only
    check_attacks(version, ball, only)

    def parts(classes: int) -> list[tuple[str, Attack]]:
        check_attacks(version, ball, only, classes)
        return list(stages(ball, version, num_classes=classes, only=tuple(only)))

    return run_in_turn(
        logits_fn, x, y, parts, key=key, ball=ball, about=(version, *only), batch_size=batch_size,
        stochastic=VERSIONS[version].stochastic, state_path=state_path, progress=progress,
    )  # fmt: skip


@checked
def run_in_turn(
    logits_fn: Callable[..., Array], x: Array | np.ndarray, y: Array | np.ndarray,
    attacks: Mapping[str, Attack] | Callable[[int], Sequence[tuple[str, Attack]]], *, key: Key,
    ball: Ball | None = None, about: tuple[Any, ...] = (), stochastic: bool = False, batch_size: Count | None = None,
    state_path: str | Path | None = None, progress: Callable[[str], None] = lambda text: None,
) -> InTurn:  # fmt: skip
    """Run each attack on the examples that are classified correctly and not fooled by an earlier attack.

    The rest is packed into batches of `batch_size`, the last one filled up to a multiple of its eighth, so that each
    attack compiles a few times at most; a batch is split over all local devices. Example i draws from its own keys: its
    result depends neither on the batch size, except by rounding, nor on the other examples left (unless an attack looks
    across the batch, like L2L's with its batch-wide gradient maximum).

    Args:
      logits_fn: images -> logits [B, K] in evaluation mode. A `jax.tree_util.Partial` over the weights compiles once
        for all weights.
      x: images [N, H, W, C], floats in [0, 1]; in half precision they are taken as float32.
      y: labels [N].
      attacks: name -> attack; or K -> (name, attack) pairs, where names may repeat. A saved state belongs to their
        names, and to the arrays of those that are pytrees, like trained attackers.
      key: one key.
      ball: the ball that no attack may leave; a saved state belongs to it.
      about: whatever else distinguishes attacks of these names, like their keywords: a saved state belongs to it.
      stochastic: whether the model is called as logits_fn(x, keys [B]).
      batch_size: the largest batch, by default `default_batch_size`.
      state_path: a file for the state, saved every 20 seconds and after each attack, and resumed (with the same batch
        size and devices bit by bit, with others up to rounding). It holds the adversarial images, and no code: it
        belongs to the model's arrays and clean logits, but of an attack without arrays only to the name.
      progress: called with a line of text after each attack.

    Raises:
      L2LError: invalid images, labels or logits, a stochastic model that takes no keys, an attack that leaves [0, 1] or
        the ball or returns NaN, a state file of another evaluation.
    """
    key, x = one_key(key), np.asarray(x) if hasattr(x, "dtype") else x
    check_floats(x)
    size = batch_size or default_batch_size(x.shape[1:])
    job = job_of(logits_fn, (x, y), batch_size=size, sizes=8, stochastic=stochastic, ball=ball)
    x, y = job.images, job.labels
    logits = clean_logits(job, jax.random.fold_in(key, 2**32 - 1))  # the turns draw from the numbers from 0 on
    clean = logits.argmax(axis=1) == y
    named = named_attacks(attacks, logits.shape[1])
    keys = [jax.random.fold_in(key, i) for i in range(len(named))]
    todo = [Turn(name, s, k) for (name, attack), k in zip(named, keys, strict=True) for s in solvers(attack)]
    state = Progress(np.array(x), np.where(clean, STANDS, -1), np.zeros(2, int), np.zeros((len(todo), 2)))
    within = () if ball is None else (ball.name, ball.eps)
    settings = (*([] if callable(attacks) else attacks), *within, *about, x.shape)
    weights = [turn.solver for turn in todo]  # the arrays of their Partials: a trained attacker's, a surrogate's
    identity = digest((job.logits_fn, x, y, jax.random.key_data(key), weights), repr(settings))
    file = None if state_path is None else Path(os.path.expanduser(state_path))
    if file is not None and file.exists():
        state = _load(file, identity, logits)
    saved = time.monotonic()

    def tick() -> None:
        nonlocal saved
        turn, begun = state.at
        if not begun and (turn == len(todo) or todo[turn].name != todo[turn - 1].name):
            robust = np.mean(state.fooled_by == STANDS)
            progress(f"{todo[turn - 1].name}: {robust:.2%} robust after {state.spent[:, 0].sum():.0f} s")
        if file is not None and (not begun or time.monotonic() - saved > SAVE_SECONDS):
            buffer = io.BytesIO()
            np.savez(buffer, identity=np.array(identity), logits=logits, **state._asdict())
            write_files({file: buffer.getvalue()})
            saved = time.monotonic()

    attack_in_turn(job, todo, state, tick)
    robust, seconds = state.fooled_by == STANDS, dict.fromkeys((turn.name for turn in todo), 0.0)
    for turn, (spent, _) in zip(todo, state.spent.tolist(), strict=True):
        seconds[turn.name] += spent
    after = {turn.name: float((state.fooled_by > i).mean()) for i, turn in enumerate(todo)}
    return InTurn(float(clean.mean()), float(robust.mean()), after, seconds, np.asarray(state.x_adv), robust)


def default_batch_size(image_shape: tuple[int, ...]) -> int:
    """Return 250; on a CPU, per device the number with the pixels of 32 images of 32x32x3, at least 8.

    The activations of larger batches exceed a CPU's cache.
    """
    if jax.default_backend() != "cpu":
        return 250
    return max(min(32 * 32 * 32 * 3 // max(math.prod(image_shape), 1) * jax.local_device_count(), 250), 8)


def _load(file: Path, identity: str, logits: np.ndarray) -> Progress:
    """Read the state; the clean logits identify a model whose weights are in a closure, where `digest` sees none."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as saved:
            whole = {name: saved[name] for name in saved.files}
        saved_identity, known = str(whole.pop("identity")), whole.pop("logits")
        state = Progress(**whole)
    except Exception as error:  # NumPy's, zipfile's and zlib's for a file that is no or a damaged one
        raise L2LError(f"{file} is no evaluation's state ({one_line(error)}): delete it, or name another") from error
    same_model = known.shape == logits.shape and np.allclose(known, logits, rtol=1e-3, atol=1e-3)
    if saved_identity != identity or not same_model:
        about = "model, data, attacks, threat or key"
        raise L2LError(f"{file} is the state of another evaluation ({about}): delete it, or name another")
    return state
