"""The papers' training settings: one table, keyed by (data set, method), that `--help` prints.

A flag replaces one entry; the schedule's milestones stretch with `--epochs`.
"""

from l2ljax import data, defenses
from l2ljax.data.arrays import check_trainable
from l2ljax.report.markdown import grid
from l2ljax.run.settings import Settings

__all__ = ["RECIPES", "find", "fitted", "table"]

# Learning to Defend by Learning to Attack, section 5: the learning rate falls at epochs 30, 60, 90, counted from 1.
L2L = Settings(
    "L2L",
    "wrn_34_10",
    "0.031",
    epochs=100,
    lr=0.1,
    weight_decay=2e-4,
    milestones=(29, 59, 89),
    attacker_weight_decay=2e-4,
)
# What RNN-Adv's AdvTrain rows are trained with, as far as known: the released code of BayesianDefense, which restarts
# the momentum at each milestone (we do not).
ADV_TRAIN = Settings(
    "RNN-Adv, BayesianDefense", "vgg16", "8/255", epochs=200, lr=0.01, weight_decay=5e-4, milestones=(80, 140, 180)
)
TRADES = Settings("RNN-Adv, TRADES", "vgg16", "8/255", epochs=76, lr=0.1, weight_decay=2e-4, milestones=(75,))
ZAGORUYKO = L2L._replace(
    source="L2L, Wide ResNets", epochs=200, weight_decay=5e-4, nesterov=True, milestones=(60, 120, 160), decay=0.2
)
# Learning to Defend by Learning to Attack (2021), section 4.3, after the released code of Adversarial Interpolation
# Training.
AIT = L2L._replace(source="L2L, AIT", epochs=200, milestones=(60, 90))
MNIST = Settings("RNN-Adv, TRADES", "small_cnn", "0.3", epochs=100, lr=0.01, milestones=(55, 75, 90))
# L2L-DA, section 5.1 and its released code: 100,000 steps. On MNIST the first 1,000 are plain training; on CIFAR-10 the
# classifier starts trained (--init-from).
L2L_DA = Settings(
    "L2L-DA",
    "lenet5",
    "0.3",
    epochs=167,
    lr=0.01,
    batch_size=100,
    weight_decay=1e-5,
    milestones=(83.5,),
    attacker_lr=0.01,
    attacker_optimizer="sgd",
    attacker_weight_decay=1e-5,
    clip_norm=1.0,
    warmup=5 / 3,
    augment="crop",
)
L2L_DA_CIFAR = L2L_DA._replace(
    arch="resnet20", eps="8/255", epochs=200, milestones=(100,), warmup=0.0, augment=None, options={"diversity": 0.5}
)
DIGITS = Settings("ours", "digits_cnn", "0.2", epochs=60, lr=1e-3, batch_size=100, optimizer="adam", val_size=100)

ATTACK = Settings("ours", "of the victim", "of the victim", epochs=10, lr=0.0, val_size=0)

_LEARNED_CNN = ("naive_l2l", "grad_l2l", "two_step_l2l", "grad_only_l2l", "two_step_grad_only_l2l")
PGM = {"step_size": 0.007, "start": "clean"}
_CIFAR = {
    "plain": ZAGORUYKO,
    "fgsm_adv": L2L,
    "pgd_adv": ADV_TRAIN._replace(options=PGM),
    "pgd_bls_adv": ADV_TRAIN,
    "cw_adv": L2L_DA_CIFAR._replace(options={}),
    "trades": TRADES._replace(options={"step_size": 0.007}),
    "stability": L2L,
    "ait": AIT,
    "ait_l2l": AIT,
    "rnn_adv": ADV_TRAIN._replace(attacker_lr=1e-2),
    "rnn_trades": TRADES._replace(attacker_lr=1e-2),
    **dict.fromkeys(_LEARNED_CNN, L2L),
    "l2l_da": L2L_DA_CIFAR,
    "l2l_star": L2L_DA_CIFAR._replace(options={}),
}

# The papers are silent about the recurrent optimizer's own learning rate: 1e-2 is ours (BENCHMARKS.md, "digits rnn").
_RNN = ("rnn_adv", "rnn_trades")


def _everywhere(recipe: Settings) -> dict[str, Settings]:
    return {m: recipe._replace(attacker_lr=1e-2) if m in _RNN else recipe for m in defenses.METHODS}


_L2L_DATA = {**_CIFAR, "pgd_adv": L2L._replace(options=PGM)}
_ON_MNIST = {**_everywhere(MNIST), "cw_adv": L2L_DA._replace(warmup=0.0), "l2l_da": L2L_DA, "l2l_star": L2L_DA}
_TABLES = {
    "digits": _everywhere(DIGITS),
    "mnist": _ON_MNIST,
    "fashion_mnist": _ON_MNIST,
    "cifar10": _CIFAR,
    "cifar100": _L2L_DATA,
    "svhn": _L2L_DATA,
    "restricted_imagenet": _everywhere(L2L._replace(source="ours, L2L", arch="resnet18_imagenet", eps="0.005")),
}
RECIPES: dict[tuple[str, str], Settings] = {
    (dataset, method): recipe
    for dataset, table in _TABLES.items()
    for method, recipe in {**dict.fromkeys(defenses.ATTACKERS, ATTACK), **table}.items()
}
"""(data set, method) -> recipe. A method that is not there is trained as pgd_adv, see `find`."""


def find(dataset: str | data.Dataset, method: str) -> Settings:
    """Return the recipe of a method on a data set: that of pgd_adv, without its options, if it has none of its own.

    A user's data set has the recipe of the known one whose images are nearest in size, see `data.nearest`; and `source`
    says so.

    Raises:
      L2LError: unknown method or data set.
    """
    defenses.find(method)  # knows the names
    name = dataset if isinstance(dataset, str) else dataset.name
    if (name, "pgd_adv") in RECIPES:
        return RECIPES.get((name, method)) or RECIPES[name, "pgd_adv"]._replace(options={})
    known = data.nearest((data.source(name) if isinstance(dataset, str) else dataset).image_shape)
    recipe = find(known, method)
    return recipe._replace(source=f"{recipe.source}: as {known}")


def fitted(recipe: Settings, dataset: data.Dataset) -> Settings:
    """Return the recipe for a user's data: at most a tenth for validation, and no batch larger than the rest.

    Raises:
      L2LError: a set to evaluate on alone.
    """
    check_trainable(dataset)
    n = len(dataset.train.labels)
    val_size = min(recipe.val_size, n // 10)
    return recipe._replace(val_size=val_size, batch_size=min(recipe.batch_size, n - val_size))


def table(dataset: str) -> str:
    """Return the data set's recipes as a table, a row per method."""
    rows = []
    for method in defenses.METHODS:
        r = find(dataset, method)
        falls = f"x{r.decay:g} at {'/'.join(f'{m:g}' for m in r.milestones)}" if r.milestones else "-"
        others = [f"{k}={v}" for k, v in r.options.items()]
        others += [f"{r.warmup:.2g} epochs plain"] * bool(r.warmup) + [f"clip {r.clip_norm}"] * bool(r.clip_norm)
        optimizers = [f"{r.optimizer} {r.lr:g}", f"{r.attacker_optimizer} {r.attacker_lr:g}"]
        settings = [r.arch, r.eps, str(r.epochs), str(r.batch_size), optimizers[0], falls, f"{r.weight_decay:g}"]
        rows.append([method, *settings, optimizers[1], ", ".join(others) or "-", r.source])
    header = ["method", "arch", "eps", "epochs", "batch", "optimizer", "falls", "decay", "attacker", "options", "from"]
    return grid(header, rows)
