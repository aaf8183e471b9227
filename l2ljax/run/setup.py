"""The parts of a run, made from its settings: data, both players, their step, and the attacks of its report."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2ljax import checkpoint, data, defenses, models, threat
from l2ljax.data.load import divide
from l2ljax.devices import own_core
from l2ljax.models.adapters import program
from l2ljax.run.settings import Settings, average, optimizers, total_steps
from l2ljax.run.trained import named_attack, trained_attack
from l2ljax.train import AXIS, Step, TrainState, averaged, init_state, make_step, wide_copy
from l2ljax.types import Array, Attack, Batch, Classifier, Defense, Key, L2LError, LogitsFn, Players

__all__ = ["EVAL_BATCH", "Setup", "data_identity", "load", "named_attacks", "prepare"]

EVAL_BATCH = 250


class Setup(NamedTuple):
    """The parts of a run."""

    settings: Settings
    devices: list[jax.Device]
    ball: threat.Ball
    dataset: data.Dataset
    eval_split: data.Split
    classifier: Classifier
    defense: Defense
    phases: list[tuple[Step, int]]
    """(training step, the number of the last one taken with it): a warm-up, if any, then the method's."""
    epoch_steps: int
    num_logits: int
    """K of the network, which may exceed the number of classes."""
    began_with: str | None
    """A checksum of the trained players that it starts from, if any."""
    own: dict[str, tuple[str, str]]
    """Part that the caller gave -> JAX's version and a checksum of it."""
    data_key: Key
    eval_key: Key

    @property
    def steps(self) -> int:
        """The number of the last step."""
        return self.phases[-1][1]

    def logits_fn(self, params: Players, stats: Players) -> LogitsFn:
        """Return the classifier in evaluation mode; other weights do not recompile."""
        variables = {"params": params.classifier, "batch_stats": stats.classifier}
        return jax.tree_util.Partial(self.classifier.logits, variables)

    def identity(self) -> dict[str, Any]:
        """Return for config.json what the bits depend on besides the settings.

        These are the devices, which decide on kernels and on the order of sums, and checksums of a user's own data,
        network and other parts, and of trained players to start from.
        """
        devices = f"{len(self.devices)} {self.devices[0].platform}" + ", one core each" * own_core()
        others: dict[str, Any] = {"began_with": self.began_with} if self.began_with else {}
        others |= {"own": self.own} if self.own else {}
        if self.settings.arch not in models.CLASSIFIERS:
            others["network"] = models.fingerprint(self.classifier, jnp.zeros((2, *self.dataset.image_shape)))
        return {"trained_on": devices, **data_identity(self.settings, self.dataset), **others}


def load(settings: Settings, dataset: data.Dataset | None = None) -> data.Dataset:
    """Return a run's data, by default those that the settings name, divided as these say.

    `val` are the images on which the best parameters are chosen.
    """
    whole = dataset or data.load(settings.dataset, settings.data_dir)
    whole = divide(whole, train_size=settings.train_size, val_size=settings.val_size, seed=settings.seed)
    return whole._replace(val=whole.test) if settings.selection == "test" else whole


def data_identity(settings: Settings, dataset: data.Dataset | None = None) -> dict[str, str]:
    """Return for config.json a checksum of a user's own data, by default those that the settings name."""
    if settings.image_shape is None:
        return {}
    used = dataset or load(settings)
    return {"data": checkpoint.digest((used.train, used.val, used.test))}


