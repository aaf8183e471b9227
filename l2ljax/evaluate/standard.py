"""Attacks on the survivors of those before, on the host, in batches of a few sizes, resumable: AutoAttack, and others.

result = run_standard_evaluation(logits_fn, x, y, ball=threat.linf(8 / 255), key=jax.random.key(0))
result.robust_acc, result.x_adv
result = run_in_turn(logits_fn, x, y, {"pgd20": attacks.create("pgd20", ball)}, key=jax.random.key(0))
"""

import functools
import hashlib
import io
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import devices
from l2ljax.attacks.ensemble import Stage, misclassified, stages, version_named
from l2ljax.attacks.gradient import Stopping
from l2ljax.evaluate.accuracy import as_tree, check_batch, check_logits
from l2ljax.evaluate.rounds import UNCHANGED, in_rounds
from l2ljax.files import write_files
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Key, L2LError, LogitsFn

__all__ = ["SAVE_SECONDS", "InTurn", "default_batch_size", "run_in_turn", "run_standard_evaluation"]

SAVE_SECONDS = 20.0


class InTurn(NamedTuple):
    """What attacks in turn did to N examples."""

    clean_acc: float
    robust_acc: float
    """Fraction that no attack fools."""
    after: dict[str, float]
    """Attack -> the fraction left after it and all before it."""
    seconds: dict[str, float]
    """Attack -> of its batches, compilation included."""
    x_adv: np.ndarray
    """[N, H, W, C]: an adversarial image where one was found, else the clean one."""
    robust: np.ndarray
    """bool [N]."""


class _Progress(NamedTuple):
    """What the state file holds."""

    x_adv: np.ndarray
    correct: np.ndarray
    """bool [N]: classified correctly and not fooled so far."""
    standing: np.ndarray
    """bool [N]: those of them when the present stage began, which are its batches."""
    stage: Any
    batch: Any
    """The next batch of the stage."""
    after: np.ndarray
    """[stages]: how many were correct after each finished stage."""
    seconds: np.ndarray
    """[stages]."""


def run_standard_evaluation(
    logits_fn: Callable[..., Array],
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    *,
    ball: Ball,
    version: str = "standard",
    only: Sequence[str] = (),
    key: Key,
    **how: Any,
) -> InTurn:
    """AutoAttack (Croce & Hein, 2020), on any model in JAX. The targeted attacks drop fooled examples after each class.

    Args:
      logits_fn: as in `run_in_turn`; for the version "rand" a stochastic model, called as logits_fn(x, keys [B]).
      x: images [N, H, W, C], floats in [0, 1].
      y: labels [N].
      ball: the threat.
      version: "standard", "plus" or "rand", see `attacks.autoattack`.
      only: names of attacks of that version, to run no others.
      key: one key.
      **how: batch_size, state_path and progress, see `run_in_turn`.

    Raises:
      L2LError: what `run_in_turn` raises, an unknown version or attack, a model with too few classes.
    """
    _check(x, y)
    found = version_named(version)
    unknown = set(only) - set(found.attacks)
    if unknown:
        raise L2LError(f"{version} has no attack {', '.join(unknown)}: choose of {', '.join(found.attacks)}")
    logits_fn, stochastic = as_tree(logits_fn), found.stochastic
    few = devices.round_up(1)
    one = jax.eval_shape(
        functools.partial(_predict, stochastic=stochastic),
        logits_fn,
        jax.random.split(key, few),
        np.resize(x, (few, *x.shape[1:])),
    )
    classes = one.shape[-1]
    todo = [stage for stage in stages(ball, version, num_classes=classes) if not only or stage.name in only]
    about = (ball.name, ball.eps, version, *only)
    return _run(logits_fn, x, y, todo, about, stochastic=stochastic, key=key, **how)


