"""Plain training and defenses without a learned attacker: FGSM, PGD, line search, C&W, TRADES, stability."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from l2ljax import losses
from l2ljax.attacks.ascent import Start, clean, gaussian, uniform
from l2ljax.attacks.carlini import margin_within
from l2ljax.attacks.gradient import backtracking, steepest_ascent
from l2ljax.attacks.learned import fixed
from l2ljax.defenses import saddle
from l2ljax.threat import Ball
from l2ljax.types import (
    Array,
    Batch,
    Classifier,
    Defense,
    Key,
    L2LError,
    LogitsFn,
    Players,
    Tree,
    example_keys,
    fold_in,
)

__all__ = ["cw_adv", "fgsm_adv", "find_start", "pgd_adv", "pgd_bls_adv", "plain", "stability", "trades"]

STARTS: dict[str, Start] = {"uniform": uniform, "clean": clean, "gaussian": gaussian}


def find_start(name: str) -> Start:
    """Return the start of an attack by name: uniform, clean or gaussian."""
    if name not in STARTS:
        raise L2LError(f"unknown start {name!r}: choose one of {', '.join(STARTS)}")
    return STARTS[name]


def plain(classifier: Classifier, ball: Ball, *, axis_name: str | None = None) -> Defense:
    """Train with cross-entropy on the clean images; `ball` is not used."""

    def objective(
        params: Players, stats: Players, key: Key, batch: Batch, mode: str
    ) -> tuple[Array, tuple[Players, dict[str, Array]]]:
        variables = {"params": params.classifier, "batch_stats": stats.classifier}
        logits, batch_stats = classifier.train(variables, batch.x, example_keys(key, len(batch.x)), axis_name)
        loss = losses.cross_entropy(logits, batch.y).mean()
        metrics = {"loss": loss, "accuracy": losses.accuracy(logits, batch.y).mean()}
        return loss, (Players(batch_stats, stats.attacker), metrics)

    return Defense(lambda key, x: ({}, {}), objective, lambda params, batch_stats, steps=None, path=False: None)


def pgd_adv(
    classifier: Classifier,
    ball: Ball,
    *,
    steps: int = 10,
    step_size: float | None = None,
    start: str = "uniform",
    clean_weight: float = 0.0,
    axis_name: str | None = None,
) -> Defense:
    """Train on PGD. Madry et al. (2018), eq. 2.1.

    Args:
      classifier: the network.
      ball: the threat.
      steps: of the attack.
      step_size: eps / 4 by default (the RNN-Adv paper's).
      start: uniform, clean or gaussian.
      clean_weight: weight of the clean images' loss, in [0, 1); 0.5 in L2L's released code.
      axis_name: the pmapped axis, in training.
    """
    if not 0 <= clean_weight < 1:
        raise L2LError(f"clean_weight {clean_weight} must be in [0, 1)")
    rule = steepest_ascent(ball, ball.eps / 4 if step_size is None else step_size)
    return saddle.unrolled(
        classifier,
        fixed(rule),
        ball,
        saddle.mixture(clean_weight) if clean_weight else saddle.adversarial(),
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
    """Train on FGSM, one step as long as the radius.

    Args:
      classifier: the network.
      ball: the threat.
      labels: the labels of the attack's loss. "true" lets the perturbation reveal the label (label leaking);
        "predicted" takes the classifier's own most likely class. Kurakin et al. (2017), section 4.
      start: uniform, clean or gaussian.
      axis_name: the pmapped axis, in training.
    """
    if labels not in ("true", "predicted"):
        raise L2LError(f"unknown labels {labels!r}: choose true or predicted")

    def of_predicted(logits_fn: LogitsFn, batch: Batch) -> Callable[[Array, Array], Array]:
        predicted = stop_gradient(logits_fn(batch.x)).argmax(axis=1)
        return lambda x, logits: losses.cross_entropy(logits, predicted)

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
    """Train on gradient ascent with backtracking line search: RNN-Adv paper, section 3.3.

    Args:
      classifier: the network.
      ball: the threat.
      steps: of the attack.
      max_step: the longest step tried, in the ball's norm; eps by default (the paper does not say).
      rho: the factor between tries.
      c: the required fraction of the first-order ascent.
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
    """Train with TRADES. Zhang et al. (2019), eq. 5; see `saddle.trades` for the one deviation.

    Args:
      classifier: the network.
      ball: the threat.
      beta: the weight of the KL term (the paper's 1 / lambda).
      steps: of the attack.
      step_size: eps / 4 by default (the released code has 0.007 for eps 0.031 on CIFAR-10).
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


def cw_adv(
    classifier: Classifier,
    ball: Ball,
    *,
    steps: int = 100,
    learning_rate: float = 1e-3,
    tau: float = 8 / 255,
    axis_name: str | None = None,
) -> Defense:
    """Train on `attacks.carlini.l2l_da_cw`: the C&W100 row of L2L-DA's Table 2.

    Args:
      classifier: the network.
      ball: the threat.
      steps: of the attack.
      learning_rate: Adam's.
      tau: the distance without a penalty.
      axis_name: the pmapped axis, in training.
    """

    def inner(logits_fn: LogitsFn, batch: Batch) -> Callable[[Array, Array], Array]:
        return lambda x, logits: margin_within(losses.margin(logits, batch.y), x, batch.x, tau)

    criterion = saddle.adversarial()._replace(inner=inner)
    rule = fixed(optax.adam(learning_rate))
    return saddle.unrolled(classifier, rule, ball, criterion, steps=steps, start=clean, axis_name=axis_name)


def stability(
    classifier: Classifier,
    ball: Ball,
    *,
    alpha: float = 0.01,
    sigma: float = 0.04,
    axis_name: str | None = None,
) -> Defense:
    """Descend CE(f(x)) + alpha KL(f(x) || f(x + sigma N(0, I))). Zheng et al. (2016), eq. 1 and 4.

    The noise is Gaussian and no attack is run; the defaults of alpha and sigma are ours.

    Args:
      classifier: the network.
      ball: not used.
      alpha: weight of the stability term.
      sigma: standard deviation of the noise; noisy images are clipped to [0, 1].
      axis_name: the pmapped axis, in training.
    """
    criterion = saddle.trades(alpha)

    def objective(
        params: Players, stats: Players, key: Key, batch: Batch, mode: str
    ) -> tuple[Array, tuple[Players, dict[str, Array]]]:
        keys = example_keys(key, len(batch.x))
        noise = jax.vmap(lambda k: jax.random.normal(k, batch.x.shape[1:], batch.x.dtype))(fold_in(keys, 0))

        def forward(batch_stats: Tree, x: Array) -> tuple[Array, Tree]:
            variables = {"params": params.classifier, "batch_stats": batch_stats}
            return classifier.train(variables, x, fold_in(keys, 1), axis_name)

        noisy = jnp.clip(batch.x + sigma * noise, 0, 1)
        values, logits, batch_stats = criterion.end(forward, stats.classifier, batch, noisy)
        metrics = {"loss": values.mean(), "accuracy": losses.accuracy(logits, batch.y).mean()}
        return values.mean(), (Players(batch_stats, stats.attacker), metrics)

    return Defense(lambda key, x: ({}, {}), objective, lambda params, batch_stats, steps=None, path=False: None)
