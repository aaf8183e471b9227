"""CIFAR-10, resnet20, all images, equal passes: single steps by hand and learned, 30 forward-backward passes an image.

PARTS of the table `ours:equal-passes`; a method of two passes a step has 15 epochs, one of three 10, one of four 7.
"""

from collections.abc import Mapping
from typing import Any

from papers.jobs import AUTOATTACK, FAST, NEUTRAL, Job, Part, trained, white

__all__ = ["PARTS", "PASSES", "ROWS", "SHIPPED", "model", "spent"]

PASSES = 30
"""The passes over a training image in all epochs."""
ROWS: dict[str, tuple[str, int, int | None, tuple[str, ...]]] = {
    "N-FGSM": ("n_fgsm", 2, None, ()),
    "RNN-Adv, T = 2": ("rnn_adv", 3, None, ("--steps=2",)),
    "PGD-2": ("pgd_adv", 3, None, ("--steps=2", f"--options=step_size={0.75 * 8 / 255:.5f}")),
    "FGSM-SDI": ("fgsm_sdi", 3, 16, ()),
    "FGSM-RS": ("fgsm_rs", 2, None, ()),
    "Grad L2L, slim": ("grad_l2l", 2, 16, ("--attacker=slim",)),
    "N-FGSM with smoothing": ("n_fgsm", 2, None, ("--label-smoothing=0.1",)),
    "RNN-Adv, T = 2 with AWP": ("rnn_adv", 4, None, ("--steps=2", "--awp=0.005")),
}
"""Row -> method, passes of a step, width of the learned attacker, flags; the last two are an ablation. PGD's step is
that of the search on digits, 0.75 eps. The learned attackers' own networks are not in the passes: FGSM-SDI's and L2L's
are a part of the time, RNN-Adv's is not."""
_SHARED = ("--lr=0.1", "--lr-schedule=onecycle", "--ema=0.999")
_RAW = {"pgd10": "pgd10", "pgd10 without EMA": "raw pgd10", "Natural without EMA": "raw clean"}
"""Columns from the training run's own report: what averaging the weights changes."""
SHIPPED = "N-FGSM with smoothing"
"""The row of the model that comes with the library, which standard AutoAttack judges too."""


def spent(row: str) -> int:
    """Return the passes over a training image in a row's whole epochs, at most PASSES."""
    _, passes, *_ = ROWS[row]
    return PASSES // passes * passes


def model(row: str) -> Job:
    """Return the model of a row."""
    method, passes, width, flags = ROWS[row]
    return trained(
        "ours", "cifar10", "resnet20", method, PASSES // passes, 0, *_SHARED, *flags,
        variant="-".join(["equal-passes", *row.split(" with ")[1:]]), width=width,
    )  # fmt: skip


def _judged(row: str, columns: Mapping[str, str], **how: Any) -> Part:
    """Return attacks on a row's model."""
    return white("ours:equal-passes", row, model(row), columns, 1000, **how)


PARTS: tuple[Part, ...] = (
    *(part for row in ROWS for part in (_judged(row, NEUTRAL, natural=True), _judged(row, FAST, variant="fast"))),
    *(Part("ours:equal-passes", row, (model(row),), _RAW, 0, model(row))
      for row in (SHIPPED, "Grad L2L, slim", "RNN-Adv, T = 2 with AWP")),
    _judged(SHIPPED, AUTOATTACK, variant="autoattack"),
)  # fmt: skip
