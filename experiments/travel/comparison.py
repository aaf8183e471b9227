"""The comparison: the attack against PGD, annealed PGD and APGD, of as many, twice and five times the steps.

sizes = {name: row["size"] for name, row in search(preys, 16).items()}   # the rivals'
rows = {"mnist": compare(make, params, sizes)}
summary(rows)
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2ljax import losses, threat
from l2ljax.attacks.adaptive_ascent import ascend_adaptively
from l2ljax.attacks.ascent import ascend
from l2ljax.attacks.auto_pgd import gradients, surface
from l2ljax.attacks.travelling import annealed
from l2ljax.types import Array, LogitsFn, Tree, example_keys, fold_in
from travel.training import HORIZONS, Prey

__all__ = [
    "GRID", "RIVALS", "STEPS", "adaptive", "climb", "compare", "falling_signs", "learned", "search", "signs", "spread",
    "summary",
]  # fmt: skip

GRID = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Step sizes of PGD and annealed PGD in units of eps; PGD's also 2.5 / T."""
STEPS = (10, 20, 40, 50, 100)
RIVALS = ("pgd", "annealed", "apgd", "untrained", "by_gradient")
Outcome = dict[str, Array]
"""loss and accuracy at x_T, largest_loss and lowest_accuracy over x_0..x_T."""


def falling_signs(size: Array, power: Array, steps: int) -> optax.GradientTransformationExtraArgs:
    """Step by size eps (1 - t / T)^power along the sign: PGD at power 0, annealed at 1."""

    def update(grads: Array, t: Array, x: Array, *, ball: threat.Ball, **_: Any) -> tuple[Array, Array]:
        return -size * ball.eps * (1 - t / steps) ** power * jnp.sign(grads), t + 1

    return optax.GradientTransformationExtraArgs(lambda x: jnp.int32(0), update)


def climb(rule: Any, steps: int, eps: float, logits_fn: LogitsFn, x: Array, y: Array) -> Outcome:
    """Return what a rule reaches in `steps` steps from a uniform start."""

    def loss_fn(x: Array) -> tuple[Array, Array]:
        logits = logits_fn(x)
        return losses.cross_entropy(logits, y), losses.accuracy(logits, y)

    path = ascend(loss_fn, rule, threat.linf(eps), jax.random.key(1), x, steps=steps)
    loss, right = loss_fn(path.x)
    return {
        "loss": loss.mean(),
        "accuracy": right.mean(),
        "largest_loss": jnp.maximum(path.losses.max(axis=0), loss).mean(),
        "lowest_accuracy": jnp.minimum(path.aux.min(axis=0), right).mean(),
    }


@functools.partial(jax.jit, static_argnums=0)
def signs(steps: int, sizes: Array, powers: Array, eps: float, logits_fn: LogitsFn, x: Array, y: Array) -> Outcome:
    """Return `climb` of `falling_signs`, one entry for each size and power."""
    one = lambda pair: climb(falling_signs(pair[0], pair[1], steps), steps, eps, logits_fn, x, y)
    return jax.lax.map(one, (sizes, powers))


@functools.partial(jax.jit, static_argnums=0)
def learned(steps: int, params: Tree, eps: float, logits_fn: LogitsFn, x: Array, y: Array) -> Outcome:
    """Return `climb` of the learned optimizer."""
    return climb(annealed(horizon=steps).rule(params, {}, None, None), steps, eps, logits_fn, x, y)


@functools.partial(jax.jit, static_argnums=0)
def adaptive(steps: int, eps: float, logits_fn: LogitsFn, x: Array, y: Array) -> Outcome:
    """Return what APGD on the cross-entropy reaches, which counts its best iterates alone."""
    ball, keys = threat.linf(eps), example_keys(jax.random.key(1), len(x))
    gradient_fn = gradients(losses.cross_entropy, logits_fn, y, keys, 1)
    reached = ascend_adaptively(gradient_fn, ball, x, surface(ball, fold_in(keys, 0), x), steps=steps)
    return {"largest_loss": reached.best_loss.mean(), "lowest_accuracy": 1 - reached.fooled.mean()}