def run_in_turn(
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    attacks: Mapping[str, Attack],
    *,
    key: Key,
    about: tuple[Any, ...] = (),
    **how: Any,
) -> InTurn:
    """Each attack on the examples that the model classifies right and no attack before it has fooled.

    What is left is packed into batches of `batch_size`, the last one filled up to a multiple of its eighth, so that
    each attack compiles a few times at most; a batch is spread over all local devices. Example i draws from keys of its
    own: its result depends neither on the batch size, but for rounding, nor on who else is left (for an attack that
    looks across the batch, like L2L's with its batch-wide gradient maximum, it does).

    Args:
      logits_fn: images -> logits [B, K] in evaluation mode. As a `jax.tree_util.Partial` over the weights it compiles
        once for all weights.
      x: images [N, H, W, C], floats in [0, 1].
      y: labels [N].
      attacks: name -> attack.
      key: one key.
      about: what else tells these attacks from others of their names, like the radius: a saved state belongs to it.
      **how: batch_size, the largest batch, by default `default_batch_size()`; state_path, a file to save the
        state to every 20 seconds and after each attack, and to go on from, to the same bits (it holds the adversarial
        images, and no code); progress, called with a line after each attack.

    Raises:
      L2LError: images, labels or logits that are not what they should be, an attack that leaves [0, 1] or returns NaN,
        a state file of another evaluation.
    """
    todo = [Stage(name, as_tree(attack)) for name, attack in attacks.items()]
    return _run(as_tree(logits_fn), x, y, todo, (*attacks, *about), stochastic=False, key=key, **how)


