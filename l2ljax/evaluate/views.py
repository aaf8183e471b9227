"""The numbers behind the figures of a judged model: its accuracy and loss as the attack changes.

    curves = sweep(plan, dataset.test, key)

A figure's function takes a `Plan`, a split and one key, and returns a mapping for JSON, arrays included.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import attacks, losses
from l2ljax.attacks import ascend
from l2ljax.attacks.gradient import steepest_ascent
from l2ljax.data import Split, batches
from l2ljax.evaluate import evaluate, losses_of_draws
from l2ljax.evaluate.loop import job_of, over
from l2ljax.threat import BALLS, Ball
from l2ljax.types import Array, Attack, Key, LogitsFn, example_keys

__all__ = [
    "COUNTS", "PGD", "RADII", "Plan", "landscape", "loss_curves", "losses_along", "perturbations", "pgd_path", "sweep",
]  # fmt: skip

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""The radii of `sweep`, in units of eps."""
COUNTS = (1, 2, 5, 10, 20, 50, 100)
"""The steps of `sweep`."""
PGD = "PGD, steps of eps / 4"
"""Its name in `losses`."""


class Plan(NamedTuple):
    """The figures, models and attacks to draw."""

    figures: list[str]
    """Keys of `illustrate.FIGURES`."""
    models: Mapping[str, LogitsFn]
    """Name -> images to logits: the judged model, and the baseline if there is one."""
    attackers: Mapping[str, Callable[..., Attack]]
    """Name -> loader of the learned attacker, see `run.trained.load_attacker`."""
    ball: Ball
    class_names: tuple[str, ...]
    batch_size: int = 250
    """Images per batch."""


def sweep(plan: Plan, split: Split, key: Key) -> dict[str, Any]:
    """Measure accuracy under PGD against its radius (10 steps) and its steps, each eps / 10 long. L2L, Figures 4 and 9.

    Returns:
      panel -> {"x": axis title, "scale", "values" [N], "accuracy": model -> fractions [N]}, and with a baseline
      "difference" (the model's accuracy minus the baseline's [N]) and "error", its standard error over the images [N].
    """
    ball = plan.ball
    farthest = float(ball.norm(jnp.ones((1, *split.images.shape[1:])))[0])  # the largest distance of two images
    near = [eps for eps in (ball.eps * f for f in RADII) if eps <= farthest]
    far = [float(eps) for eps in np.linspace(0, farthest, 11)]
    radius = {"x": f"eps ({ball.name}, pixels in [0, 1])", "scale": "linear"}
    steps = {"x": "steps", "scale": "log"}
    panels: dict[str, dict[str, Any]] = {
        "PGD, 10 steps of eps / 10": {**radius, "values": near},
        f"PGD at eps = {ball.eps:.3g}, steps of eps / 10": {**steps, "values": list(COUNTS)},
        "PGD, 10 steps of eps / 10, up to the largest eps": {**radius, "values": far},
    }
    settings = [[(eps, 10) for eps in near], [(ball.eps, n) for n in COUNTS], [(eps, 10) for eps in far]]
    for panel, pairs in zip(panels.values(), settings, strict=True):
        attack = lambda eps, steps: jax.tree_util.Partial(_pgd_of_radius(ball.name, steps), np.float32(eps))
        table = {f"{i}": attack(eps, steps) for i, (eps, steps) in enumerate(pairs)}
        evaluated = {
            name: evaluate(model, split, table, key=key, batch_size=plan.batch_size).attacks.values()
            for name, model in plan.models.items()
        }
        correct = {name: np.stack([row.correct for row in rows]) for name, rows in evaluated.items()}
        panel["accuracy"] = {name: list(rows.mean(axis=1)) for name, rows in correct.items()}
        if len(correct) == 2:
            one, other = (rows.astype(float) for rows in correct.values())
            panel["difference"] = list((one - other).mean(axis=1))
            panel["error"] = list((one - other).std(axis=1) / np.sqrt(len(split.labels)))
    return panels


