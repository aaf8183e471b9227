"""The victims: small classifiers of several networks, data sets, radii, methods and moments of training.

preys = [prey(victim, data_dir, folder, "train", 1000) for victim in LEARNING]
"""

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from l2ljax import data, fit, threat
from l2ljax.run.fit import save
from l2ljax.run.trained import load_classifier, read_config
from l2ljax.types import Array
from travel.training import Prey

__all__ = ["HELD_OUT", "LEARNING", "NETWORKS", "Convolutions", "Victim", "other", "prey"]


class Convolutions(nn.Module):
    """3x3 convolutions of stride 2, then dense layers; BatchNorm and another activation where asked."""

    widths: tuple[int, ...] = ()
    dense: tuple[int, ...] = ()
    norm: bool = False
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map [B, H, W, C] to [B, 10]."""
        activate = getattr(nn, self.activation)
        for width in self.widths:
            x = nn.Conv(width, (3, 3), strides=2)(x)
            x = activate(nn.BatchNorm(not train, momentum=0.9)(x) if self.norm else x)
        x = x.reshape(len(x), -1)
        for width in self.dense:
            x = activate(nn.Dense(width)(x))
        return nn.Dense(10)(x)


NETWORKS = {
    "mlp": Convolutions((), (128, 64)),
    "narrow": Convolutions((16, 32), (64,)),
    "batchnorm": Convolutions((16, 32), (), norm=True),
    "smooth": Convolutions((24, 48), (64,), activation="softplus"),
    "deep": Convolutions((16, 32, 64), (128,), norm=True),
}
"""Networks besides those of `models.CLASSIFIERS`."""


class Victim(NamedTuple):
    """A classifier and the threat that it is attacked in."""

    dataset: str
    arch: str
    method: str
    epochs: int
    eps: str
    size: int | None = None
    """The number of training images."""

    @property
    def name(self) -> str:
        """Return the victim's folder."""
        radius = self.eps.replace("/", "_")
        return f"{self.dataset}_{self.arch}_{self.method}_e{self.epochs}_r{radius}_s0"


METHODS = (("plain", 5), ("fgsm_adv", 10), ("pgd_adv", 3), ("pgd_adv", 20), ("trades", 20))
"""Methods and moments of training."""
LEARNING = [
    *(
        Victim("digits", arch, method, epochs, eps)
        for arch, eps in (("digits_cnn", "0.2"), ("mlp", "0.1"), ("batchnorm", "0.15"))
        for method, epochs in METHODS
    ),
    *(
        Victim("mnist", arch, method, epochs, eps, 2000)
        for arch, eps in (("narrow", "0.2"), ("mlp", "0.1"))
        for method, epochs in (("plain", 3), ("fgsm_adv", 5), ("trades", 10))
    ),
    *(Victim("mnist", "lenet5", method, epochs, "0.3", 2000) for method, epochs in (("plain", 3), ("trades", 10))),
]
"""The victims of the meta-training."""
HELD_OUT = [
    *(Victim("digits", "smooth", method, epochs, "0.15") for method, epochs in METHODS[2:]),
    *(Victim("cifar10", "deep", method, 5, "8/255", 4000) for method in ("plain", "pgd_adv", "trades")),
    *(Victim("cifar10", "smooth", method, 5, "4/255", 4000) for method in ("pgd_adv", "trades")),
    *(Victim("mnist", "deep", method, 5, "0.2", 2000) for method in ("plain", "pgd_adv", "trades")),
]
"""The victims of the comparison: networks that the meta-training has not, and a data set that it has not."""


def prey(victim: Victim, data_dir: str | None, folder: Path, part: str, size: int) -> Prey:
    """Return a victim, trained now if the folder does not hold it, and `size` images of its split "train" or "test"."""
    whole = data.load(victim.dataset, None if victim.dataset == "digits" else data_dir, train_size=victim.size)
    ball, network = threat.linf(threat.parse_eps(victim.eps)), NETWORKS.get(victim.arch)
    workdir = folder / victim.name
    if not workdir.exists():
        options = {} if victim.method in ("plain", "fgsm_adv") else {"steps": 5, "step_size": ball.eps / 2.5}
        result = fit(
            victim.arch if network is None else network, whole._replace(augment="none"), method=victim.method,
            ball=ball, epochs=victim.epochs, options=options, recipe="ours", batch_size=64, optimizer="adam", lr=2e-3,
            val_size=0, devices=1,
        )  # fmt: skip
        save(result, workdir)
    x, y = (a[:size] for a in getattr(whole, part))
    return Prey(victim.name, load_classifier(workdir, network), ball.eps, np.asarray(data.pixels(x)), y)


def other(workdir: str, data_dir: str | None, size: int) -> Prey:
    """Return the classifier of another run of ours and its first `size` test images."""
    saved = read_config(workdir)
    x, y = (a[:size] for a in data.load(saved["dataset"], data_dir or saved.get("data_dir")).test)
    return Prey(workdir, load_classifier(workdir), threat.parse_eps(saved["eps"]), np.asarray(data.pixels(x)), y)
