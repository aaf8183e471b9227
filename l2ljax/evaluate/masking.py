"""Checks whether a model masks gradients and its robustness is an illusion, each with a figure and a verdict.

    for check in masking_checks(logits_fn, dataset.test, ball, key=key):
        print(check.verdict, check.name, check.figure)

After Athalye et al. (2018), section 3.1, Carlini et al. (2019) and AutoAttack's own flags; the checklist of Learning to
Defend by Learning to Attack, appendix E. A difference of accuracies counts beyond one standard error of the paired
difference, and attacks keep their best iterate, so that sound models raise no alarm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from l2ljax import losses
from l2ljax.attacks import best_of, create, pgd, random_noise, square
from l2ljax.attacks.ascent import finite
from l2ljax.attacks.square_search import MOVES
from l2ljax.data import Split, pixels
from l2ljax.evaluate.accuracy import evaluate
from l2ljax.evaluate.loop import examples_of, job_of, over
from l2ljax.threat import Ball, resized
from l2ljax.types import Array, Key, LogitsFn, example_keys, fold_in, one_key
from l2ljax.values import Count, checked

__all__ = [
    "LARGEST_ZERO_FRACTION", "WIDE", "Check", "StochasticLogitsFn", "data_dependent_operations", "masking_checks",
    "path_faults", "randomized",
]  # fmt: skip

StochasticLogitsFn = Callable[[Array, Key], Array]
"""(images [B, H, W, C], keys [B]) -> logits [B, K]."""
LARGEST_ZERO_FRACTION = 0.1
WIDE = {"linf": 1.0, "l2": 100.0, "l1": 1e6}
"""A radius at which every model must fail."""


class Check(NamedTuple):
    """One check of a model."""

    name: str
    """The property of a sound model."""
    passed: bool
    figure: str
    """The measurement."""

    @property
    def verdict(self) -> str:
        """ok, or SUSPICIOUS."""
        return "ok" if self.passed else "SUSPICIOUS"


@checked
def masking_checks(
    logits_fn: LogitsFn, split: Split | tuple[Any, Any], ball: Ball, *, key: Key,
    stochastic: StochasticLogitsFn | None = None, queries: Count = 500, batch_size: Count = 250,
) -> list[Check]:  # fmt: skip
    """Run all checks that tell a robust model from one that masks gradients.

    Args:
      logits_fn: images -> logits; a `jax.tree_util.Partial` over the weights compiles once for all weights.
      split: images [N, H, W, C], uint8 or floats in [0, 1], and labels [N]; a few hundred are enough.
      ball: the threat.
      key: one key.
      stochastic: the model with its randomness, if any.
      queries: the number for the Square attack and for random search.
      batch_size: examples per batch.

    Raises:
      L2LError: as `evaluate`, for instance for probabilities instead of logits; as `threat.resized`.
    """
    split, key = examples_of(split), one_key(key)

    wide = resized(ball, WIDE.get(ball.name, 0))
    black = {"Square": square(ball, queries=queries)} if ball.name in MOVES else {}  # it has no moves in l1
    named = {
        "one step": pgd(ball, steps=1, step_size=ball.eps),
        "10 steps": create("pgd10+first", ball),
        "50 steps": create("pgd50+first", ball),
        "100 steps": create("pgd100+first", ball),
        "100 steps on the margin": create("margin100+first", ball),
        "50 steps in twice the radius": create("pgd50+first", resized(ball, min(2 * ball.eps, wide.eps))),
        "50 steps in any radius": best_of([create("pgd50+first", wide), create("margin50+first", wide)]),
        **black,
        "random search": random_noise(ball, samples=queries),
    }
    rows = evaluate(logits_fn, split, named, key=key, batch_size=batch_size).attacks
    correct = {name: row.correct for name, row in rows.items()}
    correct["white box"] = correct["100 steps"] & correct["100 steps on the margin"]

    def not_weaker(stronger: str, weaker: str) -> tuple[bool, str]:
        """Return whether the supposedly stronger attack leaves no more examples standing than the weaker one."""
        difference = correct[stronger].astype(float) - correct[weaker]
        error = difference.std() / np.sqrt(len(difference))
        figure = f"{stronger}: {correct[stronger].mean():.1%}, {weaker}: {correct[weaker].mean():.1%} (+-{error:.1%})"
        return bool(difference.mean() <= error), figure

    kept, converged = not_weaker("50 steps", "100 steps")
    unbounded = correct["50 steps in any radius"].mean()
    zeros, ties = path_faults(logits_fn, split, ball, key=key, steps=10, batch_size=batch_size)
    checks = [
        Check("several steps are not weaker than one", *not_weaker("10 steps", "one step")),
        Check("more steps are not weaker", *not_weaker("100 steps", "10 steps")),
        Check("the attack has converged", kept or bool(correct["50 steps"].mean() < 0.01), converged),
        Check("a larger radius is not weaker", *not_weaker("50 steps in twice the radius", "50 steps")),
        Check("no accuracy is left in any radius", bool(unbounded <= 0.01), f"{unbounded:.1%} left"),
        *(Check("the black box is not stronger than the white box", *not_weaker("white box", name)) for name in black),
        Check("random search is not stronger than the gradient", *not_weaker("white box", "random search")),
        Check(
            f"gradients are not 0 (for more than {LARGEST_ZERO_FRACTION:.0%} of the examples, at any step)",
            bool(zeros.max() <= LARGEST_ZERO_FRACTION), "by step " + " ".join(f"{z:.1%}" for z in zeros),
        ),
        Check(
            "the largest logits do not tie (as in quantized and half-precision models)", not ties.any(),
            f"{ties.max():.1%} of the examples tie; the first of these classes wins",
        ),
    ]  # fmt: skip
    if stochastic is not None:
        checks.append(_deterministic(stochastic, split, key))
    x = jnp.asarray(pixels(split.images[:2]))
    dynamic = data_dependent_operations(logits_fn, x)
    classes = int(jax.eval_shape(logits_fn, x).shape[1])
    return [
        *checks,
        Check("inference is one fixed program", not dynamic, f"it has {', '.join(dynamic)}" if dynamic else "it is"),
        Check("there are enough classes for the DLR losses (4)", classes >= 4, f"{classes} classes"),
    ]


def path_faults(
    logits_fn: LogitsFn, split: Split, ball: Ball, *, key: Key, steps: int, batch_size: int = 250
) -> tuple[np.ndarray, np.ndarray]:
    """Return two fractions [steps] of the examples along PGD's path on the cross-entropy.

    First those with an input gradient of 0 (or NaN), then those whose two largest logits are equal.
    """

    def count(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> tuple[Array, Array]:
        def step(x_t: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            logits, vjp = jax.vjp(logits_fn, x_t)
            g = finite(*vjp(jax.grad(lambda z: losses.cross_entropy(z, y).sum())(logits)))
            first, second = jax.lax.top_k(logits, 2)[0].T
            faults = (g == 0).all(axis=range(1, x.ndim)), first == second
            return ball.project(x_t + ball.eps / 4 * ball.steepest(g), x), faults

        zero, tied = jax.lax.scan(step, ball.sample(keys, x), length=steps)[1]
        return zero.T, tied.T

    zero, tied = over(job_of(logits_fn, split, batch_size=batch_size), count, key)
    return zero.mean(axis=0), tied.mean(axis=0)


def randomized(stochastic: StochasticLogitsFn, key: Key) -> LogitsFn:
    """Return a logits function that draws a stochastic model's noise anew at every image.

    An image's key is folded from its bits, so that the function stays pure: equal images get equal noise.
    """

    def logits_fn(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        sums = jnp.sum(bits, axis=range(1, x.ndim), dtype=jnp.uint32)
        return stochastic(x, jax.vmap(jax.random.fold_in, (None, 0))(key, sums))

    return logits_fn


def _deterministic(stochastic: StochasticLogitsFn, split: Split, key: Key) -> Check:
    x = jnp.asarray(pixels(split.images[:100]))
    keys = example_keys(key, len(x))
    one, two = (np.asarray(jax.jit(stochastic)(x, fold_in(keys, i))) for i in (0, 1))
    gap = float(np.abs(one - two).max())
    figure = f"logits differ by up to {gap:.2g} between two keys" + (": use the version rand" if gap else "")
    return Check("the model is deterministic", gap == 0, figure)


def data_dependent_operations(logits_fn: LogitsFn, x: Array) -> list[str]:
    """Return the operations that depend on the input's values: loops and branches, and gradients taken inside.

    A `lax.scan` does not, as its length is fixed.
    """
    operations: dict[str, None] = {}

    def walk(jaxpr: core.Jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("while", "cond"):
                operations[equation.primitive.name] = None
            if "transpose(" in str(equation.source_info.name_stack):
                operations["gradient"] = None
            for inner in core.jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(logits_fn)(x).jaxpr)
    return list(operations)
