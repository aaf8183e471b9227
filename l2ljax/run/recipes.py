"""The settings of each paper, and ours: `find("cifar10", "rnn_adv")` is the RNN-Adv paper's run.

`RECIPES` has a table for each name of `--recipe`. Without one, a method on the data sets of its own paper is trained as
there, and everything else as in "ours". A flag replaces one entry; milestones stretch with `--epochs`, but attacks'
steps in pixels, and RNN-Adv's scale, do not follow `--eps`.

Everywhere the last batch of an epoch is left out if it is not full; the released codes, with torch's loaders, train on
it (391 steps an epoch on CIFAR-10 with batches of 128, here 390).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from l2ljax import data, defenses
from l2ljax.data.arrays import check_trainable
from l2ljax.report.markdown import grid
from l2ljax.run.settings import Settings
from l2ljax.types import L2LError

__all__ = ["RECIPES", "Recipe", "check", "default", "find", "fitted", "plain_before", "table"]


class Recipe(NamedTuple):
    """The settings of one source."""

    methods: tuple[str, ...]
    """Its own methods, trained so by default; the first one if `--recipe` stands without `--method`."""
    table: Mapping[tuple[str, str], Settings]
    """(data set, method) -> settings."""


L2L_METHODS = ("grad_l2l", "two_step_l2l", "naive_l2l", "grad_only_l2l", "two_step_grad_only_l2l")
RNN_METHODS = ("rnn_adv", "rnn_trades")


def _rows(datasets: Iterable[str], **methods: Settings) -> dict[tuple[str, str], Settings]:
    return {(dataset, method): row for dataset in datasets for method, row in methods.items()}


# Learning to Defend by Learning to Attack ----------------------------------------------------------------------------
# Section 3 and appendix B (2018); 4.1 and Algorithm 3 (2021). The released code counts epochs from 1, so that the rate
# falls after 29, 59 and 89; it has BatchNorm's modes of schedule "alternating", and keeps the epoch of highest PGD-10
# accuracy on the *test* set. That PGD starts at Gaussian noise of 0.001 and steps 0.003; ours is pgd10@l2l.
L2L = Settings(
    "L2L", "wrn_34_10", "0.031", epochs=100, lr=0.1, weight_decay=2e-4, milestones=(29, 59, 89), val_size=0,
    attacker_weight_decay=2e-4, schedule="alternating", selection="test", selection_attack="pgd10@l2l",
)  # fmt: skip
_ZAGORUYKO = Settings(
    "L2L, Wide ResNets", "wrn_34_10", "0.031", epochs=200, lr=0.1, weight_decay=5e-4, nesterov=True, val_size=0,
    milestones=(60, 120, 160), decay=0.2, selection="last",
)  # fmt: skip
_BY_HAND = L2L._replace(schedule="joint")
_PGM = _BY_HAND._replace(options={"steps": 10, "step_size": 0.007, "start": "clean"})
_L2L = {
    **dict.fromkeys(L2L_METHODS, L2L), "plain": _ZAGORUYKO, "fgsm_adv": _BY_HAND, "stability": _BY_HAND,
    "pgd_adv": _PGM,
}  # fmt: skip
# 2021, section 4.2 and Algorithm 4: AIT on the same network, phi and theta on one perturbation. Alone it keeps its last
# state, as in its own code.
_AIT = L2L._replace(epochs=200, milestones=(59, 89), schedule="joint", options={"label_eps": 0.5})
_AIT_ALONE = _AIT._replace(selection="last")

# Adversarial Interpolation Training, released code -------------------------------------------------------------------
# Images there are in [-1, 1], where the convolutions' zero padding is gray; here in [0, 1], where it is black.
AIT = Settings(
    "AIT", "wrn_28_10", "8/255", epochs=200, lr=0.1, weight_decay=2e-4, milestones=(59, 89), val_size=0,
    selection="last", options={"label_eps": 0.5},
)  # fmt: skip

# TRADES, released code: epochs from 1, the rate falls after 74 of 76; MNIST's script has beta 1 today ----------------
TRADES = Settings(
    "TRADES", "wrn_34_10", "0.031", epochs=76, lr=0.1, weight_decay=2e-4, milestones=(74,), val_size=0,
    selection="last", options={"beta": 6.0, "steps": 10, "step_size": 0.007},
)  # fmt: skip
TRADES_MNIST = Settings(
    "TRADES", "small_cnn", "0.3", epochs=100, lr=0.01, milestones=(54, 74, 89), val_size=0,
    selection="last", options={"beta": 1.0, "steps": 40, "step_size": 0.01},
)  # fmt: skip

# Improved Adversarial Training via Learned Optimizer -----------------------------------------------------------------
# The paper gives T = 10, w_t = t, the start and the optimizer (eq. 5-10). How the classifier is trained is not there:
# as in its baselines' released codes, BayesianDefense (which restarts the momentum at each milestone; we do not) and
# TRADES. Neither is phi's rate: 0.01 is ours (BENCHMARKS.md, "digits rnn").
ADV_TRAIN = Settings(
    "RNN-Adv, BayesianDefense", "vgg16", "8/255", epochs=200, lr=0.01, weight_decay=5e-4, milestones=(80, 140, 180),
    val_size=0, selection="last",
)  # fmt: skip
_MNIST = TRADES_MNIST._replace(source="RNN-Adv, TRADES", options={})
_LITERAL = {"steps": 10, "normalize": "none", "weights": "t", "biases": False, "start": "gaussian"}


def _literal(base: Settings, eps: float, **more: float) -> Settings:
    """Return eq. 6 as printed: no factor on tanh, which is 1 / eps in units of eps, and the raw gradient."""
    return base._replace(attacker_lr=1e-2, options={**_LITERAL, "scale": 1 / eps, **more})


_VGG_TRADES = TRADES._replace(source="RNN-Adv, TRADES", arch="vgg16", eps="8/255")
_RNN_CIFAR = {
    "rnn_adv": _literal(ADV_TRAIN, 8 / 255),
    "rnn_trades": _literal(_VGG_TRADES, 8 / 255, beta=6.0),
    "plain": ADV_TRAIN,
    "pgd_adv": ADV_TRAIN._replace(options={"steps": 10, "step_size": 0.007, "start": "clean"}),
    "pgd_bls_adv": ADV_TRAIN,
    "trades": _VGG_TRADES,
}
_RNN_MNIST = {
    "rnn_adv": _literal(_MNIST, 0.3),
    "rnn_trades": _literal(_MNIST, 0.3, beta=1.0),
    "plain": _MNIST,
    "pgd_adv": _MNIST._replace(options={"steps": 10, "step_size": 0.075}),
    "pgd_bls_adv": _MNIST._replace(options={"steps": 10}),
    "trades": _MNIST._replace(options={"beta": 1.0, "steps": 10, "step_size": 0.075}),
}

# Adversarial Defense via Learning to Generate Diverse Attacks --------------------------------------------------------
# Section 5.1 and the released code: 100,000 steps, both gradients clipped to 1 but not in the 1,000 plain steps at the
# start, the checkpoint of highest test accuracy, of one each 3,000 steps (of one an epoch here). Its baselines'
# schedules are not there: with the same on MNIST; on CIFAR-10 FGSM's and PGD's from the start, as their ResNet-20, and
# C&W's as L2L-DA from a pretrained network.
L2L_DA = Settings(
    "L2L-DA", "lenet5", "0.3", epochs=100_000 / 600, lr=0.01, batch_size=100, weight_decay=1e-5,
    milestones=(50_000 / 600,), attacker_lr=0.01, attacker_optimizer="sgd", attacker_weight_decay=1e-5, clip_norm=1.0,
    clip_warmup=False, warmup=1_000 / 600, augment="crop", val_size=0, selection="test",
    selection_attack="pgd10@l2l_da", options={"diversity": 0.02},
)  # fmt: skip
_DA_STAR = L2L_DA._replace(options={})
_DA_BY_HAND = L2L_DA._replace(warmup=0.0, clip_norm=None, options={})
_DA_CIFAR = L2L_DA._replace(
    arch="resnet20", eps="8/255", epochs=200, milestones=(100,), warmup=0.0, augment=None, pretrained=True,
    options={"diversity": 0.5},
)  # fmt: skip
_AKAMASTER = Settings(
    "L2L-DA, its ResNet-20", "resnet20", "8/255", epochs=200, lr=0.1, weight_decay=1e-4, milestones=(100, 150),
    val_size=0, selection="last",
)  # fmt: skip
_PGD10 = {"steps": 10, "start": "uniform"}

# Ours ----------------------------------------------------------------------------------------------------------------
# One perturbation for both players (schedule "joint") takes half the passes of the released L2L code, and RNN-Adv with
# steps in units of eps and the gradient scaled per example needs no other scale for other radii; on digits both are
# within the spread of three seeds of the released and printed forms (BENCHMARKS.md, digits). On MNIST RNN-Adv as
# printed keeps 86.4 % under PGD-100, ours 95.4 and more (one seed against three). On digits, under the worst of three
# attacks, a one-cycle rate adds 3 points, Cutout 5 more, moving averages none; label smoothing adds half as much under
# targeted APGD as under PGD-100, and beside Cutout takes one (digits: ingredients). There fewer than 10 steps cost
# accuracy (digits: the attack in training). On MNIST 7 steps of PGD training and 5 of RNN-TRADES are those of the
# pretrained models; RNN-Adv and TRADES have as many. The one-cycle rate is not compared with others on CIFAR-10.
# Parameters are chosen on images held out of training.
DIGITS = Settings(
    "ours", "digits_cnn", "0.2", epochs=60, lr=3e-3, batch_size=100, optimizer="adam", lr_schedule="onecycle", cutout=2,
    val_size=100,
)  # fmt: skip
MNIST = Settings(
    "ours", "small_cnn", "0.3", epochs=12, lr=3e-3, batch_size=256, optimizer="adam", lr_schedule="onecycle"
)
CIFAR = Settings(
    "ours", "preact_resnet18", "8/255", epochs=30, lr=0.1, weight_decay=5e-4, nesterov=True, lr_schedule="onecycle"
)  # fmt: skip
IMAGENET = CIFAR._replace(arch="resnet18_imagenet", eps="0.005")
_ATTACK = Settings(
    "ours", "of the victim", "of the victim", epochs=10, lr=0.0, val_size=0, schedule="attacker", selection="last"
)  # fmt: skip


_STEPS = {"pgd_adv": 7, "rnn_adv": 7, "trades": 5, "rnn_trades": 5}


def _ours(base: Settings, steps: Mapping[str, int], diversity: float = 0.02) -> dict[str, Settings]:
    """Return method -> settings; `diversity` is l2l_da's, in its paper 0.02 on MNIST and 0.5 on CIFAR-10."""
    rows = dict.fromkeys(defenses.METHODS, base)
    rows["l2l_da"] = base._replace(options={"diversity": diversity})
    rows |= {method: base._replace(options={"steps": count}) for method, count in steps.items()}
    rows |= {method: rows[method]._replace(attacker_lr=1e-2) for method in RNN_METHODS}
    rows |= {"las_at": base._replace(schedule="alternating"), "free_adv": base._replace(replays=8)}
    return {**rows, **dict.fromkeys(defenses.ATTACKERS, _ATTACK)}