def _run(
    logits_fn: Callable[..., Array],
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    todo: Sequence[Stage],
    about: tuple[Any, ...],
    *,
    stochastic: bool,
    key: Key,
    batch_size: int | None = None,
    state_path: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> InTurn:
    x, y = np.asarray(x), np.asarray(y)
    _check(x, y)
    x = x.astype(np.float32) if x.dtype == np.float16 else x
    batch_size = devices.round_up(min(batch_size or default_batch_size(x.shape[1:]), len(y)))
    logits_fn = devices.copied(logits_fn)
    logits = np.concatenate([
        np.asarray(_predict(logits_fn, *devices.spread((_keys_of(key, 0, rows), x[rows])), stochastic=stochastic))
        for rows in _batches(np.ones(len(y), bool), batch_size)
    ])[: len(y)]  # fmt: skip
    check_logits(logits, y)
    clean = logits.argmax(axis=1) == y

    state = _Progress(
        x.copy(), clean.copy(), clean.copy(), np.int64(0), np.int64(0), np.zeros(len(todo)), np.zeros(len(todo))
    )
    file = None if state_path is None else Path(state_path)
    identity = _identity((logits_fn, x, y, jax.random.key_data(key)), (*about, batch_size, x.shape))
    if file is not None and file.exists():
        state = _load(file, identity)
    saved = time.monotonic()
    for index in range(int(state.stage), len(todo)):
        for number, rows in enumerate(_batches(state.standing, batch_size)):
            if number < state.batch:
                continue
            began = time.perf_counter()
            attack: Any = todo[index].attack
            keys, begun = _keys_of(key, index, rows), x[rows]
            if isinstance(attack.func, Stopping):
                attack, begun = UNCHANGED, in_rounds(attack.func, logits_fn, keys, x[rows], y[rows]).x_adv
            batch = devices.spread((keys, begun, y[rows]))
            found = _attack(devices.copied(attack), logits_fn, *batch, stochastic=stochastic)
            x_adv, fooled, valid = jax.device_get(found)
            if not valid.all():
                raise L2LError(f"{todo[index].name} left [0, 1] or returned NaN: check the model's gradients for NaN")
            won = rows[fooled]
            state.x_adv[won], state.correct[won] = x_adv[fooled], False
            state.seconds[index] += time.perf_counter() - began
            state = state._replace(batch=np.int64(number + 1))
            if file is not None and time.monotonic() - saved > SAVE_SECONDS:
                _save(file, identity, state)
                saved = time.monotonic()
        state.after[index] = state.correct.sum()
        state = state._replace(standing=state.correct.copy(), stage=np.int64(index + 1), batch=np.int64(0))
        if index + 1 == len(todo) or todo[index + 1].name != todo[index].name:
            progress(f"{todo[index].name}: {state.correct.mean():.2%} robust after {state.seconds.sum():.0f} s")
        if file is not None:
            _save(file, identity, state)
            saved = time.monotonic()
    names = list(dict.fromkeys(stage.name for stage in todo))
    return InTurn(
        clean_acc=float(clean.mean()),
        robust_acc=float(state.correct.mean()),
        after={n: float(min(_of(todo, state.after, n))) / len(y) for n in names},
        seconds={n: float(sum(_of(todo, state.seconds, n))) for n in names},
        x_adv=state.x_adv,
        robust=state.correct,
    )


def default_batch_size(image_shape: tuple[int, ...]) -> int:
    """250, or on a CPU so many that each device gets the pixels of 32 images of 32x32x3, 8 at least.

    The activations of larger batches no longer fit in a CPU's cache.
    """
    if jax.default_backend() != "cpu":
        return 250
    return max(min(32 * 32 * 32 * 3 // math.prod(image_shape) * jax.local_device_count(), 250), 8)


def _check(x: Array | np.ndarray, y: Array | np.ndarray) -> None:
    check_batch(x, y)
    if not len(y):
        raise L2LError("there are no examples to evaluate on")


def _keys_of(key: Key, index: int, rows: np.ndarray) -> Key:
    """The keys of the examples of these numbers in the stage `index`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, index), jnp.asarray(rows))


@functools.partial(jax.jit, static_argnames="stochastic")
def _predict(logits_fn: Callable[..., Array], keys: Key, x: Array, *, stochastic: bool) -> Array:
    def part(logits_fn: Callable[..., Array], keys: Key, x: Array) -> Array:
        return logits_fn(x, keys) if stochastic else logits_fn(x)

    return devices.on_each(part)(logits_fn, keys, x)


@functools.partial(jax.jit, static_argnames="stochastic")
def _attack(
    attack: Any, logits_fn: Callable[..., Array], keys: Key, x: Array, y: Array, *, stochastic: bool
) -> tuple[Array, Array, Array]:
    """(x_adv, fooled [B], valid [B]); x_adv is what the attack makes, whether it fools or not."""

    def part(
        attack: Attack, logits_fn: Callable[..., Array], keys: Key, x: Array, y: Array
    ) -> tuple[Array, Array, Array]:
        x_adv = attack(logits_fn, keys, x, y)
        valid = ((x_adv >= 0) & (x_adv <= 1)).all(axis=range(1, x.ndim))  # NaN compares as false
        return x_adv, misclassified(logits_fn, keys, x_adv, y, stochastic=stochastic), valid

    return devices.on_each(part, whole=2)(attack, logits_fn, keys, x, y)


def _batches(standing: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The numbers of the standing examples, in batches of a few sizes; a batch that is not full repeats some."""
    rows = np.flatnonzero(standing)
    unit = devices.round_up(max(batch_size // 8, 1))
    for i in range(0, len(rows), batch_size):
        part = rows[i : i + batch_size]
        yield np.resize(part, min(-(-len(part) // unit) * unit, batch_size))


def _of(todo: Sequence[Stage], values: np.ndarray, name: str) -> list[float]:
    return [value for stage, value in zip(todo, values, strict=True) if stage.name == name]


def _identity(arrays: Any, about: tuple[Any, ...]) -> str:
    """A checksum of everything that the result depends on."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    digest.update(repr(about).encode())
    return digest.hexdigest()


def _save(file: Path, identity: str, state: _Progress) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, identity=np.array(identity), **state._asdict())
    write_files({file: buffer.getvalue()})


def _load(file: Path, identity: str) -> _Progress:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as saved:
            whole = {name: saved[name] for name in saved.files}
        found = str(whole.pop("identity"))
        state = _Progress(**whole)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise L2LError(f"{file} is no state of an evaluation ({error}): delete it, or name another file") from error
    if found != identity:
        raise L2LError(
            f"{file} is the state of another evaluation (model, data, threat, key or batch size): name another"
        )
    return state
