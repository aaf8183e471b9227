"""Updaters of the discriminator, as pure functions: `adam`, the learned `dense` and `coordinate`, and `frozen`.

    updater = updaters.dense(1e-6)
    state = updater.init(key, params)
    params, state, metrics = updater.step(state, params, objective_fn)     # objective_fn(params) is ascended
    updaters.check(metrics["max_abs"])                                     # on the host

A learned updater U reads the discriminator's parameters theta [m] and the objective's gradient g, and adds its output:
theta' = theta + U([theta, g]), the network with a skip of Learning to Defend by Learning to Attack, section 4 and
appendix C. In the order of Algorithm 3, one step is

    g        = gradient of objective at theta
    theta'   = theta + U([theta, g]; theta_U)                     with theta_U as it was
    theta_U' = theta_U + Adam(gradient by theta_U of objective(theta + U([theta, g]; theta_U)))

with theta and g constant in the last line, which affects the next step. Section 4 moves theta_U by gradient *ascent*,
Algorithm 3 prints "minimizing" the same expression: only ascent agrees with eq. 4, a maximum over D.

All step functions jit, scan, and vmap over seeds, and return a state of the same shapes: donate it.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from l2ljax.types import Array, Key, L2LError, Tree
from l2ljax.values import NonNegative, Positive, checked

__all__ = [
    "SLOPE", "Diverged", "LearnedState", "Network", "ObjectiveFn", "Start", "Updater", "adam", "check", "coordinate",
    "coordinate_network", "dense", "dense_network", "frozen", "learned",
]  # fmt: skip

ObjectiveFn = Callable[[Tree], Array]
"""Parameters of the discriminator -> the scalar to ascend."""
Start = Literal["identity", "ascent"]
SLOPE = 0.25
"""PReLU's initial slope: torch's default."""


class Diverged(L2LError):
    """The discriminator's parameters exceeded their bound."""


class Updater(NamedTuple):
    """A rule for the discriminator's parameters."""

    init: Callable[[Key, Tree], Any]
    """(key, params) -> state."""
    step: Callable[[Any, Tree, ObjectiveFn], tuple[Tree, Any, dict[str, Array]]]
    """(state, params, objective_fn) -> (params, state, metrics): one step uphill. Metrics are scalars: "objective" at
    the given parameters, "max_abs" the largest |theta| of the returned ones (NaN if any is)."""


class LearnedState(NamedTuple):
    """The state of a learned updater: theta_U and its optimizer's."""

    network: Tree
    optimizer: Any


class Network(NamedTuple):
    """U."""

    init: Callable[[Key, Array], Tree]
    """(key, theta [m]) -> theta_U, in theta's type."""
    apply: Callable[[Tree, Array, Array], Array]
    """(theta_U, theta [m], g [m]) -> the change of theta [m]."""


@checked
def adam(lr: Positive) -> Updater:
    """Ascend by optax.adam on the discriminator itself: GAIL's own. Ho & Ermon's code has lr = 0.01."""
    optimizer = optax.chain(optax.scale(-1.0), optax.adam(lr))

    def step(state: Any, params: Tree, objective_fn: ObjectiveFn) -> tuple[Tree, Any, dict[str, Array]]:
        value, g = jax.value_and_grad(objective_fn)(params)
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, _metrics(value, params)

    return Updater(lambda key, params: optimizer.init(params), step)


def frozen() -> Updater:
    """Keep the discriminator as it is: the control of an untrained reward."""
    return Updater(lambda key, params: (), lambda state, params, f: (params, state, _metrics(f(params), params)))


@checked
def dense(lr: NonNegative, *, start: Start = "identity", alpha: Positive = 1.0) -> Updater:
    """Return the paper's updater, `dense_network`, with Adam on theta_U.

    Args:
      lr: Adam's. The paper takes the baseline's (0.01 in Ho & Ermon's code), with which theta grows without bound
        within a few steps: Adam moves every weight by about lr, and an output sums 4m of them. With 0.01 / (4m), 1e-6
        at the paper's m, theta grows by half every ten iterations and passes 1e6 after 450, on CartPole and on
        MountainCar, on Acrobot after 350 (one seed each); with 1e-7 it stays below 1.2e5 for 1,000, in which some
        policies are lost (BENCHMARKS.md).
      start: "identity" (last layer zero, theta' = theta) or "ascent" (exactly theta' = theta + alpha g). The paper does
        not give the start of theta_U.
      alpha: the step of the start "ascent".
    """
    return learned(dense_network(start, alpha), optax.adam(lr))


@checked
def coordinate(lr: NonNegative, *, start: Start = "identity", alpha: Positive = 1.0) -> Updater:
    """Return `coordinate_network` with Adam on theta_U, a variant of ours. Arguments as in `dense`, lr near 1e-4."""
    return learned(coordinate_network(start, alpha), optax.adam(lr))


def dense_network(start: Start, alpha: float) -> Network:
    """Return one perceptron 2m -> 8m -> 4m -> m on all of theta and g, with PReLU: 52 m^2 + 13 m + 2 parameters.

    The paper's discriminator, m = 2,561 for CartPole, takes 341 million, and 4.1 GB with Adam's moments. Donate the
    state to the step, which then needs 0.8 GB more; otherwise it needs all of them twice.
    """
    return Network(
        lambda key, theta: _init_perceptron(key, theta.size, start, alpha, theta.dtype),
        lambda layers, theta, g: _perceptron(layers, jnp.concatenate([theta, g])),
    )