@functools.cache
def _pgd_of_radius(norm: str, steps: int) -> Callable[..., Array]:
    """Return PGD with steps of eps / 10 and a traced radius: all radii share one program."""

    def attack(eps: Array, logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        ball = BALLS[norm](eps)  # type: ignore[arg-type]
        return attacks.pgd(ball, step_size=eps / 10, steps=steps)(logits_fn, key, x, y)  # type: ignore[arg-type]

    return attack


def loss_curves(plan: Plan, split: Split, key: Key, *, steps: int = 10) -> dict[str, Any]:
    """Measure the loss after 0..T steps of PGD and of each learned attacker, once per image. RNN-Adv, Figure 2.

    Returns:
      model -> attack -> {"largest", "spread"}, each [T + 1], see `losses_along`.
    """
    tried = {PGD: pgd_path(plan.ball, steps=steps)}
    tried |= {name: attacker(steps=steps, path=True) for name, attacker in plan.attackers.items()}
    along = lambda model, path: losses_along(model, split, path, key=key, batch_size=plan.batch_size)
    return {who: {name: along(model, path) for name, path in tried.items()} for who, model in plan.models.items()}


def pgd_path(ball: Ball, *, steps: int) -> Attack:
    """Return PGD with steps of eps / 4, RNN-Adv's, as an attack that returns its path [T, B, H, W, C]."""

    def path(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        loss_fn = lambda x: (losses.cross_entropy(logits_fn(x), y), ())
        return ascend(loss_fn, steepest_ascent(ball, ball.eps / 4), ball, key, x, steps=steps).path

    return path


def losses_along(
    logits_fn: LogitsFn, split: Split, path: Attack, *, key: Key, draws: int = 1, batch_size: int = 250
) -> dict[str, list[float]]:
    """Measure cross-entropy along an attack step by step, over `draws` attacks of each image with different keys.

    `path` is the attack, which returns its path x_1..x_T [T, B, H, W, C].

    Returns:
      "largest": the mean over images of the largest loss among the draws, and "spread": of their standard deviation;
      each [T + 1], at the clean images and at x_1..x_T.
    """

    def from_clean(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        return jnp.concatenate([x[None], path(logits_fn, key, x, y)])

    reached = losses_of_draws(logits_fn, split, from_clean, key=key, draws=draws, batch_size=batch_size)
    return {"largest": reached.max(axis=0).mean(axis=1).tolist(), "spread": reached.std(axis=0).mean(axis=1).tolist()}


def landscape(plan: Plan, split: Split, key: Key, *, images: int = 100, points: int = 21) -> dict[str, Any]:
    """Measure mean cross-entropy over the first images at x + eps (a u + b v), a and b in [-1, 1]. RNN-Adv, Figure 3.

    u is the steepest direction at x, the gradient's sign for linf. v has a random sign at each pixel (a Rademacher draw
    per image). Both have norm 1 in the ball's norm. The paper gives neither the range nor whether it clips to [0, 1];
    here nothing is clipped, as that would flatten the loss at black pixels.

    Returns:
      "units" [P], the values of a and of b, "axes", their titles, and "loss": model -> [P, P], at a of the row and b of
      the column.
    """
    ball = plan.ball
    units = np.linspace(-1, 1, points).round(6)
    grid = jnp.asarray([(a, b) for a in units for b in units], jnp.float32)

    def around(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        loss = lambda x: losses.cross_entropy(logits_fn(x), y)
        signs = jax.vmap(lambda k: jax.random.rademacher(k, x.shape[1:], x.dtype))(keys)
        u, v = ball.steepest(jax.grad(lambda x: loss(x).sum())(x)), ball.steepest(signs)
        return jax.lax.map(lambda at: loss(x + ball.eps * (at[0] * u + at[1] * v)), grid).T

    few = split.take(slice(images))
    jobs = {name: job_of(model, few, batch_size=plan.batch_size) for name, model in plan.models.items()}
    surfaces = {name: over(job, around, key).mean(axis=0).reshape(points, points) for name, job in jobs.items()}
    steepest = "sign of the gradient" if ball.name == "linf" else "gradient"
    return {"units": units, "axes": [f"{steepest} (eps)", "random signs (eps)"], "loss": surfaces}


def perturbations(plan: Plan, split: Split, key: Key, *, images: int = 3) -> dict[str, Any]:
    """Attack the first images with FGSM, PGD-20 and the learned attackers. L2L, Figure 4 (2021: and 5).

    Returns:
      "class_names", "labels" [N], "x" [N, H, W, C], and "models": model -> attack -> {"x_adv" [N, H, W, C],
      "predictions" [N]}.
    """
    batch = next(batches(split.take(slice(images)), min(images, len(split.labels))))
    x, y, keys = jnp.asarray(batch.x), jnp.asarray(batch.y), example_keys(key, len(batch.y))
    tried = {name: attacks.create(name, plan.ball) for name in ("fgsm", "pgd20")}
    tried |= {name: attack() for name, attack in plan.attackers.items()}
    shown: dict[str, dict[str, Any]] = {}
    for model, logits_fn in plan.models.items():
        shown[model] = {}
        for name, attack in tried.items():
            x_adv = jax.jit(functools.partial(attack, logits_fn))(keys, x, y)
            shown[model][name] = {"x_adv": x_adv, "predictions": logits_fn(x_adv).argmax(axis=1).tolist()}
    return {"class_names": plan.class_names, "labels": batch.y.tolist(), "x": x, "models": shown}
