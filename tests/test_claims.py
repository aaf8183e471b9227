"""The papers' claims are answered by the numbers, held against seeds and images."""

import json
from pathlib import Path

import pytest

from l2ljax.types import L2LError
from papers import claims, evidence, groups, page, plan, printed
from papers.effort import Effort
from papers.evidence import Group, Sides, exceeds
from tests.test_papers_page import FULL, record


@pytest.mark.parametrize(
    ("more", "less", "images", "answer"),
    [
        ([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], 10_000, "yes"),
        ([0.50, 0.51, 0.52], [0.60, 0.61, 0.62], 10_000, "no"),
        (
            [0.505, 0.515, 0.525],
            [0.50, 0.51, 0.52],
            10_000,
            "no difference found",
        ),  # hidden by the spread of three seeds
        ([0.50, 0.51, 0.50], [0.55, 0.55, 0.56], 100, "open"),  # beyond the seeds' range, but not the images' error
        ([0.505, 0.515], [0.50, 0.51], 10_000, "open"),
        ([0.60], [0.50], 10_000, "yes"),
        ([0.60], [0.50], 100, "open"),  # ten points of 100 images are two standard errors of nothing
        ([0.60, 0.60, 0.60], [0.55, 0.55, 0.55], 100, "open"),  # too few images, not the seeds
        ([0.30, 0.52, 0.58], [0.60, 0.61, 0.62], 10_000, "no"),  # all below, however far apart
        ([0.30, 0.52, 0.60], [0.60, 0.61, 0.62], 10_000, "no difference found"),
        ([0.30, 0.58], [0.60, 0.61], 10_000, "open"),
        ([0.55, 0.575, 0.58], [0.59, 0.61, 0.62], 1000, "open"),  # all below, within the images' error
        ([], [0.5], 100, "open"),
        ([3.0], [2.8], None, "open"),  # no accuracies, one seed: the noise is unknown
        ([3.0, 3.1], [2.8, 2.8], None, "yes"),
    ],
)
def test_a_difference_is_held_against_seeds_and_images(more, less, images, answer):
    sides = Sides("where", Group("a", more, images), Group("b", less, images))
    assert exceeds("of", "claim", sides).answer == answer


def test_what_is_open_names_the_budget_that_would_settle_it(monkeypatch):
    work = lambda row, columns, runs: {f"{row} {i}": Effort(0, (), 2 * 3600 * 1e11) for i in range(runs)}
    monkeypatch.setattr(evidence, "more_runs", lambda row, *about: work(row, *about) if row[0] == "slow" else {})

    def by(more, less, rows=(("", "a"), ("", "b")), planned=(None, None)):
        sides = [
            Group(name, v, 100, row, planned=count)
            for name, v, row, count in zip("ab", (more, less), rows, planned, strict=True)
        ]
        return exceeds("of", "claim", Sides("where", *sides)).settled_by

    assert by([], [0.5], rows=(("slow", "a"), ("slow", "b"))) == "5 runs, 10.0 h"
    # Two standard errors of these two, 13.97 points, reach five at n = 100 (13.97 / 5)^2.
    assert by([0.60], [0.55], rows=(("slow", "a"), ("slow", "a"))) == "2 runs, 4.0 h, 781 images"  # the same runs
    assert by([0.60], [0.55], planned=(0, 1)) == "5 runs, 781 images"  # one is of a run that is planned otherwise now
    assert by([0.60], [0.55, 0.55]) == "3 runs, 781 images"
    assert by([0.60], [0.60]) == "4 runs"  # no number of images shows a difference of 0
    assert by([0.601], [0.600]) == "4 runs"  # more than there are images; with three seeds none may be found
    bounds = Group("a", [0.601] * 3, 100), Group("b", [0.600] * 3, 50, bound=True)
    answer = exceeds("of", "claim", Sides("where", *bounds))
    assert answer.settled_by == "not by the 10,000 test images that there are"
    assert answer.shown.endswith("(50 images)")
    assert by([0.60], [0.10]) == by([0.60] * 3, [0.60] * 3) == ""  # answered, by no where there is no difference
    # Two standard errors of a difference at 1/2, 2 sqrt(1/2 / n), reach two points at n = 5,000.
    assert by([0.51] * 3, [0.49] * 3) == "4,998 images"
    bound = Group("a tenth", [0.05] * 3, 100, bound=True)
    for values in ([0.05] * 3, [0.0, 0.05, 0.1], [0.03, 0.05, 0.1]):  # no number of images alone settles these
        assert exceeds("of", "claim", Sides("where", bound, Group("b", values, 100))).settled_by.startswith(
            "more seeds"
        )


