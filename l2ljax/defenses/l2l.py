"""Learning to Defend by Learning to Attack: its five methods, one function with other inputs and steps."""

from collections.abc import Sequence
from typing import Literal

from l2ljax.attacks import learned
from l2ljax.attacks.ascent import clean
from l2ljax.attacks.learned import Normalization
from l2ljax.defenses import saddle
from l2ljax.defenses.saddle import Steps, Width
from l2ljax.models import attackers
from l2ljax.threat import Ball
from l2ljax.types import Classifier, Defense
from l2ljax.values import Positive, checked

__all__ = ["convolutional_l2l"]


@checked
def convolutional_l2l(
    classifier: Classifier, ball: Ball, *, inputs: Sequence[str], steps: Steps,
    attacker: attackers.AttackerName = "wide",
    attacker_width: Width | None = None, normalize: Normalization = "batch",
    loss: Literal["cross_entropy", "trades"] = "cross_entropy", beta: Positive = 6.0, axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve min over theta, max over phi of CE(f(x_T), y), with x_T made by a convolutional attacker from x.

    Learning to Defend by Learning to Attack, section 2.2 (3 in 2021). Schedule "alternating" is the released code:
    theta steps first, then gradient and attack are repeated with the new theta for phi, with its BatchNorm modes.
    Algorithm 2 (3 in 2021) lies between: phi at the new theta on the old perturbation. Under "joint" both move on one.
    An attacker that does not see the gradient has no pass for it, which would move BatchNorm's statistics.

    Args:
      inputs: the attacker's inputs, some of image and gradient.
      steps: number of the attacker's steps.
      attacker: the network.
      attacker_width: channels of its first convolution; the papers' by default.
      normalize: the gradient's normalization, see `attacks.learned.normalize_gradient`; batch in the released code.
      loss: of both players; "trades" is in the released code alone: CE(f(x), y) + beta KL(f(x) || f(x_T)). The attacker
        sees the gradient of the cross-entropy (the KL's is 0 at x).
      beta: the weight of the KL term.
    """
    criterion = saddle.adversarial()
    if loss == "trades":
        criterion = saddle.trades(beta)._replace(inner=criterion.inner, weight=1.0)
    network = attackers.create(attacker, width=attacker_width)
    player = learned.convolutional(network, inputs=inputs, normalize=normalize)
    query: Literal["train", "eval"] = "train" if "gradient" in inputs else "eval"
    return saddle.unrolled(
        classifier, player, ball, criterion, steps=steps, start=clean, query=query, axis_name=axis_name
    )