def search(preys: Sequence[Prey], size: int) -> dict[str, dict[str, Any]]:
    """Return for each number of steps the sizes of PGD and annealed PGD of largest mean log loss at x_T on the victims.

    The meta-training sees the same victims; `size` images of each are used.
    """
    found = {}
    for steps in STEPS:
        kinds = {"pgd": (0.0, (*GRID, 2.5 / steps)), "annealed": (1.0, GRID)}
        kinds = kinds if steps in HORIZONS else {"pgd": kinds["pgd"]}
        sizes = [s for _, grid in kinds.values() for s in grid]
        powers = [power for power, grid in kinds.values() for _ in grid]
        pairs = jnp.array(sizes), jnp.array(powers)
        logs = np.mean([
            np.log(np.asarray(signs(steps, *pairs, p.eps, p.logits_fn, p.x[:size], p.y[:size])["loss"]) + 1e-6)
            for p in preys
        ], axis=0)  # fmt: skip
        for kind, (power, grid) in kinds.items():
            tried = {s: float(v) for s, p, v in zip(sizes, powers, logs, strict=True) if p == power and s in grid}
            best = max(tried, key=lambda s: tried[s])
            found[f"{kind}{steps}"] = {"size": best, "mean_log_loss": {f"{s:.4g}": v for s, v in tried.items()}}
    return found


def compare(
    make: Callable[[], Prey], params: Mapping[str, Tree], sizes: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return what each attack reaches on a victim, by name."""
    prey = make()
    at = prey.eps, prey.logits_fn, jnp.asarray(prey.x), jnp.asarray(prey.y)
    rows: dict[str, Any] = {
        f"{name}{steps}": learned(steps, tree, *at) for name, tree in params.items() for steps in HORIZONS
    }
    for steps in STEPS:
        kinds = [kind for kind in ("pgd", "annealed") if f"{kind}{steps}" in sizes]
        pairs = jnp.array([sizes[f"{kind}{steps}"] for kind in kinds]), jnp.array([float(k != "pgd") for k in kinds])
        reached = signs(steps, *pairs, *at)
        rows |= {f"{kind}{steps}": jax.tree.map(lambda a, i=i: a[i], reached) for i, kind in enumerate(kinds)}
        if steps > min(STEPS):
            rows[f"apgd{steps}"] = adaptive(steps, *at)
    return {name: {key: float(value) for key, value in row.items()} for name, row in rows.items()}


def summary(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return the traveller against each rival over the victims: ratios of losses, differences of accuracy in points.

    Each has mean, deviation, least, largest over victims; `reached` counts the victims where it is as strong.
    """
    table = {}
    for steps in HORIZONS:
        for rival in (f"{kind}{n * steps}" for n in (1, 2, 5) for kind in RIVALS):
            has = [row for row in rows.values() if rival in row]
            if not has:
                continue
            for loss, accuracy in (("loss", "accuracy"), ("largest_loss", "lowest_accuracy")):
                if loss not in has[0][rival]:
                    continue
                own = [row[f"traveller{steps}"] for row in has]
                ratio = [a[loss] / b[rival][loss] for a, b in zip(own, has, strict=True)]
                points = [100 * (a[accuracy] - b[rival][accuracy]) for a, b in zip(own, has, strict=True)]
                table[f"traveller{steps} / {rival}, {loss}"] = {
                    "loss_ratio": spread(ratio),
                    "accuracy_points": spread(points),
                    "victims": len(has),
                    "loss_reached": sum(r >= 1 for r in ratio),
                    "accuracy_reached": sum(p <= 1e-6 for p in points),
                }
    return table


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation, least and largest."""
    a = np.array(values)
    return {"mean": float(a.mean()), "deviation": float(a.std()), "least": float(a.min()), "largest": float(a.max())}