def test_more_runs_are_of_the_parts_whose_columns_are_read(monkeypatch):
    hours = lambda efforts: sum(efforts.values(), Effort()).hours("cpu")
    more = lambda table, row, columns, runs: evidence.more_runs((table, row), columns, runs)
    monkeypatch.setattr(evidence.records, "is_kept", lambda part: False)
    pgd, da = plan.lenet("PGD10"), "l2l_da:table2-mnist"
    lone = more(da, "PGD10", {"PGD100"}, 1)
    assert set(lone) == {pgd.made, *(part.jobs[-1].made for part in plan.PARTS if "PGD100" in part.columns
                                     and (part.table, part.row) == (da, "PGD10"))}  # fmt: skip
    assert 0 < hours(lone) < hours(more(da, "PGD10", {"PGD100", "AdvGAN"}, 1))
    assert more(da, "PGD10", {"no such column"}, 1) == {}
    monkeypatch.setattr(evidence.records, "is_kept", lambda part: "PGD100" in part.columns)  # half of a seed is none
    assert pgd.made in more(da, "PGD10", {"PGD100", "AdvGAN"}, 1)
    # Beyond the plan: each its own model and judgement, with those that exist for surrogates.
    monkeypatch.setattr(evidence.records, "is_kept", lambda part: True)
    again = more("rnn_adv:table7", "RNN-Adv", {"PGD-Net"}, 2)
    assert len(again) == 4 and sum("rnn_adv-12epochs-s0/report.json" in made for made in again) == 2


def answer(found, results, claim, at=0):
    """The answer in the place `at` of a claim."""
    given = [said for said in claims.answers(found, results) if said.claim == claim]
    return given[at].answer


