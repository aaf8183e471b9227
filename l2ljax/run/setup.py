"""What a run is made of, from its settings: data, both players, their step, and the attacks of its report."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from l2ljax import attacks, checkpoint, data, defenses, models, threat
from l2ljax.data.functions import call
from l2ljax.devices import own_core
from l2ljax.run import recipes
from l2ljax.run.config import Run, learned
from l2ljax.runtime.workdir import read_json
from l2ljax.train import AXIS, Step, TrainState, init_state, make_step
from l2ljax.types import Array, Attack, Classifier, Defense, Key, L2LError, LogitsFn, Players, Tree

__all__ = [
    "EVAL_BATCH", "Setup", "load_attacker", "load_classifier", "load_function", "named_attack", "named_attacks",
    "prepare", "trained_attack",
]  # fmt: skip

EVAL_BATCH = 250
T = TypeVar("T")


class Setup(NamedTuple):
    """What a run is made of."""

    spec: Run
    devices: list[jax.Device]
    ball: threat.Ball
    dataset: data.Dataset
    eval_split: data.Split
    classifier: Classifier
    defense: Defense
    phases: list[tuple[Step, int]]
    """(training step, the number of the last one taken with it): a warm-up, if any, then the method's."""
    steps: int
    epoch_steps: int
    data_key: Key
    eval_key: Key

    def logits_fn(self, params: Players, stats: Players) -> LogitsFn:
        """The classifier in evaluation mode; other weights do not recompile."""
        variables = {"params": params.classifier, "batch_stats": stats.classifier}
        return jax.tree_util.Partial(self.classifier.logits, variables)

    def hardware(self) -> dict[str, Any]:
        """Return for config.json all that decides which kernels and which order of sums a step has."""
        return {"trained_on": f"{len(self.devices)} {self.devices[0].platform}" + ", one core each" * own_core()}


def prepare(spec: Run) -> tuple[Setup, TrainState]:
    """Everything a run needs, and the state before its first step."""
    config, recipe = spec.config, spec.recipe
    devices = _devices(config.devices, recipe.batch_size)
    ball = threat.BALLS[config.norm](spec.eps)
    dataset = data.load(
        spec.dataset,
        config.data_dir,
        train_size=config.train_size,
        val_size=recipe.val_size,
        seed=config.seed,
    )
    classifier = models.create(
        recipe.arch, num_classes=dataset.num_classes, dtype=jnp.dtype(config.dtype), remat=config.remat
    )
    defense = defenses.create(spec.method, classifier, ball, axis_name=AXIS, **spec.options)
    epoch_steps = data.steps_per_epoch(len(dataset.train.labels), recipe.batch_size)
    optimizers = recipes.optimizers(recipe, epoch_steps)
    k_init, k_data, k_eval = jax.random.split(jax.random.key(config.seed), 3)
    images = jnp.asarray(data.pixels(dataset.train.images[:2]))
    state = init_state(k_init, classifier, defense, optimizers, images)
    for player, workdir in Players(config.init_from, config.attacker_from)._asdict().items():
        if workdir:
            state = _with_player_from(workdir, player, state)
    step = make_step(defense, optimizers, schedule=config.schedule, devices=devices)
    phases = [(step, recipe.epochs * epoch_steps)]
    if recipe.warmup:
        plain = defenses.create("plain", classifier, ball, axis_name=AXIS)
        warm_up = make_step(plain, optimizers, schedule="classifier", devices=devices)
        phases.insert(0, (warm_up, round(recipe.warmup * epoch_steps)))
    setup = Setup(
        spec=spec,
        devices=devices,
        ball=ball,
        dataset=dataset,
        eval_split=data.Split(*(a[: config.eval_size] for a in dataset.test)),
        classifier=classifier,
        defense=defense,
        phases=phases,
        steps=recipe.epochs * epoch_steps,
        epoch_steps=epoch_steps,
        data_key=k_data,
        eval_key=k_eval,
    )
    return setup, state


def named_attacks(setup: Setup, params: Players, stats: Players) -> dict[str, Attack]:
    """The attacks that the report names; `own` is there only where an attacker was trained."""
    own = functools.partial(trained_attack, setup.defense, params.attacker, stats.attacker)
    named = {name: named_attack(name, setup.ball, own) for name in setup.spec.attack_names}
    return {name: attack for name, attack in named.items() if attack is not None}


