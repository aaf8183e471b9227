"""The parts of a GAIL run, from its flags: the task, its expert, and the arms."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.gail import discriminator, environments, experts, gym_adapter, updaters
from l2ljax.gail.discriminator import Discriminator
from l2ljax.gail.environments import Box, Discrete, Environment
from l2ljax.gail.experts import Trajectories
from l2ljax.gail.gym_adapter import GymEnvironments
from l2ljax.gail.imitate import Demonstrations
from l2ljax.gail.policy import Networks, networks
from l2ljax.gail.rollout import episode_returns
from l2ljax.gail.updaters import Updater
from l2ljax.types import Key, L2LError

__all__ = [
    "CONTROLS", "EXPERT_KEY", "PAIRS_KEY", "UPDATERS", "Arm", "Config", "Task", "arms", "controls", "find_expert",
    "prepare",
]  # fmt: skip

UPDATERS: dict[str, tuple[Callable[..., Updater], float]] = {
    "adam": (updaters.adam, 0.01),
    "ascent": (lambda lr: updaters.coordinate(0.0, start="ascent", alpha=lr), 1.0),
    "l2l_dense": (updaters.dense, 1e-6),
    "l2l_coordinate": (updaters.coordinate, 1e-4),
}
"""Name -> (the updater for a learning rate, its default). `ascent` is the initial rule of the learned updaters: beside
them it shows the effect of learning."""
CONTROLS = ("frozen", "wrong_sign", "shuffled", "cloning")
"""A random fixed discriminator; the other sign of the reward; the expert's actions shuffled; no reward."""
GYM = "gym:"
EXPERT_KEY, PAIRS_KEY = 0, 1
"""The expert and its pairs are the same for all seeds."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    env: str = "CartPole-v1"
    """CartPole-v0, CartPole-v1, FixedCartPole, MountainCar-v0, Pendulum-v1, or gym:ID of one of gymnasium's."""
    updater: str = "adam"
    """Updaters of the discriminator: adam, ascent, l2l_dense, l2l_coordinate; several, separated by commas."""
    lr: str = ""
    """Its learning rate (of theta_U for learned updaters); several, separated by commas, are separate arms."""
    start: updaters.Start = "ascent"
    """The start of a learned updater: identity, or gradient ascent with step 1."""
    controls: str = ",".join(CONTROLS)
    """Controls to run as well, with Adam if something learns; none for no control."""
    seeds: int = 8
    seed: int = 0
    """The first seed."""
    iterations: int = 250
    pairs: int = 5000
    """Steps per iteration, rounded down to whole columns of the environment's horizon."""
    trajectories: int = 10
    """Number of the expert's trajectories; every 10th (CartPole) or 5th (MountainCar) step of them is used."""
    hidden: str = "64,32"
    """Hidden layers of policy and value function."""
    disc_hidden: str = "64,32"
    """Hidden layers of the discriminator; 16,8 makes the dense updater 100 times smaller."""
    sign: int | None = None
    """Sign of the reward: 1 if longer episodes are better, -1 if success ends them; required by gym:ID."""
    expert: str | None = None
    """A file of expert trajectories; trained and saved there if missing; by default runs/experts/ENV.npz."""
    expert_iterations: int = 100
    episodes: int = 50
    """Episodes of the final evaluation."""
    checkpoint_every: int = 100
    """Iterations between checkpoints; 0 for none."""
    out: str | None = None
    """Another JSON file for report.json, with its figure next to it."""
    workdir: str | None = None
    """By default runs/gail_ENV_UPDATER_sSEED."""


class Arm(NamedTuple):
    """One way to imitate."""

    updater: Updater
    sign: int
    demonstrations: Demonstrations


class Task(NamedTuple):
    """The setting shared by all arms."""

    environment: Environment | GymEnvironments
    networks: Networks
    disc: Discriminator
    columns: int
    keys: Key
    """[seeds]."""


