"""A learned attack that travels: RNN-Adv's optimizer, trained once on many classifiers and kept with the package.

    attack = attacks.create("traveller20", threat.linf(8 / 255))       # or traveller(ball, steps=20)

`annealed` is the optimizer, `weights` are its parameters, which experiments/traveller.py trains.
"""

import functools
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2ljax import losses
from l2ljax.attacks.ascent import Start, uniform
from l2ljax.attacks.gradient import Keep, PerExampleLoss, gradient_attack
from l2ljax.attacks.learned import Attacker, normalize_gradient
from l2ljax.models.attackers import RecurrentOptimizer
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Key, L2LError, Tree, one_line
from l2ljax.values import Count, checked

__all__ = ["WEIGHTS", "Annealed", "annealed", "traveller", "weights"]

WEIGHTS = Path(__file__).with_name("traveller.npz")


class Annealed(NamedTuple):
    """The state of `annealed` between steps."""

    hidden: Array
    """h_t of each example [B, hidden, H W C]."""
    step: Array
    """t."""


@checked
def annealed(*, horizon: Count, hidden: Count = 4) -> Attacker:
    """Return RNN-Adv's coordinate-wise optimizer (`learned.recurrent`) with steps that shrink and inputs without scale.

        h_{t+1} = tanh(U g_t + P (x_t - x_0) / eps + W h_t),
        x_{t+1} = project(x_t + eps exp(s_0 + s_1 ln(T / 10)) (1 - t / T)^r tanh(V h_{t+1})),    r = exp(s_2)

    g_t is `normalize_gradient` of kind "log": sign and logarithm of the magnitude, so that no scale of the loss
    matters. Without biases, delta is odd in g_t and the place in the ball. At hidden = 4 there are 31 parameters.
    `init` begins close to PGD with steps of 1.5 eps (1 - t / T): tanh of the drawn weights is nearly a sign.

    Args:
      horizon: T.
      hidden: d, the size of each coordinate's hidden state.
    """
    network = RecurrentOptimizer(hidden=hidden)
    one = lambda params, g, place, h: network.apply({"params": params}, g, h, place)
    move = jax.checkpoint(jax.vmap(one, (None, 0, 0, 0)))  # per example, so that an attack can drop the finished ones

    def init(key: Key, x: Array) -> tuple[Tree, Tree]:
        drawn = network.init(key, x, network.initial_state(x), x)["params"]
        near_signs = {
            "U": 3 * drawn["U"],
            "V": 2 * jnp.sign(drawn["U"]) / math.sqrt(hidden),
            "P": 0.1 * drawn["P"],
            "W": 0.1 * drawn["W"],
        }
        return {**near_signs, "schedule": jnp.array([0.4, 0.0, 0.0], x.dtype)}, {}

    def rule(
        params: Tree, batch_stats: Tree, keys: Key, y: Array, train: bool = False, axis_name: str | None = None
    ) -> optax.GradientTransformation:
        s = params["schedule"]

        def start(x: Array) -> Annealed:
            return Annealed(jax.vmap(network.initial_state)(x), jnp.int32(0))

        def update(
            grads: Array, state: Annealed, x: Array, *, x0: Array, ball: Ball, **_: Any
        ) -> tuple[Array, Annealed]:
            place = (x - x0) / jnp.maximum(ball.eps, jnp.finfo(x.dtype).tiny)
            delta, h = move(params, normalize_gradient(-grads, "log"), place, state.hidden)
            left = (1 - state.step / horizon) ** jnp.exp(s[2])
            length = jnp.exp(s[0] + s[1] * math.log(horizon / 10)) * left
            return (ball.eps * length * delta).astype(x.dtype), Annealed(h, state.step + 1)

        return optax.GradientTransformationExtraArgs(start, update)

    return Attacker(init, rule, lambda state: {})


@checked
def traveller(
    ball: Ball, *, steps: Count = 20, loss: PerExampleLoss = losses.cross_entropy, start: Start = uniform,
    keep: Keep = "last", unroll: int | bool = 1,
) -> Attack:  # fmt: skip
    """Attack with `annealed`, whose `weights` experiments/traveller.py trained on small classifiers of grey digits.

    Training moved the weights little from where they begin: this is nearly PGD with steps of 1.5 eps (1 - t / T). The
    figures against PGD, annealed PGD and APGD on other classifiers are in experiments/results/traveller.json.

    Args:
      ball: linf.
      steps: T; it was trained for 10 and 20.
      loss: the loss to ascend.
      start: of the attack.
      keep: the iterate to return, see `gradient_attack`.
      unroll: as in `lax.scan`.

    Raises:
      L2LError: another ball; damaged weights.
    """
    if ball.name != "linf":
        raise L2LError(
            f"traveller learned in linf balls, not {ball.name}: give threat.linf(eps) (--norm=linf), or attack with pgd"
        )
    rule = annealed(horizon=steps).rule(weights(), {}, None, None)
    return gradient_attack(ball, rule, steps=steps, loss=loss, start=start, keep=keep, unroll=unroll)


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """Return the parameters that come with the package, read at the first call; a damaged file is an L2LError."""
    try:
        with np.load(WEIGHTS, allow_pickle=False) as archive:  # whose arrays have checksums
            return {name: archive[name] for name in ("U", "P", "W", "V", "schedule")}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise L2LError(f"{WEIGHTS} cannot be read ({one_line(error)}): install l2ljax again") from error
