"""L2L's claims about GAIL are answered by its own results: late drops, learned updaters, runs that are not alike."""

import json

import pytest

from papers import gail


def kept_gail(tmp_path, file="", pairs=500, iterations=1000, **arms):
    record = {"iterations": iterations, "expert_return": 500.0, "expert_pairs": pairs, "arms": arms}
    (tmp_path / f"gail_figure6_CartPole-v1{file}.json").write_text(json.dumps(record))


def arm(*lowest, window="lowest_late"):
    return {window: list(lowest), "final_return": [500.0] * 3}


def late(results, window="lowest_late"):
    """Claim -> answer, of one window."""
    return {said.claim: said for said in gail.answers("CartPole-v1", results) if (gail.AFTER in said.where) == (
        window == "lowest_after")}  # fmt: skip


DROPS = "GAIL with Adam drops late, by a tenth"
STEADIES = f"{gail.UPDATERS['l2l_dense_lr1e-6']} steadies GAIL"


@pytest.mark.parametrize("window", ["lowest_late", "lowest_after"])
def test_gail_is_answered_from_its_own_results(tmp_path, window):
    def plant(learned, adam):
        kept_gail(tmp_path, "_dense", **{"l2l_dense_lr1e-6": arm(*learned, window=window)})
        kept_gail(tmp_path, adam=arm(*adam, window=window))
        return late(tmp_path, window)

    assert {said.answer for said in gail.answers("CartPole-v1", tmp_path)} == {"open"}
    assert late(tmp_path, window)[STEADIES].settled_by == "6 runs"
    assert plant([490.0, 495.0, 480.0], [200.0, 210.0, 205.0])[STEADIES].answer == "yes"
    assert plant([490.0, 495.0, 480.0], [489.0, 494.0, 485.0])[STEADIES].answer == "no difference found"
    assert plant([200.0, 210.0, 205.0], [490.0, 495.0, 480.0])[STEADIES].answer == "no"
    never = plant([490.0, None, 480.0], [200.0, 210.0, 205.0])[STEADIES]  # one seed never had a good return
    assert "l2l_dense_lr1e-6 (2 of 3 seeds) 490.0, 480.0" in never.shown


def test_a_late_drop_of_gail_is_held_against_a_tenth_of_its_return(tmp_path):
    def plant(*adam):
        kept_gail(tmp_path, adam=arm(*adam))
        return late(tmp_path)[DROPS]

    assert late(tmp_path)[DROPS].settled_by == "3 runs"
    assert plant(200.0, 210.0, 205.0).answer == "yes"
    assert plant(490.0, 488.0, 470.0).answer == "no"
    drops = plant(449.0, 452.0, 450.0)  # to a bound, as much as to any number
    assert (drops.answer, drops.settled_by) == ("open", "more seeds")


def test_gail_names_demonstrations_of_another_run_and_divergence(tmp_path):
    kept_gail(tmp_path, pairs=480, adam=arm(490.0), l2l_coordinate=arm(490.0))
    dense = {"l2l_dense_lr1e-7": arm(200.0), "l2l_dense_lr1e-6": {"diverged": "at 426: lower it"}}
    kept_gail(tmp_path, "_dense", **dense)
    found = gail.answers("CartPole-v1", tmp_path)
    unlike = "demonstrations of another run (500.0, 500 pairs) than Adam's (500.0, 480 pairs)"
    assert [said.where.endswith(unlike) for said in found] == ["1e-7" in said.claim for said in found]
    [diverged] = [said for said in found if "1e-6" in said.claim]
    assert (diverged.answer, diverged.shown, diverged.seeds) == ("no", "at 426", 1)
    kept_gail(tmp_path, adam=arm(490.0, 491.0, 492.0))
    dense["l2l_dense_lr1e-7"] = arm(200.0, 201.0, 202.0)
    kept_gail(tmp_path, "_dense", iterations=500, **dense)  # half as long: nothing to compare
    assert {said.answer for said in gail.answers("CartPole-v1", tmp_path) if "1e-7" in said.claim} == {"open"}


def test_tasks_and_updaters_of_ours_are_not_called_the_papers(tmp_path):
    def of(task):
        return [said.of for said in gail.answers(task, tmp_path) if gail.AFTER not in said.where]

    assert of("CartPole-v1") == ["L2L Fig. 6"] * 4 + ["ours"]
    assert all(name.startswith("ours") for name in of("Acrobot-v1"))
    assert not any("the paper's network and rate" in said.claim for said in gail.answers("Acrobot-v1", tmp_path))
    after = [said.of for said in gail.answers("CartPole-v1", tmp_path) if gail.AFTER in said.where]
    assert set(after) == {"ours"}
