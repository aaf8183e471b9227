"""The parts of a GAIL run, from its flags: the task, its expert, and the arms."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np

from l2ljax.files import check_writable
from l2ljax.gail import discriminator, environments, experts, gym_adapter, updaters
from l2ljax.gail.discriminator import Discriminator
from l2ljax.gail.environments import Environment
from l2ljax.gail.experts import Trajectories
from l2ljax.gail.gym_adapter import GymEnvironments
from l2ljax.gail.imitate import Demonstrations
from l2ljax.gail.policy import Networks, networks
from l2ljax.gail.rollout import episode_returns
from l2ljax.gail.updaters import Updater
from l2ljax.runtime import flags
from l2ljax.types import Key, L2LError
from l2ljax.values import Count, Natural, Positive, Range, Seed, check, parse, parse_list

__all__ = [
    "CONTROLS", "EXPERT_KEY", "PAIRS_KEY", "UPDATERS", "Arm", "Config", "Many", "Size", "Task", "arms", "find_expert",
    "prepare",
]  # fmt: skip

ADAM = functools.cache(updaters.adam)  # arms with the same updater share a program
UPDATERS: dict[str, tuple[Callable[..., Updater], float]] = {
    "adam": (lambda lr, start: ADAM(lr), 0.01),
    "ascent": (lambda lr, start: updaters.coordinate(0.0, start="ascent", alpha=lr), 1.0),
    "l2l_dense": (lambda lr, start: updaters.dense(lr, start=start), 1e-6),
    "l2l_coordinate": (lambda lr, start: updaters.coordinate(lr, start=start), 1e-4),
}
"""Name -> (the updater for a learning rate and a start, the usual rate). `ascent` is the initial rule of the learned
updaters: beside them it shows the effect of learning."""
CONTROLS = ("frozen", "wrong_sign", "shuffled", "cloning")
"""A random fixed discriminator; the other sign of the reward; the expert's actions shuffled; no reward."""
GYM = "gym:"
Many = Annotated[int, Range(1, 10**5)]
Size = Annotated[int, Range(1, 4096)]
EXPERT_KEY, PAIRS_KEY = 0, 1
"""The expert and its pairs are the same for all seeds."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    env: str = "CartPole-v1"
    """CartPole-v0, CartPole-v1, FixedCartPole, MountainCar-v0, Acrobot-v1, Pendulum-v1, one that a module of yours
    registers, or gym:ID of one of gymnasium's."""
    updater: str = "adam"
    """Updaters of the discriminator: adam, ascent, l2l_dense, l2l_coordinate; several, separated by commas."""
    lr: str = ""
    """Its learning rate (of theta_U for learned updaters); several, separated by commas, are separate arms."""
    start: updaters.Start = "ascent"
    """The start of a learned updater: identity, or gradient ascent with step 1."""
    controls: str = ",".join(CONTROLS)
    """Controls to run as well, with Adam if something learns; none for no control."""
    seeds: Annotated[int, Range(1, 1000)] = 8
    seed: Seed = 0
    """The first seed."""
    together: Count | None = None
    """Seeds in one program, all by default; the others follow. For l2l_dense, which takes some GB for each."""
    iterations: Count = 250
    pairs: Annotated[int, Range(1, 10**6)] = 5000
    """Steps per iteration, rounded down to whole columns of the environment's horizon."""
    trajectories: Many = 10
    """Number of the expert's trajectories; of their steps every 10th is used on CartPole, all with gym:ID, every 5th
    elsewhere."""
    hidden: str = "64,32"
    """Hidden layers of policy and value function."""
    disc_hidden: str = "64,32"
    """Hidden layers of the discriminator; 16,8 makes the dense updater 100 times smaller."""
    sign: Literal[1, -1] | None = None
    """Sign of the reward: 1 if longer episodes are better, -1 if success ends them; required by gym:ID."""
    expert: Path | None = None
    """A file of expert trajectories; trained and saved there if missing; by default runs/experts/ENV.npz."""
    expert_iterations: Many = 100
    episodes: Many = 50
    """Episodes of the final evaluation."""
    checkpoint_every: Natural = 100
    """Iterations between checkpoints; 0 for none."""
    out: Path | None = None
    """Another JSON file for report.json, with its figure next to it."""
    workdir: Path | None = None
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
    """The environment's horizons in an iteration, side by side."""
    keys: Key
    """[seeds]."""
    updaters: dict[str, Updater]
    """By the names of their arms."""
    controls: list[str]


