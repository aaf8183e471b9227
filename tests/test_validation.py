"""The alarm for catastrophic overfitting: it rings where it should, not elsewhere, and ends training as asked."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import l2ljax
from l2ljax.evaluate import loop
from l2ljax.run import validation
from l2ljax.run.config import Config, resolve
from l2ljax.run.results import summarize
from l2ljax.run.setup import prepare
from l2ljax.run.validation import overfits
from l2ljax.runtime.workdir import ALARM
from l2ljax.types import L2LError


def row(step, robust, single, prefix="val"):
    return {"step": step, f"{prefix}_robust_acc": robust, f"{prefix}_single_step_acc": single}


@pytest.mark.parametrize(
    "accuracies, good",
    [
        ([(0.4, 0.5), (0.1, 0.9)], 1),
        ([(0.2, 0.3), (0.5, 0.6), (0.45, 0.6), (0.2, 0.7)], 2),
        ([(0.4, 0.5), (0.1, 0.4)], None),  # both fall: training diverges, and the loss shows it
        ([(0.4, 0.5), (0.25, 0.9)], None),
        ([(0.1, 0.9)], None),
        ([(0.0, 0.0), (0.0, 0.0)], None),
        ([(0.1, 0.1), (0.01, 0.3)], None),  # chance
        ([(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)], None),
        ([(0.086, 0.663), (0.058, 0.766)], 1),  # FGSM training on MNIST at 0.3, which ends at 0.005 and 0.91
        ([(0.086, 0.663), (0.09, 0.766)], None),
        ([(0.2, 0.6), (0.19, 0.7)], None),  # weak, but not at one step alone
    ],
)
def test_it_rings_where_several_steps_fall_and_one_does_not(accuracies, good):
    *past, now = [row(step, *both) for step, both in enumerate(accuracies, 1)]
    assert overfits([{"step": 0, "loss": 1.0}, *past], now) == good
    as_raw = [{**row(p["step"], 0.4, 0.4), **row(p["step"], p["val_robust_acc"], p["val_single_step_acc"], "raw_val")}
              for p in (*past, now)]  # fmt: skip
    assert overfits(as_raw[:-1], as_raw[-1]) == good  # an average that looks well does not hide it


@pytest.mark.parametrize("attacked, good", [(0.35, 1), (0.25, None)])
def test_where_labels_leak_it_rings_at_low_accuracies_too(attacked, good):
    """N-FGSM with adversarial weight perturbation on CIFAR-10: 0.086 and 0.13, then 0.029 and 0.188."""
    trained = [{"step": step, "accuracy": 0.3, "robust_accuracy": attacked} for step in (2, 3)]
    before = [{"step": 0, "accuracy": 0.2, "robust_accuracy": 0.9}, row(1, 0.086, 0.13), *trained]
    assert overfits(before, row(4, 0.029, 0.188)) == good
    assert overfits([row(1, 0.0, 0.13), *trained], row(4, 0.0, 0.188)) is None


def test_attacks_are_compiled_once_for_all_weights_of_a_run():
    """Validations and the report's states share their programs: a new attack object would be compiled anew."""
    small = {"train_size": 100, "val_size": 20, "eval_size": 20, "batch_size": 20, "steps": 2}
    settings = resolve("digits", "rnn_adv", Config(method="rnn_adv", attacks="fgsm,own", **small))
    made, state = prepare(settings._replace(workdir=None, selection_attack="pgd2"))
    best = validation.Best(np.float32(0.5), np.int32(3), state.params, state.stats)

    def look():
        before = loop._compiled.cache_info().misses
        validation.validate(made, state, [])
        summarize(made, state, best, [])
        return loop._compiled.cache_info().misses - before

    assert look() > 0 and look() == 0


SHORT = {"method": "fgsm_adv", "epochs": 4, "train_size": 300}


def plant(monkeypatch, good=1):
    """Let the network overfit after that many evaluations of validation; return the steps that the alarm sees."""
    seen, looked = [], []

    def planted(*args, **options):
        seen.append(1)
        rows = {"pgd10": SimpleNamespace(robust_acc=0.5 * (len(seen) <= good)), "fgsm": SimpleNamespace(robust_acc=0.6)}
        return SimpleNamespace(clean_acc=0.9, attacks=rows)

    def looking(history, row):
        looked.append([past["step"] for past in history if "robust_accuracy" in past])
        return overfits(history, row)

    monkeypatch.setattr(validation, "evaluate", planted)
    monkeypatch.setattr(validation, "overfits", looking)
    return looked


