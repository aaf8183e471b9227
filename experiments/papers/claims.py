"""The papers' claims and questions of ours, each answered by the rule of `evidence` from kept results alone.

for answer in answers(compare.read_records(), Path("experiments/results")): ...
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from l2ljax import defenses
from l2ljax.report.markdown import grid
from papers import equal, gail
from papers.compare import Record
from papers.evidence import NEEDED, Answer, Sides, exceeds
from papers.groups import (
    at_equal_passes,
    costs,
    current,
    falls,
    in_worst_case,
    on_digits,
    one_column,
    tenth_of,
    two_columns,
)
from papers.jobs import FAST
from papers.plan import AS_PRINTED, TASKS

__all__ = ["CLAIMS", "Claim", "answers", "as_markdown"]


class Claim(NamedTuple):
    """A claim, and the numbers that it is about."""

    of: str
    """The paper and its tables, or `ours` for a question that no paper asks."""
    claim: str
    sides: Callable[[Sequence[Record], Path], Sides]


def answers(records: Sequence[Record], results: Path) -> list[Answer]:
    """Return the answers to all claims, from runs of the plan: those at the papers' settings are of other budgets."""
    kept = current(records)
    given = [exceeds(of, claim, sides(kept, results)) for of, claim, sides in CLAIMS]
    return [*given, *(answer for environment in TASKS for answer in gail.answers(environment, results))]


def as_markdown(given: Sequence[Answer]) -> str:
    """Return the section of BENCHMARKS.md."""
    rows = [[a.claim, a.of, a.where, a.answer + ", one seed" * (a.seeds == 1), a.shown, a.settled_by] for a in given]
    header = ["claim", "of", "where", "answer", "numbers", "to settle it"]
    ours = [answer for answer in given if answer.of.startswith("ours")]
    about = (
        f"Claims of the papers: {_counted([answer for answer in given if answer not in ours])}. Questions of ours: "
        f"{_counted(ours)}. The answers follow from the kept results by the rules below, and hold for the networks, "
        "schedules, bounds and rates that are named, most of which are ours, not for the papers'. AdvTrain, PGM Net, "
        "PGD10 and pgd_adv are all training with PGD; RNN-Adv `as printed` takes the gradient as it is and steps "
        "1 / eps as long as ours, which scales the gradient of each image. A pass is one forward and backward run of "
        "the classifier. The worst common attack is the lowest accuracy under any attack that all seeds of both rows "
        "have, except `own attacker` and `RNN-Adv`, which learned with a row: of the attacks on 1,000 images or of "
        "those on 10,000, whichever leave less. Of GAIL's updaters the lowest return is "
        "asked for, not how much it varies. "
        f"{_UNASKED}"
    )
    rules = (
        "- noise: the larger of (a) highest minus lowest seed, on the side where that is more, and (b) two standard "
        "errors of the difference from the number of test images; returns and seconds have no (b), one seed has no "
        "(a)\n"
        f"- yes or no: the means differ by more than the noise; or by more than (b), with {NEEDED} seeds a side, all "
        "of one above all of the other; an updater that diverges with one seed is a no\n"
        f"- no difference found: {NEEDED} seeds a side, and means that differ by less than (a); one up to the noise "
        "is not excluded\n"
        "- open: all else, and what is within the noise of a bound, like a tenth of a number; the last column has "
        f"what would settle it: images, or runs as they are planned, up to {NEEDED} seeds a side, in estimated hours "
        "of two CPU cores"
    )
    return "\n\n".join(["## What reproduces", about, rules, grid(header, rows)])


def _counted(given: Sequence[Answer]) -> str:
    """Return how many answers are of each kind, and how many of these of one seed."""
    counts, single = Counter(a.answer for a in given), Counter(a.answer for a in given if a.seeds == 1)
    kinds = sorted(counts, key=["yes", "no", "no difference found", "open"].index)
    return ", ".join(f"{counts[kind]} {kind}" + f" ({single[kind]} of one seed)" * (single[kind] > 0) for kind in kinds)


