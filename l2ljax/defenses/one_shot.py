"""AdvGAN and GAP: generators of perturbations from the image alone, or from nothing.

They attack a fixed classifier (`experiments/attack.py`, schedule "attacker").
"""

import flax.linen as nn
import jax
import optax
from jax.lax import stop_gradient

from l2ljax import losses
from l2ljax.attacks import learned
from l2ljax.attacks.ascent import Ascent, clean
from l2ljax.defenses import saddle
from l2ljax.defenses.saddle import Width
from l2ljax.models import initial
from l2ljax.models.generators import Discriminator, EncoderDecoder
from l2ljax.threat import Ball
from l2ljax.types import Array, Batch, Classifier, Defense, Key, Tree
from l2ljax.values import NonNegative, checked

__all__ = ["advgan", "gap"]


@checked
def advgan(
    classifier: Classifier, ball: Ball, *, gan: NonNegative = 0.1, kappa: NonNegative = 0.0,
    attacker_width: Width | None = None, axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve max over G of min(margin(f(x + eps G(x))), kappa) + gan log D(x + eps G(x)).

    D is trained along with G to distinguish clean images from perturbed ones.

    Xiao et al. (2018), eq. 3, untargeted. Their hinge on the norm of the perturbation is not needed: tanh keeps it
    inside the ball. G's term in D is log D, whose gradient does not vanish where D is sure (theirs is -log(1 - D)).

    Args:
      gan: weight of the discriminator's term.
      kappa: the largest margin that counts.
      attacker_width: channels of the generator's first convolution, 8 by default.
    """
    network = Discriminator()
    player = _with_discriminator(learned.convolutional(EncoderDecoder(attacker_width or 8), inputs=("clean",)), network)

    def bonus(params: Tree, batch: Batch, ascent: Ascent, end: Array) -> Array:
        def judge(weights: Tree, x: Array) -> Array:
            return network.apply({"params": weights}, x)  # type: ignore[return-value]

        weights = params["discriminator"]
        fooled = jax.nn.log_sigmoid(judge(stop_gradient(weights), ascent.x))
        at_clean, at_moved = judge(weights, batch.x), judge(weights, stop_gradient(ascent.x))
        right = jax.nn.log_sigmoid(at_clean) + jax.nn.log_sigmoid(-at_moved)
        return gan * fooled.mean() + right.mean()

    criterion = saddle.adversarial(lambda logits, y: losses.margin(logits, y, kappa=kappa))
    return saddle.unrolled(classifier, player, ball, criterion, steps=1, start=clean, bonus=bonus, axis_name=axis_name)


@checked
def gap(
    classifier: Classifier, ball: Ball, *, universal: bool = False, attacker_width: Width | None = None,
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve max over G of log CE(f(x + eps G(x))). Poursaeed et al. (2018), section 3.2, untargeted.

    Deviations from the released code: G ascends at the true label (there towards the least likely class, and the
    logarithm is of the batch's mean); tanh keeps the perturbation inside the ball (there its largest entry of each
    channel is scaled down to eps); G is 8 channels wide (there 64).

    Args:
      universal: whether G sees a fixed pattern of noise instead of the image, and makes one perturbation for all.
      attacker_width: channels of the generator's first convolution, 8 by default.
    """
    network = EncoderDecoder(attacker_width or 8)
    player = learned.convolutional(network, inputs=("pattern",) if universal else ("clean",))
    criterion = saddle.adversarial(losses.log_cross_entropy)
    return saddle.unrolled(classifier, player, ball, criterion, steps=1, start=clean, axis_name=axis_name)


def _with_discriminator(attacker: learned.Attacker, network: nn.Module) -> learned.Attacker:
    """Add the discriminator's parameters to the generator's."""

    @initial.compiled
    def init(key: Key, x: Array) -> tuple[Tree, Tree]:
        params, batch_stats = attacker.init(key, x)
        discriminator = network.init(jax.random.fold_in(key, 1), x[:1])["params"]
        return {"generator": params, "discriminator": discriminator}, batch_stats

    def rule(
        params: Tree, batch_stats: Tree, keys: Key, y: Array, train: bool = False, axis_name: str | None = None
    ) -> optax.GradientTransformation:
        return attacker.rule(params["generator"], batch_stats, keys, y, train, axis_name)

    return attacker._replace(init=init, rule=rule)