_OURS = {
    **_rows(["digits"], **_ours(DIGITS, {})),
    **_rows(["mnist", "fashion_mnist"], **_ours(MNIST, _STEPS)),
    **_rows(["cifar10", "cifar100", "svhn"], **_ours(CIFAR, {}, diversity=0.5)),
    **_rows(["restricted_imagenet"], **_ours(IMAGENET, {}, diversity=0.5)),
}
RECIPES = {
    "rnn_adv": Recipe(
        RNN_METHODS,
        {
            **_rows(["cifar10"], **_RNN_CIFAR, l2l_da=_DA_CIFAR._replace(arch="vgg16")),
            **_rows(["mnist"], **_RNN_MNIST, l2l_da=L2L_DA._replace(arch="small_cnn")),
        },
    ),
    "l2l": Recipe(L2L_METHODS, _rows(["cifar10", "cifar100", "svhn"], **_L2L)),
    "l2l_v2": Recipe(("ait_l2l",), _rows(["cifar10", "cifar100"], **_L2L, ait_l2l=_AIT, ait=_AIT_ALONE)),
    "ait": Recipe(("ait",), _rows(["cifar10"], ait=AIT)),
    "trades": Recipe(("trades",), {**_rows(["cifar10"], trades=TRADES), **_rows(["mnist"], trades=TRADES_MNIST)}),
    "l2l_da": Recipe(
        ("l2l_da", "l2l_star", "cw_adv"),
        {
            **_rows(["mnist"], l2l_da=L2L_DA, l2l_star=_DA_STAR, plain=_DA_BY_HAND, fgsm_adv=_DA_BY_HAND,
                    pgd_adv=_DA_BY_HAND._replace(options=_PGD10), cw_adv=_DA_BY_HAND),
            **_rows(["cifar10"], l2l_da=_DA_CIFAR, l2l_star=_DA_CIFAR._replace(options={}),
                    cw_adv=_DA_CIFAR._replace(clip_norm=None, options={}), plain=_AKAMASTER,
                    fgsm_adv=_AKAMASTER, pgd_adv=_AKAMASTER._replace(options=_PGD10)),
        },
    ),
    "ours": Recipe(("rnn_adv",), _OURS),
}  # fmt: skip
"""The tables by `--recipe` name."""


