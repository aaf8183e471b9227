"""Programs whose verdicts must not depend on the device: the same weights and images on a CPU and elsewhere.

    verdicts.make_reference(file, "resnet20", ["pgd10", "rnn_adv"], shape=(16, 16, 3), images=32)    # on a CPU
    reference = verdicts.load_reference(file)
    rows = {name: verdicts.compare(reference, name) for name in reference.outcomes}                  # on the device

A program's name is an attack, `autoattack`, or a method: three joint training steps, then PGD-10. A suffix changes the
network: `pgd10:bfloat16`, `pgd_adv:remat`. Its verdicts are which attacked images are classified correctly.
"""

import functools
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench.benchmark import BALL
from l2ljax import attacks, defenses, losses, models
from l2ljax.files import write_files
from l2ljax.runtime.provenance import provenance
from l2ljax.train import AXIS, TrainState, init_state, make_step
from l2ljax.types import Array, Batch, Classifier, Key, L2LError, Players, Tree

__all__ = ["Outcome", "Reference", "compare", "load_reference", "make_reference", "parse", "run"]

FIRST_STEPS, FIRST_OPTIMIZER = 60, optax.adam(3e-3)
"""PGD training before all programs, so that some of the attacks fail."""
STEPS, OPTIMIZER = 3, optax.sgd(1e-3, momentum=0.9)
"""Steps of a program's own training: few, as signs of gradients amplify rounding from step to step."""


class Outcome(NamedTuple):
    """The results of a program."""

    losses: np.ndarray
    """[STEPS] for a method, [0] for an attack."""
    gradient_norms: np.ndarray
    """Both players', [STEPS, 2] or [0, 2]."""
    logits: np.ndarray
    """[B, K] at the attacked images."""


class Reference(NamedTuple):
    """The initial weights and images of all programs, and their results on a CPU."""

    arch: str
    variables: Tree
    batch: Batch
    outcomes: dict[str, Outcome]
    """Results by program."""
    about: dict[str, Any]
    """See `provenance`."""


