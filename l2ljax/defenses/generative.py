"""L2L-DA: adversarial training on a recursive, stochastic generator, and its ablations.

    defense = l2l_da(classifier, threat.linf(0.3), diversity=0.02)

Adversarial Defense via Learning to Generate Diverse Attacks (section 4), with the released code's normalizations.
"""

import functools
from typing import Annotated

import jax.numpy as jnp

from l2ljax import losses
from l2ljax.attacks import learned
from l2ljax.attacks.ascent import Ascent, clean
from l2ljax.attacks.learned import Normalization
from l2ljax.defenses import saddle
from l2ljax.defenses.saddle import Steps, Width
from l2ljax.models.generators import UNet
from l2ljax.threat import Ball
from l2ljax.types import Array, Batch, Classifier, Defense, L2LError, Tree
from l2ljax.values import Count, NonNegative, Positive, Range, checked

__all__ = ["clean_and_adversarial", "diversity_of", "l2l_da", "l2l_star"]


@checked
def l2l_da(
    classifier: Classifier, ball: Ball, *, steps: Steps = 10, step: Positive = 0.25, diversity: NonNegative = 0.02,
    latent: Annotated[int, Range(0, 4096)] = 8, delta: bool = True, label: bool = True,
    normalize: Normalization = "channel", attacker_width: Width | None = None, num_classes: Count = 10,
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve min over theta of CE at [x, x_T(z_1), x_T(z_2)], max over phi of sum_t CE(x_t) + diversity div_t: eq. 5-8.

        delta_{t+1} = clip(delta_t + step eps g(x, y, z, delta_t, u_t), -eps, eps),  u_t the normalized gradient,
        div_t = mean_b mean|x_t(z_1) - x_t(z_2)| / mean|z_1 - z_2|,  means over pixels and over the latent.

    As in the released code, sums over t and over pixels are sums or means as above (the paper has 1/T and L1 norms),
    clean and adversarial images share one loss over 3 B images (1/3 : 2/3), and there is no random start. Deviation:
    the loss at x_T comes from the training pass, in training mode (the code runs loss and gradient apart): 2 T + 3
    passes over B images instead of 4 T + 2. Table 1's rows: recursion off is steps=1, step=1; diversity off is
    diversity=0; `delta` and `label` switch these inputs.

    Args:
      steps: T.
      step: the generator's longest step, in units of eps.
      diversity: lambda of eq. 8: 0.02 on MNIST, 0.5 on CIFAR-10.
      latent: the size of z; 0 for a deterministic generator, with one draw.
      delta: whether the generator sees the accumulated perturbation.
      label: whether its BatchNorms see the label.
      normalize: the gradient's normalization: channel (per example and channel, the paper's Frobenius norm), example,
        batch, mean or none. With the last two, this input is orders of magnitude smaller than the image.
      attacker_width: channels of its first convolution, 64 by default.
      num_classes: K, for `label`.

    Raises:
      L2LError: a diversity without a latent; in training, a network with more classes than `num_classes`.
    """
    if diversity and not latent:
        raise L2LError("diversity needs a latent: give latent=8, or diversity=0")
    inputs = ("clean", "gradient", *(["delta"] if delta else []))
    known = num_classes if label else 0
    network = UNet(attacker_width or 64, latent, known)
    player = learned.convolutional(network, inputs=inputs, normalize=normalize, step=step, latent=latent, remat=True)
    draws = 2 if latent else 1
    bonus = (lambda params, batch, ascent, end: diversity * diversity_of(ascent)) if diversity else None
    return saddle.unrolled(
        classifier, player, ball, clean_and_adversarial(draws, known), steps=steps, start=clean, weights=[1.0] * steps,
        draws=draws, bonus=bonus, axis_name=axis_name,
    )  # fmt: skip


l2l_star = functools.partial(
    l2l_da, steps=1, step=1.0, diversity=0.0, latent=0, delta=False, label=False, normalize="mean"
)
"""L2L-DA's baseline "L2L" (section 5.1): one shot, deterministic, from the image and the gradient of the mean loss.

The paper says little of its network; here it is the same U-Net without latent, label and delta.
"""


def clean_and_adversarial(draws: int, known: int = 0) -> saddle.Criterion:
    """Return the cross-entropy over the clean images and `draws` attacks of them, in one pass with equal weights.

    The attacker has parameters for `known` classes, 0 if it does not see the label; of more, an L2LError.
    """

    def end(forward: saddle.Forward, stats: Tree, batch: Batch, x_adv: Array) -> tuple[Array, Array, Tree]:
        n = len(x_adv) // draws
        logits, stats = forward(stats, jnp.concatenate([batch.x[:n], x_adv]))
        if 0 < known < (classes := logits.shape[1]):  # indexing would take the last known class for the others
            raise L2LError(f"num_classes={known} and the network has {classes}: give num_classes={classes}")
        return losses.cross_entropy(logits, jnp.concatenate([batch.y[:n], batch.y])), logits[n:], stats

    return saddle.Criterion(saddle.adversarial().inner, end, draws / (draws + 1))


def diversity_of(ascent: Ascent) -> Array:
    """Return sum_t div_t of the two consecutive draws in `ascent`: L2L-DA, eq. 7, as in the code."""
    x_1, x_2 = jnp.split(ascent.path, 2, axis=1)
    z_1, z_2 = jnp.split(ascent.state.z, 2)
    apart = jnp.abs(x_1 - x_2).mean(axis=range(2, x_1.ndim))
    return (apart / (jnp.abs(z_1 - z_2).mean(axis=1) + 1e-8)).mean(axis=1).sum()
