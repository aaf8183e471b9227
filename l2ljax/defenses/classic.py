"""Plain training and defenses without a learned attacker: FGSM, PGD, line search, C&W, TRADES, MART, stability.

Attacks take `steps` steps from a `uniform` draw of the ball, the `clean` image, or x + 0.001 N(0, I), `gaussian`.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from l2ljax import losses
from l2ljax.attacks.ascent import Start, clean, gaussian, uniform
from l2ljax.attacks.carlini import margin_within
from l2ljax.attacks.gradient import Fraction, backtracking, steepest_ascent
from l2ljax.attacks.learned import fixed
from l2ljax.defenses import saddle
from l2ljax.defenses.saddle import Steps
from l2ljax.threat import Ball
from l2ljax.types import Array, Batch, Classifier, Defense, Key, LogitsFn, Tree, fold_in
from l2ljax.values import NonNegative, Positive, Range, Share, checked

__all__ = [
    "STARTS", "StartName", "cw_adv", "fgsm_adv", "mart", "pgd_adv", "pgd_bls_adv", "plain", "stability", "trades",
]  # fmt: skip

StartName = Literal["uniform", "clean", "gaussian"]
STARTS: Mapping[str, Start] = {"uniform": uniform, "clean": clean, "gaussian": gaussian}


def plain(classifier: Classifier, ball: Ball, *, axis_name: str | None = None) -> Defense:
    """Train with cross-entropy on the clean images; `ball` is not used."""
    return saddle.without_attacker(classifier, saddle.adversarial(), lambda keys, x: x, axis_name=axis_name)


@checked
def pgd_adv(
    classifier: Classifier, ball: Ball, *, steps: Steps = 10, step_size: Positive | None = None,
    start: StartName = "uniform", clean_weight: Annotated[float, Range(0, 0.999)] = 0.0, axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train on PGD. Madry et al. (2018), eq. 2.1.

    Args:
      step_size: eps / 4 by default (the RNN-Adv paper's).
      clean_weight: weight of the clean images' loss, below 1; 0.5 in L2L's released code.
    """
    criterion = saddle.mixture(clean_weight) if clean_weight else saddle.adversarial()
    return _by_pgd(classifier, ball, criterion, steps, step_size, start, axis_name)


