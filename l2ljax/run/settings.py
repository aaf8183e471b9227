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
import optax.contrib

from l2ljax import attacks, threat
from l2ljax.run.trained import learned
from l2ljax.train import TrainState, moving_average
from l2ljax.types import L2LError, Players, Tree
from l2ljax.values import LARGEST

__all__ = [
    "INGREDIENTS", "LR_SCHEDULES", "OPTIMIZERS", "AttackerOptimizer", "Augment", "Dtype", "LrSchedule", "Norm",
    "OnOverfitting", "Optimizer", "Schedule", "Selection", "Settings", "average", "optimizers", "total_steps",
]  # fmt: skip

Augment = Literal["none", "flip", "crop", "crop_flip"]
Dtype = Literal["float32", "bfloat16"]
LrSchedule = Literal["steps", "constant", "cosine", "warmup_cosine", "onecycle", "cyclic"]
Norm = Literal["linf", "l2", "l1"]
AttackerOptimizer = Literal["sgd", "adam", "adamw", "lion"]
OnOverfitting = Literal["ignore", "stop", "restore"]
Optimizer = Literal["sgd", "adam", "adamw", "lion", "schedule_free"]
Schedule = Literal["joint", "alternating", "classifier", "attacker"]
Selection = Literal["validation", "test", "last"]


INGREDIENTS = {
    "ema": "EMA {:g}", "awp": "AWP {:g}", "cutout": "Cutout {}", "cutmix": "CutMix {:g}",
    "label_smoothing": "smoothing {:g}",
}  # fmt: skip
"""Ingredients of any method, beside its options: setting -> its words. As a flag, 0 leaves out a recipe's."""


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
    """A name of `OPTIMIZERS`, or own for the caller's."""
    weight_decay: float = 0.0
    nesterov: bool = False
    lr_schedule: str = "steps"
    milestones: tuple[float, ...] = ()
    """After how many epochs the learning rate is multiplied by `decay`."""
    decay: float = 0.1
    attacker_lr: float = 1e-3
    attacker_optimizer: str = "adam"
    attacker_weight_decay: float = 0.0
    ema: float | None = None
    """Decay of the moving average of the weights, which is evaluated."""
    label_smoothing: float | None = None
    cutout: int | None = None
    cutmix: float | None = None
    on_overfitting: str | None = None
    """By default ignore."""
    clip_norm: float | None = None
    """The longest gradient, of either player."""
    clip_warmup: bool = True
    """Whether the warm-up's gradients are clipped, too."""
    warmup: float = 0.0
    replays: int | None = None
    """Steps on each batch; by default 1."""
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
        return threat.create(self.norm, self.eps)

    @property
    def rate(self) -> str:
        """The schedule of the learning rate in words."""
        falls = f"x{self.decay:g} at {'/'.join(f'{m:.4g}' for m in self.milestones)}" if self.milestones else "constant"
        return falls if self.lr_schedule == "steps" else self.lr_schedule

    @property
    def training(self) -> str:
        """The classifier's optimizer and rate, unless they are the caller's, and the ingredients, in words."""
        mover = [] if self.optimizer == "own" else [f"{self.optimizer} {self.lr:g} {self.rate}"]
        return ", ".join([*mover, *self.ingredients])

    @property
    def ingredients(self) -> list[str]:
        """The method's options, and all else that is not usual, in words."""
        words = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options.items()]
        words += [text.format(value) for name, text in INGREDIENTS.items() if (value := getattr(self, name))]
        words += ["classifier trained first"] * self.pretrained + [f"{self.replays} steps a batch"] * bool(self.replays)
        words += [f"{self.warmup:.2g} epochs plain"] * bool(self.warmup)
        return words + [f"clip {self.clip_norm}"] * bool(self.clip_norm)

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
        if self.on_overfitting in ("stop", "restore") and self.selection == "last":
            fix = "give --selection=validation, or leave it out"
            raise L2LError(f"--on-overfitting={self.on_overfitting} needs images to validate on: {fix}")
        frozen = {"ema": self.ema, "awp": self.awp, "warmup": self.warmup}
        if self.schedule == "attacker" and (moving := [flag for flag, value in frozen.items() if value]):
            raise L2LError(f"--{moving[0]}: with --schedule=attacker the classifier does not move: leave it out")
        if self.ema and self.optimizer == "schedule_free":
            raise L2LError(f"--ema={self.ema}: schedule_free averages the weights itself: give --ema=0")
        falling = self.lr_schedule != "constant" and (self.lr_schedule != "steps" or self.milestones)
        if self.optimizer == "schedule_free" and falling:
            raise L2LError(f"--lr-schedule={self.lr_schedule}: schedule_free needs a rate that stays: give constant")
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
    steps = [round(epoch * steps_per_epoch) for epoch in settings.milestones]  # in short runs some are the same
    boundaries = {step: settings.decay ** steps.count(step) for step in steps}
    return optax.piecewise_constant_schedule(settings.lr, boundaries)