def prepare(
    settings: Settings,
    *,
    dataset: data.Dataset | None = None,
    classifier: Classifier | None = None,
    ball: threat.Ball | None = None,
    defense: Defense | None = None,
    movers: Players | None = None,
) -> tuple[Setup, TrainState]:
    """Return all that a run needs, and the state before its first step.

    Args:
      settings: of the run; they name what is not given.
      dataset: the data, checked.
      classifier: the network.
      ball: the threat.
      defense: built with `axis_name=train.AXIS`.
      movers: the optax optimizers of (classifier, attacker); the attacker's moves no method that prescribes its own.
    """
    if settings.pretrained and not settings.init_from:
        start = "give init_from=WORKDIR of a run of plain"
        raise L2LError(f"{settings.method} of recipe {settings.recipe} starts from a trained classifier: {start}")
    devices = _devices(settings.devices, settings.batch_size)
    given = ball, defense, movers
    ball = ball or settings.ball
    whole = load(settings, dataset)
    if (settings.cutout or 0) >= min(size := whole.image_shape[:2]):
        fix = f"give less than {min(size)}"
        raise L2LError(f"--cutout={settings.cutout} covers images of {size[0]} x {size[1]}: {fix}")
    users = classifier is not None
    classifier = classifier or models.create(
        settings.arch, num_classes=whole.num_classes, dtype=jnp.dtype(settings.dtype), remat=settings.remat
    )
    images = jnp.zeros((settings.batch_size, *whole.image_shape))
    if users:
        settings = _for_network(settings, classifier, images)
    defense = defense or defenses.create(settings.method, classifier, ball, axis_name=AXIS, **settings.options)
    if settings.awp:
        defense = defenses.perturbed(defense, gamma=settings.awp, axis_name=AXIS)
    epoch_steps = data.steps_per_epoch(len(whole.train.labels), settings.batch_size)
    last = total_steps(settings, epoch_steps)

    def movers_of(settings: Settings) -> Players:
        made = movers or optimizers(settings, epoch_steps)
        return made if defense.mover is None else made._replace(attacker=defense.mover)

    used = movers_of(settings)
    k_init, k_data, k_eval = jax.random.split(jax.random.key(settings.seed), 3)
    state = init_state(k_init, classifier, defense, used, images)
    classes = _check_players(settings, whole, classifier, defense, state, images)
    own = _checksums(*given, state, images)
    if users:
        own["weights"] = jax.__version__, checkpoint.digest((state.params.classifier, state.stats.classifier))
    state, began_with = _begun(settings, used, state)
    step = make_step(defense, used, schedule=settings.schedule, devices=devices)
    phases = [(step, last)]
    if settings.warmup:
        plain = defenses.create("plain", classifier, ball, axis_name=AXIS)
        first_movers = movers_of(settings if settings.clip_warmup else settings._replace(clip_norm=None))
        warm_up = make_step(plain, first_movers, schedule="classifier", devices=devices)
        phases.insert(0, (warm_up, round(settings.warmup * epoch_steps)))
    if rule := average(settings):
        phases = [(averaged(step, rule), last) for step, last in phases]
        state = state._replace(average=wide_copy((state.params.classifier, state.stats.classifier)))
    eval_split = whole.test.take(slice(settings.eval_size))
    parts = (settings, devices, ball, whole, eval_split, classifier, defense, phases, epoch_steps, classes, began_with)
    return Setup(*parts, own, k_data, k_eval), state


def _checksums(
    ball: threat.Ball | None, defense: Defense | None, optimizers: Players | None, state: TrainState, images: Array
) -> dict[str, tuple[str, str]]:
    """Return JAX's version and a checksum of the program of each part that is not None."""
    found = {}
    if ball is not None:
        both = lambda key, x: (ball.project(x, 1 - x), ball.sample(key, x), ball.steepest(x))
        found["ball"] = program(both, state.key, images)
    if defense is not None:
        objective = lambda *args: defense.objective(*args, "joint")
        one = jax.local_devices()[:1]  # mapped as in training: a vmap would need rules for a defense's callbacks
        mapped = jax.pmap(objective, in_axes=(None, None, 0, 0), axis_name=AXIS, devices=one)
        batch = Batch(images[None], jnp.zeros((1, len(images)), jnp.int32))
        keys = jax.random.split(state.key, (1, len(images)))
        found["defense"] = program(mapped, state.params, state.stats, keys, batch)
    if optimizers is not None:
        moved = lambda params: [o.update(p, o.init(p), p) for o, p in zip(optimizers, params, strict=True)]
        found["optimizers"] = program(moved, state.params)
    return found


