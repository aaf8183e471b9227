"""Training steps that are timed: their cells, what is counted beside the time, and torch's, which are ours."""

import functools
import json
import multiprocessing
import os

import numpy as np
import pytest

from bench import benchmark, processes, rivals, throughput, training
from l2ljax.types import L2LError
from papers import tables


@pytest.fixture
def torch_training():
    pytest.importorskip("torch")
    return rivals.package("bench.torch_training")


def task(method, arch="resnet20", dtype="float32", steps=2):
    return training.Task(arch, dtype, 4, method, eps=0.1, steps=steps, attacker_width=2)


@pytest.fixture
def flags(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "matrix_ceiling", lambda dtype: 1e9)
    chosen = {"model": "digits_cnn", "batch_sizes": "4", "repeats": 2, "out": tmp_path / "speed.json"}
    return functools.partial(throughput.Flags, **chosen)


def test_a_step_is_counted_beside_the_time(flags):
    """A step of PGD costs about two thirds of a training pass, which has a gradient for the weights too."""
    found = throughput.run(flags(train="plain,pgd_adv,rnn_adv"))
    rows = {row["method"]: row for row in found["speed"]}
    assert len(rows) == len(found["speed"]) == 3 and {row["what"] for row in found["speed"]} == {"training step"}
    counted = {method: row["flops"] / rows["plain"]["flops"] for method, row in rows.items()}
    assert 1 + 10 * 0.6 < counted["pgd_adv"] < 1 + 10 * 0.75
    assert counted["pgd_adv"] < counted["rnn_adv"] < 1.5 * counted["pgd_adv"]  # the attacker's own products
    assert [row["attacker_parameters"] for row in rows.values()] == [0, 0, 120]
    lines = [line for line in tables.tell(found).splitlines() if line.startswith("| ")]
    assert [line.split("|")[7].strip() for line in lines[2:]] == [f"{ratio:.2f}" for ratio in counted.values()]


def test_alternating_players_cost_their_own_gradients_alone():
    methods = ("plain", "grad_l2l", "grad_l2l:alternating")
    plain, joint, alternating = (training.known(task(method, "digits_cnn"))["flops"] for method in methods)
    assert joint + 0.9 * plain < alternating < 2 * joint  # two attacks; neither update has both players' gradients


def test_cells_are_methods_in_turn_for_each_batch_size_and_number_of_steps(flags, monkeypatch):
    order = []

    def build(task, count):
        return lambda: order.append((task.method, task.batch_size, training.options(task).get("steps")))

    monkeypatch.setattr(training, "ours", build)
    found = throughput.run(flags(train="plain,pgd_adv", batch_sizes="2,4", steps="1,5"))
    once = [[("plain", size, None), ("pgd_adv", size, steps)] for size in (2, 4) for steps in (1, 5)]
    assert order == [program for cell in once for program in 3 * cell]
    keys = ("method", "batch_size", "steps", "program")
    assert [tuple(row[key] for key in keys) for row in found["speed"]] == [
        (method, size, steps, "l2ljax") for size in (2, 4) for steps in (1, 5) for method in ("plain", "pgd_adv")
    ]
    flops = {(row["method"], row["steps"]): row["flops"] for row in found["speed"] if row["batch_size"] == 4}
    assert flops["pgd_adv", 5] - flops["plain", 5] == 5 * (flops["pgd_adv", 1] - flops["plain", 1]) > 0
    assert "batch of 2, 5 attack steps" in tables.tell(found)


@pytest.mark.parametrize(("rivals", "processes_used"), [("", 0), ("torchattacks", 2)])
def test_steps_are_timed_in_processes_of_their_own_beside_rivals_alone(rivals, processes_used, flags, monkeypatch):
    alone = []
    monkeypatch.setattr(training, "ours", lambda task, count: lambda: None)
    monkeypatch.setattr(processes, "apart", lambda build, **options: alone.append(options) or build())
    throughput.run(flags(train="plain,pgd_adv", rivals=rivals))
    assert alone == processes_used * [{"like_a_script": True}]


@pytest.mark.parametrize("method", ["plain", "pgd_adv", "trades", "rnn_adv", "grad_l2l", "grad_l2l:alternating"])
def test_steps_in_torch_have_our_losses_on_resnet20(method, torch_training):
    gaps = torch_training.check(task(method))
    assert list(gaps) == list(torch_training.RIVALS[method])
    assert all(len(steps) == 3 and max(steps) < 1e-10 for steps in gaps.values())


