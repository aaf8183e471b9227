"""The papers' claims are answered by the numbers, held against seeds and images."""

import json
from pathlib import Path

import pytest

from papers import ablations, claims, evidence, groups, plan, printed
from papers.evidence import Group, exceeds
from tests.test_papers_page import FULL, record


@pytest.mark.parametrize(
    ("more", "less", "images", "answer"),
    [
        ([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], 10_000, "yes"),
        ([0.50, 0.51, 0.52], [0.60, 0.61, 0.62], 10_000, "no"),
        ([0.505, 0.515, 0.525], [0.50, 0.51, 0.52], 10_000, "no, within noise"),  # hidden by the spread of three seeds
        ([0.50, 0.51, 0.50], [0.55, 0.55, 0.56], 100, "open"),  # beyond the seeds' range, but not the images' error
        ([0.505, 0.515], [0.50, 0.51], 10_000, "open"),
        ([0.60], [0.50], 10_000, "yes"),
        ([0.60], [0.50], 100, "open"),  # ten points of 100 images are two standard errors of nothing
        ([0.60, 0.60, 0.60], [0.55, 0.55, 0.55], 100, "open"),  # too few images, not the seeds
        ([0.30, 0.52, 0.58], [0.60, 0.61, 0.62], 10_000, "no"),  # all below, however far apart
        ([0.30, 0.52, 0.60], [0.60, 0.61, 0.62], 10_000, "no, within noise"),
        ([0.30, 0.58], [0.60, 0.61], 10_000, "open"),
        ([0.55, 0.575, 0.58], [0.59, 0.61, 0.62], 1000, "open"),  # all below, within the images' error
        ([], [0.5], 100, "open"),
    ],
)
def test_a_difference_is_held_against_seeds_and_images(more, less, images, answer):
    sides = (Group("a", more, images), Group("b", less, images))
    assert exceeds("claim", "where", *sides).answer == answer


def test_what_is_open_names_the_budget_that_would_settle_it(monkeypatch):
    monkeypatch.setattr(evidence, "hours", lambda table, row, runs: 2.0 * runs if table == "slow" else 0.0)

    def by(more, less, rows=(("", ""), ("", "")), planned=(None, None)):
        sides = [Group(name, v, 100, *about) for name, v, *about in zip("ab", (more, less), rows, planned, strict=True)]
        return exceeds("claim", "where", *sides).settled_by

    assert by([], [0.5], rows=(("slow", "a"), ("slow", "b"))) == "5 runs, 10.0 h"
    assert by([0.60], [0.55], rows=(("slow", "a"), ("slow", "a"))) == "2 runs, 4.0 h"  # two columns of the same runs
    assert by([0.60], [0.55], planned=(0, 1)) == "5 runs"  # one is of a run that is planned otherwise now
    assert by([0.60], [0.55, 0.55]) == "3 runs"
    assert by([0.60], [0.10]) == by([0.60] * 3, [0.60] * 3) == ""  # answered, by no where there is no difference
    # Two standard errors of a difference at 1/2, 2 sqrt(1/2 / n), reach two points at n = 5,000.
    assert by([0.51] * 3, [0.49] * 3) == "4,998 images"
    bound = Group("a tenth", [0.05] * 3, 100, bound=True)
    for values in ([0.05] * 3, [0.0, 0.05, 0.1], [0.03, 0.05, 0.1]):  # no number of images settles these
        assert exceeds("claim", "where", bound, Group("b", values, 100)).settled_by == "more seeds"


def answer(found, claim, results, at=0):
    return claim(found, results)[at].answer