def named_attack(name: str, ball: threat.Ball, own: Callable[..., T]) -> Attack | T:
    """Return the attack of that name: of `attacks.create`, of a workdir, or for own and ownN `own(steps=N)`."""
    chosen = learned(name)
    if chosen is None:
        return attacks.create(name, ball)
    return load_attacker(chosen.workdir, steps=chosen.steps) if chosen.workdir else own(steps=chosen.steps)


def trained_attack(
    defense: Defense, params: Tree, batch_stats: Tree, *, steps: int | None = None, path: bool = False
) -> Attack | None:
    """Return `defense.attack`, by default with the steps that it was trained with."""
    given = {} if steps is None else {"steps": steps}
    return defense.attack(params, batch_stats, **given, path=path)


def load_function(name: str) -> Callable[..., Array]:
    """Return the function images -> logits that MODULE:FUNCTION, called without arguments, returns.

    Raises:
      L2LError: there is none.
    """
    function = call(name, wanted := "a function of images that returns their logits")
    if not callable(function):
        raise L2LError(f"{name} returned a {type(function).__name__}: let it return {wanted}")
    return function


def load_classifier(workdir: str) -> jax.tree_util.Partial:
    """Return the classifier that a run ended with, in evaluation mode: images -> logits, its weights as a pytree.

    Raises:
      L2LError: no run there.
    """
    path, saved = _saved(workdir)
    classifier = models.create(saved["arch"], num_classes=saved["num_classes"], dtype=jnp.dtype(saved["dtype"]))
    variables = classifier.init(jax.random.key(0), jnp.zeros((1, *saved["image_shape"])))
    restored = {
        name: checkpoint.Checkpoints(path / "checkpoints").restore(
            like=variables[name], prefix=f"['last'].{kind}.classifier"
        )
        for name, kind in {"params": "params", "batch_stats": "stats"}.items()
    }
    return jax.tree_util.Partial(classifier.logits, restored)


def load_attacker(workdir: str, *, steps: int | None = None, path: bool = False) -> Attack:
    """The attacker that a run of experiments/attack.py or of a learned method ended with.

    Args:
      workdir: of the run.
      steps: by default those that it was trained with.
      path: return all iterates in place of the last.

    Raises:
      L2LError: no run there, or one whose attacker learned nothing.
    """
    folder, saved = _saved(workdir)
    ball = threat.BALLS[saved["norm"]](threat.parse_eps(saved["eps"]))
    defense = defenses.create(saved["method"], models.create(saved["arch"]), ball, **saved["options"])
    params, batch_stats = defense.init(jax.random.key(0), jnp.zeros((1, *saved["image_shape"])))
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    params = checkpoints.restore(like=params, prefix="['last'].params.attacker")
    batch_stats = checkpoints.restore(like=batch_stats, prefix="['last'].stats.attacker")
    attack = trained_attack(defense, params, batch_stats, steps=steps, path=path)
    if attack is None:
        raise L2LError(f"{workdir} is a run of {saved['method']}, whose attacker learns nothing")
    return attack


def _saved(workdir: str) -> tuple[Path, dict[str, Any]]:
    """Its folder and its config.json, completed where it comes of a set of the library's."""
    path = Path(workdir).expanduser()
    saved = read_json(path / "config.json")
    if known := data.SOURCES.get(saved["dataset"]):
        saved |= {"num_classes": len(known.classes), "image_shape": known.image_shape}
    return path, saved


def _with_player_from(workdir: str, player: str, state: TrainState) -> TrainState:
    """The state with the player ("classifier" or "attacker") that another run ended with."""
    saved = checkpoint.Checkpoints(Path(workdir).expanduser() / "checkpoints")

    def restore(players: Players, name: str) -> Players:
        restored = saved.restore(like=getattr(players, player), prefix=f"['last'].{name}.{player}")
        return players._replace(**{player: restored})

    return state._replace(params=restore(state.params, "params"), stats=restore(state.stats, "stats"))


def _devices(wanted: int | None, batch_size: int) -> list[jax.Device]:
    """As many of each process, in the order of the processes; by default the most that divide the batch."""
    local = jax.local_device_count()
    dividing = (n for n in range(local, 0, -1) if batch_size % (n * jax.process_count()) == 0)
    each = next(dividing, local) if wanted is None else wanted
    if each > local:
        raise L2LError(f"--devices={each}: this machine has {local}")
    n = each * jax.process_count()
    if batch_size % n:
        raise L2LError(
            f"--batch-size={batch_size} does not split over {n} devices: give a multiple of {n}, or --devices"
        )
    return [device for i in range(jax.process_count()) for device in jax.local_devices(i)[:each]]
