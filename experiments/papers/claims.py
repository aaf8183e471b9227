"""The papers' claims, each answered yes, no or open by a rule from kept results alone.

    for answer in answers(compare.read_records(), Path("experiments/results")): ...

A comparison is of two groups of numbers, one per seed. Its noise is the larger of the groups' ranges over seeds and of
two standard errors from the number of images. A difference above the noise is yes, one below minus the noise is no.
Between, it is no if both have three seeds and the difference is within their ranges, else open.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from l2ljax import defenses
from l2ljax.report.markdown import grid
from papers import equal
from papers.compare import Record
from papers.jobs import FAST, effort_of
from papers.plan import AS_PRINTED, PARTS

__all__ = [
    "ATTACKS", "NEEDED", "Answer", "Group", "alike", "alternating_beats_joint", "answers", "as_markdown", "column",
    "digits", "diversity_helps", "exceeds", "gail_is_steadied", "interpolation_falls", "learned_attacker_pays",
    "learned_attacker_wins", "naive_fails", "rnn_beats_adv_train", "two_steps_beat_one", "worst",
]  # fmt: skip

NEEDED = 3
"""The number of seeds that makes a difference within the noise a no."""


class Group(NamedTuple):
    """One side of a comparison."""

    name: str
    values: Sequence[float]
    images: int | None = None
    """The number of images of an accuracy; None for other numbers."""
    hours: float = 0.0
    """The time of one more seed on two CPU cores, as estimated; 0 if unknown."""


class Answer(NamedTuple):
    """The answer to one claim in one place."""

    claim: str
    where: str
    answer: str
    """yes, no, open."""
    shown: str
    """The numbers and the noise."""
    seeds: int = 0
    """The number of seeds of the smaller group: with one, the noise does not include the seeds'."""
    settled_by: str = ""
    """The budget that would settle an open claim."""


def exceeds(claim: str, where: str, more: Group, less: Group) -> Answer:
    """Return whether `more` is above `less` by more than the noise."""
    if not more.values or not less.values:
        missing = ", ".join(group.name for group in (more, less) if not group.values)
        return Answer(claim, where, "open", f"not run: {missing}", settled_by=_seeds(more, less))
    difference = statistics.mean(more.values) - statistics.mean(less.values)
    spread = max(max(group.values) - min(group.values) for group in (more, less))
    noise = max(spread, 2 * math.hypot(_error(more), _error(less)))
    seeds = min(len(more.values), len(less.values))
    if difference > noise:
        answer = "yes"
    elif difference < -noise or (seeds >= NEEDED and difference <= spread):
        answer = "no"
    else:
        answer = "open"
    sides = [f"{group.name} {', '.join(_number(value, group) for value in group.values)}" for group in (more, less)]
    settled_by = ""
    if answer == "open":
        enough = seeds >= NEEDED  # then the difference is above the seeds' range, and so above 0
        images = (more.images or 0) * (noise / difference) ** 2 if enough else 0
        settled_by = f"{images:,.0f} images" if enough else _seeds(more, less)
    shown = f"{'; '.join(sides)}; noise {_number(noise, more)}"
    return Answer(claim, where, answer, shown, seeds, settled_by)


def _seeds(*groups: Group) -> str:
    """Return the seeds that the groups lack of `NEEDED`, with their hours: with all, few answers remain open."""
    missing = [max(NEEDED - len(group.values), 0) for group in groups]
    hours = sum(count * group.hours for count, group in zip(missing, groups, strict=True))
    return f"{sum(missing)} runs" + f", {hours:.1f} h" * (hours > 0)


def _error(group: Group) -> float:
    """Return the standard error of an accuracy of one seed from its number of images; 0 for other numbers."""
    if not group.images:
        return 0.0
    p = min(max(abs(statistics.mean(group.values)), 1 / group.images), 1.0)
    return math.sqrt(p * (1 - p) / group.images)


def _number(value: float, group: Group) -> str:
    return f"{100 * value:.2f}" if group.images else f"{value:.1f}"


def answers(records: Sequence[Record], results: Path) -> list[Answer]:
    """Return the answers to all claims."""
    return [answer for claim in CLAIMS for answer in claim(records, results)]


def as_markdown(given: Sequence[Answer]) -> str:
    """Return the section of BENCHMARKS.md."""
    rows = [[a.claim, a.where, a.answer + ", one seed" * (a.seeds == 1), a.shown, a.settled_by] for a in given]
    about = (
        "Answered by rules from the kept results (experiments/papers/claims.py), for the schedules that were run, not "
        "the papers'. Noise is the larger of the seeds' range and two standard errors of the images; a difference "
        f"within it is no where both sides have {NEEDED} seeds and their range hides it, and open otherwise: then runs "
        f"up to {NEEDED} seeds of each side, estimated in hours of two CPU cores, or more images would settle it."
    )
    header = ["claim", "where", "answer", "numbers", "to settle it"]
    return "\n\n".join(["## What reproduces", about, grid(header, rows)])


