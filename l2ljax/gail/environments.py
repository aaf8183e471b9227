"""Environments as pure functions of traced parameters, equal to gymnasium's step by step.

FixedCartPole is ours: an episode continues after the pole has fallen, so that its length carries no information and the
return depends on imitation.

    env = environments.create("CartPole-v1")
    state = env.reset(env.params, key)
    state, reward, terminated = env.step(env.params, state, action)      # one environment: vmap for several

`rollout.collect` limits an episode's steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2ljax.gail import acrobot
from l2ljax.types import Array, Key, L2LError, Tree

__all__ = [
    "ENVIRONMENTS", "Box", "CartPoleParams", "CartPoleState", "Discrete", "Environment", "FixedCartPoleState",
    "MountainCarParams", "MountainCarState", "PendulumParams", "PendulumState", "Spec", "create", "register",
]  # fmt: skip


class Discrete(NamedTuple):
    """Actions 0..n-1, an int32 scalar."""

    n: int


class Box(NamedTuple):
    """Actions are vectors of `size` floats; the environment clips them."""

    size: int


class Spec(NamedTuple):
    """The properties of an environment besides its dynamics."""

    name: str
    gymnasium: str | None
    """The id of gymnasium's environment with the same dynamics and rewards, if any."""
    observation_size: int
    action: Discrete | Box
    horizon: int
    """The largest number of steps of an episode."""
    sign: int
    """The sign of the imitation reward: +1 if longer episodes are better, -1 if an episode ends on success."""
    solved: float
    """The return that an expert must reach for its trajectories to be kept."""
    stride: int
    """Keep every `stride`-th step of an expert's trajectory (Ho and Ermon's, for CartPole and MountainCar)."""


class Environment(NamedTuple):
    """The dynamics of one environment as pure functions; the state is a tree of arrays."""

    spec: Spec
    params: Tree
    """A NamedTuple of floats, which may be traced: other masses or lengths do not recompile."""
    reset: Callable[[Tree, Key], Tree]
    """(params, key) -> the initial state of an episode."""
    step: Callable[[Tree, Tree, Array], tuple[Tree, Array, Array]]
    """(params, state, action) -> (state, reward, terminated)."""
    observe: Callable[[Tree], Array]
    """state -> observation [observation_size]."""
    potential: Callable[[Tree, Array], Array] | None = None
    """(params, observation) -> a potential in [0, 1] to shape an expert's reward."""


class CartPoleParams(NamedTuple):
    """SI units; the angle is in radians."""

    gravity: float = 9.8
    cart_mass: float = 1.0
    pole_mass: float = 0.1
    half_length: float = 0.5
    force: float = 10.0
    seconds: float = 0.02
    max_position: float = 2.4
    max_angle: float = 12 * 2 * jnp.pi / 360


class CartPoleState(NamedTuple):
    """Position and angle, each followed by its rate."""

    x: Array
    x_dot: Array
    theta: Array
    theta_dot: Array


def _cart_pole_reset(_: CartPoleParams, key: Key) -> CartPoleState:
    return CartPoleState(*jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05))


def _cart_pole_step(params: CartPoleParams, state: CartPoleState, action: Array) -> tuple[CartPoleState, Array, Array]:
    """Take a step of Euler's method with the old rates; the reward is 1 for each step, the last included."""
    x, x_dot, theta, theta_dot = state
    total, moment = params.cart_mass + params.pole_mass, params.pole_mass * params.half_length
    force = jnp.where(action == 1, params.force, -params.force)
    sin, cos = jnp.sin(theta), jnp.cos(theta)
    pushed = (force + moment * theta_dot**2 * sin) / total
    inertia = params.half_length * (4 / 3 - params.pole_mass * cos**2 / total)
    theta_acc = (params.gravity * sin - cos * pushed) / inertia
    x_acc = pushed - moment * theta_acc * cos / total
    dt = params.seconds
    new = CartPoleState(x + dt * x_dot, x_dot + dt * x_acc, theta + dt * theta_dot, theta_dot + dt * theta_acc)
    terminated = (jnp.abs(new.x) > params.max_position) | (jnp.abs(new.theta) > params.max_angle)
    return new, jnp.ones_like(x), terminated