def prepare(config: Config) -> Task:
    """Return the task given by the flags, all of which are checked.

    Raises:
      L2LError: a flag has an invalid value.
    """
    config = flags.checked(config)
    check(Seed, config.seed + config.seeds - 1, "the last seed")
    hidden = parse_list(Size, config.hidden, "--hidden")
    disc_hidden = parse_list(Size, config.disc_hidden, "--disc-hidden")
    if config.out:
        check_writable(config.out)
    rates = config.lr.split(",") if config.lr else []
    if len(set(rates)) < len(rates):
        raise L2LError(f"--lr={config.lr}: give each learning rate once")
    made = {}
    for name in _names(config, "updater", UPDATERS):
        make, usual = UPDATERS[name]
        for rate in rates or [f"{usual:g}"]:
            title = f"{name}_lr{rate}" if len(rates) > 1 else name
            made[title] = make(parse(Positive, rate, "--lr"), config.start)
    controls = [] if config.controls == "none" else _names(config, "controls", CONTROLS)
    environment, columns = _environment(config)
    spec = environment.spec
    disc = discriminator.create(spec.observation_size, spec.action[0], hidden=disc_hidden)
    seeds = np.arange(config.seed, config.seed + config.seeds, dtype=np.uint32)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
    return Task(environment, networks(spec, hidden), disc, columns, keys, made, controls)


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
    path = config.expert or Path(f"runs/experts/{spec.name.replace('/', '_')}.npz")
    if path.exists():
        return experts.load(path, spec)
    check_writable(path, "--expert", suffix="")
    print(f"training an expert on {spec.name}; its trajectories go to {path}", flush=True)
    k_train, k_act = jax.random.split(jax.random.key(EXPERT_KEY))
    nets = networks(spec)
    agent = experts.train(k_train, environment, nets, columns=task.columns, iterations=config.expert_iterations)
    rollout = experts.act(k_act, environment, nets, agent, episodes=max(50, config.trajectories))
    experts.check(spec, np.asarray(episode_returns(rollout)))
    expert = experts.trajectories(rollout)
    experts.save(path, expert, spec)
    return expert


def arms(task: Task, data: Demonstrations) -> dict[str, Arm]:
    """Return name -> arm: each updater with each learning rate, then the controls that imitate."""
    sign, adam = task.environment.spec.sign, ADAM(UPDATERS["adam"][1])
    k_shuffle = jax.random.fold_in(jax.random.key(PAIRS_KEY), 1)
    beside = {
        "frozen": Arm(updaters.frozen(), sign, data),
        "wrong_sign": Arm(adam, -sign, data),
        "shuffled": Arm(adam, sign, experts.shuffled(k_shuffle, data)),
    }
    made = {name: Arm(updater, sign, data) for name, updater in task.updaters.items()}
    return made | {name: beside[name] for name in task.controls if name in beside}


def _names(config: Config, flag: str, known: Iterable[str]) -> list[str]:
    """Return the names that a flag gives, separated by commas, each known and given once."""
    names = getattr(config, flag).split(",")
    if unknown := [name for i, name in enumerate(names) if name not in known or name in names[:i]]:
        raise L2LError(f"--{flag}={','.join(names)}: {unknown[0]!r} is unknown or twice: choose of {', '.join(known)}")
    return names