def prepare(config: Config) -> Task:
    """Return the task given by the flags.

    Raises:
      L2LError: a flag has an invalid value.
    """
    for name in ("seeds", "iterations", "pairs", "trajectories", "expert_iterations", "episodes"):
        if getattr(config, name) < 1:
            raise L2LError(f"--{name.replace('_', '-')}={getattr(config, name)}: give 1 or more")
    if config.sign not in (None, 1, -1):
        raise L2LError(f"--sign={config.sign}: give 1 if longer episodes are better, -1 if success ends them")
    unknown = [name for name in config.updater.split(",") if name not in UPDATERS]
    unknown += [name for name in controls(config) if name not in CONTROLS]
    if unknown:
        raise L2LError(
            f"unknown arm {unknown[0]!r}: updaters are {', '.join(UPDATERS)}; controls {', '.join(CONTROLS)}"
        )
    environment, columns = _environment(config)
    spec = environment.spec
    match spec.action:
        case Discrete(size) | Box(size):
            disc = discriminator.create(spec.observation_size, size, hidden=_sizes("disc_hidden", config.disc_hidden))
    nets = networks(spec, _sizes("hidden", config.hidden))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(config.seeds) + config.seed)
    return Task(environment, nets, disc, columns, keys)


def _environment(config: Config) -> tuple[Environment | GymEnvironments, int]:
    """Return the environment, and the number of columns of its horizon in an iteration."""
    environment: Environment | GymEnvironments
    if config.env.startswith(GYM):
        if config.sign is None:
            raise L2LError(f"--env={config.env} needs --sign: 1 if longer episodes are better, -1 if success ends them")
        name = config.env.removeprefix(GYM)
        columns = config.pairs // gym_adapter.horizon(name)
        environment = GymEnvironments(name, columns=max(1, columns), sign=config.sign)
    else:
        environment = environments.create(config.env)
        columns = config.pairs // environment.spec.horizon
        if config.sign is not None:
            environment = environment._replace(spec=environment.spec._replace(sign=config.sign))
    if not columns:
        raise L2LError(f"--pairs={config.pairs}: give {environment.spec.horizon} or more, the horizon of {config.env}")
    return environment, columns


def find_expert(config: Config, task: Task) -> Trajectories:
    """Read the expert's trajectories, or train an expert, check it and save them.

    Raises:
      L2LError: the expert is not good enough, or the file does not hold trajectories of this environment.
    """
    environment, spec = task.environment, task.environment.spec
    path = Path(config.expert or f"runs/experts/{spec.name.replace('/', '_')}.npz")
    if path.exists():
        return experts.load(path, spec)
    print(f"training an expert on {spec.name}; its trajectories go to {path}", flush=True)
    k_train, k_act = jax.random.split(jax.random.key(EXPERT_KEY))
    nets = networks(spec)
    agent = experts.train(k_train, environment, nets, columns=task.columns, iterations=config.expert_iterations)
    rollout = experts.act(k_act, environment, nets, agent, episodes=max(50, config.trajectories))
    experts.check(spec, np.asarray(episode_returns(rollout)))
    expert = experts.trajectories(rollout, config.trajectories)
    experts.save(path, expert, spec)
    return expert


def arms(config: Config, task: Task, data: Demonstrations) -> dict[str, Arm]:
    """Return name -> arm: each updater with each learning rate, then the controls that imitate."""
    sign = task.environment.spec.sign
    made = {}
    for name in config.updater.split(","):
        make, usual = UPDATERS[name]
        for text in filter(None, config.lr.split(",")) if config.lr else (f"{usual:g}",):
            title = f"{name}_lr{text}" if "," in config.lr else name
            made[title] = Arm(_updater(make, name, text, config), sign, data)
    adam = made["adam"].updater if "adam" in made and not config.lr else updaters.adam(UPDATERS["adam"][1])
    k_shuffle = jax.random.fold_in(jax.random.key(PAIRS_KEY), 1)
    beside = {
        "frozen": Arm(updaters.frozen(), sign, data),
        "wrong_sign": Arm(adam, -sign, data),
        "shuffled": Arm(adam, sign, experts.shuffled(k_shuffle, data)),
    }
    return made | {name: beside[name] for name in controls(config) if name in beside}


def controls(config: Config) -> list[str]:
    """Return the controls given by the flags."""
    return [] if config.controls == "none" else config.controls.split(",")


def _updater(make: Callable[..., Updater], name: str, lr: str, config: Config) -> Updater:
    try:
        value = float(lr)
    except ValueError as error:
        raise L2LError(f"--lr={config.lr}: give numbers, like 0.01 or 0.001,0.01") from error
    return make(value, start=config.start) if name.startswith("l2l") else make(value)


def _sizes(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise L2LError(f"--{name.replace('_', '-')}={text}: give sizes like 64,32") from error
