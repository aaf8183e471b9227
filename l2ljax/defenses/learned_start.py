"""FGSM-SDI: adversarial training on one step of FGSM from a learned start.

    defense = fgsm_sdi(classifier, threat.linf(8 / 255))

Boosting Fast Adversarial Training with Learnable Adversarial Initialization (Jia et al., 2022).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2ljax.attacks import learned
from l2ljax.attacks.ascent import clean
from l2ljax.attacks.gradient import steepest_ascent
from l2ljax.attacks.learned import Attacker
from l2ljax.defenses import saddle
from l2ljax.defenses.saddle import Width
from l2ljax.models import attackers
from l2ljax.threat import Ball
from l2ljax.types import Array, Classifier, Defense, Key, Tree
from l2ljax.values import Positive, checked

__all__ = ["fgsm_sdi", "then"]


@checked
def fgsm_sdi(
    classifier: Classifier, ball: Ball, *, step_size: Positive | None = None,
    attacker: attackers.AttackerName = "one_block",
    attacker_width: Width | None = None, axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve min over theta, max over phi of CE(f(x + delta), y), delta one step of FGSM from a start that phi makes.

        delta_0 = eps g(x, sign(grad L(x))),    delta = clip(delta_0 + a sign(grad L(x + delta_0)), -eps, eps)

    Both signs are constants, as in the released code. So phi's gradient comes through delta_0 alone, at the pixels
    where delta_0 + a sign(...) is within the ball: with a = eps, those that the step does not move on in the direction
    of delta_0. A training step takes three passes: two gradients of the input and the training pass.

    Deviations from the released code: phi moves at each step (there at every 20th), with one backward pass for both
    players on one perturbation, which phi makes in training mode (there theta has one of its own, made by phi in
    evaluation mode); the classifier's passes in the attack are in evaluation mode (there in training mode); phi's Adam
    is without weight decay (there 5e-4); all images are in [0, 1] (there
    without bounds); the loss is without label smoothing (there 0.9 on the label).

    Args:
      step_size: a, in the ball's norm; eps by default, as in the released code.
      attacker: g; one_block is the released code's.
      attacker_width: channels of its first convolution, 64 by default.
    """
    generator = learned.convolutional(
        attackers.create(attacker, width=attacker_width), inputs=("image", "gradient"), normalize="sign"
    )
    player = then(generator, steepest_ascent(ball, ball.eps if step_size is None else step_size))
    return saddle.unrolled(classifier, player, ball, saddle.adversarial(), steps=2, start=clean, axis_name=axis_name)


def then(first: Attacker, rule: optax.GradientTransformation) -> Attacker:
    """Return the attacker that takes its first step by `first` and all others by `rule`, which is without state."""

    def both(
        params: Tree, batch_stats: Tree, keys: Key, y: Array, train: bool = False, axis_name: str | None = None
    ) -> optax.GradientTransformation:
        start = optax.with_extra_args_support(first.rule(params, batch_stats, keys, y, train, axis_name))

        def update(grads: Array, state: tuple[Array, Tree], x: Array, **extra: Any) -> tuple[Array, tuple[Array, Tree]]:
            step, inner = state
            updates, inner = jax.lax.cond(
                step == 0,
                lambda: start.update(grads, inner, x, **extra),
                lambda: (rule.update(grads, rule.init(x), x)[0], inner),
            )
            return updates, (step + 1, inner)

        return optax.GradientTransformationExtraArgs(lambda x: (jnp.zeros((), jnp.int32), start.init(x)), update)

    return Attacker(first.init, both, lambda state: first.batch_stats(state[1]))
