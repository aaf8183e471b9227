"""Attackers trained on a classifier that does not move: they win where they should, and are used by name afterwards."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from l2ljax import attacks, checkpoint, data, threat
from l2ljax.evaluate import AttackRow, Evaluation, evaluate
from l2ljax.run import adversary, experiment
from l2ljax.run.adversary import Flags
from l2ljax.run.config import Config, resolve
from l2ljax.run.trained import load_attacker, load_classifier
from l2ljax.types import L2LError


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A plain digits classifier's workdir."""
    folder = tmp_path_factory.mktemp("victim") / "run"
    config = Config(method="plain", epochs=10, val_size=0, attacks="fgsm", eval_size=200, workdir=str(folder))
    experiment.run(resolve("digits", "plain", config))
    return folder


def trained(victim, epochs, **flags):
    """Train AdvGAN on it: (its workdir, the content of report.json)."""
    folder = victim.parent / f"advgan-{epochs}"
    flags = Flags(victim=str(victim), attacker="advgan", epochs=epochs, draws=2, workdir=str(folder), **flags)
    return folder, adversary.run(flags)


@pytest.fixture(scope="module")
def advgan(victim):
    """An AdvGAN that has learned."""
    return trained(victim, 9)


@pytest.fixture(scope="module")
def beginner(victim):
    """An AdvGAN of a few steps, at which it already differs from the untrained one."""
    return trained(victim, 6, train_size=200, eval_size=200, attacker_lr=0.01)


def test_an_attacker_learns_on_images_as_they_are():
    """The recipe's Cutout is for a classifier that learns."""
    for attacker in ("rnn_adv", "advgan"):
        settings = adversary._specify(Flags(victim="pretrained:digits_trades", attacker=attacker))
        assert settings.cutout is None and not settings.ema and not settings.label_smoothing


@pytest.mark.slow
def test_a_trained_advgan_beats_chance_by_far(advgan):
    found = {name: row["robust_acc"] for name, row in advgan[1]["attacks"].items()}
    assert advgan[1]["clean_acc"] > 0.95
    assert found["all draws"] < 0.4
    assert min(found["random signs"], found["untrained"]) > found["all draws"] + 0.3
    assert found["strongest draw"] == found["weakest draw"]  # it has no latent
    assert json.loads((advgan[0] / "report.json").read_text()) == json.loads(json.dumps(advgan[1]))


@pytest.mark.slow
def test_trained_attackers_are_among_the_reports_attacks(victim, advgan, tmp_path):
    flags = Flags(victim=str(victim), epochs=1.5, train_size=200, eval_size=40, draws=1, workdir=str(tmp_path / "run"))
    flags = dataclasses.replace(flags, attacker="gap", attacks=f"own,trained:{advgan[0]}")
    found = adversary.run(flags)["attacks"]
    assert found["own"]["robust_acc"] == found["strongest draw"]["robust_acc"]  # it has no latent
    assert found[f"trained:{advgan[0]}"]["robust_acc"] < 0.9
    with pytest.raises(L2LError, match="give --eps too|--draws=0: give a whole number"):
        adversary.run(dataclasses.replace(flags, draws=0))


def test_the_victim_does_not_move(victim, beginner):
    before, after = (checkpoint.Checkpoints(w / "checkpoints")._manager for w in (victim, beginner[0]))
    before, after = (m.restore(m.latest_step()) for m in (before, after))
    ours = [name for name in before if name.startswith(("['last'].params.classifier", "['last'].stats.classifier"))]
    assert ours
    for name in ours:
        np.testing.assert_array_equal(after[name], before[name])


def test_trained_attackers_are_used_by_name_in_other_evaluations(victim, beginner, tmp_path):
    config = Config(method="plain", epochs=1, val_size=0, eval_size=200, workdir=str(tmp_path / "run"))
    config = dataclasses.replace(config, init_from=str(victim), lr=0.0, attacks=f"fgsm,trained:{beginner[0]}")
    result = experiment.run(resolve("digits", "plain", config))
    assert result["clean_acc"] > 0.95  # it started from the victim, whose learning rate is 0 now
    found = {name: row["robust_acc"] for name, row in beginner[1]["attacks"].items()}
    assert result["attacks"][f"trained:{beginner[0]}"]["robust_acc"] == found["strongest draw"] != found["untrained"]
    split = data.load("digits").test.take(slice(200))
    scores = evaluate(
        load_classifier(str(victim)), split, {"own": load_attacker(str(beginner[0]))}, key=jax.random.key(0)
    )
    assert scores.attacks["own"].robust_acc == result["attacks"][f"trained:{beginner[0]}"]["robust_acc"]