def default(dataset: str, method: str) -> str:
    """Return the recipe of a run that names none: its own paper's where that has the data set, else "ours".

    Of several papers with a row of it, the first in the order of `RECIPES` is taken.
    """
    having = [name for name, recipe in RECIPES.items() if (dataset, method) in recipe.table]
    own = [name for name in having if method in RECIPES[name].methods]
    return [*own, *having, "ours"][0]


def find(dataset: str | data.Dataset, method: str, recipe: str | None = None) -> Settings:
    """Return the settings of a method on a data set.

    A user's data set has those of the known one whose images are nearest in size, see `data.nearest`; a registered
    method those of pgd_adv in "ours", without its options. `source` says so.

    Args:
      dataset: its name, or the data.
      method: a name of `defenses`.
      recipe: a key of `RECIPES`; `default` by default.

    Raises:
      L2LError: an unknown method, data set or recipe, or a recipe without a row of them.
    """
    defenses.find(method)  # knows the names
    name = dataset if isinstance(dataset, str) else dataset.name
    if name not in data.NAMES:
        known = data.nearest((data.source(name) if isinstance(dataset, str) else dataset).image_shape)
        settings = find(known, method, recipe or "ours")
        return settings._replace(source=f"{settings.source}: as {known}")
    recipe = recipe or default(name, method)
    rows = check(recipe).table
    if recipe == "ours" and (name, method) not in rows:
        return rows[name, "pgd_adv"]._replace(recipe=recipe, recipe_of=name, options={})
    if (name, method) not in rows:
        has = sorted({other for dataset, other in rows if dataset == name}) or sorted({dataset for dataset, _ in rows})
        raise L2LError(f"recipe {recipe} has no {method} on {name}: it has {', '.join(has)}; or --recipe=ours")
    return rows[name, method]._replace(recipe=recipe, recipe_of=name)