def _warmup_cosine(settings: Settings, steps_per_epoch: int) -> optax.Schedule:
    last = total_steps(settings, steps_per_epoch)
    return optax.warmup_cosine_decay_schedule(0.0, settings.lr, warmup_steps=last // 10, decay_steps=last)


def _cyclic(settings: Settings, steps_per_epoch: int) -> optax.Schedule:
    last = total_steps(settings, steps_per_epoch)
    up = max(round(0.4 * last), 1)
    ramps = optax.linear_schedule(0.0, settings.lr, up), optax.linear_schedule(settings.lr, 0.0, max(last - up, 1))
    return optax.join_schedules(ramps, [up])


LR_SCHEDULES: dict[str, Callable[[Settings, int], optax.Schedule]] = {
    "steps": _steps,
    "constant": lambda settings, _: optax.constant_schedule(settings.lr),
    "cosine": lambda settings, per_epoch: optax.cosine_decay_schedule(settings.lr, total_steps(settings, per_epoch)),
    "warmup_cosine": _warmup_cosine,
    "onecycle": lambda settings, per_epoch: optax.cosine_onecycle_schedule(
        max(total_steps(settings, per_epoch), 4), settings.lr
    ),
    "cyclic": _cyclic,
}
"""warmup_cosine rises in the first tenth of the run; onecycle is optax's (Smith & Topin, 2018): from lr / 25 in 0.3 of
it, then to lr / 250,000; cyclic is the triangle of Wong et al. (2020), with its peak at 0.4 of the run (12 of 30
epochs there)."""


def _coupled(rule: Callable[[bool], optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """Make an entry of `OPTIMIZERS` whose weight decay is torch's: added to the gradient first."""

    def make(lr: Any, weight_decay: float, nesterov: bool) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay), rule(nesterov), optax.scale_by_learning_rate(lr)
        )  # fmt: skip

    return make


OPTIMIZERS: dict[str, Callable[[Any, float, bool], optax.GradientTransformation]] = {
    "sgd": _coupled(lambda nesterov: optax.trace(0.9, nesterov=nesterov)),
    "adam": _coupled(lambda _: optax.scale_by_adam()),
    "adamw": lambda lr, weight_decay, _: optax.adamw(lr, weight_decay=weight_decay),
    "lion": lambda lr, weight_decay, _: optax.lion(lr, weight_decay=weight_decay),
    "schedule_free": lambda lr, weight_decay, _: optax.contrib.schedule_free_adamw(lr, weight_decay=weight_decay),
}
"""Name -> (learning rate or schedule, weight decay, whether SGD's momentum is Nesterov's) -> the optimizer."""


def optimizers(settings: Settings, steps_per_epoch: int) -> Players:
    """Return the optax optimizers of (classifier, attacker)."""
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)

    def chain(optimizer: str, lr: Any, weight_decay: float) -> optax.GradientTransformation:
        return optax.chain(clip, OPTIMIZERS[optimizer](lr, weight_decay, settings.nesterov))

    schedule = LR_SCHEDULES[settings.lr_schedule](settings, steps_per_epoch)
    return Players(
        chain(settings.optimizer, schedule, settings.weight_decay),
        chain(settings.attacker_optimizer, settings.attacker_lr, settings.attacker_weight_decay),
    )


def average(settings: Settings) -> Callable[[TrainState], tuple[Tree, Tree]] | None:
    """Return the run's average of the classifier, for `train.averaged`; None where the raw weights are evaluated.

    Of schedule_free it is the point x at which Defazio et al. (2024) evaluate; batch statistics are those of training.
    """
    if settings.optimizer == "schedule_free":
        return lambda state: (
            optax.contrib.schedule_free_eval_params(state.opt_state.classifier[1], state.params.classifier),
            state.stats.classifier,
        )
    return moving_average(settings.ema) if settings.ema else None