def test_the_worst_case_is_what_no_attack_and_no_draw_fools(victim, tmp_path, monkeypatch):
    """Each attack fools an image of its own, in turn."""
    count = itertools.count()

    def fools_the_next(logits_fn, split, table, **how):
        (name,) = table
        correct = np.arange(40) != next(count)
        return Evaluation(1.0, 10, {name: AttackRow(float(correct.mean()), 2.0, 3.0, correct)}, 0.975)

    monkeypatch.setattr(adversary, "evaluate", fools_the_next)
    flags = Flags(victim=str(victim), attacker="gap", epochs=1.5, train_size=200, draws=4, workdir=str(tmp_path))
    found = adversary.run(flags)
    assert list(found["attacks"])[:3] == ["pgd20", "random signs", "untrained"] and next(count) == 7
    assert found["worst_case_acc"] == pytest.approx(1 - 7 / 40)
    assert found["attacks"]["all draws"] == {"robust_acc": 1 - 4 / 40, "seconds": 8.0, "passes": 12.0}
    assert found["attacks"]["strongest draw"] == {"robust_acc": 1 - 1 / 40, "seconds": 2.0, "passes": 3.0}


@pytest.mark.slow
def test_draws_of_a_stochastic_attacker_are_told_apart(victim, tmp_path):
    flags = Flags(
        victim=str(victim), attacker="l2l_da", options="steps=2,diversity=20", attacker_width=4, epochs=4,
        draws=6, workdir=str(tmp_path / "run"),
    )  # fmt: skip
    found = {name: row["robust_acc"] for name, row in adversary.run(flags)["attacks"].items()}
    assert found["all draws"] <= found["strongest draw"] <= found["mean draw"] <= found["weakest draw"]
    assert found["all draws"] < found["weakest draw"], found


def test_what_cannot_be_is_told_in_one_line(victim, tmp_path):
    with pytest.raises(L2LError, match="give the workdir of a run"):
        adversary.run(Flags(victim=str(tmp_path)))
    with pytest.raises(L2LError, match="pgd_adv learns nothing: choose from advgan, gap"):
        adversary.run(Flags(victim=str(victim), attacker="pgd_adv", workdir=str(tmp_path / "a")))
    with pytest.raises(L2LError, match="free_adv learns nothing: choose from advgan, gap"):
        adversary.run(Flags(victim=str(victim), attacker="free_adv", workdir=str(tmp_path / "a")))
    with pytest.raises(L2LError, match="unknown method 'gan'"):
        adversary.run(Flags(victim=str(victim), attacker="gan"))
    with pytest.raises(L2LError, match="plain, whose attacker learns nothing"):
        load_attacker(str(victim))
    shutil.copytree(victim, own := tmp_path / "own")
    saved = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**saved, "arch": "MyNet"}))
    way = r"fit\(network, data, method='advgan', schedule='attacker', init_from='.*own', ball=threat.linf\(0.2\)\)"
    with pytest.raises(L2LError, match=f"own holds a MyNet, a network of yours: attack it in Python, by {way}"):
        adversary.run(Flags(victim=str(own), attacker="advgan"))


def test_random_signs_are_as_far_as_the_ball_and_draw_anew():
    x = np.full((2, 4, 4, 1), 0.5, np.float32)
    y = np.zeros(2, int)
    one, two = (attacks.random_signs(threat.linf(0.1))(None, jax.random.key(i), x, y) for i in (0, 1))
    assert set(np.unique(np.round(np.abs(one - x), 5))) == {np.float32(0.1)}
    assert (one != two).any() and (one[0] != one[1]).any()