# The numbers ---------------------------------------------------------------------------------------------------------

ATTACKS = ("PGD-10", "PGD-100", "PGM-20", "PGM-100", "PGD10", "PGD100", "FGSM", "pgd100", "margin100", "CW-100")
"""Columns for a row's worst case, if all rows of a comparison have them."""


def alike(found: Sequence[Record]) -> Sequence[Record]:
    """Return the records if all are of one network and one number of images in training, else none."""
    about = ("dataset", "arch", "epochs", "train_size")
    return found if len({tuple(record["training"].get(name) for name in about) for record in found}) == 1 else []


def worst(records: Sequence[Record], table: str, *rows: str) -> list[Group]:
    """Return for each row the lowest accuracy per seed among the attacks that all these rows share, if `alike`."""
    every = alike([record for record in records if record["table"] == table and record["row"] in rows])
    common = [c for c in ATTACKS if every and all(c in record["values"] for record in every)]
    of_row = {row: [record["values"] for record in every if record["row"] == row] for row in rows}
    return [
        Group(
            row,
            [min(values[c]["value"] for c in common) for values in seeds if common],
            min((values[c]["images"] for values in seeds for c in common), default=None),
            _hours(table, row),
        )
        for row, seeds in of_row.items()
    ]


def column(records: Sequence[Record], table: str, row: str, name: str) -> Group:
    """Return one column per seed, if they are `alike`."""
    seeds = alike([r for r in records if (r["table"], r["row"]) == (table, row) and name in r["values"]])
    cells = [record["values"][name] for record in seeds]
    images = min((c["images"] for c in cells), default=None)
    return Group(name, [c["value"] for c in cells], images, _hours(table, row))


def _hours(table: str, row: str) -> float:
    """Return the time of one seed of a row, with the attackers and judgements that it needs."""
    return effort_of([p for p in PARTS if (p.table, p.row, p.seed) == (table, row, 0)]).hours("cpu")


def digits(results: Path, table: str, row: str) -> Group:
    """Return PGD-100 per seed of a setting of experiments/ablation.py."""
    path = results / f"digits_{table}.json"
    runs = json.loads(path.read_text())["rows"].get(row, []) if path.exists() else []
    return Group(row, [run["attacks"]["pgd100"]["robust_acc"] for run in runs], runs[0]["eval_size"] if runs else None)


def _falls(records: Sequence[Record], *rows: tuple[str, str]) -> list[Group]:
    """Return for each (table, row) PGM-20's accuracy minus AutoAttack's on the same images, per seed, if `alike`."""
    [verdict] = FAST
    both = alike([r for r in records if (r["table"], r["row"]) in rows and {"PGM-20", verdict} <= set(r["values"])])
    groups = []
    for table, row in rows:
        seeds = [r["values"] for r in both if (r["table"], r["row"]) == (table, row)]
        images = min((values[verdict]["images"] for values in seeds), default=None)
        falls = [values["PGM-20"]["value"] - values[verdict]["value"] for values in seeds]
        groups.append(Group(row, falls, images, _hours(table, row)))
    return groups


# The claims ----------------------------------------------------------------------------------------------------------

_SETS = {"rnn_adv:table3": "MNIST", "l2l:table2": "CIFAR-10"}
_Pair = tuple[str, Group, Group]


def _worst_of(records: Sequence[Record], table: str, *rows: str) -> _Pair:
    """Return `worst` of two rows of a table, and where: with their training if they share it."""
    every = alike([record for record in records if record["table"] == table and record["row"] in rows])
    more, less = worst(records, table, *rows)
    runs = [record["training"] for record in every[:1]]
    epochs = [f"{run['epochs']:g} epochs" for run in runs]
    images = [f"{run['train_size']:,} training images" for run in runs if run.get("train_size")]
    return ", ".join([_SETS[table], *epochs, *images, "worst common attack"]), more, less


def _two_places(
    records: Sequence[Record], results: Path, table: str, rows: tuple[str, str], methods: tuple[str, str]
) -> list[_Pair]:
    """Return (where, more, less) of two rows of a table and of the same methods on digits."""
    more, less = (digits(results, "methods", name) for name in methods)
    return [_worst_of(records, table, *rows), ("digits, PGD-100", more, less)]


def rnn_beats_adv_train(records: Sequence[Record], results: Path) -> list[Answer]:
    """RNN-Adv, Tables 3 to 5, with our scale and normalization, and as printed."""
    table = "rnn_adv:table3"
    pairs = _two_places(records, results, table, ("RNN-Adv", "AdvTrain"), ("rnn_adv", "pgd_adv"))
    said = [exceeds("RNN-Adv, ours, beats AdvTrain", *pair) for pair in pairs]
    printed, ours = (digits(results, "recipes", f"rnn_adv, {form}") for form in ("as printed", "ours"))
    return [
        *said,
        exceeds("RNN-Adv as printed beats AdvTrain", *_worst_of(records, table, AS_PRINTED, "AdvTrain")),
        exceeds("RNN-Adv as printed beats ours", *_worst_of(records, table, AS_PRINTED, "RNN-Adv")),
        exceeds("RNN-Adv as printed beats ours", "digits, PGD-100", printed, ours),
    ]