PGM = ("l2l:table2", "PGM Net")
CASES = {
    # (claim, its place) -> (table, row, column, value that says yes, value that says no): 10,000 images, three seeds
    ("RNN-Adv, ours, beats AdvTrain", 0): [
        ("rnn_adv:table3", "RNN-Adv", "PGD-100", 0.96, 0.90), ("rnn_adv:table3", "AdvTrain", "PGD-100", 0.90, 0.96),
    ],
    ("RNN-TRADES, ours, beats TRADES", 0): [
        ("rnn_adv:table3", "RNN-TRADES", "margin100", 0.96, 0.90), ("rnn_adv:table3", "TRADES", "margin100", 0.9, 0.96),
    ],
    ("PGD with line search, 3 passes a step, first step at most eps (our choice), beats PGD with 1", 0): [
        ("rnn_adv:table1", "AdvTrain", "PGD", 0.96, 0.96), ("rnn_adv:table1", "AdvTrain", "PGD+BLS", 0.90, 0.98),
    ],
    ("training with line search beats AdvTrain", 0): [
        ("rnn_adv:table1", "AdvTrain+BLS", "PGD+BLS", 0.96, 0.8), ("rnn_adv:table1", "AdvTrain", "PGD+BLS", 0.90, 0.9),
    ],
    ("one optimizer of RNN-Adv, ours, is stronger with 40 steps than with 10", 0): [
        ("rnn_adv:table6", "AdvTrain", "10 steps", 0.96, 0.96), ("rnn_adv:table6", "AdvTrain", "40 steps", 0.90, 0.98),
    ],
    ("Grad L2L, joint, beats PGM training", 0): [
        ("l2l:table2", "Grad L2L", "PGM-20", 0.5, 0.3), (*PGM, "PGM-20", 0.4, 0.4),
    ],
    ("2-Step L2L, joint, beats PGM training", 0): [
        ("l2l:table2", "2-Step L2L", "PGM-20", 0.5, 0.3), (*PGM, "PGM-20", 0.4, 0.4),
    ],
    ("2-Step L2L beats Grad L2L, both joint", 0): [
        ("l2l:table2", "2-Step L2L", "PGM-20", 0.5, 0.4), ("l2l:table2", "Grad L2L", "PGM-20", 0.4, 0.5),
    ],
    ("naive L2L keeps less than a tenth of what PGM training keeps", 0): [
        ("l2l:table2", "Naive L2L", "PGM-20", 0.0, 0.3), (*PGM, "PGM-20", 0.47, 0.47),
    ],
    ("Grad L2L beats PGM training under attacks on another PGM-trained model", 0): [
        ("l2l:table4", "Grad L2L", "PGM PGM10", 0.5, 0.3), ("l2l:table4", "PGM Net", "PGM PGM10", 0.4, 0.4),
    ],
    ("AIT+Grad L2L beats AIT", 0): [
        ("l2l:table4-v2", "AIT+Grad L2L", "AutoAttack, fast", 0.3, 0.1),
        ("l2l:table4-v2", "AIT", "AutoAttack, fast", 0.2, 0.2),
    ],
    ("AIT loses more points from pgd100 to AutoAttack, fast than PGM training", 0): [
        ("l2l:table4-v2", "AIT", "pgd100", 0.75, 0.5),
        ("l2l:table4-v2", "AIT", "AutoAttack, fast", 0.36, 0.48),
        (*PGM, "pgd100", 0.50, 0.50),
        (*PGM, "AutoAttack, fast", 0.45, 0.45),
    ],
    ("attackers of three seeds, trained on one fixed model, beat PGD at equal steps", 0): [
        ("ours:attackers", "RNN on AdvTrain", "PGD", 0.9, 0.9),
        ("ours:attackers", "RNN on AdvTrain", "trained", 0.8, 0.95),
    ],
    ("RNN-Adv, T = 2 beats N-FGSM at equal passes", 0): [
        ("ours:equal-passes", "N-FGSM", "AutoAttack, fast", 0.37, 0.37),
        ("ours:equal-passes", "RNN-Adv, T = 2", "AutoAttack, fast", 0.40, 0.34),
    ],
    ("L2L-DA's recursion helps, D+", 0): [
        ("l2l_da:table1a", "R+, D+", "PGD100", 0.9, 0.7), ("l2l_da:table1a", "R-, D+", "PGD100", 0.8, 0.8),
    ],
    ("L2L-DA's diversity term helps, R-", 0): [
        ("l2l_da:table1a", "R-, D+", "PGD100", 0.9, 0.8), ("l2l_da:table1a", "R-, D-", "PGD100", 0.8, 0.9),
    ],
    ("L2L-DA's generator, delta+, y+, beats delta+, y-", 0): [
        ("l2l_da:table1b", "delta+, y+", "PGD100", 0.9, 0.7), ("l2l_da:table1b", "delta+, y-", "PGD100", 0.8, 0.8),
    ],
    ("L2L-DA beats PGD training", 0): [
        ("l2l_da:table2-mnist", "L2L-DA", "PGD100", 0.9, 0.8), ("l2l_da:table2-mnist", "PGD10", "PGD100", 0.8, 0.9),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0][:40])
def test_each_claim_is_answered_by_planted_rows(case, tmp_path):
    def planted(which):
        rows = {}
        for table, row, column, *values in CASES[case]:
            for seed in range(3):
                cells = rows.setdefault((table, row, seed), record(table, row, seed))["values"]
                cells[column] = {"value": values[which], "images": 10_000, "command": "judge"}
        return list(rows.values())

    assert answer(planted(0), tmp_path, *case) == "yes"
    assert answer(planted(1), tmp_path, *case) == "no"
    assert answer([], tmp_path, *case) == "open"
    assert answer(planted(0)[:-3], tmp_path, *case) == "open"  # one of the rows is missing
    if "equal passes" not in case[0]:  # where epochs differ
        rows = list(dict.fromkeys((row["table"], row["row"]) for row in planted(0)))
        for row in (longer := planted(0)):
            row["training"]["epochs"] += 10 * rows.index((row["table"], row["row"]))
        assert (answer(longer, tmp_path, *case) == "open") == (len(rows) > 1)  # no two rows are of one budget


def test_places_name_what_differs_between_the_sides(tmp_path):
    where = {(said.claim, said.where.partition(",")[0]): said.where for said in claims.answers([], tmp_path)}
    assert where["Grad L2L, joint, beats PGM training", "CIFAR-10"] == (
        "CIFAR-10, resnet20, 10 epochs, worst common attack; passes a step: Grad L2L 2, PGM Net 4"
    )
    assert where["Grad L2L, joint, beats PGM training", "digits"].endswith("passes a step: grad_l2l 2, pgd_adv 11")
    assert where["RNN-TRADES, ours, beats TRADES", "MNIST"] == "MNIST, small_cnn, 12 epochs, worst common attack"