CASES = {
    # claim -> (table, row, column, values that say yes, values that say no), all at 10,000 images and three seeds
    claims.rnn_beats_adv_train: [
        ("rnn_adv:table3", "RNN-Adv", "PGD-100", 0.96, 0.90), ("rnn_adv:table3", "AdvTrain", "PGD-100", 0.90, 0.96),
    ],
    claims.two_steps_beat_one: [
        ("l2l:table2", "2-Step L2L", "PGM-20", 0.5, 0.4), ("l2l:table2", "Grad L2L", "PGM-20", 0.4, 0.5),
    ],
    claims.naive_fails: [
        ("l2l:table2", "Naive L2L", "PGM-20", 0.0, 0.3), ("l2l:table2", "PGM Net", "PGM-20", 0.47, 0.47),
    ],
    claims.interpolation_falls: [
        ("l2l:table4-v2", "AIT", "pgd100", 0.75, 0.5),
        ("l2l:table4-v2", "AIT", "AutoAttack, fast", 0.36, 0.48),
        ("l2l:table2", "PGM Net", "pgd100", 0.50, 0.50),
        ("l2l:table2", "PGM Net", "AutoAttack, fast", 0.45, 0.45),
    ],
    claims.learned_attacker_wins: [
        ("ours:attackers", "RNN on AdvTrain", "PGD", 0.9, 0.9),
        ("ours:attackers", "RNN on AdvTrain", "trained", 0.8, 0.95),
    ],
    claims.learned_attacker_pays: [
        ("ours:equal-passes", "N-FGSM", "AutoAttack, fast", 0.37, 0.37),
        ("ours:equal-passes", "RNN-Adv, T = 2", "AutoAttack, fast", 0.40, 0.34),
    ],
    claims.rnn_trades_beats_trades: [
        ("rnn_adv:table3", "RNN-TRADES", "PGD-100", 0.96, 0.90), ("rnn_adv:table3", "TRADES", "PGD-100", 0.90, 0.96),
    ],
    claims.line_search_helps: [
        ("rnn_adv:table1", "AdvTrain", "PGD", 0.96, 0.96), ("rnn_adv:table1", "AdvTrain", "PGD+BLS", 0.90, 0.98),
    ],
    claims.learned_attacker_beats_pgm: [
        ("l2l:table2", "Grad L2L", "PGM-20", 0.5, 0.3), ("l2l:table2", "PGM Net", "PGM-20", 0.4, 0.4),
    ],
    claims.learned_interpolation_pays: [
        ("l2l:table4-v2", "AIT+Grad L2L", "AutoAttack, fast", 0.3, 0.1),
        ("l2l:table4-v2", "AIT", "AutoAttack, fast", 0.2, 0.2),
    ],
    claims.recursion_and_diversity_help: [
        ("l2l_da:table1a", "R+, D-", "PGD100", 0.9, 0.7), ("l2l_da:table1a", "R-, D-", "PGD100", 0.8, 0.8),
    ],
    claims.inputs_help: [
        ("l2l_da:table1b", "delta+, y+", "PGD100", 0.9, 0.7), ("l2l_da:table1b", "delta-, y+", "PGD100", 0.8, 0.8),
    ],
    claims.generator_beats_baselines: [
        ("l2l_da:table2-mnist", "L2L-DA", "PGD100", 0.9, 0.8), ("l2l_da:table2-mnist", "PGD10", "PGD100", 0.8, 0.9),
    ],
}  # fmt: skip


@pytest.mark.parametrize("claim", CASES, ids=lambda claim: claim.__name__)
def test_each_claim_is_answered_by_planted_rows(claim, tmp_path):
    def planted(which):
        rows = {}
        for table, row, column, *values in CASES[claim]:
            for seed in range(3):
                cells = rows.setdefault((table, row, seed), record(table, row, seed))["values"]
                cells[column] = {"value": values[which], "images": 10_000, "command": "judge"}
        return list(rows.values())

    assert answer(planted(0), claim, tmp_path) == "yes"
    assert answer(planted(1), claim, tmp_path) == "no"
    assert answer([], claim, tmp_path) == "open"
    assert answer(planted(0)[:-3], claim, tmp_path) == "open"  # one of the rows is missing
    if claim is not claims.learned_attacker_pays:  # at equal passes epochs differ
        rows = list(dict.fromkeys((row["table"], row["row"]) for row in planted(0)))
        for row in (longer := planted(0)):
            row["training"]["epochs"] += 10 * rows.index((row["table"], row["row"]))
        assert (answer(longer, claim, tmp_path) == "open") == (len(rows) > 1)  # no two rows are of one budget


