"""The models that come with the library: sound files, complete cards, the accuracy that these say; packing them."""

import functools
import hashlib
import importlib
import json
import math
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2ljax
from l2ljax import attacks, data, defenses, losses, models
from l2ljax.checkpoint import Checkpoints, digest
from l2ljax.files import write_json
from l2ljax.models import shipped
from l2ljax.run import judge, trained
from l2ljax.run.config import Config, methods, resolve
from l2ljax.run.results import Best
from l2ljax.run.setup import prepare
from l2ljax.runtime import flags
from l2ljax.train import TrainState
from l2ljax.types import L2LError, Players

pack = importlib.import_module("pack")
NAMES = models.PRETRAINED
ONE = NAMES[0]
LEARNED = next(name for name in NAMES if shipped.card(name)["parameters"]["attacker"])
KEY = jax.random.key(0)


def kept(dataset):
    """The first 32 test images."""
    if dataset == "digits":
        return data.load("digits").test.take(slice(32))
    with np.load(Path(__file__).parent / "golden" / "kept_images.npz") as file:
        return data.Split(file[f"{dataset}_images"], file[f"{dataset}_labels"])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_accuracy_of_its_card(name):
    """Within three standard deviations, on 32 images; PGD-20 is at most 2 points weaker than PGD-100."""
    model = models.pretrained(name)
    judged, split = model.card["judged"], kept(model.card["dataset"])
    assert digest(model.logits_fn) == judged["model_sha256"]  # the very weights that were judged
    x, y = data.pixels(split.images), jnp.asarray(split.labels)
    x_adv = jax.jit(attacks.create("pgd20", model.ball))(model.logits_fn, KEY, x, y)
    for images, expected in ((x, judged["clean_acc"]), (x_adv, judged["attacks"]["pgd100"])):
        found = losses.accuracy(jax.jit(lambda f, x: f(x))(model.logits_fn, images), y).mean()
        assert abs(found - expected) < 0.02 + 3 * math.sqrt(expected * (1 - expected) / 32)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_all(name):
    card = shipped.card(name)
    known = {"dataset", "arch", "method", "options", "recipe", "eps", "norm", "seed", "epochs", "state", "command"}
    assert known <= card.keys() and card["command"] and card["state"] in ("last", "best")
    judged = card["judged"]
    assert {"date", "command"} <= judged.keys() and {"standard", "pgd100"} <= judged["attacks"].keys()
    assert ("own" in judged["attacks"]) == bool(card["parameters"]["attacker"])
    assert judged["images"] >= (len(data.load("digits").test.labels) if card["dataset"] == "digits" else 1000)
    assert judged["attacks"]["standard"] <= min(judged["attacks"].values()) + 0.005 < judged["clean_acc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_cards_command_still_trains_the_same_model(name):
    """A recipe that changes would leave a command that trains something else."""
    card = shipped.card(name)
    script, *arguments = shlex.split(card["command"])[1:]
    config = flags.read(Config, "", arguments=arguments)
    settings = resolve(Path(script).stem, methods(config)[0], config).saved()
    settings["options"] = {**defenses.options(card["method"]), **settings["options"]}
    about = card.keys() & settings.keys() - {"source", "image_shape", "num_classes"}
    assert {"lr", "lr_schedule", "cutout", "ema", "options"} <= about
    assert {name: card[name] for name in about} == {name: settings[name] for name in about}


def test_files_are_small_and_each_has_its_card():
    sizes = {path.stem: path.stat().st_size for path in shipped.WEIGHTS.glob("*.npz")}
    assert tuple(sorted(sizes)) == NAMES and max(sizes.values()) <= pack.LARGEST and sum(sizes.values()) <= 6_000_000


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The shipped files where a test may damage them."""
    monkeypatch.setattr(shipped, "WEIGHTS", shutil.copytree(shipped.WEIGHTS, tmp_path / "weights"))
    return shipped.WEIGHTS


def test_damaged_files_are_refused(copied):
    file, sidecar = copied / f"{ONE}.npz", copied / f"{ONE}.json"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:300] + bytes([whole[300] ^ 1]) + whole[301:], b""):
        file.write_bytes(damaged)
        with pytest.raises(L2LError, match=r"npz is damaged \(its SHA-256 is .*\): install l2ljax again$"):
            models.pretrained(ONE)
    file.unlink()
    with pytest.raises(L2LError, match=r"npz is damaged \(FileNotFoundError"):
        models.pretrained(ONE)
    text = sidecar.read_text()
    sidecar.unlink()
    with pytest.raises(L2LError, match=r"^.*json is damaged \(FileNotFoundError: [^()]*\): install l2ljax again$"):
        models.pretrained(ONE)
    sidecar.write_text(text[:1])
    with pytest.raises(L2LError, match=r"json is damaged \(JSONDecodeError"):
        models.pretrained(ONE)
    with pytest.raises(L2LError, match=f"^unknown model 'no_net': choose one of {NAMES[0]}"):
        models.pretrained("no_net")
    with pytest.raises(L2LError, match=f"^there is no folder {ONE}: give one, or pretrained:{ONE}$"):
        l2ljax.load(ONE)
    with pytest.raises(L2LError, match=f"^pretrained:{ONE}@best: a pretrained model has one state: leave @best out$"):
        l2ljax.load(f"pretrained:{ONE}@best")
    with pytest.raises(L2LError, match="^unknown model 'no_net'"):
        l2ljax.load("pretrained:no_net")


@pytest.mark.parametrize("change", ["shape", "name", "missing"])
def test_another_network_is_refused(copied, change):
    file, sidecar = copied / f"{ONE}.npz", copied / f"{ONE}.json"
    with np.load(file) as archive:
        arrays = dict(archive)
    first = min(name for name in arrays if name.startswith("classifier/params"))
    array = arrays.pop(first)
    arrays |= {"shape": {first: array[:-1]}, "name": {f"{first}_2": array}, "missing": {}}[change]
    file.write_bytes(shipped.to_bytes(arrays))
    card = json.loads(sidecar.read_text()) | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    sidecar.write_text(json.dumps(card))
    with pytest.raises(L2LError, match=f"^pretrained:{ONE} holds another classifier \\({first}"):
        models.pretrained(ONE)


def test_pretrained_stands_where_a_workdir_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, card = f"pretrained:{LEARNED}", shipped.card(LEARNED)
    flags = judge.Flags(victim=name, attacks=f"own,trained:{name}", eval_size=100, masking=False)
    result = judge.run(flags)["provenance"]
    assert result["model_sha256"] == card["judged"]["model_sha256"]
    assert result["attacks"]["own"] == result["attacks"][f"trained:{name}"]
    assert abs(result["attacks"]["own"] - card["judged"]["attacks"]["own"]) < 0.13  # three standard deviations
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]
    starts = {"init_from": name, "attacker_from": name, "workdir": "finer"}
    _, state = prepare(resolve("digits", card["method"], Config(method=card["method"], devices=1, **starts)))
    logits_fn, attack = l2ljax.load(name)
    assert attack is not None
    jax.tree.map(np.testing.assert_array_equal, state.params.classifier, logits_fn.args[0]["params"])
    attacker = trained.restore_attacker(name)[1]
    jax.tree.map(np.testing.assert_array_equal, (state.params.attacker, state.stats.attacker), attacker)


def make_run(workdir, score=0.5):
    """Write a run that ended with a shipped model's players, and whose best had 1.5 times as much; both judged."""
    name = f"pretrained:{LEARNED}"
    variables, (_, attacker) = trained.load_classifier(name).args[0], trained.restore_attacker(name)
    players = [Players(variables[kind], part) for kind, part in zip(("params", "batch_stats"), attacker, strict=True)]
    better = jax.tree.map(lambda a: 1.5 * a, players)
    last = TrainState(jnp.int32(5), *players, opt_state=Players((), ()), key=KEY)
    best = Best(jnp.float32(score), jnp.int32(3), *better)
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(5, {"last": last, "best": best})
    card = shipped.card(LEARNED)
    write_json(workdir / "config.json", {name: card[name] for name in card if name not in ("sha256", "judged")})
    write_json(workdir / "report.json", {"command": "train", "parameters": {"attacker": 120}, "versions": {}})
    for victim in (str(workdir), f"{workdir}@best") if score >= 0 else ():
        judged = {"standard": 0.25, "pgd100": 0.5, "own": 0.5}
        about = {"model_sha256": digest(trained.load_classifier(victim)), "norm": card["norm"], "attacks": judged}
        about |= {"images": 20, "command": "judge", "date": "2000-01-01"}
        result = {"dataset": card["dataset"], "eps": card["eps"], "clean_acc": "75.00", "provenance": about}
        write_json(judge.evaluation_folder(victim) / "robustbench.json", result)
    return workdir


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def scaled(factor, array, by):
    np.testing.assert_array_equal(array, factor * by)


def packed(victim, folder):
    pack.main(pack.Flags(victim=str(victim), name="mine", out=folder))
    return (folder / "mine.npz").read_bytes(), (folder / "mine.json").read_bytes()


def test_a_packed_run_loads_and_is_what_was_judged(run, tmp_path, monkeypatch):
    whole = {victim: packed(victim, tmp_path) for victim in (f"{run}@best", str(run))}
    assert whole[str(run)] == packed(run, tmp_path)  # the same bytes again
    assert whole[str(run)][0] == (shipped.WEIGHTS / f"{LEARNED}.npz").read_bytes()  # from a workdir and back
    last = trained.load_classifier(run).args[0]
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    monkeypatch.setattr(shipped, "PRETRAINED", ("mine",))
    for victim, state, factor in ((f"{run}@best", "best", 1.5), (str(run), "last", 1)):
        for file, content in zip(("mine.npz", "mine.json"), whole[victim], strict=True):
            (tmp_path / file).write_bytes(content)
        model = models.pretrained("mine")
        assert digest(model.logits_fn) == model.card["judged"]["model_sha256"]
        assert (model.card["state"], model.card["judged"]["clean_acc"]) == (state, 0.75)
        jax.tree.map(functools.partial(scaled, factor), model.variables, last)
        attacker = trained.restore_attacker("pretrained:mine")[1]
        jax.tree.map(np.testing.assert_array_equal, attacker, trained.restore_attacker(victim)[1])
    assert model.card["options"]["steps"] == 10 and (model.ball.name, model.ball.eps) == ("linf", 0.2)


def test_what_is_not_judged_or_too_large_is_not_packed(run, tmp_path, monkeypatch):
    copy, out = shutil.copytree(run, tmp_path / "copy"), tmp_path / "out"
    shutil.copy(copy / "evaluation_best" / "robustbench.json", copy / "evaluation" / "robustbench.json")
    with pytest.raises(L2LError, match="robustbench.json is of other weights, .*: run experiments/evaluate.py "):
        packed(copy, out)
    record = json.loads((run / "evaluation" / "robustbench.json").read_text())
    del record["provenance"]["attacks"]["standard"]
    (copy / "evaluation" / "robustbench.json").write_text(json.dumps(record))
    with pytest.raises(L2LError, match="robustbench.json has no standard: run .* --attacks=standard,pgd100,own$"):
        packed(copy, out)
    (copy / "evaluation" / "robustbench.json").unlink()
    with pytest.raises(L2LError, match="was not judged: run experiments/evaluate.py"):
        packed(copy, out)
    (copy / "report.json").unlink()
    with pytest.raises(L2LError, match=r"report.json .*: give the workdir of a run$"):
        packed(copy, out)
    with pytest.raises(L2LError, match="--name=../x: give small letters"):
        pack.main(pack.Flags(victim=str(run), name="../x", out=out))
    monkeypatch.setattr(pack, "LARGEST", 1000)
    with pytest.raises(L2LError, match="bytes, more than 1,000: pack a smaller network"):
        packed(run, out)
    assert not out.exists()


def test_a_run_that_validated_nothing_has_no_best(tmp_path):
    with pytest.raises(L2LError, match="chose no state in validation: leave out @best"):
        trained.load_classifier(f"{make_run(tmp_path / 'run', score=-1)}@best")
