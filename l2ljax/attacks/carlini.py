"""Carlini & Wagner's attack in the forms that papers use under that name.

attack = carlini.l2l_da_cw(threat.linf(0.3), steps=100)       # the CW100 column of L2L-DA and RNN-Adv
"""

import jax.numpy as jnp
import optax

from l2ljax import losses
from l2ljax.attacks.ascent import ascend, clean
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Key, LogitsFn


def margin_within(logits: Array, y: Array, x: Array, x0: Array, tau: float) -> Array:
    """min(margin, 0) - max(|x - x0|_inf - tau, 0), [B]: the objective of `l2l_da_cw`, to be ascended."""
    distance = jnp.abs(x - x0).max(axis=range(1, x.ndim))
    return losses.margin(logits, y, kappa=0.0) - jnp.maximum(distance - tau, 0)


def l2l_da_cw(ball: Ball, *, steps: int = 100, learning_rate: float = 1e-3, tau: float = 8 / 255) -> Attack:
    """Adam from the clean image on the margin, in the ball; last iterate. L2L-DA's and RNN-Adv's "CW100".

    The form of mister_ed, which L2L-DA's released code runs: tau is 8/255 on MNIST too, so that there the distance
    term pulls back from the ball's edge, and a pixel moves at most about steps * learning_rate. The search over the
    weight of the margin is inert in that code (ten identical rounds from the same start), so it is one round here. Its
    stop after step 100, where the loss of the batch stands still, is left out: it looks at an example's neighbours.
    """

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        def loss_fn(moved: Array) -> tuple[Array, tuple[()]]:
            return margin_within(logits_fn(moved), y, moved, x, tau), ()

        return ascend(loss_fn, optax.adam(learning_rate), ball, key, x, steps=steps, start=clean).x

    return attack
