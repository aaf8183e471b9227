"""The papers' claims, each answered yes, no or open by the rule of `evidence`, from kept results alone.

    for answer in answers(compare.read_records(), Path("experiments/results")): ...

Costs of training steps have a table of their own.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from l2ljax import defenses
from l2ljax.report.markdown import grid
from papers import effort, equal
from papers.compare import Record
from papers.evidence import NEEDED, Answer, Group, exceeds
from papers.groups import alike, column, digits, falls, worst
from papers.jobs import FAST
from papers.plan import AS_PRINTED, L2L_ROWS, TASKS, cifar
from papers.records import is_printed

__all__ = [
    "alternating_beats_joint", "answers", "as_markdown", "gail_is_steadied", "generator_beats_baselines",
    "inputs_help", "interpolation_falls", "learned_attacker_beats_pgm", "learned_attacker_pays",
    "learned_attacker_wins", "learned_interpolation_pays", "line_search_helps", "naive_fails",
    "recursion_and_diversity_help", "rnn_beats_adv_train", "rnn_trades_beats_trades", "two_steps_beat_one",
]  # fmt: skip


def answers(records: Sequence[Record], results: Path) -> list[Answer]:
    """Return the answers to all claims, from runs of the plan: those at the papers' settings are of other budgets."""
    planned = [record for record in records if not is_printed(record)]
    return [answer for claim in CLAIMS for answer in claim(planned, results)]


def as_markdown(given: Sequence[Answer]) -> str:
    """Return the section of BENCHMARKS.md."""
    rows = [[a.claim, a.where, a.answer + ", one seed" * (a.seeds == 1), a.shown, a.settled_by] for a in given]
    counts = Counter(a.answer for a in given)
    about = (
        f"{len(given)} answers: {'; '.join(f'{counts[name]} {name}' for name in sorted(counts, reverse=True))}. They "
        "follow from the kept results by rules (experiments/papers/claims.py), and hold for the schedules that were "
        "run, not for the papers'. The numbers of both sides are one per seed; the worst common attack is the lowest "
        "accuracy under any attack that all seeds of both rows have. Noise is the larger of two things: the range of "
        "the seeds, of the side where it is larger; and two standard errors that come from the number of test images. "
        "A difference larger than the noise is a yes or a no, by its sign; so is a smaller one beyond the images' "
        f"error if both sides have at least {NEEDED} seeds, and all of one side are above all of the other; an updater "
        "that diverges with one seed is a no. If the difference is smaller than the seeds' range, and both sides have "
        f"at least {NEEDED} seeds, the answer is `no, within noise`: no difference was found, though there may be a "
        "small one; against a bound, like a tenth of a number, it is open. All else is open, and the last column has "
        f"what would settle it: more images, or more runs as they are planned now, up to {NEEDED} seeds of each side, "
        "in estimated hours of two CPU cores."
    )
    header = ["claim", "where", "answer", "numbers", "to settle it"]
    return "\n\n".join(["## What reproduces", about, grid(header, rows)])


_SETS = {
    "rnn_adv:table1": "MNIST", "rnn_adv:table3": "MNIST", "l2l:table2": "CIFAR-10", "l2l:table4-v2": "CIFAR-10",
    "l2l_da:table1a": "MNIST", "l2l_da:table1b": "MNIST", "l2l_da:table2-mnist": "MNIST",
}  # fmt: skip
_DIGITS = {"methods": "digits, one-cycle rate, Cutout, PGD-100", "recipes": "digits, constant rate, PGD-100"}
"""Table of experiments/ablation.py -> where: the settings that its rows share."""
_Pair = tuple[str, Group, Group]


def _where(records: Sequence[Record], table: str, rows: Sequence[str], what: str) -> str:
    """Return the place of a comparison of rows, with their training if they share it."""
    every = alike([record for record in records if record["table"] == table and record["row"] in rows])
    runs = [record["training"] for record in every[:1]]
    epochs = [f"{run['epochs']:g} epochs" for run in runs]
    images = [f"{run['train_size']:,} training images" for run in runs if run.get("train_size")]
    return ", ".join([_SETS[table], *epochs, *images, what])


def _worst_of(records: Sequence[Record], table: str, *rows: str) -> _Pair:
    """Return `worst` of two rows of a table, and where."""
    more, less = worst(records, table, *rows)
    return _where(records, table, rows, "worst common attack"), more, less


def _two_places(
    records: Sequence[Record], results: Path, table: str, rows: tuple[str, str], methods: tuple[str, str]
) -> list[_Pair]:
    """Return (where, more, less) of two rows of a table and of the same methods on digits."""
    more, less = (digits(results, "methods", name) for name in methods)
    return [_worst_of(records, table, *rows), (_DIGITS["methods"], more, less)]


