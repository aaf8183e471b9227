"""Several seeds are as many single runs, to the same bits; killed, the same command goes on; the report adds up."""

import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from l2ljax import checkpoint
from l2ljax.report import markdown
from l2ljax.run import experiment, seeds, setup
from l2ljax.run.config import Config, resolve
from l2ljax.types import L2LError

SHORT = {"epochs": 1, "train_size": 300, "val_size": 0, "eval_size": 40, "attacks": "fgsm", "steps": 2}


def command(monkeypatch, *flags, **changes):
    given = {**SHORT, "method": "pgd_adv", **changes}
    monkeypatch.setattr(sys, "argv", ["digits.py", *(f"--{k.replace('_', '-')}={v}" for k, v in given.items()), *flags])
    experiment.main("digits")


def parameters(folder):
    found = checkpoint.Checkpoints(folder / "checkpoints")
    return found._manager.restore(found.latest())


def test_seeds_are_single_runs_and_a_killed_command_goes_on(tmp_path, monkeypatch, capsys):
    started, run = [], experiment.run

    def dies_at_the_third(spec):
        started.append(spec.seed)
        if len(started) == 3:
            raise KeyboardInterrupt
        return run(spec)

    monkeypatch.setattr(experiment, "run", dies_at_the_third)
    flags = {"seed": 4, "seeds": 3, "workdir": tmp_path / "all"}
    with pytest.raises(SystemExit, match="130"):
        command(monkeypatch, **flags)
    command(monkeypatch, **flags)
    assert started == [4, 5, 6, 6]  # the two that were finished are not run again
    found = json.loads((tmp_path / "all" / "report.json").read_text())
    assert found["seeds"] == [4, 5, 6] == [r["seed"] for r in found["rows"]["pgd_adv"]]
    assert markdown.over_seeds(found) in capsys.readouterr().out

    monkeypatch.setattr(experiment, "run", run)
    alone = run(resolve("digits", "pgd_adv", Config(**SHORT, method="pgd_adv", seed=5, workdir=str(tmp_path / "one"))))
    whole = json.loads((tmp_path / "all" / "s5" / "report.json").read_text())
    for name in ("clean_acc", "worst_case_acc", "seed", "epochs"):
        assert alone[name] == whole[name]
    one, other = parameters(tmp_path / "one"), parameters(tmp_path / "all" / "s5")
    compared = [np.testing.assert_array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True)]
    assert len(compared) > 10
    files = [tmp_path / folder / "metrics.jsonl" for folder in ("one", "all/s5")]
    rows = [[json.loads(line) | {"seconds": 0} for line in file.read_text().splitlines()] for file in files]
    assert rows[0] == rows[1]


def leaves(tree):
    return [leaf for v in tree.values() for leaf in leaves(v)] if isinstance(tree, dict) else [np.asarray(tree)]


def test_the_table_has_mean_spread_and_lowest():
    def run(acc, own=None):
        rows = {"pgd20": {"robust_acc": acc / 2}, **({"own": {"robust_acc": own}} if own else {})}
        about = {"dataset": "D", "arch": "A", "norm": "linf", "eps": "0.1", "epochs": 3, "eval_size": 9}
        return {**about, "clean_acc": acc, "attacks": rows, "worst_case_acc": acc / 2}

    rows = {"one": [run(0.9), run(0.6), run(0.6)], "two": [{**run(0.5, own=0.25), "ended_at": 4, "epochs": 5.0}]}
    summary = markdown.summary(rows["one"])
    assert summary["clean"] == {
        "mean": pytest.approx(0.7),
        "lowest": 0.6,
        "deviation": statistics.stdev([0.9, 0.6, 0.6]),
    }
    assert list(summary) == ["clean", "pgd20", "worst case"]
    assert markdown.summary(rows["two"])["own"] == {"mean": 0.25, "lowest": 0.25, "deviation": 0.0}
    table = markdown.over_seeds({"rows": rows, "command": "C"}).splitlines()
    assert table[0].startswith("D, A, linf eps 0.1, 3/5 epochs, 9 test images")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert cells[0] == ["setting", "seeds", "clean", "pgd20", "own", "worst case"]
    assert cells[2] == ["one", "3", "70.00 ± 17.32 (60.00)", "35.00 ± 8.66 (30.00)", "-", "35.00 ± 8.66 (30.00)"]
    assert cells[3][0] == "two, 1 ended by catastrophic overfitting" and cells[3][4] == "25.00 ± 0.00 (25.00)"


