"""The session on a GPU, in small on a CPU: it tells verdicts that differ, and what it leaves when it is stopped."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench import agenda, gpu, verdicts
from bench.agenda import Job
from l2ljax.files import write_json
from l2ljax.types import L2LError

ROOT = Path(__file__).parent.parent
SMALL = {
    "smoke_arch": "digits_cnn", "smoke_images": 20, "programs": "pgd2", "tf32": "pgd2",
    "models": "digits_cnn", "dtypes": "float32", "batch_size": 4, "rivals": "", "slow_rivals": "", "repeats": 1,
    "dataset": "digits", "arch": "digits_cnn", "dtype": "float32", "methods": "fgsm_adv", "most_epochs": 1,
    "train_batch": 100, "attacks": "pgd2", "eval_size": 8, "minutes": 20,
}  # fmt: skip


def writes(content, *, path, seconds):
    write_json(path, content)


def crashes(*, path, seconds):
    write_json(path, {"before": 1})
    print("out of memory", flush=True)
    os._exit(3)


def hangs(*, path, seconds):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_json(path, {"seconds": seconds})
    time.sleep(600)


@pytest.mark.slow
def test_jobs_that_crash_or_hang_leave_what_they_wrote_and_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(agenda, "GRACE", 0.5)
    monkeypatch.setattr(agenda, "LEAST", 0.0)
    jobs = [Job("crashing", crashes, (), 1), Job("hanging", hangs, (), 0), Job("last", writes, ({"a": 2},), 1)]
    told = agenda.run(jobs, out=tmp_path / "all.json", folder=tmp_path / "own", seconds=50, summarize=list)
    assert json.loads((tmp_path / "all.json").read_text()) == told
    rows = told["jobs"]
    assert [row["state"] for row in rows.values()] == ["failed", "stopped", "done"]
    assert rows["crashing"]["result"] == {"before": 1} and rows["crashing"]["log"] == ["out of memory"]
    left = rows["hanging"]["result"]["seconds"]  # what the job before it had left of half the time
    assert left == pytest.approx(25 - rows["crashing"]["seconds"], abs=1)
    assert rows["hanging"]["seconds"] == pytest.approx(left + agenda.GRACE, abs=2)
    assert rows["last"]["result"] == {"a": 2} and "log" not in rows["last"]
    assert told["summary"] == list(rows)


def test_nothing_is_begun_that_has_no_time(tmp_path):
    told = agenda.run([Job("late", writes, ({},), 1)], out=tmp_path / "all.json", folder=tmp_path, seconds=5)
    assert told["jobs"] == {"late": {"state": "not begun"}}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    file = tmp_path_factory.mktemp("reference") / "reference.npz"
    verdicts.make_reference(file, "digits_cnn", ["pgd2", "plain", "pgd2:bfloat16"], shape=(8, 8, 1), images=20)
    return file


def change(file, to, **arrays):
    """Write a reference with other arrays, as name -> function of what was there."""
    with np.load(file) as saved:
        held = dict(saved)
    for name, function in arrays.items():
        key = name.replace("_", " ", 1)
        held[key] = function(held[key])
    np.savez(to, **held)


def changed(file, folder, **arrays):
    change(file, folder / "changed.npz", **arrays)
    return verdicts.load_reference(folder / "changed.npz")


@pytest.mark.slow
def test_verdicts_are_those_of_the_reference(reference):
    found = verdicts.load_reference(reference)
    rows = {name: verdicts.compare(found, name) for name in found.outcomes}
    assert list(rows) == ["pgd2", "plain", "pgd2:bfloat16"]
    for row in rows.values():
        assert row["equal"] and row["flips"] == 0 and row["images"] == 20
        assert 0 < row["right"] < 20  # a verdict of either kind could flip
        assert row["logits_difference"] == 0 and not any(row["loss_differences"] + row["gradient_differences"])
    assert len(rows["plain"]["loss_differences"]) == verdicts.STEPS and rows["pgd2"]["loss_differences"] == []
    exact, short = (found.outcomes[name].logits for name in ("pgd2", "pgd2:bfloat16"))
    assert 0 < np.abs(exact - short).max() < 0.2 * np.abs(exact).max()


def misled(logits):
    """With the verdict on one image, of class 7, turned around."""
    logits[7, 7] = logits[7].max() + 3 if logits[7].argmax() != 7 else logits[7].min() - 3
    return logits


@pytest.mark.slow
def test_a_wrong_verdict_a_lost_weight_and_nan_are_told(reference, tmp_path):
    row = verdicts.compare(changed(reference, tmp_path, pgd2_logits=misled), "pgd2")
    assert not row["equal"] and row["flips"] == 1 and row["flipped_margin"] > 2.9
    assert row["logits_difference"] > 2.9
    row = verdicts.compare(
        changed(reference, tmp_path, plain_losses=lambda found: found + np.array([0, 0, 2])), "plain"
    )
    assert row["equal"] and row["loss_differences"] == pytest.approx([0, 0, 2])
    found = changed(reference, tmp_path, plain_gradient_norms=lambda norms: 2 * norms)
    assert verdicts.compare(found, "plain")["gradient_differences"] == pytest.approx([0.5, 0])
    for function in (np.zeros_like, lambda weights: weights * np.nan):
        row = verdicts.compare(changed(reference, tmp_path, weights_1=function), "pgd2")
        assert not row["equal"]
    assert row["logits_difference"] is None
    (tmp_path / "damaged.npz").write_bytes(reference.read_bytes()[:1000])
    with pytest.raises(L2LError, match="damaged.npz is no reference .* delete it"):
        verdicts.load_reference(tmp_path / "damaged.npz")
    with pytest.raises(L2LError, match="unknown program pgd2:fast"):
        verdicts.run("pgd2:fast", "digits_cnn", None, None)


def script(tmp_path, **changes):
    chosen = {**SMALL, "out": tmp_path / "all.json", "folder": tmp_path / "own", "reference": tmp_path / "ref.npz"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**chosen, **changes}.items()]
    command = [sys.executable, str(ROOT / "experiments" / "gpu.py"), *flags, "--smoke-shape", "8", "8", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_whole_list_stopped_and_gone_on_with(tmp_path):
    out, deadline = tmp_path / "all.json", time.monotonic() + 400
    process = script(tmp_path)
    while time.monotonic() < deadline and process.poll() is None:
        if out.exists() and "plan" in json.loads(out.read_text())["jobs"]["training"].get("result", {}):
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(out.read_text())
    states = {name: row["state"] for name, row in found["jobs"].items()}
    assert states == {
        "reference": "done", "verdicts": "done", "speed-digits_cnn-float32": "done", "training": "stopped",
        "autoattack": "not begun",
    }  # fmt: skip
    assert found["summary"]["unequal"] == {"highest": [], "default": []}
    rows = found["jobs"]["verdicts"]["result"]
    assert list(rows["highest"]) == ["pgd2"] and list(rows["default"]) == ["pgd2"]
    assert rows["about"]["versions"]["device"] == "cpu"
    shares = found["summary"]["share_of_ceiling"]
    assert list(shares) == ["training step of pgd_adv, digits_cnn, float32", "pgd10, digits_cnn, float32"]
    assert all(0 < share < 1 for share in shares.values())

    change(tmp_path / "ref.npz", tmp_path / "ref.npz", pgd2_logits=misled)
    process = script(tmp_path, only="verdicts,training,autoattack")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    found = json.loads(out.read_text())
    assert list(found["jobs"]) == list(states)  # those of the first command stay
    assert {row["state"] for row in found["jobs"].values()} == {"done"}
    assert found["summary"]["unequal"] == {"highest": ["pgd2"], "default": ["pgd2"]}
    training = found["jobs"]["training"]["result"]
    assert training["plan"] == {"epochs": 1, "train_size": 1400}  # as many as there are
    row = found["summary"]["accuracy"]["fgsm_adv"]
    assert row["autoattack"] <= row["pgd2"] <= row["clean"] <= 1
    steps = Path(training["runs"]["fgsm_adv"]["workdir"], "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 14


def test_training_takes_the_images_that_fit(monkeypatch):
    """A step of 100 images takes a second, compiling ten; a step of the method costs what the measured one does."""
    flags = gpu.Flags(**{**SMALL, "methods": "pgd_adv,pgd_adv", "most_epochs": 3})
    row = {"first_seconds": 10.0, "images_per_second": 100.0}
    monkeypatch.setattr(gpu.benchmark, "alternate", lambda programs, **_: dict.fromkeys(programs, row))
    monkeypatch.setattr(gpu.training, "known", lambda task: {"flops": 7.0})
    monkeypatch.setattr(gpu.time, "monotonic", lambda: 0.0)
    total = 1400
    for seconds, expected in {
        5: {"epochs": 1, "train_size": 100},
        45: {"epochs": 1, "train_size": 600},
        110: {"epochs": 2, "train_size": total},
        10_000: {"epochs": 3, "train_size": total},
    }.items():
        assert gpu._plan(flags, seconds) == expected


def test_the_list_is_in_order_of_worth_and_jobs_are_chosen_by_name(tmp_path):
    flags = gpu.Flags(reference=tmp_path / "ref.npz")
    names = [job.name for job in gpu.jobs(flags)]
    assert names[:4] == ["reference", "verdicts", "speed-wrn_34_10-bfloat16", "speed-resnet18-bfloat16"]
    assert names[4:6] == ["training", "autoattack"] and names[-1] == "speed-resnet18-bfloat16-torch_compile"
    flags.reference.touch()
    assert [job.name for job in gpu.jobs(flags)] == names[1:]
    chosen = dataclasses.replace(flags, only="autoattack,verdicts")
    assert [job.name for job in gpu.jobs(chosen)] == ["verdicts", "autoattack"]
    with pytest.raises(L2LError, match="--only=judging: choose from verdicts, speed-"):
        gpu.jobs(dataclasses.replace(flags, only="judging"))


def test_the_device_is_left_to_the_jobs():
    """The process that starts them would hold most of a GPU's memory if it computed on it."""
    code = """
from bench import gpu
from jax._src import xla_bridge
assert len(gpu.jobs(gpu.Flags())) > 5
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "experiments", check=True, timeout=100)


def test_a_failure_leaves_the_others_and_is_told():
    row = gpu._attempt(lambda: 1 / 0)
    assert row == {"error": "ZeroDivisionError: division by zero"}
    told = gpu.summary({"verdicts": {"highest": {"a": row, "b": {"equal": True}}, "default": {}}})
    assert told["unequal"] == {"highest": ["a"], "default": []}
