"""`Settings`: all that decides one run, complete and checked; the papers' recipes are values of this type, too.

settings = config.resolve("digits", "rnn_adv", config.Config(epochs=3))    # the flags over the recipe
settings.check()
optimizers(settings, steps_per_epoch=15)
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax

from l2ljax import attacks, data, threat, train
from l2ljax.run.trained import learned
from l2ljax.types import L2LError, Players

__all__ = ["LR_SCHEDULES", "OPTIMIZERS", "Settings", "optimizers"]

DTYPES = ("float32", "bfloat16")


class Settings(NamedTuple):
    """The settings of one method on one data set. In a recipe the fields from `dataset` on are as they stand here."""

    source: str
    """Which paper or code the recipe is from."""
    arch: str
    eps: str
    """The threat's radius, like 8/255 or 0.031."""
    epochs: int
    lr: float
    batch_size: int = 128
    optimizer: str = "sgd"
    """sgd (momentum 0.9, weight decay coupled) or adam."""
    weight_decay: float = 0.0
    nesterov: bool = False
    lr_schedule: str = "steps"
    """steps (at the milestones), constant, or cosine (from lr to 0 over the run)."""
    milestones: tuple[float, ...] = ()
    """After how many epochs the learning rate is multiplied by `decay`."""
    decay: float = 0.1
    attacker_lr: float = 1e-3
    """Constant."""
    attacker_optimizer: str = "adam"
    attacker_weight_decay: float = 0.0
    clip_norm: float | None = None
    """The longest gradient, of either player."""
    warmup: float = 0.0
    """Epochs of plain training at the start (they count as epochs of the run)."""
    augment: str | None = None
    """By default the data set's customary one, see `data.train_batch`."""
    val_size: int = 1000
    """Images taken out of the training set to choose the best parameters with (the papers choose on the test set)."""
    options: Mapping[str, Any] = {}
    """The method's options, see `defenses.options`."""
    norm: str = "linf"
    schedule: str = "joint"
    """Who moves, see `train.make_step`."""
    dtype: str = "float32"
    dataset: str = ""
    image_shape: tuple[int, ...] | None = None
    """Shape of a user's images, whose file may be gone when the run is judged; likewise `num_classes`."""
    num_classes: int | None = None
    method: str = ""
    init_from: str | None = None
    attacker_from: str | None = None
    seed: int = 0
    remat: bool = False
    data_dir: str | None = None
    train_size: int | None = None
    eval_size: int | None = None
    attacks: tuple[str, ...] = ()
    """The attacks of the report."""
    devices: int | None = None
    checkpoint_every: int | None = None
    """Steps between checkpoints; once an epoch by default."""
    no_checkpoint: bool = False
    workdir: Path | None = None
    """Without one the run leaves nothing behind."""

    @property
    def ball(self) -> threat.Ball:
        """The threat."""
        return threat.BALLS[self.norm](threat.parse_eps(self.eps))

    def saved(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return json.loads(json.dumps(self._asdict(), default=str))

    def check(self) -> None:
        """Check all settings before anything runs; a value that cannot be is an L2LError that names its flag."""
        for name in ("epochs", "batch_size", "checkpoint_every", "devices", "train_size", "eval_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise L2LError(f"--{name.replace('_', '-')}={value}: give 1 or more")
        choices: dict[str, Any] = {
            "norm": threat.BALLS, "schedule": train.SCHEDULES, "optimizer": OPTIMIZERS, "dtype": DTYPES,
            "attacker_optimizer": OPTIMIZERS, "augment": (*data.AUGMENTS, None), "lr_schedule": LR_SCHEDULES,
        }  # fmt: skip
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise L2LError(f"unknown {name} {value!r}: choose from {', '.join(filter(None, known))}")
        if not 0 <= self.warmup <= self.epochs:
            raise L2LError(f"--warmup={self.warmup}: give 0 to {self.epochs}, the run's epochs")
        ball = self.ball
        for name in self.attacks:
            if learned(name) is None:
                attacks.create(name, ball)


def _steps(settings: Settings, steps_per_epoch: int) -> optax.Schedule:
    boundaries = {round(epoch * steps_per_epoch): settings.decay for epoch in settings.milestones}
    return optax.piecewise_constant_schedule(settings.lr, boundaries)


LR_SCHEDULES: dict[str, Callable[[Settings, int], optax.Schedule]] = {
    "steps": _steps,
    "constant": lambda settings, steps_per_epoch: optax.constant_schedule(settings.lr),
    "cosine": lambda settings, steps_per_epoch: optax.cosine_decay_schedule(
        settings.lr, settings.epochs * steps_per_epoch
    ),
}


OPTIMIZERS: dict[str, Callable[[Settings], optax.GradientTransformation]] = {
    "sgd": lambda settings: optax.trace(0.9, nesterov=settings.nesterov),
    "adam": lambda settings: optax.scale_by_adam(),
}


def optimizers(settings: Settings, steps_per_epoch: int) -> Players:
    """Return the optax optimizers of (classifier, attacker). Weight decay is torch's: added to the gradient first."""
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)

    def chain(weight_decay: float, optimizer: str, lr: Any) -> optax.GradientTransformation:
        decay, rule = optax.add_decayed_weights(weight_decay), OPTIMIZERS[optimizer](settings)
        return optax.chain(clip, decay, rule, optax.scale_by_learning_rate(lr))

    schedule = LR_SCHEDULES[settings.lr_schedule](settings, steps_per_epoch)
    return Players(
        chain(settings.weight_decay, settings.optimizer, schedule),
        chain(settings.attacker_weight_decay, settings.attacker_optimizer, settings.attacker_lr),
    )