class FixedCartPoleState(NamedTuple):
    """CartPole's state, and whether the pole has fallen: then nothing moves any more."""

    pole: CartPoleState
    fallen: Array


def _fixed_reset(params: CartPoleParams, key: Key) -> FixedCartPoleState:
    return FixedCartPoleState(_cart_pole_reset(params, key), jnp.array(False))


def _fixed_step(
    params: CartPoleParams, state: FixedCartPoleState, action: Array
) -> tuple[FixedCartPoleState, Array, Array]:
    """Give CartPole-v1's rewards until the pole falls, then 0: the return is CartPole-v1's, the length the horizon."""
    new, reward, terminated = _cart_pole_step(params, state.pole, action)
    pole = jax.tree.map(lambda a, b: jnp.where(state.fallen, a, b), state.pole, new)
    return FixedCartPoleState(pole, state.fallen | terminated), jnp.where(state.fallen, 0.0, reward), jnp.array(False)


def _fixed_observe(state: FixedCartPoleState) -> Array:
    """Return CartPole's four numbers and 0; once fallen, zeros and 1: all fallen states look the same."""
    return jnp.append(jnp.where(state.fallen, 0.0, jnp.stack(state.pole)), state.fallen.astype(state.pole.x.dtype))


class MountainCarParams(NamedTuple):
    """No units; a step is one unit of time."""

    force: float = 0.001
    gravity: float = 0.0025
    min_position: float = -1.2
    max_position: float = 0.6
    max_speed: float = 0.07
    goal: float = 0.5


class MountainCarState(NamedTuple):
    """Position and velocity."""

    x: Array
    v: Array


def _mountain_car_reset(_: MountainCarParams, key: Key) -> MountainCarState:
    return MountainCarState(jax.random.uniform(key, minval=-0.6, maxval=-0.4), jnp.zeros(()))


def _mountain_car_step(
    params: MountainCarParams, state: MountainCarState, action: Array
) -> tuple[MountainCarState, Array, Array]:
    """Push left, not at all, or right for actions 0, 1, 2; the reward is -1 for each step."""
    v = state.v + (action - 1) * params.force - jnp.cos(3 * state.x) * params.gravity
    v = jnp.clip(v, -params.max_speed, params.max_speed)
    x = jnp.clip(state.x + v, params.min_position, params.max_position)
    v = jnp.where((x == params.min_position) & (v < 0), 0.0, v)
    return MountainCarState(x, v), -jnp.ones_like(x), (x >= params.goal) & (v >= 0)


def _mountain_car_energy(params: MountainCarParams, observation: Array) -> Array:
    """Return kinetic and potential energy as a fraction of their largest sum at the goal's height without speed."""
    x, v = observation[..., 0], observation[..., 1]
    height = params.gravity / 3
    return (v**2 / 2 + height * (jnp.sin(3 * x) + 1)) / (2 * height)


class PendulumParams(NamedTuple):
    """SI units; the angle is 0 if the pendulum stands upright."""

    gravity: float = 10.0
    mass: float = 1.0
    length: float = 1.0
    seconds: float = 0.05
    max_speed: float = 8.0
    max_torque: float = 2.0


class PendulumState(NamedTuple):
    """The angle, and its rate."""

    theta: Array
    theta_dot: Array


def _pendulum_reset(_: PendulumParams, key: Key) -> PendulumState:
    return PendulumState(*jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0) * jnp.array([jnp.pi, 1.0]))