def check(recipe: str) -> Recipe:
    """Return the recipe of that name; an unknown one is an L2LError."""
    if recipe not in RECIPES:
        raise L2LError(f"unknown recipe {recipe!r}: choose from {', '.join(RECIPES)}")
    return RECIPES[recipe]


def plain_before(settings: Settings) -> Settings:
    """Return the plain training of the classifier with which a run starts, in its workdir's folder classifier.

    It is the recipe's, stretched like the run, with batches that the data fill, on the run's own training images; its
    last state is saved in any case.
    """
    assert settings.workdir is not None
    plain = find(settings.recipe_of, "plain", settings.recipe)
    if settings.image_shape is not None:
        plain = fitted(plain, data.load(settings.dataset))
        plain = plain._replace(batch_size=min(plain.batch_size, settings.batch_size))
    if settings.val_size:
        plain = plain._replace(selection="validation")
    stretch = settings.epochs / find(settings.recipe_of, settings.method, settings.recipe).epochs
    shared = ("dataset", "image_shape", "num_classes", "arch", "eps", "norm", "dtype", "remat", "seed", "data_dir",
              "train_size", "val_size", "eval_size", "devices")  # fmt: skip
    return plain._replace(
        **{name: getattr(settings, name) for name in shared},
        method="plain",
        epochs=plain.epochs * stretch,
        milestones=tuple(m * stretch for m in plain.milestones),
        batch_size=min(plain.batch_size, settings.train_size or plain.batch_size),
        attacks=("pgd10",),
        workdir=settings.workdir / "classifier",
    )


def fitted(recipe: Settings, dataset: data.Dataset) -> Settings:
    """Return the recipe for a user's data: at most a tenth for validation, and no batch larger than the rest.

    Raises:
      L2LError: a set to evaluate on alone.
    """
    check_trainable(dataset)
    n = len(dataset.train.labels)
    val_size = min(recipe.val_size, n // 10)
    selection = "last" if recipe.selection == "validation" and not val_size else recipe.selection
    return recipe._replace(val_size=val_size, selection=selection, batch_size=min(recipe.batch_size, n - val_size))


def table(dataset: str) -> str:
    """Return the settings on a data set by default as a table, a row per method."""
    rows = []
    for method in defenses.METHODS:
        r = find(dataset, method)
        optimizers = [f"{r.optimizer} {r.lr:g}", f"{r.attacker_optimizer} {r.attacker_lr:g}"]
        settings = [r.arch, r.eps, f"{r.epochs:.4g}", str(r.batch_size), optimizers[0], r.rate, f"{r.weight_decay:g}"]
        ends = [r.schedule, r.selection, ", ".join(r.ingredients) or "-"]
        rows.append([r.recipe, method, *settings, optimizers[1], *ends])
    header = ["recipe", "method", "arch", "eps", "epochs", "batch", "optimizer", "rate", "weight decay", "attacker"]
    return grid([*header, "schedule", "selection", "ingredients"], rows)
