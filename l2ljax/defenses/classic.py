"""Plain training and the defenses whose attacker learns nothing: FGSM, PGD, line search, TRADES."""

from collections.abc import Callable

import optax
from jax.lax import stop_gradient

from l2ljax import losses
from l2ljax.attacks.ascent import Start, clean, gaussian, uniform
from l2ljax.attacks.gradient import backtracking, steepest_ascent
from l2ljax.attacks.learned import fixed
from l2ljax.defenses import saddle
from l2ljax.threat import Ball
from l2ljax.types import Array, Batch, Classifier, Defense, Key, L2LError, LogitsFn, Players, example_keys

STARTS: dict[str, Start] = {"uniform": uniform, "clean": clean, "gaussian": gaussian}


def find_start(name: str) -> Start:
    """The start of an attack by its name: uniform, clean or gaussian."""
    if name not in STARTS:
        raise L2LError(f"unknown start {name!r}: choose one of {', '.join(STARTS)}")
    return STARTS[name]


def plain(classifier: Classifier, ball: Ball, *, axis_name: str | None = None) -> Defense:
    """Cross-entropy at the clean images; `ball` goes unused."""

    def objective(
        params: Players, stats: Players, key: Key, batch: Batch, mode: str
    ) -> tuple[Array, tuple[Players, dict[str, Array]]]:
        variables = {"params": params.classifier, "batch_stats": stats.classifier}
        logits, batch_stats = classifier.train(variables, batch.x, example_keys(key, len(batch.x)), axis_name)
        loss = losses.cross_entropy(logits, batch.y).mean()
        metrics = {"loss": loss, "accuracy": losses.accuracy(logits, batch.y).mean()}
        return loss, (Players(batch_stats, {}), metrics)

    return Defense(lambda key, x: ({}, {}), objective, lambda params, batch_stats, **_: None)


def pgd_adv(
    classifier: Classifier,
    ball: Ball,
    *,
    steps: int = 10,
    step_size: float | None = None,
    start: str = "uniform",
    axis_name: str | None = None,
) -> Defense:
    """Adversarial training on PGD. Madry et al. (2018), eq. 2.1.

    Args:
      classifier: the network.
      ball: the threat.
      steps: of the attack.
      step_size: eps / 4 where not given (the RNN-Adv paper's).
      start: uniform, clean or gaussian.
      axis_name: the pmapped axis, in training.
    """
    rule = steepest_ascent(ball, ball.eps / 4 if step_size is None else step_size)
    return saddle.unrolled(
        classifier,
        fixed(rule),
        ball,
        saddle.adversarial(),
        steps=steps,
        start=find_start(start),
        axis_name=axis_name,
    )


def fgsm_adv(
    classifier: Classifier,
    ball: Ball,
    *,
    labels: str = "true",
    start: str = "clean",
    axis_name: str | None = None,
) -> Defense:
    """Adversarial training on FGSM's one step as long as the radius.

    Args:
      classifier: the network.
      ball: the threat.
      labels: what the attack ascends the loss of. "true" lets the perturbation give the label away (label leaking);
        "predicted" takes the classifier's own most likely class. Kurakin et al. (2017), section 4.
      start: uniform, clean or gaussian.
      axis_name: the pmapped axis, in training.
    """
    if labels not in ("true", "predicted"):
        raise L2LError(f"unknown labels {labels!r}: choose true or predicted")

    def of_predicted(logits_fn: LogitsFn, batch: Batch) -> Callable[[Array], Array]:
        predicted = stop_gradient(logits_fn(batch.x)).argmax(axis=1)
        return lambda logits: losses.cross_entropy(logits, predicted)

    criterion = saddle.adversarial()
    if labels == "predicted":
        criterion = criterion._replace(inner=of_predicted)
    rule = steepest_ascent(ball, ball.eps)
    return saddle.unrolled(
        classifier, fixed(rule), ball, criterion, steps=1, start=find_start(start), axis_name=axis_name
    )


def pgd_bls_adv(
    classifier: Classifier,
    ball: Ball,
    *,
    steps: int = 10,
    max_step: float | None = None,
    rho: float = 0.5,
    c: float = 1e-4,
    start: str = "uniform",
    axis_name: str | None = None,
) -> Defense:
    """Adversarial training on gradient ascent with backtracking line search: RNN-Adv paper, section 3.3.

    Args:
      classifier: the network.
      ball: the threat.
      steps: of the attack.
      max_step: the longest step tried, in the ball's norm; eps where not given (the paper does not say).
      rho: the factor from try to try.
      c: the share of the first-order ascent that a step must reach.
      start: uniform, clean or gaussian.
      axis_name: the pmapped axis, in training.
    """
    rule: optax.GradientTransformation = backtracking(max_step=ball.eps if max_step is None else max_step, rho=rho, c=c)
    return saddle.unrolled(
        classifier,
        fixed(rule),
        ball,
        saddle.adversarial(),
        steps=steps,
        start=find_start(start),
        axis_name=axis_name,
    )


def trades(
    classifier: Classifier,
    ball: Ball,
    *,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | None = None,
    start: str = "gaussian",
    axis_name: str | None = None,
) -> Defense:
    """TRADES. Zhang et al. (2019), eq. 5; see `saddle.trades` for the one deviation.

    Args:
      classifier: the network.
      ball: the threat.
      beta: the weight of the KL term (the paper's 1 / lambda).
      steps: of the attack.
      step_size: eps / 4 where not given (the released code has 0.007 of 0.031 on CIFAR-10).
      start: uniform, clean or gaussian.
      axis_name: the pmapped axis, in training.
    """
    rule = steepest_ascent(ball, ball.eps / 4 if step_size is None else step_size)
    return saddle.unrolled(
        classifier,
        fixed(rule),
        ball,
        saddle.trades(beta),
        steps=steps,
        start=find_start(start),
        axis_name=axis_name,
    )