def _pendulum_step(params: PendulumParams, state: PendulumState, action: Array) -> tuple[PendulumState, Array, Array]:
    """Charge for the angle, its rate and the torque; the episode never terminates."""
    theta, theta_dot = state
    torque = jnp.clip(action[0], -params.max_torque, params.max_torque)
    angle = (theta + jnp.pi) % (2 * jnp.pi) - jnp.pi
    cost = angle**2 + 0.1 * theta_dot**2 + 0.001 * torque**2
    pull = 3 * params.gravity / (2 * params.length) * jnp.sin(theta)
    acc = pull + 3 / (params.mass * params.length**2) * torque
    theta_dot = jnp.clip(theta_dot + params.seconds * acc, -params.max_speed, params.max_speed)
    return PendulumState(theta + params.seconds * theta_dot, theta_dot), -cost, jnp.array(False)


def _pendulum_observe(state: PendulumState) -> Array:
    return jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta), state.theta_dot])


_V0 = Spec("CartPole-v0", "CartPole-v0", 4, Discrete(2), 200, sign=1, solved=195.0, stride=10)
_V1 = Spec("CartPole-v1", "CartPole-v1", 4, Discrete(2), 500, sign=1, solved=475.0, stride=10)
_FIXED = Spec("FixedCartPole", None, 5, Discrete(2), 500, sign=1, solved=475.0, stride=10)
_CAR = Spec("MountainCar-v0", "MountainCar-v0", 2, Discrete(3), 200, sign=-1, solved=-110.0, stride=5)
_PENDULUM = Spec("Pendulum-v1", "Pendulum-v1", 3, Box(1), 200, sign=1, solved=-250.0, stride=5)
_ACROBOT = Spec("Acrobot-v1", "Acrobot-v1", 6, Discrete(3), 500, sign=-1, solved=-100.0, stride=5)
ENVIRONMENTS = {environment.spec.name: environment for environment in (
    Environment(_V0, CartPoleParams(), _cart_pole_reset, _cart_pole_step, jnp.stack),
    Environment(_V1, CartPoleParams(), _cart_pole_reset, _cart_pole_step, jnp.stack),
    Environment(_FIXED, CartPoleParams(), _fixed_reset, _fixed_step, _fixed_observe),
    Environment(_CAR, MountainCarParams(), _mountain_car_reset, _mountain_car_step, jnp.stack, _mountain_car_energy),
    Environment(_ACROBOT, acrobot.Params(), acrobot.reset, acrobot.step, acrobot.observe, acrobot.height),
    Environment(_PENDULUM, PendulumParams(), _pendulum_reset, _pendulum_step, _pendulum_observe),
)}  # fmt: skip


def register(environment: Environment) -> None:
    """Add an environment by its spec's name, for `create` and, in a module of yours, for `--import=MODULE --env=NAME`.

    Raises:
      L2LError: the name is taken, or the parameters are no NamedTuple.
    """
    if not hasattr(environment.params, "_fields"):
        raise L2LError(f"the parameters are a {type(environment.params).__name__}: give a NamedTuple of floats")
    if (name := environment.spec.name) in ENVIRONMENTS:
        raise L2LError(f"there is an environment {name} already: choose another name")
    ENVIRONMENTS[name] = environment


def create(name: str, **params: Any) -> Environment:
    """Return the environment of that name; keywords replace its parameters, which gymnasium's then does not have.

    Raises:
      L2LError: an unknown name, or an unknown parameter.
    """
    if name not in ENVIRONMENTS:
        known = ", ".join(ENVIRONMENTS)
        raise L2LError(f"unknown environment {name!r}: choose one of {known}, register yours, or give gym:ID")
    environment = ENVIRONMENTS[name]
    if unknown := sorted(params.keys() - set(environment.params._fields)):
        raise L2LError(f"{name} has no parameter {unknown[0]}: choose among {', '.join(environment.params._fields)}")
    spec = environment.spec._replace(gymnasium=None) if params else environment.spec
    return environment._replace(spec=spec, params=environment.params._replace(**params))