@pytest.mark.parametrize("method", ["pgd_adv", "trades", "rnn_adv", "two_step_l2l", "two_step_l2l:alternating"])
def test_steps_in_torch_have_our_losses_on_small_cnn(method, torch_training):
    assert all(max(steps) < 1e-10 for steps in torch_training.check(task(method, "small_cnn", steps=None)).values())


def test_another_step_size_is_refused(torch_training, monkeypatch):
    ours = torch_training.RIVALS["pgd_adv"][""]

    def short(game, start):
        return ours(game._replace(options={**game.options, "step_size": 0.99 * game.eps / 4}), start)

    monkeypatch.setitem(torch_training.RIVALS["pgd_adv"], "", short)
    with pytest.raises(L2LError, match="step 1 of pgd_adv differs: torch's loss is"):
        torch_training.check(task("pgd_adv", "small_cnn"))


def test_an_attacker_that_descends_is_refused(torch_training, monkeypatch):
    """Its first loss is right still."""
    ours = torch_training.RIVALS["rnn_adv"]["linear losses"]

    def descending(game, start):
        game.ascent.param_groups[0]["maximize"] = False
        return ours(game, start)

    monkeypatch.setitem(torch_training.RIVALS["rnn_adv"], "linear losses", descending)
    with pytest.raises(L2LError, match="step 2 of rnn_adv linear losses differs"):
        torch_training.check(task("rnn_adv", "small_cnn"))


def test_what_torch_lacks_is_told(torch_training):
    with pytest.raises(L2LError, match="no step of l2l_da in torch: --rivals=torch has plain"):
        torch_training.check(task("l2l_da"))
    with pytest.raises(L2LError, match="float32, not bfloat16"):
        torch_training.check(task("plain", dtype="bfloat16"))
    with pytest.raises(L2LError, match="digits_cnn has no copy in torch"):
        torch_training.check(task("plain", "digits_cnn"))


def test_rows_of_rivals_stand_below_ours(flags, torch_training, monkeypatch):
    monkeypatch.setattr(torch_training, "check", lambda task: dict.fromkeys(torch_training.RIVALS[task.method]))
    found = throughput.run(flags(model="small_cnn", train="pgd_adv,rnn_adv", steps="2", rivals="torch"))
    rows = json.loads(json.dumps(found["speed"]))
    assert [(row["method"], row["program"].startswith("torch")) for row in rows] == [
        ("pgd_adv", False), ("pgd_adv", True), ("rnn_adv", False), ("rnn_adv", True), ("rnn_adv", True),
    ]  # fmt: skip
    ours = np.array(rows[2]["seconds"])
    for row in rows[3:]:
        ratios = np.array(row["seconds"]) / ours
        expected = {"median": np.median(ratios), "least": ratios.min(), "most": ratios.max()}
        assert row["time_over_ours"] == pytest.approx(expected)
        assert f"{row['time_over_ours']['median']:.2f} (" in tables.tell(found)


def big_and_small(nbytes):
    """What builds a program that holds so many bytes while it runs."""
    return functools.partial(_build, nbytes)


def _build(nbytes):
    kept = np.ones(10_000_000)  # stays between the runs: not counted
    return lambda: np.ones(nbytes // 8).sum() + kept[0]


def _counting():
    runs = []

    def program():
        runs.append(1)
        if len(runs) == 3:
            raise ValueError(f"run {len(runs)} in process {os.getpid()}")

    return program


def test_a_program_apart_keeps_its_state_in_another_process_which_ends_with_it():
    program = processes.apart(_counting)
    assert [program(), program()] == [None, None]
    with pytest.raises(L2LError, match=r"ValueError: run 3 in process \d+") as failed:
        program()
    process = int(str(failed.value).split()[-1])
    assert process != os.getpid()
    del program, failed  # whose traceback has it, too
    for child in multiprocessing.active_children():
        if child.pid == process:
            child.join(20)
            assert child.exitcode == 0


def _killed():
    return lambda: os._exit(3)


def test_the_end_of_a_programs_process_is_one_error():
    program = processes.apart(_killed)
    with pytest.raises(L2LError, match="its process ended"):
        program()


def test_the_peak_is_what_a_step_holds_beside_what_stays():
    for nbytes in (200_000_000, 50_000_000):
        peak = processes.peak_bytes(big_and_small(nbytes))
        if peak is None:
            pytest.skip("the system keeps no peak")
        assert peak == pytest.approx(nbytes, abs=5_000_000)