_UNASKED = (
    "No run, and so no answer, has what the papers claim on larger networks and other data: RNN-Adv's Tables 4 and 5 "
    "(CIFAR-10, VGG-16 and a Wide ResNet), L2L on CIFAR-100 and SVHN, and L2L-DA on CIFAR-10. RNN-Adv is not held "
    "against L2LDA, for which fewer epochs are planned."
)
_T3, _L2L, _AIT, _DA = "rnn_adv:table3", "l2l:table2", "l2l:table4-v2", "l2l_da:table2-mnist"
_BLS, _T6, _T7, _PARTS, _INPUTS = (
    "rnn_adv:table1",
    "rnn_adv:table6",
    "rnn_adv:table7",
    "l2l_da:table1a",
    "l2l_da:table1b",
)
_NAIVE = "naive L2L keeps less than a tenth of what PGM training keeps"
_FALLS = f"AIT loses more points from pgd100 to {', '.join(FAST)} than PGM training"
_LEARNED = [row for row, (method, *_) in equal.ROWS.items() if defenses.find(method).learns]
_FIXED, _ATTACKERS = "attackers of three seeds, trained on one fixed model, beat {} at equal steps", "ours:attackers"
CLAIMS: tuple[Claim, ...] = (
    Claim("RNN-Adv T3", "RNN-Adv, ours, beats AdvTrain", one_column(_T3, "PGD-100", "RNN-Adv", "AdvTrain")),
    Claim("RNN-Adv T3", "RNN-Adv, ours, beats AdvTrain", in_worst_case(_T3, "RNN-Adv", "AdvTrain")),
    Claim("RNN-Adv T3", "RNN-Adv, ours, beats AdvTrain", on_digits("methods", "rnn_adv", "pgd_adv")),
    Claim("RNN-Adv T3", "RNN-Adv as printed beats AdvTrain", in_worst_case(_T3, AS_PRINTED, "AdvTrain")),
    Claim("ours", "RNN-Adv as printed beats ours", in_worst_case(_T3, AS_PRINTED, "RNN-Adv")),
    Claim("ours", "RNN-Adv as printed beats ours", on_digits("recipes", "rnn_adv, as printed", "rnn_adv, ours")),
    Claim("RNN-Adv T3", "RNN-TRADES, ours, beats TRADES", in_worst_case(_T3, "RNN-TRADES", "TRADES")),
    Claim("RNN-Adv T3", "RNN-TRADES, ours, beats TRADES", on_digits("methods", "rnn_trades", "trades")),
    Claim("RNN-Adv T1", "PGD with line search, 3 passes a step, first step at most eps (our choice), beats PGD with 1",
          two_columns((_BLS, "AdvTrain", "PGD"), (_BLS, "AdvTrain", "PGD+BLS"))),
    Claim("RNN-Adv T1", "training with line search beats AdvTrain", in_worst_case(_BLS, "AdvTrain+BLS", "AdvTrain")),
    Claim("RNN-Adv T2", "a step of RNN-Adv, ours, costs less than one of L2LDA",
          costs("costs_resnet20", "l2l_da", "rnn_adv")),
    Claim("RNN-Adv T3", "one optimizer of RNN-Adv, ours, trained with 7 steps, beats PGD-10 with 10 steps",
          two_columns((_T3, "AdvTrain", "PGD-10"), (_T3, "AdvTrain", "RNN-Adv"))),
    Claim("RNN-Adv T3", "one optimizer of RNN-Adv, ours, trained with 7 steps, beats PGD-10 with these 7",
          two_columns((_T3, "AdvTrain", "PGD-10"), (_T6, "AdvTrain", "7 steps"))),
    Claim("RNN-Adv T6", "one optimizer of RNN-Adv, ours, is stronger with 40 steps than with 10",
          two_columns((_T6, "AdvTrain", "10 steps"), (_T6, "AdvTrain", "40 steps"))),
    *(Claim("RNN-Adv T7", f"RNN-Adv, ours, beats AdvTrain under attacks on another {name} model",
            one_column(_T7, column, "RNN-Adv", "AdvTrain"))
      for name, column in {"plain": "Plain-Net", "PGD-trained": "PGD-Net"}.items()),
    Claim("RNN-Adv Fig. 3", "RNN-Adv's largest loss around images is lower than AdvTrain's",
          one_column("rnn_adv:figure3", "largest loss", "AdvTrain", "RNN-Adv")),
    Claim("L2L T2", "Grad L2L, joint, beats PGM training", in_worst_case(_L2L, "Grad L2L", "PGM Net")),
    Claim("L2L T2", "Grad L2L, joint, beats PGM training", on_digits("methods", "grad_l2l", "pgd_adv")),
    Claim("L2L T2", "2-Step L2L, joint, beats PGM training", in_worst_case(_L2L, "2-Step L2L", "PGM Net")),
    Claim("L2L T2", "2-Step L2L, joint, beats PGM training", on_digits("methods", "two_step_l2l", "pgd_adv")),
    Claim("L2L T2", "2-Step L2L beats Grad L2L, both joint", in_worst_case(_L2L, "2-Step L2L", "Grad L2L")),
    Claim("L2L T2", "2-Step L2L beats Grad L2L, both joint", on_digits("methods", "two_step_l2l", "grad_l2l")),
    Claim("L2L T2", "Grad L2L beats Grad-only L2L", in_worst_case(_L2L, "Grad L2L", "Grad-only L2L")),
    Claim("L2L T2", _NAIVE, tenth_of(in_worst_case(_L2L, "PGM Net", "Naive L2L"))),
    Claim("L2L T2", _NAIVE, tenth_of(on_digits("methods", "pgd_adv", "naive_l2l"))),
    *(Claim("ours", f"{method}: L2L's alternating schedule beats joint",
            on_digits("recipes", f"{method}, alternating", f"{method}, joint"))
      for method in ("grad_l2l", "two_step_l2l")),
    *(Claim("L2L T3", f"a step of {row}, alternating, costs less than one of PGM training, 10 steps",
            costs("costs_wrn_34_10", "pgd_adv", f"{method}:alternating"))
      for row, method in {"Grad L2L": "grad_l2l", "2-Step L2L": "two_step_l2l"}.items()),
    Claim("L2L T4-6", "Grad L2L beats PGM training under attacks on another PGM-trained model",
          one_column("l2l:table4", "PGM PGM10", "Grad L2L", "PGM Net")),
    Claim("L2L v1, discussion", "Grad L2L's wide attacker beats the slim one", on_digits("slim", "wide", "slim")),
    Claim("L2L v1, discussion", "the slim attacker beats itself without its skip",
          on_digits("slim", "slim", "slim without the skip")),
    Claim("L2L v2 T4", "AIT+Grad L2L beats AIT", in_worst_case(_AIT, "AIT+Grad L2L", "AIT")),
    Claim("ours", _FALLS, falls((_AIT, "AIT"), (_L2L, "PGM Net"))),
    Claim("ours", _FALLS, falls((_AIT, "AIT+Grad L2L"), (_L2L, "PGM Net"))),
    *(Claim(of, _FIXED.format(other), two_columns((_ATTACKERS, row, column), (_ATTACKERS, row, "trained")))
      for paper, row in {"ours": "RNN on AdvTrain", "L2L-DA T2": "L2L-DA on PGD10"}.items()
      for of, other, column in ((paper, "PGD", "PGD"), ("ours", "themselves untrained", "untrained"))),
    *(Claim("ours", f"{row} beats N-FGSM at equal passes", at_equal_passes(row, "N-FGSM")) for row in _LEARNED),
    *(Claim("L2L-DA T1", f"L2L-DA's recursion helps, {kept}", in_worst_case(_PARTS, f"R+, {kept}", f"R-, {kept}"))
      for kept in ("D-", "D+")),
    *(Claim("L2L-DA T1", f"L2L-DA's diversity term helps, {kept}", in_worst_case(_PARTS, f"{kept}, D+", f"{kept}, D-"))
      for kept in ("R-", "R+")),
    *(Claim("L2L-DA T1", f"L2L-DA's generator, delta+, y+, beats {row}", in_worst_case(_INPUTS, "delta+, y+", row))
      for row in ("delta-, y+", "delta+, y-", "delta-, y-")),
    Claim("L2L-DA T2", "L2L-DA beats PGD training", in_worst_case(_DA, "L2L-DA", "PGD10")),
    Claim("L2L-DA T2", "L2L-DA beats L2L*, the generator of one shot", in_worst_case(_DA, "L2L-DA", "L2L*")),
    Claim("L2L-DA T2", "L2L-DA's attacker beats AdvGAN's",
          two_columns((_DA, "PGD10", "AdvGAN"), (_DA, "PGD10", "L2L-DA"))),
    Claim("L2L-DA T3", "L2L-DA beats PGD training under PGD100 on another PGD-trained model",
          one_column("l2l_da:table3", "PGD100 C", "L2L-DA", "PGD10")),
)  # fmt: skip
