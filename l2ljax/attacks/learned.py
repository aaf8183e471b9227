"""Learned attackers: a network makes the rule's updates and is trained by differentiating through `ascend`.

    attacker = learned.recurrent()
    params, batch_stats = attacker.init(key, x)
    rule = attacker.rule(params, batch_stats, keys, y)

The networks are in `models.attackers`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from l2ljax.models import initial
from l2ljax.models.attackers import RecurrentOptimizer
from l2ljax.threat import Ball, clip
from l2ljax.types import Array, Key, L2LError, Tree
from l2ljax.values import Count, Natural, Positive, checked

__all__ = [
    "INPUTS", "Attacker", "ConvolutionalState", "Normalization", "convolutional", "fixed", "normalize_gradient",
    "recurrent",
]  # fmt: skip

Normalization = Literal["none", "mean", "example", "channel", "batch", "sign", "log"]


class Attacker(NamedTuple):
    """An optimizer of the input with learned parameters."""

    init: Callable[[Key, Array], tuple[Tree, Tree]]
    """(key, x [B, H, W, C]) -> (params, batch_stats)."""
    rule: Callable[..., optax.GradientTransformation]
    """(params, batch_stats, keys [B], y [B], train=False, axis_name=None) -> the rule for `ascend` on images of labels
    y, with draws from keys. `train` sets its BatchNorm mode. `axis_name` is the pmapped axis, over which quantities of
    the whole batch are reduced."""
    batch_stats: Callable[[Any], Tree]
    """(state of the rule after the ascent) -> batch_stats."""


def fixed(rule: optax.GradientTransformation) -> Attacker:
    """Wrap a rule without parameters as an attacker."""
    return Attacker(
        init=lambda key, x: ({}, {}),
        rule=lambda params, batch_stats, keys, y, train=False, axis_name=None: rule,
        batch_stats=lambda state: {},
    )


@checked
def normalize_gradient(g: Array, kind: Normalization, axis_name: str | None = None) -> Array:
    """Scale the input gradient g [B, H, W, C] for a network.

    Args:
      g: per-example gradients (of the sum over the batch).
      kind: "none"; "mean": by the number of examples on all devices, the gradient of the mean loss; "example": by the
        largest |g| of each example; "channel": by the Euclidean norm over height and width of each channel of each
        example (the released L2L-DA code); "batch": by the largest |g| of the whole batch, over all devices of
        `axis_name` (the released L2L code), which makes an example's attack depend on its neighbours; "sign": to its
        signs (FGSM-SDI); "log": sign(g) max(0, 1 + ln(|g| / max |g|) / 7) with the largest of each example, from -1 to
        1: the sign and the logarithm of the magnitude in one number. A gradient of 0 stays 0.
      axis_name: the pmapped axis, in training.
    """
    if kind == "none":
        return g
    if kind == "sign":
        return jnp.sign(g)
    if kind == "mean":
        return g / (len(g) * (jax.lax.axis_size(axis_name) if axis_name else 1))
    if kind == "log":
        share = jnp.abs(normalize_gradient(g, "example"))
        return jnp.sign(g) * jnp.maximum(1 + jnp.log(jnp.maximum(share, jnp.finfo(g.dtype).tiny)) / 7, 0)
    if kind == "example":
        largest = jnp.abs(g).max(axis=range(1, g.ndim), keepdims=True)
    elif kind == "batch":
        largest = jnp.abs(g).max()
        largest = jax.lax.pmax(largest, axis_name) if axis_name else largest
    else:
        g = normalize_gradient(g, "example")  # squares of tiny gradients are 0
        largest = jnp.sqrt(jnp.sum(g**2, axis=(1, 2), keepdims=True))
    return g / jnp.maximum(largest, jnp.finfo(g.dtype).tiny)


@checked
def recurrent(
    *, scale: Positive = 1.0, normalize: Normalization = "example", hidden: Count = 10, biases: bool = False
) -> Attacker:
    """Return RNN-Adv's coordinate-wise optimizer: x_{t+1} = project(x_t + scale eps delta_t).

    h_{t+1} = tanh(U g_t + W h_t), delta_t = tanh(V h_{t+1}): Improved Adversarial Training via Learned Optimizer,
    eq. 5-7, read so that g_t moves x_t at once (eq. 6 as printed, with h_t, gives delta_0 = 0 and ignores g_{T-1}).

    Args:
      scale: of delta, in units of eps. The paper has no factor, which is `1 / eps`: its tanh then spans the whole ball
        unless V h is tiny.
      normalize: of g_t, see `normalize_gradient`. The paper has "none", the gradient of the summed loss.
      hidden: d, the size of each coordinate's hidden state.
      biases: use b_1 and b_2 of eq. 6 and 7, which the paper leaves out.
    """
    network = RecurrentOptimizer(hidden=hidden, use_bias=biases)
    # The backward pass recomputes the hidden layer from h_t: that is cheaper than keeping it, `hidden` times as large
    # as the images and T times over.
    apply = jax.checkpoint(lambda params, g, h: network.apply({"params": params}, g, h))

    @initial.compiled
    def init(key: Key, x: Array) -> tuple[Tree, Tree]:
        x = x[:1]
        return network.init(key, x, network.initial_state(x))["params"], {}

    def rule(
        params: Tree, batch_stats: Tree, keys: Key, y: Array, train: bool = False, axis_name: str | None = None
    ) -> optax.GradientTransformation:
        def update(grads: Array, h: Array, x: Array, *, ball: Ball, **_: Any) -> tuple[Array, Any]:
            g = normalize_gradient(-grads, normalize, axis_name)
            delta, h_next = apply(params, g, h)
            return scale * ball.eps * delta, h_next

        return optax.GradientTransformationExtraArgs(network.initial_state, update)

    return Attacker(init, rule, lambda state: {})


INPUTS = ("image", "clean", "gradient", "delta", "pattern")
"""The inputs of a convolutional attacker: the iterate x_t, the clean image x_0, the gradient, the perturbation so far,
a fixed pattern of noise."""


class ConvolutionalState(NamedTuple):
    """The state of a convolutional attacker between steps."""

    delta: Array
    """The accumulated perturbation [B, H, W, C], within +-eps, not clipped to the range of pixels."""
    z: Array
    """The latent [B, latent], fixed along the path."""
    batch_stats: Tree


@checked
def convolutional(
    network: nn.Module, *, inputs: Sequence[str], normalize: Normalization = "batch", step: Positive = 1.0,
    latent: Natural = 0,
    remat: bool = False,
) -> Attacker:  # fmt: skip
    """Step by delta_{t+1} = clip(delta_t + step eps net(inputs), -eps, eps), x_{t+1} = project(x_0 + delta_{t+1}).

    Learning to Defend by Learning to Attack, section 2.2 (3 in 2021), with step 1: one step is Naive, Grad and
    Grad-only L2L, two steps are 2-Step L2L (the sum of both perturbations is clipped; each alone may be as long as
    eps). Adversarial Defense via Learning to Generate Diverse Attacks, eq. 5, with step 1/4 and a latent z ~ N(0, I).

    Args:
      network: from `models.attackers` or `models.generators`; maps [B, H, W, C'] to (-1, 1)^[B, H, W, C].
      inputs: some of `INPUTS`, concatenated as channels in this order.
      normalize: of the gradient, see `normalize_gradient`; "batch" in the released L2L code, "channel" in L2L-DA's.
      step: the longest step, in units of eps.
      latent: the size of z; 0 for a deterministic attacker.
      remat: recompute the network's activations in the backward pass instead of keeping those of all steps.
    """
    if not inputs or set(inputs) - set(INPUTS):
        raise L2LError(f"a convolutional attacker's inputs are some of {', '.join(INPUTS)}, not {inputs}")

    @initial.compiled
    def init(key: Key, x: Array) -> tuple[Tree, Tree]:
        x = x[:1]
        features = jnp.concatenate([x] * len(inputs), axis=-1)
        y, z = jnp.zeros(len(x), jnp.int32), jnp.zeros((len(x), latent), x.dtype)
        variables = network.init(key, features, channels=x.shape[-1], train=False, y=y, z=z)
        return variables["params"], variables.get("batch_stats", {})

    def rule(
        params: Tree, batch_stats: Tree, keys: Key, y: Array, train: bool = False, axis_name: str | None = None
    ) -> optax.GradientTransformation:
        def apply(params: Tree, batch_stats: Tree, features: Array, z: Array) -> tuple[Array, Tree]:
            out, changed = network.apply(
                {"params": params, "batch_stats": batch_stats}, features, y=y, z=z, mutable=["batch_stats"],
                channels=features.shape[-1] // len(inputs), train=train, axis_name=axis_name,
            )  # fmt: skip
            return out, changed.get("batch_stats", {})

        def start(x: Array) -> ConvolutionalState:
            z = jax.vmap(lambda key: jax.random.normal(key, (latent,), x.dtype))(keys)
            return ConvolutionalState(jnp.zeros_like(x), z, batch_stats)

        def update(
            grads: Array, state: ConvolutionalState, x: Array, *, x0: Array, ball: Ball, **_: Any
        ) -> tuple[Array, ConvolutionalState]:
            seen = {
                "image": x,
                "clean": x0,
                "gradient": normalize_gradient(-grads, normalize, axis_name),
                "delta": state.delta,
                "pattern": jnp.broadcast_to(jax.random.uniform(jax.random.key(0), x.shape[1:], x.dtype), x.shape),
            }
            features = jnp.concatenate([seen[name] for name in inputs], axis=-1)
            out, updated = (jax.checkpoint(apply) if remat else apply)(params, state.batch_stats, features, state.z)
            delta = clip(state.delta + step * ball.eps * out, -ball.eps, ball.eps)
            return x0 + delta - x, ConvolutionalState(delta, state.z, updated)

        return optax.GradientTransformationExtraArgs(start, update)

    return Attacker(init, rule, lambda state: state.batch_stats)
