"""Passes of AutoAttack's versions, counted as they run, and their verdicts on a run's classifier.

row = passes.judge("runs/digits_pgd_adv@quantized", data_dir=None, images=300, batch_size=None, seeds=2)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from l2ljax import data, threat
from l2ljax.evaluate import run_standard_evaluation
from l2ljax.run.trained import load_classifier, read_config
from l2ljax.types import Array, L2LError, LogitsFn

__all__ = ["MASKS", "Counter", "counted", "examples", "judge"]

MASKS: dict[str, Callable[[LogitsFn, Array], Array]] = {
    "": lambda logits_fn, x: logits_fn(x),
    "scaled": lambda logits_fn, x: 100 * logits_fn(x),
    "quantized": lambda logits_fn, x: logits_fn(jnp.round(15 * x) / 15),
}
"""Models made of a run's, by the name behind @."""


class Counter:
    """Passes over an image that ran so far; one for all victims, so that they share compiled programs."""

    total = 0.0

    @classmethod
    def add(cls, images: int) -> None:
        """Count half a pass for each image."""
        cls.total += images / 2

    @classmethod
    def read(cls) -> float:
        """Return the count, once all that was begun has run."""
        jax.effects_barrier()
        return cls.total


def counted(logits_fn: LogitsFn, x: Array) -> Array:
    """Return the logits, and count the forward pass and, if one is taken, the backward pass when they run."""

    def tick() -> None:
        jax.debug.callback(lambda: Counter.add(len(x)))

    @jax.custom_vjp
    def forward(x: Array) -> Array:
        tick()
        return logits_fn(x)

    def with_residuals(x: Array) -> tuple[Array, Any]:
        tick()
        return jax.vjp(logits_fn, x)

    def backward(vjp: Callable[[Array], tuple[Array]], cotangent: Array) -> tuple[Array]:
        tick()
        return vjp(cotangent)

    forward.defvjp(with_residuals, backward)
    return forward(x)


def examples(saved: Mapping[str, Any], data_dir: str | None, count: int) -> data.Split:
    """Return the first images of a run's test set followed by its training set, as floats, and their labels."""
    dataset = data.load(saved["dataset"], data_dir or saved.get("data_dir"))
    images, labels = (np.concatenate(both)[:count] for both in zip(dataset.test, dataset.train, strict=True))
    return data.Split(data.pixels(images), labels)


def judge(name: str, *, data_dir: str | None, images: int, batch_size: int | None, seeds: int) -> dict[str, Any]:
    """Return both versions' verdicts on one victim, in counts of images, and passes per image by attack."""
    workdir, _, mask = name.partition("@")
    if mask not in MASKS:
        raise L2LError(f"{name}: behind @ give {' or '.join(filter(None, MASKS))}")
    saved = read_config(workdir)
    x, y = examples(saved, data_dir, images)
    model = Partial(counted, Partial(MASKS[mask], load_classifier(workdir)))
    ball = threat.create(saved["norm"], saved["eps"])
    row: dict[str, Any] = {"method": saved["method"], "mask": mask, "images": len(y), "seeds": seeds}
    row |= {key: saved[key] for key in ("dataset", "arch", "norm", "eps")}
    robust: dict[str, list[np.ndarray]] = {"standard": [], "fast": []}
    for version, verdicts in robust.items():
        spent: dict[str, float] = {}
        for seed in range(seeds):
            before = Counter.read()

            def progress(text: str, spent: dict[str, float] = spent) -> None:
                nonlocal before
                attack, now = text.partition(":")[0], Counter.read()
                spent[attack] = spent.get(attack, 0) + (now - before) / len(y) / seeds
                before = now

            found = run_standard_evaluation(
                model, x, y, ball=ball, version=version, key=jax.random.key(seed),
                batch_size=batch_size, progress=progress,
            )  # fmt: skip
            verdicts.append(found.robust)
            print(f"{name}, {version}, seed {seed}: {found.robust.sum()} of {len(y)} robust", flush=True)
        row["clean"] = round(found.clean_acc * len(y))
        row[version] = {"robust": [int(v.sum()) for v in verdicts], "passes": spent}
    same = zip(robust["fast"], robust["standard"], strict=True)
    row["differing"] = [np.flatnonzero(ours != theirs).tolist() for ours, theirs in same]
    ones = [np.flatnonzero(other != robust["standard"][0]).tolist() for other in robust["standard"][1:]]
    row["standard"]["differing_from_seed_0"] = ones
    row["quotient"] = sum(row["fast"]["passes"].values()) / sum(row["standard"]["passes"].values())
    return row
