"""The table of goals: ratios are those of the rounds, and what is missed says so."""

import json

import pytest

from bench import goals
from l2ljax.types import L2LError
from papers import tables


def speed(**seconds):
    rows = [{"method": name.split("_")[0], "program": name.split("_")[1], "seconds": s} for name, s in seconds.items()]
    return {"speed": rows}


def test_ratios_are_those_within_rounds_and_the_fastest_rival_counts(tmp_path):
    record = speed(plain_l2ljax=[1.0, 2, 4], plain_slow=[9.0, 9, 9], plain_fast=[0.8, 2, 3.2])
    row = goals.reached(goals.Goal("plain", "training", 0.9, "plain"), record)
    assert row["rival"] == "fast" and row["ratio"] == {"median": 0.8, "least": 0.8, "most": 1.0} and not row["met"]
    row = goals.reached(goals.Goal("plain", "training", 3, "plain", rival="slow"), record)
    assert row["rival"] == "slow" and row["ratio"]["median"] == 4.5 and row["met"]


def test_our_own_ratio_and_seconds_are_to_stay_below():
    record = speed(rnn_l2ljax=[1.2, 1.2, 1.2], pgd_l2ljax=[1.0, 1.0, 1.2])
    row = goals.reached(goals.Goal("rnn", "training", 1.1, "rnn", over="pgd"), record)
    assert row["ratio"]["median"] == 1.2 and not row["met"]
    row = goals.reached(goals.Goal("start", "import", 1.5, seconds=True), {"seconds": [1.6, 1.2, 1.4]})
    assert row["ratio"] == {"median": 1.4, "least": 1.2, "most": 1.6} and row["met"]


def test_what_is_measured_is_collected_and_told(tmp_path):
    for name, seconds in {"import": [1.0, 2.0], "first_step_digits": [20.0]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": "M", "date": "D", "seconds": seconds}))
    text = tables.tell(goals.collect(tmp_path))
    assert "| import l2ljax, s | at most 1.5 | 1.50 (1.00-2.00) | 2 | yes |" in " ".join(text.split())
    assert "| at most 15 | 20.00 (20.00-20.00) | 1 | no |" in " ".join(text.split())


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(L2LError, match=r"throughput\.py --train=foo"):
        goals.run("throughput.py", "--train=foo", "--minutes=0.1", tmp_path / "x.json")