def rnn_beats_adv_train(records: Sequence[Record], results: Path) -> list[Answer]:
    """RNN-Adv, Tables 3 to 5, with our scale and normalization, and as printed."""
    table = "rnn_adv:table3"
    rows, what = ("RNN-Adv", "AdvTrain"), "PGD-100"
    more, less = column(records, table, what, *rows)
    pairs = [(_where(records, table, rows, what), more, less)]
    pairs += _two_places(records, results, table, rows, ("rnn_adv", "pgd_adv"))
    printed, ours = (digits(results, "recipes", f"rnn_adv, {form}") for form in ("as printed", "ours"))
    return [
        *(exceeds("RNN-Adv, ours, beats AdvTrain", *pair) for pair in pairs),
        exceeds("RNN-Adv as printed beats AdvTrain", *_worst_of(records, table, AS_PRINTED, "AdvTrain")),
        exceeds("RNN-Adv as printed beats ours", *_worst_of(records, table, AS_PRINTED, "RNN-Adv")),
        exceeds("RNN-Adv as printed beats ours", _DIGITS["recipes"], printed, ours),
    ]


def rnn_trades_beats_trades(records: Sequence[Record], results: Path) -> list[Answer]:
    """RNN-Adv, Tables 3 to 5."""
    pairs = _two_places(records, results, "rnn_adv:table3", ("RNN-TRADES", "TRADES"), ("rnn_trades", "trades"))
    return [exceeds("RNN-TRADES beats TRADES", *pair) for pair in pairs]


def line_search_helps(records: Sequence[Record], results: Path) -> list[Answer]:
    """RNN-Adv, Table 1: 10 steps of backtracking line search, of 3 passes each, in the attack and in training."""
    table, rows = "rnn_adv:table1", ("AdvTrain+BLS", "AdvTrain")
    pgd, searched = (column(records, table, name, "AdvTrain")[0]._replace(name=name) for name in ("PGD", "PGD+BLS"))
    where = _where(records, table, ["AdvTrain"], "AdvTrain, 10 steps of 3 passes against 10 of 1")
    return [
        exceeds("PGD with line search beats PGD at equal steps", where, pgd, searched),
        exceeds("training with line search beats AdvTrain", *_worst_of(records, table, *rows)),
    ]