@pytest.mark.parametrize(
    "choice, last, others", [("ignore", 12, ["stop", "restore"]), ("stop", 6, ["restore"]), ("restore", 6, ["ignore"])]
)
def test_training_ends_as_asked(monkeypatch, capsys, tmp_path, choice, last, others):
    looked = plant(monkeypatch)
    flags = {**SHORT, "on_overfitting": choice, "workdir": tmp_path / "run", "attacks": "fgsm", "eval_size": 20}
    result = l2ljax.fit("digits_cnn", "digits", **flags)
    assert int(result.state.step) == last and result.history[5][ALARM] == 1.0
    told = capsys.readouterr().err
    assert ("; with on_overfitting stop or restore" if choice == "ignore" else ", and training ends") in told
    assert told.count("catastrophic overfitting") == 1 and "step 6" in told and "than at step 3" in told
    assert int(result.best.step) == 3
    now, best = jax.tree.leaves(result.state.params), jax.tree.leaves(result.best.params)
    assert all(bool((a == b).all()) for a, b in zip(now, best, strict=True)) == (choice == "restore")
    if choice != "ignore":
        assert "ended at step 6 by catastrophic overfitting" in (tmp_path / "run" / "report.md").read_text()
    assert looked[:2] == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]  # whether labels leak is seen in all steps of training
    before = (tmp_path / "run" / "config.json").read_bytes()
    for other in others:
        done = {"ignore": "went on after", "stop": "stopped at", "restore": "went back to its best state after"}[choice]
        with pytest.raises(
            L2LError, match=f"{done} catastrophic overfitting at step 6: give on_overfitting={choice}, or"
        ):
            l2ljax.fit("digits_cnn", "digits", **{**flags, "on_overfitting": other})
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    again = l2ljax.fit("digits_cnn", "digits", **flags)
    assert int(again.state.step) == last
    jax.tree.map(np.testing.assert_array_equal, again.state.params, result.state.params)


def test_a_stopped_run_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    flags = {**SHORT, "attacks": "", "eval_size": 20}
    plant(monkeypatch)
    whole = l2ljax.fit("digits_cnn", "digits", **flags)
    plant(monkeypatch)
    for choice, last in (("stop", 6), ("ignore", 12)):
        result = l2ljax.fit("digits_cnn", "digits", **flags, on_overfitting=choice, workdir=tmp_path / "run")
        assert int(result.state.step) == last
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, result.state.params)


def test_the_average_that_is_restored_is_not_reported_as_raw(monkeypatch, tmp_path):
    flags = {**SHORT, "attacks": "fgsm", "eval_size": 20, "ema": 0.9, "workdir": tmp_path / "run"}
    plant(monkeypatch, good=2)  # averaged and raw
    report = l2ljax.fit("digits_cnn", "digits", **flags, on_overfitting="restore").report
    assert report["ended_at"] == 6 and "raw" not in report


def test_pgd_training_does_not_ring():
    result = l2ljax.fit("digits_cnn", "digits", method="pgd_adv", epochs=5, steps=2, on_overfitting="stop")
    assert len(result.history) == 5 * 13 and not any(ALARM in row for row in result.history)


def test_plain_training_and_a_warm_up_resist_nothing(monkeypatch):
    scores = iter([(0.5, 0.6), (0.0, 0.6), (0.4, 0.6), (0.0, 0.7)])

    def planted(*args, **options):
        several, single = next(scores)
        rows = {"pgd10": SimpleNamespace(robust_acc=several), "fgsm": SimpleNamespace(robust_acc=single)}
        return SimpleNamespace(clean_acc=0.9, attacks=rows)

    monkeypatch.setattr(validation, "evaluate", planted)
    result = l2ljax.fit("digits_cnn", "digits", **{**SHORT, "warmup": 2.0, "on_overfitting": "stop"})
    assert [row["step"] for row in result.history if ALARM in row] == [12]


def test_choices_that_cannot_be_are_refused():
    for flags, fix in (
        ({"on_overfitting": "stop", "val_size": 0}, "needs images to validate on"),
        ({"schedule": "attacker", "ema": 0.9, "method": "rnn_adv"}, "the classifier does not move"),
        ({"workdir": "runs/x@best"}, "@best names a state of a run"),
    ):
        with pytest.raises(L2LError, match=fix):
            l2ljax.fit("digits_cnn", "digits", **{**SHORT, **flags})


def test_an_unknown_choice_is_refused():
    with pytest.raises(L2LError, match="on_overfitting|on-overfitting"):
        l2ljax.fit("digits_cnn", "digits", **SHORT, on_overfitting="panic")
