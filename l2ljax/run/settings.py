"""`Settings`: all that decides one run, complete and checked; the papers' recipes are values of this type, too.

settings = config.resolve("digits", "rnn_adv", config.Config(epochs=3))    # the flags over the recipe
settings.check()
optimizers(settings, steps_per_epoch=15)
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optax

from l2ljax import attacks, threat
from l2ljax.run.trained import learned
from l2ljax.types import L2LError, Players
from l2ljax.values import LARGEST

__all__ = [
    "LR_SCHEDULES", "OPTIMIZERS", "Augment", "Dtype", "LrSchedule", "Norm", "Optimizer", "Schedule", "Selection",
    "Settings",
    "optimizers", "total_steps",
]  # fmt: skip

Augment = Literal["none", "flip", "crop", "crop_flip"]
Dtype = Literal["float32", "bfloat16"]
LrSchedule = Literal["steps", "constant", "cosine"]
Norm = Literal["linf", "l2"]
Optimizer = Literal["sgd", "adam"]
Schedule = Literal["joint", "alternating", "classifier", "attacker"]
Selection = Literal["validation", "test", "last"]


class Settings(NamedTuple):
    """The settings of one method on one data set; `Config` says what those are that flags name.

    In a recipe the fields from `dataset` on are as they stand here.
    """

    source: str
    """Which paper or code the recipe is from."""
    arch: str
    eps: str
    epochs: float
    """May end within one: L2L-DA's 100,000 steps are 166.7."""
    lr: float
    batch_size: int = 128
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    nesterov: bool = False
    lr_schedule: str = "steps"
    milestones: tuple[float, ...] = ()
    """After how many epochs the learning rate is multiplied by `decay`."""
    decay: float = 0.1
    attacker_lr: float = 1e-3
    attacker_optimizer: str = "adam"
    attacker_weight_decay: float = 0.0
    clip_norm: float | None = None
    """The longest gradient, of either player."""
    clip_warmup: bool = True
    """Whether the warm-up's gradients are clipped, too."""
    warmup: float = 0.0
    augment: str | None = None
    """By default the data set's customary one, see `data.train_batch`."""
    val_size: int = 1000
    """Images taken out of the training set to choose the best parameters with."""
    options: Mapping[str, Any] = {}
    """The method's options, see `defenses.options`."""
    awp: float | None = None
    """The size of the weights' perturbation, see `defenses.perturbed`."""
    norm: str = "linf"
    selection: str = "validation"
    """Where the best parameters are chosen: validation (images held out of training), test (the test set, as several
    papers did), or last (none are)."""
    selection_attack: str = "pgd10"
    """They have the highest accuracy under this attack."""
    pretrained: bool = False
    """Whether the classifier starts from one that the plain recipe trained, where init_from names none."""
    recipe: str = "ours"
    """The name of these settings in `recipes.RECIPES`."""
    recipe_of: str = ""
    """The data set whose recipe it is."""
    schedule: str = "joint"
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
    devices: int | None = None
    checkpoint_every: int | None = None
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
        """Check what no flag says alone, like the warm-up and the names of attacks; an L2LError names the flag."""
        if self.warmup > self.epochs:
            raise L2LError(f"--warmup={self.warmup}: give 0 to {self.epochs}, the run's epochs")
        held_out = self.selection == "validation"
        if held_out != (self.val_size > 0):
            fix = "a --val-size above 0, or --selection=last" if held_out else "--val-size=0, or --selection=validation"
            raise L2LError(f"--selection={self.selection} with --val-size={self.val_size}: give {fix}")
        ball = self.ball
        for name in self.attacks:
            if learned(name) is None:
                attacks.create(name, ball)


def total_steps(settings: Settings, steps_per_epoch: int) -> int:
    """Return the number of the run's last step; more than a device counts are an L2LError."""
    if not settings.epochs * steps_per_epoch <= LARGEST:
        fix = f"give {LARGEST // steps_per_epoch} or fewer"
        raise L2LError(f"--epochs={settings.epochs:g}: a run has {LARGEST} steps at most: {fix}")
    return max(round(settings.epochs * steps_per_epoch), 1)


def _steps(settings: Settings, steps_per_epoch: int) -> optax.Schedule:
    boundaries = {round(epoch * steps_per_epoch): settings.decay for epoch in settings.milestones}
    return optax.piecewise_constant_schedule(settings.lr, boundaries)


LR_SCHEDULES: dict[str, Callable[[Settings, int], optax.Schedule]] = {
    "steps": _steps,
    "constant": lambda settings, _: optax.constant_schedule(settings.lr),
    "cosine": lambda settings, per_epoch: optax.cosine_decay_schedule(settings.lr, total_steps(settings, per_epoch)),
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