def alternating_beats_joint(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L's released code makes the attack again for phi; one perturbation for both players is cheaper."""
    said = []
    for method in ("grad_l2l", "two_step_l2l"):
        pair = [digits(results, "recipes", f"{method}, {schedule}") for schedule in ("alternating", "joint")]
        said.append(exceeds(f"{method} as released (alternating) beats joint", "digits, PGD-100", *pair))
    return said


def two_steps_beat_one(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L, Table 2."""
    pairs = _two_places(records, results, "l2l:table2", ("2-Step L2L", "Grad L2L"), ("two_step_l2l", "grad_l2l"))
    return [exceeds("two-step L2L beats grad L2L, joint", *pair) for pair in pairs]


def naive_fails(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L, Table 2: an attacker without the gradient defends against nothing."""
    claim = "naive L2L fails: it keeps less than a tenth of what PGM training keeps"
    pairs = _two_places(records, results, "l2l:table2", ("PGM Net", "Naive L2L"), ("pgd_adv", "naive_l2l"))
    tenth = lambda full: full._replace(name=f"a tenth of {full.name}", values=[v / 10 for v in full.values])
    return [exceeds(claim, where, tenth(full), naive) for where, full, naive in pairs]


def interpolation_falls(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L v2, Table 4: whether AutoAttack takes more from AIT than from PGM training."""
    claim, said = "AIT loses more from PGM-20 to AutoAttack than PGM training", []
    for row in ("AIT", "AIT+Grad L2L"):
        pair = _falls(records, ("l2l:table4-v2", row), ("l2l:table2", "PGM Net"))
        said.append(exceeds(claim, f"CIFAR-10, {row}", *pair))
    return said


def learned_attacker_wins(records: Sequence[Record], results: Path) -> list[Answer]:
    """RNN-Adv, Table 3; L2L-DA, Figure 2: less accuracy remains at equal steps."""
    said = []
    for row in ("RNN on AdvTrain", "L2L-DA on PGD10"):
        trained = column(records, "ours:attackers", row, "trained")
        for other, called in {"PGD": "PGD", "untrained": "the untrained one"}.items():
            group = column(records, "ours:attackers", row, other)
            said.append(exceeds(f"a trained attacker beats {called} at equal steps", f"MNIST, {row}", group, trained))
    pgd, rnn = (column(records, "rnn_adv:table3", "AdvTrain", name) for name in ("PGD-10", "RNN-Adv"))
    return [*said, exceeds("RNN-Adv's optimizer beats PGD at equal steps", "MNIST, AdvTrain", pgd, rnn)]


def learned_attacker_pays(records: Sequence[Record], results: Path) -> list[Answer]:
    """At equal passes on CIFAR-10, against the best single step by hand."""
    table, cheap, [verdict] = "ours:equal-passes", "N-FGSM", FAST
    group = lambda row: column(records, table, row, verdict)._replace(name=row)
    learned = [row for row, (method, *_) in equal.ROWS.items() if defenses.find(method).learns]
    where = f"CIFAR-10, {verdict}"
    return [exceeds(f"{row} beats {cheap} at equal passes", where, group(row), group(cheap)) for row in learned]


def diversity_helps(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L-DA, Table 1a."""
    pairs = {row: worst(records, "l2l_da:table1a", f"{row}, D+", f"{row}, D-") for row in ("R-", "R+")}
    where = "MNIST, {}, worst common attack"
    return [exceeds("L2L-DA's diversity term helps", where.format(row), *pair) for row, pair in pairs.items()]


UPDATERS = {"l2l_dense": "as in the paper", "l2l_coordinate": "per coordinate"}


def gail_is_steadied(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L v1, Figure 6: long training declines less."""
    said = []
    for environment in ("CartPole-v1", "MountainCar-v0"):
        paths = (results / f"gail_figure6_{environment}{kind}.json" for kind in ("", "_dense"))
        arms = {k: v for path in paths if path.exists() for k, v in json.loads(path.read_text())["arms"].items()}
        late = {name: Group(name, arms.get(name, {}).get("lowest_late", [])) for name in (*UPDATERS, "adam")}
        where = f"{environment}, lowest mean of 20 iterations late in training"
        for name, form in UPDATERS.items():
            said.append(exceeds(f"L2L's updater, {form}, steadies GAIL", where, late[name], late["adam"]))
    return said


CLAIMS: tuple[Callable[[Sequence[Record], Path], list[Answer]], ...] = (
    rnn_beats_adv_train, alternating_beats_joint, two_steps_beat_one, naive_fails, interpolation_falls,
    learned_attacker_wins, learned_attacker_pays, diversity_helps, gail_is_steadied,
)  # fmt: skip