def test_costs_are_those_of_training_steps(tmp_path):
    steps = {"pgd_adv": [9.0, 9.1, 8.9], "grad_l2l:alternating": [4.0, 4.1, 4.2]}
    rows = [
        {"model": "net", "batch_size": 8, "what": "training step", "program": "l2ljax", "method": m, "seconds": s}
        for m, s in steps.items()
    ]
    rows.append({**rows[0], "program": "another", "seconds": [1.0, 1.0, 1.0]})
    (tmp_path / "costs_wrn_34_10.json").write_text(json.dumps({"speed": rows}))
    claim = "a step of {}, alternating, costs less than one of PGM training, 10 steps"
    assert answer([], tmp_path, claim.format("Grad L2L")) == "yes"
    assert answer([], tmp_path, claim.format("2-Step L2L")) == "open"


def sides_of(find, *rows):
    return find(list(rows), Path("nowhere"))


def test_the_worst_is_taken_over_attacks_that_both_rows_have():
    rows = [record(row="RNN-Adv", PGD_10=0.9, PGD_100=0.8), record(row="AdvTrain", PGD_10=0.85)]
    _, more, less = sides_of(groups.in_worst_case("rnn_adv:table3", "RNN-Adv", "AdvTrain"), *rows)
    assert (more.values, less.values) == ([0.9], [0.85])


def test_the_worst_is_taken_over_attacks_on_the_same_images():
    rows = []
    for row, on_all, on_few in (("RNN-Adv", 0.80, 0.81), ("AdvTrain", 0.95, 0.90)):
        rows.append(record(row=row, images=10_000, PGD_100=on_all))
        rows[-1]["values"]["pgd100"] = {"value": on_few, "images": 1000, "command": "judge"}
    find = groups.in_worst_case("rnn_adv:table3", "RNN-Adv", "AdvTrain")
    _, *both = sides_of(find, *rows)
    assert [(group.values, group.images) for group in both] == [([0.81], 1000), ([0.90], 1000)]
    rows[1]["values"]["pgd100"]["value"] = 0.97  # now it is the attack on all images under which both keep less
    assert [group.values for group in sides_of(find, *rows)[1:]] == [[0.80], [0.95]]


def test_attacks_of_two_tables_are_compared_on_the_seeds_that_both_have():
    rows = [record(seed=seed, PGD_10=0.9 + seed / 100) for seed in range(2)]
    rows.append(record("rnn_adv:table6", seed=1))
    rows[-1]["values"]["7 steps"] = {"value": 0.8, "images": 10_000, "command": "judge"}
    sides = (("rnn_adv:table3", "AdvTrain", "PGD-10"), ("rnn_adv:table6", "AdvTrain", "7 steps"))
    _, more, less = sides_of(groups.two_columns(*sides), *rows)
    assert (more.name, more.values, less.name, less.values) == ("PGD-10", [0.91], "7 steps", [0.8])


def test_a_tenth_of_an_accuracy_has_a_tenth_of_its_error():
    full, none = Group("a tenth", [0.02], 200, scale=0.1), Group("naive", [0.0], 200)
    shown = exceeds("of", "claim", Sides("where", full, none)).shown
    assert shown.endswith("noise (b) 1.15 (200 images)")  # 2 |(sqrt(.2 * .8 / n) / 10, 1 / n)|