def make_reference(file: Path, arch: str, programs: Sequence[str], *, shape: tuple[int, ...], images: int) -> None:
    """Train a network briefly on synthetic images [H, W, C], run the programs here, and write all to an .npz file.

    Raises:
      L2LError: an unknown name, or an architecture that does not take such images.
    """
    first = _images(shape, 2 * images)
    batch = Batch(*(jnp.concatenate([a[: images // 2], a[-images // 2 :]]) for a in first))
    state, *_ = _trained(arch, "", "pgd_adv", first, FIRST_STEPS, FIRST_OPTIMIZER)
    variables = {"params": state.params.classifier, "batch_stats": state.stats.classifier}
    arrays: dict[str, Any] = {f"weights {i}": a for i, a in enumerate(jax.tree.leaves(variables))}
    for name in programs:
        arrays |= {f"{name} {field}": a for field, a in run(name, arch, variables, batch)._asdict().items()}
    about = {"arch": arch, "programs": list(programs), **provenance()}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), x=batch.x, y=batch.y, **arrays)
    write_files({file: buffer.getvalue()})


def load_reference(file: Path) -> Reference:
    """Read a file of `make_reference`; raise an L2LError for another file."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as saved:
            arrays = dict(saved)
        about = json.loads(str(arrays["about"]))
        batch = Batch(jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"]))
        shapes, tree = jax.tree.flatten(jax.eval_shape(_classifier(about["arch"]).init, jax.random.key(0), batch.x))
        weights = [jnp.asarray(arrays[f"weights {i}"]) for i in range(len(shapes))]
        outcomes = {
            name: Outcome(*(arrays[f"{name} {field}"] for field in Outcome._fields)) for name in about["programs"]
        }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise L2LError(f"{file} is no reference ({error}): delete it, and the next run writes one") from error
    return Reference(about["arch"], jax.tree.unflatten(tree, weights), batch, outcomes, about)


def run(name: str, arch: str, variables: Tree, batch: Batch) -> Outcome:
    """Run a program on the default device from the given weights; a learned attacker's come from a seed."""
    what, variant = parse(name)
    classifier, attack = _classifier(arch, variant), what
    step_losses, norms = np.zeros(0), np.zeros((0, 2))
    if what in defenses.METHODS:
        state, step_losses, norms = _trained(arch, variant, what, batch, STEPS, OPTIMIZER, variables)
        variables, attack = {"params": state.params.classifier, "batch_stats": state.stats.classifier}, "pgd10"
    logits = _attacked(attack)(jax.tree_util.Partial(classifier.logits, variables), jax.random.key(1), *batch)
    return Outcome(step_losses, norms, np.asarray(logits))


def parse(name: str) -> tuple[str, str]:
    """Return (an attack's or a method's name, its variant or ""); raise an L2LError if there is no such program."""
    what, _, variant = name.partition(":")
    if variant not in ("", "bfloat16", "remat"):
        raise L2LError(f"unknown program {name}: give bfloat16 or remat after the colon")
    if what not in (*defenses.METHODS, "autoattack"):
        attacks.create(what, BALL)
    return what, variant


def compare(reference: Reference, name: str) -> dict[str, Any]:
    """Run a program here and compare it with the reference.

    Returns:
      "equal", whether all numbers are finite and no verdict differs; "flips", the number that differ, of "images", of
      which "right" are classified correctly in the reference; "flipped_margin", the largest distance of a flipped
      image from the decision boundary in the reference, in logits; "logits_difference", the largest;
      "loss_differences", per step, and "gradient_differences", of the first gradients' norms, relative. These three
      are None if any is not finite.
    """
    ours, theirs = run(name, reference.arch, reference.variables, reference.batch), reference.outcomes[name]
    margins = [-np.asarray(losses.margin(jnp.asarray(o.logits), reference.batch.y)) for o in (ours, theirs)]
    right, expected = (margin > 0 for margin in margins)
    flipped = right != expected
    finite = all(np.isfinite(array).all() for array in ours)
    here, there = (o.gradient_norms[:1] for o in (ours, theirs))
    gradients = np.abs(here - there) / np.maximum(there, 1e-30)
    return {
        "equal": bool(finite and not flipped.any()),
        "flips": int(flipped.sum()),
        "images": len(flipped),
        "right": int(expected.sum()),
        "flipped_margin": float(np.abs(margins[1][flipped]).max(initial=0.0)),
        "logits_difference": float(np.abs(ours.logits - theirs.logits).max()) if finite else None,
        "loss_differences": np.abs(ours.losses - theirs.losses).tolist() if finite else None,
        "gradient_differences": gradients.ravel().tolist() if finite else None,
    }


@functools.cache
def _classifier(arch: str, variant: str = "") -> Classifier:
    """Build each network once, so that programs with the same attack compile once."""
    return models.create(arch, dtype="bfloat16" if variant == "bfloat16" else "float32", remat=variant == "remat")


@functools.cache
def _attacked(name: str) -> Callable[..., Array]:
    """Return (logits_fn, key, x, y) -> the logits [B, K] at the attacked images; jitted."""
    attack = attacks.autoattack(BALL) if name == "autoattack" else attacks.create(name, BALL)

    @jax.jit
    def logits(logits_fn: Callable[[Array], Array], key: Key, x: Array, y: Array) -> Array:
        return logits_fn(attack(logits_fn, key, x, y))

    return logits


def _trained(
    arch: str, variant: str, method: str, batch: Batch, steps: int, optimizer: Any, variables: Tree = None
) -> tuple[TrainState, np.ndarray, np.ndarray]:
    """Return the state after joint steps on one batch from given or new weights, and an `Outcome`'s first fields."""
    classifier = _classifier(arch, variant)
    defense = defenses.create(method, classifier, BALL, axis_name=AXIS)
    optimizers = Players(optimizer, defense.mover or optimizer)
    step = make_step(defense, optimizers, devices=jax.local_devices()[:1])
    state = init_state(jax.random.key(2), classifier, defense, optimizers, batch.x)
    if variables is not None:
        given = jax.tree.map(jnp.copy, variables)  # the state is donated
        params = state.params._replace(classifier=given["params"])
        state = state._replace(params=params, stats=state.stats._replace(classifier=given["batch_stats"]))
    names, rows = ("loss", "classifier_gradient_norm", "attacker_gradient_norm"), []
    for _ in range(steps):
        state, values = step(state, batch)
        rows.append([float(values[name]) for name in names])
    return state, np.array(rows)[:, 0], np.array(rows)[:, 1:]


def _images(shape: tuple[int, ...], n: int) -> Batch:
    """Draw a smooth pattern per class, from faint to strong: attacks fool the first images and not the last."""
    k_patterns, k_noise = jax.random.split(jax.random.key(3))
    patterns = jax.image.resize(jax.random.normal(k_patterns, (10, 4, 4, shape[-1])), (10, *shape), "linear")
    y = jnp.arange(n) % 10
    contrast = jnp.linspace(0.01, 0.25, n)[:, None, None, None]
    noise = 0.01 * jax.random.normal(k_noise, (n, *shape))
    return Batch(jnp.clip(0.5 + contrast * patterns[y] + noise, 0, 1), y)
