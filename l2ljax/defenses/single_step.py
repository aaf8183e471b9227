"""Adversarial training on attacks of one step.

    defense = n_fgsm(classifier, threat.linf(8 / 255))

One step from the clean image (`classic.fgsm_adv`) may train a network that is robust to one step alone: catastrophic
overfitting. `fgsm_rs` and `n_fgsm` start at noise, at two passes per image; `elle` asks for a locally linear loss, at
five; `free_adv` steps on the pass that trains, and takes one more forward for the accuracy in the metrics.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from l2ljax import losses, threat
from l2ljax.attacks.ascent import clean
from l2ljax.attacks.gradient import steepest_ascent
from l2ljax.attacks.learned import Attacker, fixed
from l2ljax.defenses import saddle
from l2ljax.defenses.classic import pgd_adv
from l2ljax.threat import Ball
from l2ljax.types import Array, Batch, Classifier, Defense, Key, L2LError, Tree, fold_in
from l2ljax.values import NonNegative, Positive, Range, checked

__all__ = ["elle", "fgsm_rs", "free_adv", "n_fgsm"]


@checked
def fgsm_rs(classifier: Classifier, ball: Ball, *, step: Positive = 1.25, axis_name: str | None = None) -> Defense:
    """Train on one step of `step` eps from a uniform draw of the ball, projected. Wong et al. (2020), Algorithm 3.

    The attack's pass is in evaluation mode; in the released code it is in training mode, and moves BatchNorm's running
    statistics too.

    Args:
      step: in units of eps, 1.25 in the paper.
    """
    return pgd_adv(classifier, ball, steps=1, step_size=step * ball.eps or None, axis_name=axis_name)


@checked
def n_fgsm(
    classifier: Classifier, ball: Ball, *, step: Positive = 1.0, noise: Annotated[float, Range(0, 5)] = 2.0,
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train at x + eta + step eps d, eta uniform in the ball of radius noise eps. de Jorge et al. (2022), Algorithm 1.

    d is the steepest direction at x + eta. Neither noise nor result is projected onto the ball: images move by up to
    (noise + step) eps. Both are clipped to [0, 1], as in the released code, whose attack's pass is in training mode.

    Args:
      step: in units of eps, 1 in the paper.
      noise: k, the radius of the noise in units of eps, 2 in the paper.

    Raises:
      L2LError: a noise beyond the range of pixels (in the l-infinity norm).
    """
    if ball.name == "linf" and noise * ball.eps > 1:
        most = f"give {1 / ball.eps:.4g} or less"
        raise L2LError(f"noise={noise:g} at eps={ball.eps:g} is more than the pixels' range: {most}")
    around = threat.resized(ball, noise * ball.eps)

    def start(_: Ball, key: Key, x0: Array) -> Array:
        return around.sample(key, x0)

    unbounded = ball._replace(project=lambda x, x0: threat.clip(x, 0, 1))
    rule = fixed(steepest_ascent(ball, step * ball.eps))
    return saddle.unrolled(classifier, rule, unbounded, saddle.adversarial(), steps=1, start=start, axis_name=axis_name)


@checked
def elle(
    classifier: Classifier, ball: Ball, *, weight: NonNegative = 1000.0, axis_name: str | None = None
) -> Defense:  # fmt: skip
    """Train on FGSM, with a penalty on the loss's departure from a line: ELLE. Rocamora et al. (2024).

        CE(f(x')) + weight (CE(f(x_c)) - (1 - a) CE(f(x_a)) - a CE(f(x_b)))^2,    x_c = (1 - a) x_a + a x_b

    where x_a and x_b are uniform in the ball and a in [0, 1]. This takes three more passes; GradAlign (Andriushchenko &
    Flammarion, 2020) differentiates an input gradient in the weights. Deviations from the released code: x_a and x_b
    are clipped to [0, 1], and so is the attack's image; neither their pass nor the attack's, in evaluation mode,
    moves BatchNorm's running statistics; the optimizer steps once on each gradient (there twice).

    Args:
      weight: the paper's lambda; on CIFAR-10, 1000 up to eps = 8/255 in the released code, and more beyond.
    """

    def penalty(forward: saddle.Forward, batch_stats: Tree, keys: Key, batch: Batch) -> Array:
        x_a, x_b = (ball.sample(fold_in(keys, i), batch.x) for i in range(2))
        a = jax.vmap(jax.random.uniform)(fold_in(keys, 2))
        x_c = x_a + threat.spread(a, x_a) * (x_b - x_a)
        logits, _ = forward(batch_stats, jnp.concatenate([x_a, x_b, x_c]))
        at_a, at_b, at_c = jnp.split(losses.cross_entropy(logits, jnp.concatenate([batch.y] * 3)), 3)
        return weight * (at_c - (1 - a) * at_a - a * at_b) ** 2

    rule = fixed(steepest_ascent(ball, ball.eps))
    return saddle.unrolled(
        classifier, rule, ball, saddle.adversarial(), steps=1, start=clean, penalty=penalty, axis_name=axis_name
    )


@checked
def free_adv(classifier: Classifier, ball: Ball, *, step: Positive = 1.0, axis_name: str | None = None) -> Defense:
    """Train on perturbations that step once per pass: free adversarial training. Shafahi et al. (2019), Algorithm 1.

        theta descends  E CE(f(x + delta), y),    delta <- project(delta + step eps d)

    d is the steepest direction of that loss, from the same backward pass. So delta [B, H, W, C], one perturbation for
    each place in the batch, is the attacker's parameters, and `Defense.mover` its optimizer. Repeat each batch
    (`--replays`; 8 in the paper) for it to get several steps; the next batch starts with the last one's.

    Args:
      step: in units of eps, 1 in the paper.

    Raises:
      L2LError: in training, a batch of another size than that of `init`'s x.
    """

    def init(key: Key, x: Array) -> tuple[Tree, Tree]:
        return {"delta": jnp.zeros_like(x)}, {}

    def rule(
        params: Tree, batch_stats: Tree, keys: Key, y: Array, train: bool = False, axis_name: str | None = None
    ) -> optax.GradientTransformation:
        def update(grads: Array, state: optax.EmptyState, x: Array, **_: Any) -> tuple[Array, optax.EmptyState]:
            delta, devices = params["delta"], jax.lax.axis_size(axis_name) if axis_name else 1
            if len(delta) != len(x) * devices:
                raise L2LError(f"{len(delta)} perturbations for a batch of {len(x) * devices}: give init such a batch")
            first = jax.lax.axis_index(axis_name) * len(x) if axis_name else 0
            return jax.lax.dynamic_slice_in_dim(delta, first, len(x)), state

        return optax.GradientTransformationExtraArgs(lambda x: optax.EmptyState(), update)

    scale = max(1, 2 * ball.eps)
    around_gray = ball if scale == 1 else threat.resized(ball, ball.eps / scale)  # which the pixels' range never cuts

    def move(g: Array, delta: Array) -> Array:
        gray = jnp.full_like(delta, 0.5)
        moved = gray + (delta - step * ball.eps * ball.steepest(g)) / scale
        return scale * (around_gray.project(moved, gray) - gray) - delta

    mover = optax.stateless_with_tree_map(move)
    clipped = ball._replace(project=lambda x, x0: threat.clip(x, 0, 1))  # delta is in the ball
    attacker = Attacker(init, rule, lambda state: {})
    defense = saddle.unrolled(
        classifier, attacker, clipped, saddle.adversarial(), steps=1, start=clean, axis_name=axis_name
    )
    return defense._replace(attack=lambda params, batch_stats, steps=None, path=False: None, mover=mover)