def _for_network(settings: Settings, classifier: Classifier, images: Array) -> Settings:
    """Return the settings whose attacker, where it sees labels, knows all classes of the network."""
    if "num_classes" not in settings.options:
        return settings
    logits = jax.eval_shape(classifier.logits, classifier.init(jax.random.key(0), images), images)
    return settings._replace(options={**settings.options, "num_classes": int(logits.shape[-1])})


def _check_players(
    settings: Settings,
    dataset: data.Dataset,
    classifier: Classifier,
    defense: Defense,
    state: TrainState,
    images: Array,
) -> int:
    """Return the network's number of logits; refuse one of too few, and settings of an attacker that learns nothing."""
    if defense.attack(state.params.attacker, state.stats.attacker) is None:
        learns_none = f"{settings.method} learns no attacker"
        if settings.attacker_from:
            raise L2LError(f"--attacker-from={settings.attacker_from}: {learns_none}: leave it out")
        if settings.schedule == "attacker":
            raise L2LError(f"--schedule=attacker: {learns_none}: give joint")
    if defense.mover is not None and settings.schedule == "classifier":
        raise L2LError(f"--schedule=classifier: the perturbations of {settings.method} would not move: give joint")
    variables = {"params": state.params.classifier, "batch_stats": state.stats.classifier}
    classes = jax.eval_shape(classifier.logits, variables, images).shape[-1]
    if classes < dataset.num_classes:
        has = f"{dataset.name} has {dataset.num_classes} classes"
        raise L2LError(f"the network returns {classes} logits, but {has}: give it as many")
    return int(classes)


def _begun(settings: Settings, movers: Players, state: TrainState) -> tuple[TrainState, str | None]:
    """Return the state with the trained players that the settings name, and a checksum of these, if any."""
    found = []
    for player, workdir in Players(settings.init_from, settings.attacker_from)._asdict().items():
        if workdir:
            like = getattr(state.params, player), getattr(state.stats, player)
            params, stats = checkpoint.restore_player(workdir, player, like)
            found.append((params, stats))
            both = state.params._replace(**{player: params}), state.stats._replace(**{player: stats})
            begun = Players(*(o.init(p) for o, p in zip(movers, both[0], strict=True)))  # schedule_free keeps it
            state = state._replace(params=both[0], stats=both[1], opt_state=begun)
    return state, checkpoint.digest(found) if found else None


def named_attacks(setup: Setup, params: Players, stats: Players) -> dict[str, Attack]:
    """Return the attacks that the report names; `own` is there only where an attacker was trained."""
    own = functools.partial(trained_attack, setup.defense, params.attacker, stats.attacker)
    named = {name: named_attack(name, setup.ball, own) for name in setup.settings.attacks}
    return {name: attack for name, attack in named.items() if attack is not None}


def _devices(wanted: int | None, batch_size: int) -> list[jax.Device]:
    """Return as many of each process, in the order of the processes; by default the most that divide the batch."""
    local = jax.local_device_count()
    dividing = (n for n in range(local, 0, -1) if batch_size % (n * jax.process_count()) == 0)
    each = next(dividing, local) if wanted is None else wanted
    if each > local:
        fix = f"give fewer, or set JAX_NUM_CPU_DEVICES={each} on a CPU"
        raise L2LError(f"--devices={each}: this machine has {local}: {fix}")
    n = each * jax.process_count()
    if batch_size % n:
        raise L2LError(
            f"--batch-size={batch_size} does not split over {n} devices: give a multiple of {n}, or --devices"
        )
    return [device for i in range(jax.process_count()) for device in jax.local_devices(i)[:each]]
