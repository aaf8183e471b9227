"""Time estimates for jobs: multiplications counted by `cost`, at two assumed speeds.

    effort.training("mnist", "small_cnn", "rnn_adv", epochs=6).hours("cpu")

A pass is a forward and a backward pass of the classifier over one image.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2ljax import cost, models

__all__ = [
    "ALTERNATING",
    "ATTACKERS",
    "ENDS",
    "GENERATORS",
    "PASSES",
    "SPEEDS",
    "TRAIN_IMAGES",
    "Effort",
    "judging",
    "multiplications",
    "passes_of",
    "training",
]

PASSES = {
    "plain": 1, "fgsm_adv": 2, "fgsm_rs": 2, "n_fgsm": 2, "elle": 5, "pgd_adv": 11, "pgd_bls_adv": 31, "cw_adv": 101,
    "trades": 12, "mart": 12, "stability": 2, "naive_l2l": 1, "grad_l2l": 2, "two_step_l2l": 3, "grad_only_l2l": 2,
    "two_step_grad_only_l2l": 3, "ait": 3, "ait_l2l": 3, "rnn_adv": 11, "rnn_trades": 12, "l2l_da": 23, "l2l_star": 3,
    "fgsm_sdi": 3, "las_at": 15, "free_adv": 1,
}  # fmt: skip
"""Passes per image of a training step on one perturbation."""
STEPS = {"pgd_adv": 10, "trades": 10, "mart": 10, "rnn_adv": 10, "rnn_trades": 10, "pgd_bls_adv": 10, "l2l_da": 10}
"""Steps of the attack in them."""
STEP = {"pgd_bls_adv": 3, "l2l_da": 2}
"""Passes of such a step, 1 elsewhere."""
ENDS = {"elle": 4, "trades": 2, "mart": 2, "stability": 2, "rnn_trades": 2, "l2l_da": 3, "l2l_star": 2}
"""Those that train the classifier, 1 elsewhere: adversarial weight perturbation makes them twice."""
ALTERNATING = {
    "naive_l2l": 2, "grad_l2l": 4, "two_step_l2l": 6, "grad_only_l2l": 4, "two_step_grad_only_l2l": 6,
    "fgsm_sdi": 6, "las_at": 41,
}  # fmt: skip
"""Those of schedule alternating, as released: gradients, attack and loss again for phi, and las_at's PGD-10."""
GENERATORS = {
    "naive_l2l": 1.8e9, "grad_l2l": 1.8e9, "two_step_l2l": 3.6e9, "grad_only_l2l": 1.8e9,
    "two_step_grad_only_l2l": 3.6e9, "ait_l2l": 1.8e9, "l2l_da": 20 * 640e6, "l2l_star": 252e6,
    "fgsm_sdi": 81e6,
}  # fmt: skip
"""Multiplications of the learned attacker's forward passes in a step, per image of 32 x 32 at the papers' width (64).
The U-Net's count three times: its narrow and strided convolutions run at a third of a classifier's speed on a CPU; in
L2L-DA's recursion, whose gradient goes through all steps, 2.5 times that (measured with LeNet-5)."""
ATTACKERS = {"wide": (64, 1.0), "slim": (128, 0.2)}
"""L2L's attacker -> its own width, and its multiplications there over the wide one's."""
TRAIN_IMAGES = {"digits": 1300, "mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}
PIXELS = {"digits": 64, "mnist": 784}
"""Pixels per image; others have 1,024."""
SPEEDS = {"cpu": 1e11, "gpu": 5e13}
"""Multiplications a second: two CPU cores with a job on each (twice one core's speed in training with PGD-10: 67 images
a second for resnet20, 226 for small_cnn), and an assumed data-center GPU (0.1 PFLOP/s)."""
LEAST = 3.6e6
"""The least number of multiplications whose time a forward pass takes: those of small networks take longer, as
LeNet-5's 0.4 million do (measured in PGD-7 training in batches of 50, against small_cnn on the same processor)."""
LAUNCH = {"cpu": 0.0, "gpu": 5e-6}
"""The least seconds of a pass per image: a GPU waits for small networks' kernels."""


class Effort(NamedTuple):
    """An amount of work, counted lazily."""

    passes: float = 0.0
    forwards: tuple[tuple[str, float], ...] = ()
    """Classifiers, and the number of their forward passes."""
    attackers: float = 0.0
    """Multiplications of learned attackers."""

    def __add__(self, other: "Effort") -> "Effort":  # type: ignore[override]
        """Return the sum of both."""
        return Effort(self.passes + other.passes, self.forwards + other.forwards, self.attackers + other.attackers)

    @property
    def multiplications(self) -> float:
        """All multiplications."""
        return sum(count * multiplications(arch) for arch, count in self.forwards) + self.attackers

    def hours(self, machine: str) -> float:
        """Return the hours on two CPU cores (`cpu`) or one data-center GPU (`gpu`)."""
        return max(self.multiplications / SPEEDS[machine], self.passes * LAUNCH[machine]) / 3600


@functools.cache
def multiplications(arch: str) -> float:
    """Return the multiplications of a classifier's forward pass over one image, counted on shapes, `LEAST` at least."""
    known = models.CLASSIFIERS[arch](num_classes=10).image_shape
    x = jax.ShapeDtypeStruct((1, *(n or usual for n, usual in zip(known, (32, 32, 3), strict=True))), jnp.float32)
    classifier = models.create(arch)
    variables = jax.eval_shape(classifier.init, jax.random.key(0), x)
    return max(cost.multiplications(cost.mark(classifier.logits), variables, x), LEAST)


def training(
    dataset: str, arch: str, method: str, *, epochs: float, images: int | None = None, width: int | None = None,
    attacker: str = "wide", schedule: str = "joint", awp: float = 0.0, steps: int | None = None, mixed: bool = False,
) -> Effort:  # fmt: skip
    """Return the effort of a training run: a gradient in x costs a forward pass, and so does one in the weights.

    `images` are per epoch, all by default; `attacker` is L2L's, `width` that of a learned attacker's network, by
    default the paper's; `steps` are those of the attack in schedule joint, by default the method's; `mixed` adds clean
    images.
    """
    seen = epochs * (images or TRAIN_IMAGES[dataset])
    own, share = ATTACKERS[attacker]
    scale = share * ((width or own) / own) ** 2 * PIXELS.get(dataset, 1024) / 1024
    generator = GENERATORS.get(method, 0.0) * scale
    passes = (ALTERNATING if schedule == "alternating" else PASSES).get(method, PASSES[method])
    passes += STEP.get(method, 1) * (steps - STEPS.get(method, steps)) if steps else 0
    generator *= passes / PASSES[method]
    passes += mixed + ENDS.get(method, 1) * (2 if schedule == "alternating" else 1) * (awp > 0)
    return Effort(seen * passes, ((arch, seen * (2 * passes + 1)),), 3 * seen * generator)


def judging(arch: str, attacks: list[str], images: int) -> Effort:
    """Return the effort of attacks on that many test images."""
    passes = images * sum(map(passes_of, attacks))
    return Effort(passes, ((arch, 2 * passes),))


def passes_of(attack: str) -> float:
    """Estimate an attack's number of passes per image."""
    if attack == "standard":
        return 3000.0  # up to 4,400 if the first attacks all fail
    if attack == "fast":
        return 600.0
    match = re.match(r"(?P<family>l2l_cw|cw_l2|[a-z_]+?)(?P<n>\d+)?(?:[@+:]|$)", attack)
    count = float((match and match["n"]) or 10)
    return count * {"random": 0.5, "bls": 3.0, "l2l_cw": 8.0, "fgsm": 0.1}.get(match["family"] if match else "", 1.0)
