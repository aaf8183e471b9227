"""Adversarial Interpolation Training, by a fixed rule (`ait`) and with a learned attacker (`ait_l2l`).

Zhang & Xu (2020), as in Algorithms 2 and 4 of Learning to Defend by Learning to Attack (2021): an image moves until its
features resemble those of a partner, and its label moves away from the partner's.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from l2ljax import losses
from l2ljax.attacks import learned
from l2ljax.attacks.ascent import Ascent, LossFn, ascend, clean
from l2ljax.attacks.gradient import steepest_ascent
from l2ljax.attacks.learned import Normalization
from l2ljax.defenses import saddle
from l2ljax.defenses.saddle import Outcome, Shift, Width, in_place
from l2ljax.models import attackers
from l2ljax.threat import Ball
from l2ljax.types import Array, Batch, Classifier, Defense, Key, Players, Tree, example_keys, fold_in
from l2ljax.values import Share, checked

__all__ = ["Source", "ait", "ait_l2l", "interpolated", "interpolated_labels", "nearest_labels"]

Source = Literal["code", "equation"]
"""See `interpolated`."""


def ait(
    classifier: Classifier, ball: Ball, *, label_eps: Share = 0.5, as_in: Source = "code", axis_name: str | None = None
) -> Defense:
    """Take one step as long as eps towards the partner's features. L2L (2021), Algorithm 2; see `interpolated`."""
    player = learned.fixed(steepest_ascent(ball, ball.eps))
    return interpolated(classifier, player, ball, label_eps=label_eps, as_in=as_in, axis_name=axis_name)


@checked
def ait_l2l(
    classifier: Classifier, ball: Ball, *, label_eps: Share = 0.5, attacker: attackers.AttackerName = "wide",
    attacker_width: Width | None = None, normalize: Normalization = "batch", as_in: Source = "code",
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Move the image by a convolutional attacker with inputs noisy image and gradient. L2L (2021), Algorithm 4.

    The options are those of `interpolated` and `l2l.convolutional_l2l`.
    """
    network = attackers.create(attacker, width=attacker_width)
    player = learned.convolutional(network, inputs=("image", "gradient"), normalize=normalize)
    return interpolated(classifier, player, ball, label_eps=label_eps, as_in=as_in, axis_name=axis_name)


@checked
def interpolated(
    classifier: Classifier, attacker: learned.Attacker, ball: Ball, *, label_eps: Share, as_in: Source = "code",
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve min over theta of CE(f(x~), y~), max over phi of -d(x~), with x~ made by phi from x + a draw of the ball.

        d(x) = 1 - cos(features(x), features(x')),    y~ = (1 - eps_y) y + eps_y (1 - y') / (K - 1),

    where the partners (x', y') are the batch in reversed order (over all devices), as in the released code. L2L (2021),
    eq. 6, has the similarity where the code has the distance, so that features move apart, and the label nearest to (1
    - y') / (K - 1) among the distributions within eps_y of y, where both algorithms interpolate. The draw is U(-eps,
    eps) in the papers' l-infinity norm; x with it is not clipped to [0, 1], but x~ is. phi moves first and both players
    use one perturbation, which is schedule "joint". Features are those of evaluation mode.

    Args:
      classifier: the network; its `features` are compared.
      attacker: `attacks.learned.fixed(rule)` or `convolutional`; one step.
      label_eps: eps_y, in [0, 1].
      as_in: "code", or "equation" for eq. 6.
    """
    sign, label = (1, interpolated_labels) if as_in == "code" else (-1, nearest_labels)

    def climb(loss_fn: LossFn, rule: optax.GradientTransformation, keys: Key, x: Array, steps: int) -> Ascent:
        keys = fold_in(keys, 1)
        noise = ball.sample(keys, jnp.full_like(x, 0.5)) - 0.5  # around gray, which pixels' range does not cut
        around_x = ball._replace(project=lambda moved, _: ball.project(moved, x))
        # The attacker starts at the noisy image and sees it; the ball is the clean image's.
        return ascend(loss_fn, rule, around_x, keys, x + noise, steps=steps, start=clean)

    def objective(
        params: Players, stats: Players, key: Key, batch: Batch, mode: str, shift: Shift = in_place
    ) -> Outcome:
        keys = example_keys(key, len(batch.x))
        constant = {"params": stop_gradient(params.classifier), "batch_stats": stats.classifier}
        partner = Batch(*(_reverse(a, axis_name) for a in batch))
        target = classifier.features(constant, partner.x)

        def distance(x: Array) -> Array:
            return losses.cosine_distance(classifier.features(constant, x), target)

        rule = attacker.rule(
            params.attacker, stats.attacker, fold_in(keys, 0), losses.classes(batch.y), mode != "classifier", axis_name
        )
        ascent = climb(lambda x: (-sign * distance(x), ()), rule, keys, batch.x, 1)
        reached = distance(ascent.x)

        def ended(theta: Tree) -> tuple[Array, tuple[Array, Tree]]:
            variables = {"params": theta, "batch_stats": stats.classifier}
            logits, batch_stats = classifier.train(variables, stop_gradient(ascent.x), fold_in(keys, 2), axis_name)
            one_hot = lambda y: y if y.ndim == 2 else jax.nn.one_hot(y, logits.shape[1])
            y, other = one_hot(batch.y), one_hot(partner.y)
            return losses.cross_entropy(logits, label(y, other, label_eps)).mean(), (logits, batch_stats)

        loss, (logits, batch_stats) = ended(shift(lambda theta: ended(theta)[0], params.classifier))
        if mode == "attacker":
            batch_stats = stats.classifier
        accuracy = losses.accuracy(logits, batch.y).mean()
        metrics = {"loss": loss, "distance": reached.mean(), "robust_accuracy": accuracy}
        return loss - sign * reached.mean(), (Players(batch_stats, attacker.batch_stats(ascent.state)), metrics)

    return Defense(attacker.init, objective, saddle.trained(attacker, climb, 1))


def interpolated_labels(y: Array, other: Array, eps: float) -> Array:
    """Return (1 - eps) y + eps (1 - y') / (K - 1) for one-hot labels [B, K]: L2L (2021), Algorithm 2."""
    return (1 - eps) * y + eps * (1 - other) / (y.shape[1] - 1)


def nearest_labels(y: Array, other: Array, eps: float) -> Array:
    """Return the distribution nearest to (1 - y') / (K - 1) of those within eps of y in every class: eq. 6.

    It is clip(target + c, max(y - eps, 0), min(y + eps, 1)) with the c for which it sums to 1, found by bisection.
    """
    target, low, high = (1 - other) / (y.shape[1] - 1), jnp.maximum(y - eps, 0), jnp.minimum(y + eps, 1)

    def halve(_: Array, between: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (between[0] + between[1]) / 2
        large = jnp.clip(target + middle, low, high).sum(axis=1, keepdims=True) > 1
        return jnp.where(large, between[0], middle), jnp.where(large, middle, between[1])

    start = (jnp.full((len(y), 1), -1.0), jnp.full((len(y), 1), 1.0))
    return jnp.clip(target + sum(jax.lax.fori_loop(0, 40, halve, start)) / 2, low, high)


def _reverse(a: Array, axis_name: str | None) -> Array:
    """Return the batch in reversed order, over all devices of the axis."""
    if axis_name:
        n = jax.lax.axis_size(axis_name)
        a = jax.lax.ppermute(a, axis_name, [(i, n - 1 - i) for i in range(n)])
    return a[::-1]
