"""Improved Adversarial Training via Learned Optimizer: RNN-Adv and RNN-TRADES."""

from typing import Any, Literal

from l2ljax.attacks import learned
from l2ljax.attacks.learned import Normalization
from l2ljax.defenses import saddle
from l2ljax.defenses.classic import STARTS, StartName
from l2ljax.defenses.saddle import Steps, Width
from l2ljax.threat import Ball
from l2ljax.types import Classifier, Defense
from l2ljax.values import Positive, checked

__all__ = ["rnn_adv", "rnn_trades"]

ON_CROSS_ENTROPY = saddle.adversarial()


@checked
def rnn_adv(
    classifier: Classifier, ball: Ball, *, criterion: saddle.Criterion = ON_CROSS_ENTROPY, steps: Steps = 10,
    scale: Positive = 1.0, normalize: Normalization = "example", weights: Literal["t", "final"] = "t",
    biases: bool = False, hidden: Width = 10, start: StartName = "gaussian", axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve min over theta of the end's loss, max over phi of sum_t w_t L(x_t): RNN-Adv paper, eq. 8-10, Algorithm 1.

    An ablation on digits over 3 seeds (BENCHMARKS.md, "RNN-Adv's choices") favors none of the choices: scale,
    normalization, weights and biases change the PGD-100 accuracy by less than its standard error. So w_t = t and no
    biases are the paper's, and the gradient is scaled per example because then one setting fits all data sets and
    losses (TRADES starts where its gradient is nearly 0).

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
