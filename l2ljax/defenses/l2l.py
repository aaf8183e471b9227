"""Defenses with an attacker learned together with the classifier: L2L's five, RNN-Adv and RNN-TRADES."""

from collections.abc import Sequence
from typing import Any, Literal

from l2ljax.attacks import learned
from l2ljax.attacks.ascent import clean
from l2ljax.attacks.learned import Normalization
from l2ljax.defenses import saddle
from l2ljax.defenses.classic import STARTS, StartName
from l2ljax.defenses.saddle import Steps, Width
from l2ljax.models import attackers
from l2ljax.threat import Ball
from l2ljax.types import Classifier, Defense
from l2ljax.values import Positive, checked

__all__ = ["convolutional_l2l", "rnn_adv", "rnn_trades"]


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
        criterion = saddle.trades(beta)._replace(inner=criterion.inner)
    network = attackers.create(attacker, width=attacker_width)
    player = learned.convolutional(network, inputs=inputs, normalize=normalize)
    return saddle.unrolled(
        classifier, player, ball, criterion, steps=steps, start=clean, query="train", axis_name=axis_name
    )


ON_CROSS_ENTROPY = saddle.adversarial()


@checked
def rnn_adv(
    classifier: Classifier, ball: Ball, *, criterion: saddle.Criterion = ON_CROSS_ENTROPY, steps: Steps = 10,
    scale: Positive = 1.0, normalize: Normalization = "example", weights: Literal["t", "final"] = "t",
    biases: bool = False, hidden: Width = 10, start: StartName = "gaussian", axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve min over theta of the end's loss, max over phi of sum_t w_t L(x_t): RNN-Adv paper, eq. 8-10, Algorithm 1.

    An ablation on digits over 3 seeds (BENCHMARKS.md, "digits rnn") favors none of the choices: scale, normalization,
    weights and biases change the PGD-100 accuracy by less than its standard error. So w_t = t and no biases are the
    paper's, and the gradient is scaled per example because then one setting fits all data sets and losses (TRADES
    starts where its gradient is nearly 0).

    Args:
      criterion: the loss; `rnn_trades` has another.
      steps: T.
      scale: of the optimizer's output, in units of eps (the paper has none, which is 1 / eps).
      normalize: the gradient's normalization; none in the paper.
      weights: "t" (w_t = t, the paper) or "final" (w_T alone).
      biases: whether the optimizer has biases (the paper argues against them).
      hidden: the size of its hidden state, 10 in the paper.
      start: gaussian is the paper's.
    """
    player = learned.recurrent(scale=scale, normalize=normalize, hidden=hidden, biases=biases)
    return saddle.unrolled(
        classifier, player, ball, criterion, steps=steps, start=STARTS[start],
        weights=saddle.step_weights(weights, steps), axis_name=axis_name,
    )  # fmt: skip


@checked
def rnn_trades(classifier: Classifier, ball: Ball, *, beta: Positive = 6.0, **settings: Any) -> Defense:
    """Run `rnn_adv`, with its arguments, on TRADES's loss: RNN-Adv paper, section 4 and eq. 2.

    Args:
      beta: the weight of the KL term.
    """
    return rnn_adv(classifier, ball, criterion=saddle.trades(beta), **settings)