@pytest.mark.parametrize(
    ("claim", "at", "table", "rows"),
    [
        (claims.line_search_helps, 1, "rnn_adv:table1", ("AdvTrain+BLS", "AdvTrain")),
        (claims.learned_attacker_beats_pgm, 2, "l2l:table2", ("2-Step L2L", "PGM Net")),
        (claims.recursion_and_diversity_help, 1, "l2l_da:table1a", ("R+, D+", "R-, D+")),
        (claims.recursion_and_diversity_help, 2, "l2l_da:table1a", ("R-, D+", "R-, D-")),
        (claims.recursion_and_diversity_help, 3, "l2l_da:table1a", ("R+, D+", "R+, D-")),
        (claims.inputs_help, 1, "l2l_da:table1b", ("delta+, y+", "delta+, y-")),
        (claims.inputs_help, 2, "l2l_da:table1b", ("delta+, y+", "delta-, y-")),
        (claims.generator_beats_baselines, 1, "l2l_da:table2-mnist", ("L2L-DA", "L2L*")),
    ],
)
def test_the_other_answers_of_a_claim_are_of_their_own_rows(claim, at, table, rows, tmp_path):
    found = [record(table, row, images=10_000, **{"FGSM": value}) for row, value in zip(rows, (0.9, 0.8), strict=True)]
    assert [said.answer for said in claim(found, tmp_path)].count("yes") == 1
    assert claim(found, tmp_path)[at].answer == "yes" and claim(found[:1], tmp_path)[at].answer == "open"


def test_claims_ask_digits_for_settings_of_the_ablation(tmp_path, monkeypatch):
    asked = set()
    monkeypatch.setattr(claims, "digits", lambda results, table, row: asked.add((table, row)) or Group(row, [], None))
    claims.answers([], tmp_path)
    assert asked and all(row in ablations.TABLES[table] for table, row in asked)


def test_gail_is_answered_from_its_own_results(tmp_path):
    def plant(learned, adam, at=1, pairs=500):
        for file, arm, values in (("_dense", "l2l_dense_lr1e-6", learned), ("", "adam", adam)):
            record = {"expert_return": 500.0, "expert_pairs": 500 if file else pairs}
            content = json.dumps({**record, "arms": {arm: {"lowest_late": values, "final_return": [500.0] * 3}}})
            (tmp_path / f"gail_figure6_CartPole-v1{file}.json").write_text(content)
        return answer([], claims.gail_is_steadied, tmp_path, at)

    assert answer([], claims.gail_is_steadied, tmp_path, 1) == "open"
    assert plant([490.0] * 3, [200.0, 210.0, 205.0], at=0) == "yes"  # it drops at all
    assert plant([490.0] * 3, [490.0, 488.0, 470.0], at=0) == "no"
    assert plant([490.0] * 3, [449.0, 452.0, 450.0], at=0) == "open"  # to a bound, as much as to any number
    assert claims.gail_is_steadied([], tmp_path)[0].settled_by == "more seeds"
    assert plant([490.0, 495.0, 480.0], [200.0, 210.0, 205.0]) == "yes"
    assert plant([490.0, 495.0, 480.0], [489.0, 494.0, 485.0]) == "no, within noise"
    assert plant([200.0, 210.0, 205.0], [490.0, 495.0, 480.0]) == "no"
    arms = {"l2l_dense_lr1e-6": {"diverged": "after 426 iterations: lower its rate"}}
    assert "demonstrations" not in claims.gail_is_steadied([], tmp_path)[1].where
    plant([200.0] * 3, [490.0] * 3, pairs=480)
    unlike = "other demonstrations (500.0, 500 pairs) than Adam's (500.0, 480 pairs)"
    assert claims.gail_is_steadied([], tmp_path)[1].where.endswith(unlike)
    record = {"expert_return": 500.0, "expert_pairs": 500, "arms": arms}
    (tmp_path / "gail_figure6_CartPole-v1_dense.json").write_text(json.dumps(record))
    found = claims.gail_is_steadied([], tmp_path)[1]
    assert (found.answer, found.shown, found.seeds) == ("no", "after 426 iterations", 1)
    (tmp_path / "gail_figure6_CartPole-v1.json").unlink()
    assert claims.gail_is_steadied([], tmp_path)[2].answer == "open"  # nothing stands beside it


