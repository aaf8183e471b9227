"""Acrobot-v1: two links hang from a bar, and a motor in the joint between them swings the tip above it.

state, reward, terminated = step(Params(), reset(Params(), key), action)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2ljax.types import Array, Key

__all__ = ["Params", "State", "height", "observe", "reset", "step"]


class Params(NamedTuple):
    """SI units, of two equal links."""

    gravity: float = 9.8
    mass: float = 1.0
    length: float = 1.0
    center: float = 0.5
    """The distance of a link's center of mass from its joint."""
    inertia: float = 1.0
    torque: float = 1.0
    seconds: float = 0.2
    max_speed_1: float = 4 * jnp.pi
    max_speed_2: float = 9 * jnp.pi


class State(NamedTuple):
    """The first link's angle, 0 where it hangs, the second's relative to the first, and their rates."""

    theta_1: Array
    theta_2: Array
    rate_1: Array
    rate_2: Array


def reset(_: Params, key: Key) -> State:
    """Return both angles and rates within 0.1 of hanging still."""
    return State(*jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1))


def _rates(params: Params, torque: Array, state: State) -> State:
    """Return the derivatives in time: the equations of motion in Sutton and Barto's book."""
    theta_1, theta_2, rate_1, rate_2 = state
    m, reach, center, inertia, g = params.mass, params.length, params.center, params.inertia, params.gravity
    coupled = m * reach * center
    d_1 = m * center**2 + m * (reach**2 + center**2) + 2 * coupled * jnp.cos(theta_2) + 2 * inertia
    d_2 = m * center**2 + coupled * jnp.cos(theta_2) + inertia
    weight_2 = m * center * g * jnp.sin(theta_1 + theta_2)
    swing = coupled * jnp.sin(theta_2)
    weight_1 = (m * center + m * reach) * g * jnp.sin(theta_1) - swing * rate_2 * (rate_2 + 2 * rate_1) + weight_2
    pulled = torque + d_2 / d_1 * weight_1 - swing * rate_1**2 - weight_2
    acc_2 = pulled / (m * center**2 + inertia - d_2**2 / d_1)
    return State(rate_1, rate_2, -(d_2 * acc_2 + weight_1) / d_1, acc_2)


def step(params: Params, state: State, action: Array) -> tuple[State, Array, Array]:
    """Turn the joint with torque -1, 0, 1 for actions 0, 1, 2, by a Runge-Kutta step.

    The reward is -1 for each step until the tip is above the bar, which ends the episode with 0.
    """
    moving = lambda at: _rates(params, (action - 1) * params.torque, at)
    after = lambda slope, dt: jax.tree.map(lambda x, v: x + dt * v, state, slope)
    dt = params.seconds
    k_1 = moving(state)
    k_2 = moving(after(k_1, dt / 2))
    k_3 = moving(after(k_2, dt / 2))
    k_4 = moving(after(k_3, dt))
    new = after(jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k_1, k_2, k_3, k_4), dt)
    wrap = lambda angle: (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    rate_1 = jnp.clip(new.rate_1, -params.max_speed_1, params.max_speed_1)
    rate_2 = jnp.clip(new.rate_2, -params.max_speed_2, params.max_speed_2)
    new = State(wrap(new.theta_1), wrap(new.theta_2), rate_1, rate_2)
    up = -jnp.cos(new.theta_1) - jnp.cos(new.theta_1 + new.theta_2) > 1
    return new, jnp.where(up, 0.0, -1.0), up


def observe(state: State) -> Array:
    """Return cosine and sine of both angles, and the rates."""
    (a, b), rates = state[:2], state[2:]
    return jnp.stack([jnp.cos(a), jnp.sin(a), jnp.cos(b), jnp.sin(b), *rates])


def height(_: Params, observation: Array) -> Array:
    """Return the height of the tip as a fraction of its range."""
    cos_1, sin_1, cos_2, sin_2 = jnp.moveaxis(observation[..., :4], -1, 0)
    return (2 - cos_1 - (cos_1 * cos_2 - sin_1 * sin_2)) / 4
