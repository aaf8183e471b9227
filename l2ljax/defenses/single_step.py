"""Adversarial training on attacks of one step, at two passes per image.

    defense = n_fgsm(classifier, threat.linf(8 / 255))

One step from the clean image (`classic.fgsm_adv`) trains networks that are robust to one step alone: catastrophic
overfitting. These two start at noise.
"""

from typing import Annotated

from l2ljax import threat
from l2ljax.attacks.ascent import uniform
from l2ljax.attacks.gradient import steepest_ascent
from l2ljax.attacks.learned import fixed
from l2ljax.defenses import saddle
from l2ljax.threat import Ball
from l2ljax.types import Array, Classifier, Defense, Key
from l2ljax.values import Positive, Range, checked

__all__ = ["fgsm_rs", "n_fgsm"]


@checked
def fgsm_rs(classifier: Classifier, ball: Ball, *, step: Positive = 1.25, axis_name: str | None = None) -> Defense:
    """Train on one step of `step` eps from a uniform draw of the ball, projected. Wong et al. (2020), Algorithm 3.

    Args:
      step: in units of eps, 1.25 in the paper.
    """
    rule = fixed(steepest_ascent(ball, step * ball.eps))
    return saddle.unrolled(classifier, rule, ball, saddle.adversarial(), steps=1, start=uniform, axis_name=axis_name)


@checked
def n_fgsm(
    classifier: Classifier, ball: Ball, *, step: Positive = 1.0, noise: Annotated[float, Range(0, 5)] = 2.0,
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train at x + eta + step eps d, eta uniform in the ball of radius noise eps. de Jorge et al. (2022), Algorithm 1.

    d is the steepest direction at x + eta. Neither noise nor result is projected onto the ball: images move by up to
    (noise + step) eps. Both are clipped to [0, 1], as in the released code.

    Args:
      step: in units of eps, 1 in the paper.
      noise: k, the radius of the noise in units of eps, 2 in the paper.

    Raises:
      L2LError: a noise beyond the range of pixels (in the l-infinity norm).
    """
    around = threat.BALLS[ball.name](noise * ball.eps)

    def start(_: Ball, key: Key, x0: Array) -> Array:
        return around.sample(key, x0)

    unbounded = ball._replace(project=lambda x, x0: threat.clip(x, 0, 1))
    rule = fixed(steepest_ascent(ball, step * ball.eps))
    return saddle.unrolled(classifier, rule, unbounded, saddle.adversarial(), steps=1, start=start, axis_name=axis_name)
