"""Whole runs on digits: what they leave behind, that they go on exactly, and that bad input is told in one line."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from l2ljax import checkpoint, data, devices
from l2ljax.files import locked
from l2ljax.run import experiment, results, settings, setup
from l2ljax.run.config import Config, resolve
from l2ljax.types import L2LError

ROOT = Path(__file__).parent.parent
SHORT = {"epochs": 2, "train_size": 600, "eval_size": 40, "attacks": "fgsm,own", "steps": 2}


def run(tmp_path, method="rnn_adv", **flags):
    config = Config(method=method, workdir=str(tmp_path / "run"), **{**SHORT, **flags})
    return experiment.run(resolve("digits", method, config))


def script(*flags):
    command = [sys.executable, str(ROOT / "experiments" / "digits.py"), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def flags_of(workdir, method="rnn_adv", **flags):
    flags = {**SHORT, "workdir": workdir, "method": method, **flags}
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


def final(workdir):
    """All arrays of the newest checkpoint."""
    found = checkpoint.Checkpoints(workdir / "checkpoints")
    return found._manager.restore(found.latest())


def steps_of(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_report_and_its_figures(tmp_path):
    result = run(tmp_path, attacks="fgsm,own,own5")
    folder = tmp_path / "run"
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads(json.dumps(result))
    for name in ("method", "dataset", "arch", "eps", "seed", "epochs", "eval_size", "versions", "command"):
        assert name in report
    assert report["eps"] == "0.2" and report["eval_size"] == 40
    for whose in (report, report["best"]):
        assert set(whose["attacks"]) == {"fgsm", "own", "own5"}
        assert whose["worst_case_acc"] <= min(row["robust_acc"] for row in whose["attacks"].values())
        assert whose["attacks"]["fgsm"]["passes"] == pytest.approx(1)
        assert whose["attacks"]["own"]["passes"] == pytest.approx(2)  # as it was trained, and longer
        assert whose["attacks"]["own5"]["passes"] == pytest.approx(5)
        assert all(row["seconds"] > 0 for row in whose["attacks"].values())
    assert {p.name for p in (folder / "figures").iterdir()} == {"training.png", "perturbations.png"}
    assert steps_of(folder) == list(range(1, 13))
    assert "| rnn_adv " in (folder / "report.md").read_text()
    assert json.loads((folder / "config.json").read_text())["lr"] == 3e-3


def test_the_same_weights_are_attacked_once(tmp_path, monkeypatch):
    evaluated, evaluate = [], results.evaluate
    monkeypatch.setattr(results, "evaluate", lambda *a, **how: evaluated.append(a[0]) or evaluate(*a, **how))
    report = run(tmp_path, epochs=1, attacks="fgsm")
    shared = ("clean_acc", "attacks", "worst_case_acc")
    assert report["best"]["step"] == 6 and len(evaluated) == 1  # the only validation is that after the last step
    assert {name: report["best"][name] for name in shared} == {name: report[name] for name in shared}


def test_a_run_has_its_folder_to_itself(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(L2LError, match="run is in use by process"):
        run(tmp_path, epochs=1, attacks="fgsm")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_start_that_is_not_there_creates_nothing(tmp_path):
    for start in ("init_from", "attacker_from"):
        with pytest.raises(L2LError, match="no checkpoint in"):
            run(tmp_path, **{start: str(tmp_path / "none")})
    assert not list(tmp_path.iterdir())


def test_methods_without_a_learned_attacker_have_no_own(tmp_path):
    result = run(tmp_path, "pgd_adv", val_size=0, no_checkpoint=True)
    assert set(result["attacks"]) == {"fgsm"}
    assert "best" not in result
    assert result["parameters"]["attacker"] == 0
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_attacks_of_an_open_length_have_no_passes_and_no_part_in_the_estimate(tmp_path, capsys):
    few = {"epochs": 1, "train_size": 100, "val_size": 0, "no_checkpoint": True}
    result = run(tmp_path, "pgd_adv", attacks="fgsm,square20", **few)
    assert [row["passes"] for row in result["attacks"].values()] == [1, None]
    assert "without square20, whose passes depend on the images" in capsys.readouterr().out
    assert re.search(r"\| square20 +\| .* - \|", (tmp_path / "run" / "report.md").read_text())


def test_the_test_split_is_touched_by_the_report_alone(tmp_path, monkeypatch):
    flags = {"epochs": 1, "attacks": "fgsm"}
    seen = run(tmp_path / "a", **flags)
    load = data.load

    def without_test_images(*args, **kwargs):
        dataset = load(*args, **kwargs)
        return dataset._replace(test=data.Split(np.zeros_like(dataset.test.images), dataset.test.labels))

    monkeypatch.setattr(data, "load", without_test_images)
    unseen = run(tmp_path / "b", **flags)
    assert seen["clean_acc"] != unseen["clean_acc"]
    a, b = final(tmp_path / "a" / "run"), final(tmp_path / "b" / "run")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_bfloat16_computes_the_classifier_and_keeps_float32_parameters(tmp_path):
    result = run(tmp_path, epochs=1, dtype="bfloat16", attacks="fgsm")
    assert 0 <= result["attacks"]["fgsm"]["robust_acc"] <= result["clean_acc"]
    assert {a.dtype for name, a in final(tmp_path / "run").items() if ".params" in name} == {np.dtype(np.float32)}


def test_a_run_that_is_stopped_and_killed_goes_on_to_the_same_bits(tmp_path):
    """By SIGTERM, then by SIGKILL; it ends as the one that nothing interrupts."""
    flags = {"epochs": 6, "checkpoint_every": 4, "attacks": "fgsm"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    saved = lambda: max((int(p.name) for p in (broken / "checkpoints").glob("*") if p.name.isdigit()), default=0)
    begins = []
    for how, status in {signal.SIGTERM: 130, signal.SIGKILL: -signal.SIGKILL, None: 0}.items():
        begins.append(saved())
        process = script(*flags_of(broken, **flags))
        deadline = time.monotonic() + 120
        while how and time.monotonic() < deadline:
            if saved() > begins[-1]:
                process.send_signal(how)
                break
            time.sleep(0.01)
        out, err = process.communicate(timeout=240)
        assert process.returncode == status, err
        assert begins[-1] == 0 or f"going on from step {begins[-1]} of 36" in out
        if how == signal.SIGTERM:
            assert re.search(r"stopped after step \d+: run the same command again to resume", err)
        assert (steps_of(broken)[-1] < 36) == bool(how)
    assert begins == sorted(set(begins))
    process = script(*flags_of(whole, **flags))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert steps_of(broken) == steps_of(whole) == list(range(1, 37))
    ends = final(broken), final(whole)
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        np.testing.assert_array_equal(ends[0][name], ends[1][name], err_msg=name)


def test_a_workdir_of_another_configuration_is_refused_and_untouched(tmp_path):
    seconds = run(tmp_path, epochs=1, attacks="fgsm")["train_seconds"]
    before = (tmp_path / "run" / "report.json").read_bytes()
    with pytest.raises(L2LError, match=r"holds a run with seed=0, not 1: choose another --workdir"):
        run(tmp_path, epochs=1, attacks="fgsm", seed=1)
    assert (tmp_path / "run" / "report.json").read_bytes() == before
    again = run(tmp_path, epochs=1, attacks="pgd2")  # only the report's attacks differ: nothing is trained again
    assert set(again["attacks"]) == {"pgd2"} and again["train_seconds"] == seconds > 0


def test_a_run_on_other_devices_is_refused(tmp_path):
    """Other numbers of devices and of cores for each choose other kernels and orders of sums, so other bits."""
    run(tmp_path, epochs=1, attacks="fgsm")
    config = tmp_path / "run" / "config.json"
    saved = json.loads(config.read_text())
    now = saved["trained_on"]
    assert now == "1 cpu" + ", one core each" * (devices.cores() == 1)
    config.write_text(json.dumps({**saved, "trained_on": "3 cpu, one core each"}))
    with pytest.raises(L2LError, match=f"on 3 cpu, one core each, here it would be {now}: give --devices=3"):
        run(tmp_path, epochs=1, attacks="fgsm")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_checkpoint(tmp_path):
    with pytest.raises(L2LError, match=r"the loss is (nan|inf) at step \d+, no checkpoint is saved .* lower --lr"):
        run(tmp_path, "plain", lr=1e20, steps=None)
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    save = ocp.CheckpointManager.save

    def full(self, step, **kwargs):
        if step > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(
        L2LError, match=r"checkpoint of step 12 .*No space left.*that of step 6 is kept: free some space"
    ):
        run(tmp_path)
    monkeypatch.undo()
    assert run(tmp_path)["epochs"] == 2
    assert steps_of(tmp_path / "run") == list(range(1, 13))


def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path):
    run(tmp_path, epochs=1, attacks="fgsm")
    newest = max((tmp_path / "run" / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(L2LError, match="the checkpoint of step 6 .*(cannot be read|of another configuration)"):
        run(tmp_path, epochs=1, attacks="fgsm")


def test_the_attacker_of_another_run_can_be_the_start(tmp_path):
    run(tmp_path, epochs=1, attacks="fgsm")
    source = tmp_path / "run"
    config = Config(method="rnn_adv", attacker_from=str(source), workdir=str(tmp_path / "next"), **SHORT)
    _, state = setup.prepare(resolve("digits", "rnn_adv", config))
    saved = final(source)
    for name, value in state.params.attacker.items():
        np.testing.assert_array_equal(value, saved[f"['last'].params.attacker['{name}']"])
    with pytest.raises(L2LError, match="no checkpoint in"):
        setup.prepare(resolve("digits", "rnn_adv", Config(attacker_from=str(tmp_path / "none"), **SHORT)))


BAD = [
    ({"method": "pgd"}, "unknown method 'pgd': choose one of plain, fgsm_adv"),
    ({"method": "advgan"}, "advgan attacks a trained classifier: train it with attack.py"),
    ({"arch": "resnet"}, "unknown classifier 'resnet': choose one of"),
    ({"attacks": "fgsm,pgd"}, "'pgd': pgd takes a number, like pgd20"),
    ({"attacks": "fgsm5"}, "'fgsm5': fgsm takes no number"),
    ({"attacks": "pdg5"}, "unknown attack 'pdg5': choose from fgsm, pgdN"),
    ({"attacks": "own0"}, "unknown attack 'own0'"),
    ({"attacks": "own" + 5000 * "9"}, "unknown attack 'own9"),
    ({"attacks": "own\u0663"}, "unknown attack 'own"),
    (
        {"method": "grad_l2l", "attacker": "thin", "steps": None},
        "--attacker=thin: give wide or wide_paper or one_block or slim",
    ),
    ({"method": "plain"}, "--steps: plain has none"),
    ({"eps": "8"}, r"eps=8.0 is larger than the pixel range \[0, 1\]: did you mean 8/255\?"),
    ({"eps": "-0.1"}, "eps='-0.1' is no radius"),
    ({"eps": "8/0"}, "is no radius: give a number of 0 or more, like 8/255"),
    ({"norm": "l7"}, "--norm=l7: give linf or l2 or l1"),
    ({"schedule": "both"}, "--schedule=both: give joint or"),
    ({"dtype": "float16"}, "--dtype=float16: give float32 or bfloat16"),
    ({"method": "pgd_adv", "attacker_from": "w"}, "--attacker-from=w: pgd_adv learns no attacker: leave it out"),
    ({"method": "free_adv", "attacker_from": "w", "steps": None}, "--attacker-from=w: free_adv learns no attacker"),
    ({"method": "free_adv", "schedule": "classifier", "steps": None}, "the perturbations of free_adv would not move"),
    ({"method": "pgd_adv", "schedule": "attacker"}, "--schedule=attacker: pgd_adv learns no attacker: give joint"),
    ({"options": "scale"}, "--options=scale=: rnn_adv takes"),
    ({"options": "beta=2"}, "--options=beta=2: rnn_adv takes"),
    ({"epochs": 0}, "--epochs=0: give a number above 0"),
    ({"batch_size": 0}, "--batch-size=0: give a whole number from 1"),
    ({"eval_size": 0}, "--eval-size=0: give a whole number from 1"),
    ({"batch_size": 601}, "batch size 601 must be in 1..600"),
    ({"devices": 2}, "--devices=2: this machine has 1: give fewer, or set JAX_NUM_CPU_DEVICES=2"),
    ({"train_size": 5000}, "do not fit"),
    ({"data_dir": "/nowhere/at/all", "dataset": "mnist"}, "does not exist"),
]


@pytest.mark.parametrize("flags, message", BAD, ids=lambda v: str(v)[:40])
def test_bad_flags_are_told_before_anything_runs(tmp_path, flags, message):
    flags = {**SHORT, **flags}
    dataset, method = flags.pop("dataset", "digits"), flags.pop("method", "rnn_adv")
    with pytest.raises(L2LError, match=message) as error:
        experiment.run(resolve(dataset, method, Config(method=method, workdir=str(tmp_path / "run"), **flags)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_script_tells_errors_in_one_line_and_help_shows_the_recipes(tmp_path):
    process = script("--method=pgd")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: unknown method 'pgd'") and err.count("\n") == 1
    process = script("--help")
    out, _ = process.communicate(timeout=60)
    assert "two_step_grad_only_l2l" in out and "--checkpoint-every" in out and "adam 0.001" in out


def test_learning_rates_fall_where_the_papers_say():
    spec = resolve("cifar10", "grad_l2l", Config(method="grad_l2l"))
    assert (spec.arch, spec.ball.eps, spec.milestones) == ("wrn_34_10", 0.031, (29, 59, 89))
    short = resolve("cifar10", "grad_l2l", Config(method="grad_l2l", epochs=10))
    assert short.milestones == pytest.approx((2.9, 5.9, 8.9))
    optimizer = settings.optimizers(spec, 391).classifier
    w, g = {"w": np.float32(2.0)}, {"w": np.float32(1.0)}
    state = optimizer.init(w)
    update = jax.jit(optimizer.update)
    velocity, weight_decay = 0.0, 2e-4
    for _ in range(3):  # torch's SGD: v = 0.9 v + (g + wd w), w -= lr v
        updates, state = update(g, state, w)
        velocity = 0.9 * velocity + (1.0 + weight_decay * float(w["w"]))
        assert float(updates["w"]) == pytest.approx(-0.1 * velocity, rel=1e-5)
        w = {"w": w["w"] + updates["w"]}
    at = (29 * 391 - 1, 29 * 391, 59 * 391, 89 * 391)
    schedule = settings.LR_SCHEDULES["steps"](spec, 391)
    assert [float(schedule(step)) for step in at] == pytest.approx([0.1, 0.01, 0.001, 0.0001])


def test_a_warm_up_is_plain_training_and_then_the_attacker_learns(tmp_path):
    plain = {"epochs": 1, "train_size": 300, "val_size": 0, "eval_size": 20, "attacks": "fgsm"}
    plain["lr_schedule"] = "constant"  # a one-cycle rate depends on the length of the run
    run(tmp_path / "plain", "plain", steps=None, **plain)
    run(tmp_path / "warm", "rnn_adv", **{**plain, "epochs": 2, "warmup": 1.0})
    folders = [tmp_path / name / "run" for name in ("plain", "warm")]
    managers = [checkpoint.Checkpoints(folder / "checkpoints")._manager for folder in folders]
    steps = managers[0].latest_step()
    one, two = (manager.restore(steps) for manager in managers)
    for name in one:
        if "classifier" in name and "['last']" in name and "opt_state" not in name:
            np.testing.assert_array_equal(one[name], two[name])
    rows = [json.loads(line) for line in (folders[1] / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("attacker_gradient_norm", 0) > 0 for row in rows] == [False] * steps + [True] * steps
    with pytest.raises(L2LError, match="--warmup=3.0: give 0 to 2"):
        run(tmp_path, warmup=3.0)