def coordinate_network(start: Start, alpha: float) -> Network:
    """Return `dense_network` at m = 1, shared by all coordinates of theta, each on its own: 67 parameters.

    No coordinate sees another, as in Andrychowicz et al. (2016).
    """
    return Network(
        lambda key, theta: _init_perceptron(key, 1, start, alpha, theta.dtype),
        lambda layers, theta, g: _perceptron(layers, jnp.stack([theta, g], axis=1))[:, 0],
    )


def learned(network: Network, optimizer: optax.GradientTransformation) -> Updater:
    """Return the updater by `network`, whose parameters `optimizer` moves uphill: the module docstring's step.

    One forward pass of the network gives both theta' and the gradient in theta_U.
    """
    optimizer = optax.chain(optax.scale(-1.0), optimizer)

    def init(key: Key, params: Tree) -> LearnedState:
        theta_u = network.init(key, ravel_pytree(params)[0])
        return LearnedState(theta_u, optimizer.init(theta_u))

    def step(state: LearnedState, params: Tree, objective_fn: ObjectiveFn) -> tuple[Tree, Any, dict[str, Array]]:
        value, g = jax.value_and_grad(objective_fn)(params)
        theta, unravel = ravel_pytree(params)
        theta, g = jax.lax.stop_gradient((theta, ravel_pytree(g)[0]))

        def after(theta_u: Tree) -> tuple[Array, Tree]:
            moved = unravel(theta + network.apply(theta_u, theta, g))
            return objective_fn(moved), moved

        uphill, moved = jax.grad(after, has_aux=True)(state.network)
        updates, optimizer_state = optimizer.update(uphill, state.optimizer, state.network)
        state = LearnedState(optax.apply_updates(state.network, updates), optimizer_state)
        return moved, state, _metrics(value, moved)

    return Updater(init, step)


def check(max_abs: ArrayLike, *, bound: float = 1e6, when: str = "") -> None:
    """Raise `Diverged` if an entry of the metric "max_abs", of any shape, is NaN or above the bound. For the host.

    `when` begins the message.
    """
    if not (largest := np.max(max_abs)) <= bound:
        reached = f"{when}the discriminator's parameters reach {largest:.3g}, beyond {bound:.3g}"
        raise Diverged(f"{reached}: lower the updater's learning rate")


def _metrics(value: Array, params: Tree) -> dict[str, Array]:
    return {"objective": value, "max_abs": jnp.abs(ravel_pytree(params)[0]).max()}


def _perceptron(layers: Tree, x: Array) -> Array:
    """Map x [..., 2m] to [..., m]; PReLU with one slope per layer after all layers but the last."""
    *hidden, last = layers
    for layer in hidden:
        x = _affine(layer, x)
        x = jnp.where(x >= 0, x, layer["slope"] * x)
    return _affine(last, x)


def _affine(layer: Tree, x: Array) -> Array:
    # Full float32 on every device: a GPU's shorter products would blur the small steps, and gain nothing, as reading
    # the weights takes all the time.
    return jnp.matmul(x, layer["kernel"], precision=jax.lax.Precision.HIGHEST) + layer["bias"]


def _init_perceptron(key: Key, m: int, start: Start, alpha: float, dtype: Any) -> Tree:
    """Initialize 2m -> 8m -> 4m -> m: torch's uniform hidden weights, zero biases, and a last layer of zeros.

    "ascent" passes alpha g through the first 2m units of each hidden layer, m for g and m for -g, since
    prelu(x) - prelu(-x) = (1 + slope) x. Nothing else enters these units; the others stay random, and do not reach the
    output.
    """

    def uniform(key: Key, fan_in: int, fan_out: int) -> Array:
        # Row by row: the generator's scratch memory is several times its output.
        bound = fan_in**-0.5
        row = functools.partial(jax.random.uniform, shape=(fan_out,), dtype=dtype, minval=-bound, maxval=bound)
        return jax.lax.map(row, jax.random.split(key, fan_in))

    key_1, key_2 = jax.random.split(key)
    first, second = uniform(key_1, 2 * m, 8 * m), uniform(key_2, 8 * m, 4 * m)
    last = jnp.zeros((4 * m, m), dtype)
    if start == "ascent":
        pair = jnp.array([[1, -1]], dtype)
        lay = functools.partial(jnp.kron, b=jnp.eye(m, dtype=dtype))
        first = first.at[:m, : 2 * m].set(0).at[m:, : 2 * m].set(lay(pair))
        second = second.at[2 * m :, : 2 * m].set(0).at[: 2 * m, : 2 * m].set(lay(pair.T @ pair) / (1 + SLOPE))
        last = last.at[: 2 * m].set(alpha * lay(pair.T) / (1 + SLOPE))
    return (
        {"kernel": first, "bias": jnp.zeros(8 * m, dtype), "slope": jnp.array(SLOPE, dtype)},
        {"kernel": second, "bias": jnp.zeros(4 * m, dtype), "slope": jnp.array(SLOPE, dtype)},
        {"kernel": last, "bias": jnp.zeros(m, dtype)},
    )