@checked
def fgsm_adv(
    classifier: Classifier, ball: Ball, *, labels: Literal["true", "predicted"] = "true", start: StartName = "clean",
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train on FGSM, one step as long as the radius.

    Args:
      labels: the labels of the attack's loss. "true" lets the perturbation reveal the label (label leaking);
        "predicted" takes the classifier's own most likely class. Kurakin et al. (2017), section 4.
    """

    def of_predicted(logits_fn: LogitsFn, batch: Batch) -> Callable[[Array, Array], Array]:
        predicted = stop_gradient(logits_fn(batch.x)).argmax(axis=1)
        return lambda x, logits: losses.cross_entropy(logits, predicted)

    criterion, rule = saddle.adversarial(), fixed(steepest_ascent(ball, ball.eps))
    if labels == "predicted":
        criterion = criterion._replace(inner=of_predicted)
    return saddle.unrolled(classifier, rule, ball, criterion, steps=1, start=STARTS[start], axis_name=axis_name)


@checked
def pgd_bls_adv(
    classifier: Classifier, ball: Ball, *, steps: Steps = 10, max_step: Positive | None = None, rho: Fraction = 0.5,
    c: Share = 1e-4, start: StartName = "uniform", axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train on gradient ascent with backtracking line search: RNN-Adv paper, section 3.3.

    Args:
      max_step: the longest step tried, in the ball's norm; eps by default (the paper does not say).
      rho: the factor between tries.
      c: the required fraction of the first-order ascent.
    """
    rule: optax.GradientTransformation = backtracking(max_step=ball.eps if max_step is None else max_step, rho=rho, c=c)
    return saddle.unrolled(
        classifier, fixed(rule), ball, saddle.adversarial(),
        steps=steps, start=STARTS[start], axis_name=axis_name,
    )  # fmt: skip


@checked
def trades(
    classifier: Classifier, ball: Ball, *, beta: Positive = 6.0, steps: Steps = 10, step_size: Positive | None = None,
    start: StartName = "gaussian", axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train with TRADES. Zhang et al. (2019), eq. 5; see `saddle.trades` for the one deviation.

    Args:
      beta: the weight of the KL term (the paper's 1 / lambda).
      step_size: eps / 4 by default (the released code has 0.007 for eps 0.031 on CIFAR-10).
    """
    return _by_pgd(classifier, ball, saddle.trades(beta), steps, step_size, start, axis_name)


@checked
def mart(
    classifier: Classifier, ball: Ball, *, beta: Positive = 5.0, steps: Steps = 10, step_size: Positive | None = None,
    start: StartName = "gaussian", axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train with MART, which gives misclassified images more weight. Wang et al. (2020), section 3.

        Descend  -log p_y(x') - log(1 - max_{k != y} p_k(x')) + beta KL(p(x) || p(x')) (1 - p_y(x)),  x' by PGD.

    The gradient flows through all factors, as in the released code. Deviation: there the second logarithm is of 1.0001
    - p_k, so that this term ends at 9.2 and confidently wrong images draw less.

    Args:
      beta: the weight of the KL term (the paper's lambda).
      step_size: eps / 4 by default, as in the paper.
      start: gaussian in the released code.
    """

    def end(forward: saddle.Forward, stats: Tree, batch: Batch, x_adv: Array) -> tuple[Array, Array, Tree]:
        clean, stats = forward(stats, batch.x)
        logits, stats = forward(stats, x_adv)
        true = jax.nn.one_hot(losses.classes(batch.y), logits.shape[1], dtype=bool)
        wrong = jax.nn.one_hot(jnp.where(true, -jnp.inf, logits).argmax(axis=1), logits.shape[1], dtype=bool)
        rest = jax.nn.logsumexp(jnp.where(wrong, -jnp.inf, logits), axis=1)  # log(1 - p_k) without a difference from 1
        boosted = losses.cross_entropy(logits, batch.y) + jax.nn.logsumexp(logits, axis=1) - rest
        doubt = -jnp.expm1(-losses.cross_entropy(clean, losses.classes(batch.y)))
        return boosted + beta * doubt * losses.kl(clean, logits), logits, stats

    criterion = saddle.adversarial()._replace(end=end)
    return _by_pgd(classifier, ball, criterion, steps, step_size, start, axis_name)


@checked
def cw_adv(
    classifier: Classifier, ball: Ball, *, steps: Steps = 100, learning_rate: Positive = 1e-3,
    tau: NonNegative = 8 / 255, axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Train on `attacks.carlini.l2l_da_cw`: the C&W100 row of L2L-DA's Table 2.

    Args:
      learning_rate: Adam's.
      tau: the distance without a penalty.
    """

    def inner(logits_fn: LogitsFn, batch: Batch) -> Callable[[Array, Array], Array]:
        return lambda x, logits: margin_within(losses.margin(logits, batch.y), x, batch.x, tau)

    criterion = saddle.adversarial()._replace(inner=inner)
    rule = fixed(optax.adam(learning_rate))
    return saddle.unrolled(classifier, rule, ball, criterion, steps=steps, start=clean, axis_name=axis_name)


@checked
def stability(
    classifier: Classifier, ball: Ball, *, alpha: NonNegative = 0.01, sigma: NonNegative = 0.04,
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Descend CE(f(x)) + alpha KL(f(x) || f(x + sigma N(0, I))). Zheng et al. (2016), eq. 1 and 4.

    The noise is Gaussian and no attack is run, so `ball` is not used; the defaults of alpha and sigma are ours.

    Args:
      alpha: weight of the stability term.
      sigma: standard deviation of the noise; noisy images are clipped to [0, 1].
    """

    def noisy(keys: Key, x: Array) -> Array:
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(fold_in(keys, 0))
        return jnp.clip(x + sigma * noise, 0, 1)

    return saddle.without_attacker(classifier, saddle.trades(alpha), noisy, axis_name=axis_name)


def _by_pgd(
    classifier: Classifier, ball: Ball, criterion: saddle.Criterion, steps: int, step_size: float | None,
    start: StartName, axis_name: str | None,
) -> Defense:  # fmt: skip
    rule = fixed(steepest_ascent(ball, ball.eps / 4 if step_size is None else step_size))
    return saddle.unrolled(classifier, rule, ball, criterion, steps=steps, start=STARTS[start], axis_name=axis_name)