def alternating_beats_joint(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L's released code makes the attack again for phi; one perturbation for both players is cheaper."""
    said = []
    for method in ("grad_l2l", "two_step_l2l"):
        pair = [digits(results, "recipes", f"{method}, {schedule}") for schedule in ("alternating", "joint")]
        passes = f"with {effort.ALTERNATING[method]} passes a step against {effort.PASSES[method]}"
        said.append(exceeds(f"{method}: L2L's alternating schedule beats joint, {passes}", _DIGITS["recipes"], *pair))
    return said


def learned_attacker_beats_pgm(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L, Table 2; our PGM takes fewer steps on CIFAR-10 than on digits."""
    said, pgm = [], cifar("PGM Net").effort.passes
    for row in ("Grad L2L", "2-Step L2L"):
        method = L2L_ROWS[row]
        own = effort.PASSES[method]
        pairs = _two_places(records, results, "l2l:table2", (row, "PGM Net"), (method, "pgd_adv"))
        against = (own * pgm / cifar(row).effort.passes, effort.PASSES["pgd_adv"])
        for pair, passes in zip(pairs, against, strict=True):
            claim = f"{row}, joint, beats PGM training, with {own} passes a step against {passes:g}"
            said.append(exceeds(claim, *pair))
    return said


def two_steps_beat_one(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L, Table 2."""
    pairs = _two_places(records, results, "l2l:table2", ("2-Step L2L", "Grad L2L"), ("two_step_l2l", "grad_l2l"))
    claim = "two-step L2L beats grad L2L, joint, with {two_step_l2l} passes a step against {grad_l2l}"
    return [exceeds(claim.format(**effort.PASSES), *pair) for pair in pairs]


def naive_fails(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L, Table 2: an attacker without the gradient defends against nothing."""
    claim = "naive L2L fails: it keeps less than a tenth of what PGM training keeps"
    pairs = _two_places(records, results, "l2l:table2", ("PGM Net", "Naive L2L"), ("pgd_adv", "naive_l2l"))
    tenth = lambda full: full._replace(
        name=f"a tenth of {full.name}", values=[v / 10 for v in full.values], scale=0.1, bound=True
    )
    return [exceeds(claim, where, tenth(full), naive) for where, full, naive in pairs]


def interpolation_falls(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L v2, Table 4: whether AutoAttack takes more points from AIT than from PGM training."""
    claim, said = f"AIT loses more points from pgd100 to {', '.join(FAST)} than PGM training", []
    for row in ("AIT", "AIT+Grad L2L"):
        pair = falls(records, ("l2l:table4-v2", row), ("l2l:table2", "PGM Net"))
        said.append(exceeds(claim, _where(records, "l2l:table4-v2", [row], row), *pair))
    return said


def learned_interpolation_pays(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L v2, Table 4."""
    return [exceeds("AIT+Grad L2L beats AIT", *_worst_of(records, "l2l:table4-v2", "AIT+Grad L2L", "AIT"))]


def learned_attacker_wins(records: Sequence[Record], results: Path) -> list[Answer]:
    """RNN-Adv, Table 3; L2L-DA, Figure 2: less accuracy remains at equal steps."""
    said = []
    for row in ("RNN on AdvTrain", "L2L-DA on PGD10"):
        trained, pgd, untrained = (
            column(records, "ours:attackers", name, row)[0]._replace(name=name)
            for name in ("trained", "PGD", "untrained")
        )
        for called, other in {"PGD": pgd, "the untrained one": untrained}.items():
            said.append(exceeds(f"a trained attacker beats {called} at equal steps", f"MNIST, {row}", other, trained))
    pgd, rnn = (
        column(records, "rnn_adv:table3", name, "AdvTrain")[0]._replace(name=name) for name in ("PGD-10", "RNN-Adv")
    )
    where = "MNIST, AdvTrain, 10 steps by an optimizer trained with 7"
    return [*said, exceeds("RNN-Adv's optimizer beats PGD at equal steps", where, pgd, rnn)]


def learned_attacker_pays(records: Sequence[Record], results: Path) -> list[Answer]:
    """At equal passes on CIFAR-10, against the best single step by hand."""
    table, cheap, [verdict] = "ours:equal-passes", "N-FGSM", FAST
    group = lambda row: column(records, table, verdict, row)[0]
    learned = [row for row, (method, *_) in equal.ROWS.items() if defenses.find(method).learns]
    where = f"CIFAR-10, {verdict}, {{}} passes against {equal.spent(cheap)}"
    return [
        exceeds(f"{row} beats {cheap} at equal passes", where.format(equal.spent(row)), group(row), group(cheap))
        for row in learned
    ]


def recursion_and_diversity_help(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L-DA, Table 1a."""
    table = "l2l_da:table1a"
    pairs = {
        **{f"recursion helps, {kept}": (f"R+, {kept}", f"R-, {kept}") for kept in ("D-", "D+")},
        **{f"diversity term helps, {kept}": (f"{kept}, D+", f"{kept}, D-") for kept in ("R-", "R+")},
    }
    return [exceeds(f"L2L-DA's {claim}", *_worst_of(records, table, *rows)) for claim, rows in pairs.items()]


def inputs_help(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L-DA, Table 1b: the accumulated perturbation and the label as inputs of the generator."""
    table, full = "l2l_da:table1b", "delta+, y+"
    return [
        exceeds(f"L2L-DA's generator, {full}, beats {row}", *_worst_of(records, table, full, row))
        for row in ("delta-, y+", "delta+, y-", "delta-, y-")
    ]


def generator_beats_baselines(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L-DA, Table 2: at equal epochs, whose steps cost L2L-DA more."""
    claims = {"PGD10": "L2L-DA beats PGD training", "L2L*": "L2L-DA beats L2L*, the one-shot generator,"}
    return [
        exceeds(f"{claim} at equal epochs", *_worst_of(records, "l2l_da:table2-mnist", "L2L-DA", row))
        for row, claim in claims.items()
    ]


UPDATERS = {
    "l2l_dense_lr1e-6": "as in the paper, rate 1e-6", "l2l_dense_lr1e-7": "as in the paper, rate 1e-7",
    "l2l_coordinate": "per coordinate",
}  # fmt: skip


def gail_is_steadied(records: Sequence[Record], results: Path) -> list[Answer]:
    """L2L v1, Figure 6: long training declines less."""
    said = []
    for environment in TASKS:
        paths = [results / f"gail_figure6_{environment}{kind}.json" for kind in ("", "_dense")]
        made = [json.loads(path.read_text()) for path in paths if path.exists()]
        arms = {name: arm for record in made for name, arm in record["arms"].items()}
        shown = {name: f"{r['expert_return']:.1f}, {r['expert_pairs']} pairs" for r in made for name in r["arms"]}
        late = {name: Group(name, arms.get(name, {}).get("lowest_late", [])) for name in (*UPDATERS, "adam")}
        where = f"{environment}, long training, lowest mean of 20 iterations in the second half"
        final = [r - abs(r) / 10 for r in arms.get("adam", {}).get("final_return", [])]
        below = Group("a tenth below the final return", final, bound=True)
        said.append(exceeds("GAIL with Adam drops late, by a tenth", where, below, late["adam"]))
        for name, form in UPDATERS.items():
            other = {name, "adam"} <= shown.keys() and shown[name] != shown["adam"]
            unlike = f"; other demonstrations ({shown[name]}) than Adam's ({shown['adam']})" if other else ""
            answer = exceeds(f"L2L's updater, {form}, steadies GAIL", where + unlike, late[name], late["adam"])
            if why := arms.get(name, {}).get("diverged"):
                answer = Answer(answer.claim, environment, "no", why.partition(":")[0], seeds=1)
            said.append(answer)
    return said


CLAIMS: tuple[Callable[[Sequence[Record], Path], list[Answer]], ...] = (
    rnn_beats_adv_train, rnn_trades_beats_trades, line_search_helps, learned_attacker_beats_pgm, two_steps_beat_one,
    alternating_beats_joint, naive_fails, learned_interpolation_pays, interpolation_falls, learned_attacker_wins,
    learned_attacker_pays, recursion_and_diversity_help, inputs_help, generator_beats_baselines, gail_is_steadied,
)  # fmt: skip