def test_only_the_same_run_counts_as_finished(tmp_path):
    def spec(**changes):
        flags = {**SHORT, "attacks": "fgsm", "workdir": str(tmp_path), **changes}
        return resolve("digits", "pgd_adv", Config(method="pgd_adv", **flags))

    assert seeds.finished(spec()) is None
    (tmp_path / "config.json").write_text(json.dumps(spec().saved()))
    assert seeds.finished(spec()) is None
    (tmp_path / "report.json").write_text('{"seed": 0}')
    assert seeds.finished(spec()) == {"seed": 0} == seeds.finished(spec(checkpoint_every=7, data_dir="/elsewhere"))
    for change in ({"seed": 1}, {"attacks": "fgsm,pgd5"}, {"eval_size": 7}, {"epochs": 3}, {"lr": 0.5}):
        assert seeds.finished(spec(**change)) is None
    assert seeds.finished(spec()._replace(on_overfitting="stop")) is None
    trained = tmp_path / "start" / "checkpoints"
    trained.mkdir(parents=True)
    started = {"init_from": str(tmp_path / "start")}
    (tmp_path / "config.json").write_text(json.dumps(spec(**started).saved()))
    (tmp_path / "report.json").write_text('{"seed": 0}')
    assert seeds.finished(spec(**started)) == {"seed": 0}
    (trained / "7").mkdir()  # trained on since
    assert seeds.finished(spec(**started)) is None
    (tmp_path / "config.json").write_text(json.dumps(spec().saved()))  # begun anew after that report
    assert seeds.finished(spec()) is None


def test_a_run_that_starts_trained_is_finished_once(tmp_path, monkeypatch):
    """The recipe names no start, the run's configuration the classifier that was trained for it."""
    fitted = []

    def fit_run(settings):
        fitted.append(settings.method)
        Path(settings.workdir).mkdir(parents=True, exist_ok=True)
        for name, content in (("config", settings.saved()), ("report", {"method": settings.method})):
            (settings.workdir / f"{name}.json").write_text(json.dumps(content))
        return SimpleNamespace(report={"method": settings.method})

    monkeypatch.setattr(experiment.fit, "run", fit_run)
    settings = resolve("cifar10", "l2l_da", Config(method="l2l_da", workdir=str(tmp_path)))
    assert settings.pretrained
    for _ in range(2):
        assert experiment.run_once(settings) == {"method": "l2l_da"}
    assert fitted == ["plain", "l2l_da"]
    assert seeds.finished(settings._replace(init_from="another")) is None


def test_architectures_have_reports_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about = {"dataset": "digits", "norm": "linf", "eps": "0.1", "epochs": 3, "eval_size": 9, "clean_acc": 0.9}
    runs = lambda arch: {"plain": [{**about, "arch": arch, "attacks": {}, "worst_case_acc": 0.5}] * 2}
    config = Config(method="plain", seed=1, seeds=2)
    folders = [seeds.write("digits", config, runs(arch))[0] for arch in ("digits_cnn", "mlp")]
    assert [str(folder) for folder in folders] == ["runs/digits_plain_digits_cnn_s1-2", "runs/digits_plain_mlp_s1-2"]


def test_a_report_on_other_data_does_not_count_as_finished(tmp_path):
    def spec():
        return resolve(str(file), "plain", Config(method="plain", epochs=1, attacks="", workdir=str(tmp_path / "run")))

    file = tmp_path / "mine.npz"
    for value in (0, 7):
        images = np.full((24, 4, 4, 1), value, np.uint8)
        np.savez(file, train_images=images, train_labels=np.arange(24) % 2)
        assert seeds.finished(spec()) is None
        (tmp_path / "run").mkdir(exist_ok=True)
        saved = {**spec().saved(), **setup.data_identity(spec())}
        (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
        (tmp_path / "run" / "report.json").write_text('{"seed": 0}')
        assert seeds.finished(spec()) == {"seed": 0}


def test_plans():
    def plan(**changes):
        return seeds.plan("digits", "rnn_adv", Config(**changes))

    assert [str(s.workdir) for s in plan()] == ["runs/digits_rnn_adv_digits_cnn_s0"]
    assert [str(s.workdir) for s in plan(workdir="w", seed=2)] == ["w"]
    assert [str(s.workdir) for s in plan(workdir="w", seed=2, seeds=2)] == ["w/s2", "w/s3"]
    assert [str(s.workdir) for s in plan(workdir="w", seeds=2, method="plain,rnn_adv")] == [
        "w/s0/rnn_adv",
        "w/s1/rnn_adv",
    ]
    assert [(s.seed, str(s.workdir)) for s in plan(seeds=2, seed=1)] == [
        (1, "runs/digits_rnn_adv_digits_cnn_s1"), (2, "runs/digits_rnn_adv_digits_cnn_s2"),
    ]  # fmt: skip
    with pytest.raises(L2LError, match="--seeds=0: give a whole number from 1 to 10000"):
        plan(seeds=0)