def test_runs_of_another_plan_do_not_count_towards_the_seeds_that_are_wanted():
    planned = {**FULL, "command": plan.mnist("AdvTrain", 0).line}
    find = groups.one_column("rnn_adv:table3", "PGD-100", "RNN-Adv", "AdvTrain")
    for training, count in ((planned, 1), (FULL, 0)):
        _, _, group = sides_of(find, record(training=training, PGD_100=0.9))
        assert (group.values, group.planned) == ([0.9], count)
    beside = record(row="RNN-Adv", training={**FULL, "epochs": 3}, PGD_100=0.8)
    _, more, less = sides_of(find, record(training=planned, PGD_100=0.9), beside)
    assert [(group.values, group.planned) for group in (less, more)] == [([], 1), ([], 0)]  # not alike, but run
    _, _, group = sides_of(find, record(training=planned, CW100=0.9))  # judged otherwise
    assert (group.values, group.planned) == ([], 0)
    half = record("l2l:table2", "PGM Net", training={**FULL, "command": plan.cifar("PGM Net").line}, pgd100=0.4)
    assert sides_of(groups.falls(("l2l:table4-v2", "AIT"), ("l2l:table2", "PGM Net")), half).less.planned == 0
    both = groups.two_columns(*(("rnn_adv:table3", "AdvTrain", name) for name in ("PGD-10", "RNN-Adv")))
    assert sides_of(both, record(training=planned, PGD_10=0.9)).more.planned == 1


def test_the_noise_is_of_the_images_of_the_lowest_attack():
    rows = [record(row=row, images=1000, PGD_100=0.5) for row in ("RNN-Adv", "AdvTrain")]
    for row in rows:
        row["values"]["AutoAttack"] = {"value": 0.6, "images": 200, "command": "judge"}
    _, *both = sides_of(groups.in_worst_case("rnn_adv:table3", "RNN-Adv", "AdvTrain"), *rows)
    assert [group.images for group in both] == [1000, 1000]


def test_runs_of_earlier_plans_give_way_to_the_plans(tmp_path):
    planned = [{**FULL, "command": plan.mnist("AdvTrain", seed).line} for seed in range(2)]
    rows = [record(seed=seed, training=training, PGD_100=0.9) for seed, training in enumerate(planned)]
    stale = record(seed=2, training={**FULL, "epochs": 6}, PGD_100=0.2)
    assert groups.current([*rows, stale]) == rows and groups.current([stale]) == [stale]


def test_rows_of_unlike_budgets_are_not_compared_and_the_place_says_so():
    rows = [record(row="RNN-Adv", PGD_100=0.9), record(training={**FULL, "epochs": 6}, PGD_100=0.8)]
    where, more, less = sides_of(groups.one_column("rnn_adv:table3", "PGD-100", "RNN-Adv", "AdvTrain"), *rows)
    assert not more.values and not less.values and "unlike networks, epochs or images" in where


def test_a_damaged_result_behind_a_claim_is_one_line(tmp_path):
    (tmp_path / "costs_wrn_34_10.json").write_text('{"speed": [{}]}')
    (tmp_path / "papers").mkdir()
    with pytest.raises(L2LError, match="result behind a claim is damaged") as error:
        page.markdown(tmp_path)
    assert "\n" not in str(error.value)


def test_runs_at_the_papers_settings_leave_the_answers_as_they_are(tmp_path):
    values = {"RNN-Adv": 0.96, "AdvTrain": 0.90}
    rows = [record(row=row, seed=s, images=10_000, PGD_100=v) for row, v in values.items() for s in range(3)]
    [own] = {part.victim.line for part in printed.printed("rnn_adv:table3", "AdvTrain") if part.seed == 0}
    rows.append(record(training={**FULL, "epochs": 100.0, "command": own}, images=10_000, PGD_100=0.99))
    assert claims.answers(rows, tmp_path)[0] == claims.answers(rows[:-1], tmp_path)[0]
    assert claims.answers(rows, tmp_path)[0].answer == "yes"


def test_digits_are_read_where_they_are_kept():
    results = Path(__file__).parent.parent / "experiments" / "results"
    where, *both = groups.on_digits("methods", "pgd_adv", "naive_l2l")([], results)
    assert [(len(group.values), group.images) for group in both] == [(3, 397)] * 2
    assert where.startswith("digits, digits_cnn, 60 epochs, one-cycle rate, Cutout, attackers of width 16, PGD-100")


def test_the_page_counts_the_papers_claims_and_ours_apart():
    said = [evidence.Answer(of, "claim", "where", kind, "", seeds) for of, kind, seeds in [
        ("L2L T2", "yes", 1), ("L2L T2", "yes", 3), ("L2L T3", "open", 0), ("ours", "no", 3), ("ours, as L2L", "no", 1),
    ]]  # fmt: skip
    text = claims.as_markdown(said)
    assert "Claims of the papers: 2 yes (1 of one seed), 1 open. Questions of ours: 2 no (1 of one seed)." in text