def test_the_worst_is_taken_over_attacks_that_both_rows_have():
    rows = [record(row="RNN-Adv", PGD_10=0.9, PGD_100=0.8), record(row="AdvTrain", PGD_10=0.85)]
    assert [g.values for g in groups.worst(rows, "rnn_adv:table3", "RNN-Adv", "AdvTrain")] == [[0.9], [0.85]]


def test_a_tenth_of_an_accuracy_has_a_tenth_of_its_error():
    full, none = Group("a tenth", [0.02], 200, scale=0.1), Group("naive", [0.0], 200)
    assert exceeds("claim", "where", full, none).shown.endswith("noise 1.15")  # 2 |(sqrt(.2 * .8 / n) / 10, 1 / n)|


def test_runs_of_another_plan_do_not_count_towards_the_seeds_that_are_wanted():
    planned = {**FULL, "command": plan.mnist("AdvTrain", 0).line}
    for training, count in ((planned, 1), (FULL, 0)):
        [group] = groups.column([record(training=training, PGD_100=0.9)], "rnn_adv:table3", "PGD-100", "AdvTrain")
        assert (group.values, group.planned) == ([0.9], count)
    beside = record(row="RNN-Adv", training={**FULL, "epochs": 3}, PGD_100=0.8)
    found = groups.column(
        [record(training=planned, PGD_100=0.9), beside], "rnn_adv:table3", "PGD-100", "AdvTrain", "RNN-Adv"
    )
    assert [(group.values, group.planned) for group in found] == [([], 1), ([], 0)]  # not alike, but run


def test_the_noise_is_of_the_images_of_the_lowest_attack():
    rows = [record(row=row, images=1000, PGD_100=0.5) for row in ("RNN-Adv", "AdvTrain")]
    for row in rows:
        row["values"]["AutoAttack"] = {"value": 0.6, "images": 200, "command": "judge"}
    assert [group.images for group in groups.worst(rows, "rnn_adv:table3", "RNN-Adv", "AdvTrain")] == [1000, 1000]


def test_runs_at_the_papers_settings_leave_the_answers_as_they_are(tmp_path):
    values = {"RNN-Adv": 0.96, "AdvTrain": 0.90}
    rows = [record(row=row, seed=s, images=10_000, PGD_100=v) for row, v in values.items() for s in range(3)]
    [own] = {part.victim.line for part in printed.printed("rnn_adv:table3", "AdvTrain") if part.seed == 0}
    rows.append(record(training={**FULL, "epochs": 100.0, "command": own}, images=10_000, PGD_100=0.99))
    assert claims.answers(rows, tmp_path)[0] == claims.answers(rows[:-1], tmp_path)[0]
    assert claims.answers(rows, tmp_path)[0].answer == "yes"


def test_digits_are_read_where_they_are_kept():
    for table, row in (("methods", "pgd_adv"), ("methods", "naive_l2l")):
        group = groups.digits(Path(__file__).parent.parent / "experiments" / "results", table, row)
        assert len(group.values) == 3 and group.images == 397
