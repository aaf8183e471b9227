"""The laboratory's flags: nothing begins that would fail, and no default overwrites what is kept."""

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import benchmark, goals, gpu, passes, throughput
from bench.cells import cells
from l2ljax import data, devices, files, threat
from l2ljax.types import L2LError

SCRIPTS = (
    "ablation", "autoattack", "cycle", "fast", "gail_speed", "goals", "pack", "reproduce", "scaling", "strength",
    "throughput", "traveller",
)  # fmt: skip
KINDS = {name: importlib.import_module(name).Flags for name in SCRIPTS} | {"gpu": gpu.Flags}


@pytest.mark.parametrize("script", KINDS)
def test_a_try_overwrites_nothing_that_is_kept(script):
    folders = [field.default for field in dataclasses.fields(KINDS[script]) if isinstance(field.default, Path)]
    presets = throughput.presets().values() if script == "throughput" else []
    folders += [preset["out"] for preset in presets if "out" in preset]
    assert all(folder.parts[0] == "runs" for folder in folders)


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An empty folder, where whoever begins to work fails."""
    monkeypatch.chdir(tmp_path)

    def begun(*_, **__):
        raise AssertionError("it began")

    monkeypatch.setattr(benchmark, "matrix_ceiling", begun)
    monkeypatch.setattr(benchmark, "variants", begun)
    monkeypatch.setattr(throughput, "_measure", begun)
    monkeypatch.setattr(gpu.agenda, "run", begun)
    monkeypatch.setattr(goals, "run", begun)
    for name, work in {"ablation": "experiment.run_once", "strength": "losses_along", "gail_speed": "experiment.run",
                       "autoattack": "load_classifier", "fast": "passes.load_classifier", "cycle": "play",
                       "scaling": "cost.mark", "reproduce": "work.work"}.items():  # fmt: skip
        owner, _, function = work.rpartition(".")
        module = importlib.import_module(name)
        monkeypatch.setattr(getattr(module, owner) if owner else module, function, begun)
    return tmp_path


TIMED = {"model": "digits_cnn", "attacks": "pgd2", "batch_sizes": "8"}


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        *(("throughput", TIMED | changes, message) for changes, message in [
            ({"batch_sizes": "0"}, "--batch-sizes=0: give a whole number"),
            ({"batch_sizes": "8,abc"}, "--batch-sizes=abc: give a whole number"),
            ({"batch_sizes": ""}, "--batch-sizes=: give a whole number .* separated by commas"),
            ({"batch_sizes": "٣٢"}, "--batch-sizes=٣٢: give"),
            ({"dtypes": "float32,float8"}, "--dtypes=float8: give float32 or bfloat16"),
            ({"model": "digits_cnn,no_net"}, "unknown classifier 'no_net'"),
            ({"attacks": "pgd2,no_attack"}, "unknown attack"),
            ({"train": "plain,no_method"}, "unknown method"),
            ({"train": "plain:in_turn"}, "unknown schedule"),
            ({"train": "plain", "steps": "1,0"}, "--steps=0"),
            ({"steps": "3"}, "--steps does nothing without --train"),
            ({"memory": True}, "--memory does nothing without --train"),
            ({"attacker_width": 8}, "--attacker-width does nothing without --train"),
            ({"image_shape": (3, 3, 2)}, "--image-shape does nothing without --model=module:function"),
            ({"model": "mine:make"}, "needs --image-shape"),
            ({"attacks": ""}, "nothing to measure"),
            ({"rivals": "pytorch"}, "unknown rival"),
            ({"eps": "abc"}, "abc"),
            ({"out": Path("/proc/x.json")}, "--out=/proc/x.json: .*: name a file in a writable folder"),
            ({"variants": True}, "--model does nothing with --variants"),
            ({"stock_scan": True}, "--stock-scan does nothing without --variants"),
        ]),
        ("throughput", {"variants": True, "batch_sizes": "8,16"}, "--batch-sizes=8,16: give a whole number"),
        ("throughput", {"variants": True, "out": Path("/proc/x.json")}, "--out=/proc/x.json: "),
        ("reproduce", {"tables": True, "only": "rnn_adv:table3"}, "--only belongs to"),
        ("reproduce", {"list": True, "only": "foo"}, "--only=foo: no such table or row"),
        ("reproduce", {"minutes": 9.0, "only": "foo"}, "--only=foo: no such table or row"),
        ("reproduce", {}, "nothing to do"),
        ("reproduce", {"tables": True}, "there is no experiments/results: run it in the root"),
        ("reproduce", {"list": True}, "there is no experiments/results: run it in the root"),
        ("reproduce", {"list": True, "only": ","}, "--only=, names nothing"),
        ("ablation", {"out": Path("/proc")}, "--out=/proc/digits_methods.json: "),
        ("ablation", {"attacks": "no_attack"}, "unknown attack"),
        ("autoattack", {"victim": "none", "attacks": "square,foo"}, "--attacks=foo: give apgd-ce or"),
        ("autoattack", {"victim": "none", "eps": "abc"}, "abc"),
        ("fast", {"victims": "none@foo"}, "none@foo: behind @ give scaled or quantized"),
        ("fast", {"victims": "none", "out": Path("/proc/x.json")}, "--out=/proc/x.json: "),
        ("cycle", {"out": Path("/proc/x.json")}, "--out=/proc/x.json: "),
        ("cycle", {"out": Path("x.png")}, "--out=x.png: name a file that ends with .json"),
        ("strength", {"victims": "a", "attackers": "b", "out": Path("x.png")}, "--out=x.png: name a file that ends"),
        ("strength", {"victims": "a,a", "attackers": "b"}, "a stands twice: give it once"),
        ("gail_speed", {"imitation": "/no/python"}, "--imitation=/no/python: no such program"),
        ("gail_speed", {"out": Path("/proc/x.json")}, "--out=/proc/x.json: "),
        ("goals", {"only": "trainin"}, "--only=trainin: choose from"),
        ("goals", {"victim": Path("none")}, "there is no none/config.json"),
        ("goals", {"data_dir": Path("none")}, "there is no none"),
        ("gpu", {"models": "resnet20,no_net"}, "unknown classifier 'no_net'"),
        ("gpu", {"dtypes": "bf16"}, "--dtypes=bf16: give float32 or bfloat16"),
        ("gpu", {"programs": "pgd10,foo"}, "unknown attack"),
        ("gpu", {"programs": "pgd10:foo"}, "unknown program pgd10:foo"),
        ("gpu", {"methods": "foo"}, "unknown method"),
        ("gpu", {"only": "foo"}, "--only=foo: choose from"),
        ("scaling", {"arch": "foo"}, "unknown classifier 'foo'"),
        ("scaling", {"devices": ()}, "nothing to estimate"),
        ("strength", {"victims": "none", "attackers": "none"}, "cannot read none/config.json"),
        ("strength", {"victims": "", "attackers": "none"}, "--victims="),
    ],
)  # fmt: skip
def test_what_would_fail_is_not_begun(script, flags, message, at):
    main = gpu.run if script == "gpu" else importlib.import_module(script).main
    with pytest.raises(L2LError, match=message) as error:
        main(KINDS[script](**flags))
    assert "\n" not in str(error.value)
    assert not list(at.rglob("*.json"))


def test_victims_and_attackers_of_l2l_das_figure_are_told_apart(tmp_path, monkeypatch):
    strength = importlib.import_module("strength")
    shown = {}
    for name in ("check_threat", "pgd_path", "load_attacker", "load_classifier", "loss_along_attacks", "draws"):
        monkeypatch.setattr(strength, name, lambda *_, **__: None)
    monkeypatch.setattr(strength, "read_config", lambda workdir: {"dataset": "digits"})
    monkeypatch.setattr(strength, "restarted", lambda attack, ball: attack)
    monkeypatch.setattr(strength, "losses_along", lambda *_, **__: {"largest": [0.0]})
    monkeypatch.setattr(strength, "write_json", lambda path, record: shown.update(record["panels"]))
    flags = {"victims": "a/s0,b/s0", "attackers": "a/s0,b/s0,c/PGD", "out": tmp_path / "x.json"}
    strength.main(strength.Flags(**flags))
    assert list(shown) == ["a/s0", "b/s0"]
    assert all(list(curves) == ["PGD", "a/s0", "b/s0", "c/PGD"] for curves in shown.values())


def test_images_of_floats_are_attacked_as_they_are(tmp_path, monkeypatch):
    """A user's .npz file may hold them; bytes are scaled."""
    autoattack, seen = importlib.import_module("autoattack"), []
    floats = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 2, 2, 1)
    monkeypatch.setattr(autoattack.rivals, "package", lambda name: None)

    def judged(logits_fn, x, y, **_):
        seen.append(x)
        raise InterruptedError

    for module in (autoattack, passes):
        config = {"dataset": "mine.npz", "norm": "linf", "eps": "0.1", "method": "plain", "arch": "mlp"}
        monkeypatch.setattr(module, "read_config", lambda workdir, config=config: config)
        monkeypatch.setattr(module, "load_classifier", lambda workdir: jax.tree_util.Partial(jnp.sum))
        monkeypatch.setattr(module, "run_standard_evaluation", judged)
        for images in (floats, (255 * floats).round().astype(np.uint8)):
            split = images[:2], np.arange(2)
            monkeypatch.setattr(data, "load", lambda *_, split=split: SimpleNamespace(train=split, test=split))
            with pytest.raises(InterruptedError):
                if module is passes:
                    passes.judge("run", data_dir=None, images=4, batch_size=None, seeds=1)
                else:
                    autoattack.main(autoattack.Flags(victim="run", images=4, out=tmp_path / "x.json"))
    assert len(seen) == 4
    for x in seen:
        np.testing.assert_allclose(x, np.concatenate([floats[:2]] * 2), atol=1 / 255)


def test_another_result_is_not_mixed_with_verdicts(tmp_path):
    fast, out = importlib.import_module("fast"), tmp_path / "autoattack.json"
    out.write_text('{"autoattack": []}')
    with pytest.raises(L2LError, match=r"--out=.*autoattack.json holds another result: name another file"):
        fast.main(fast.Flags(victims="run", out=out))


def test_what_is_right_is_begun(at):
    Path("experiments/results").mkdir(parents=True)
    for script, flags in {"throughput": TIMED, "cycle": {}, "scaling": {}, "reproduce": {"minutes": 1.0}}.items():
        with pytest.raises(AssertionError, match="it began"):
            importlib.import_module(script).main(KINDS[script](**flags))
    for changes in ({}, {"train": "plain,grad_l2l:alternating", "steps": "1,5", "attacker_width": 4}):
        assert len(cells(throughput.Flags(**TIMED | changes))) == 1 + 2 * bool(changes)


def test_devices_share_a_batch(monkeypatch):
    monkeypatch.setattr(devices, "first", lambda count=None: [None] * (count or 2))
    with pytest.raises(L2LError, match="--batch-sizes=9: 2 devices share a batch: give a multiple of 2"):
        cells(throughput.Flags(**TIMED | {"batch_sizes": "8,16,9"}))
    assert cells(throughput.Flags(**TIMED | {"batch_sizes": "8,16,9", "devices": 1}))


def test_a_file_that_is_there_stays_as_it_is(tmp_path):
    kept = tmp_path / "folder" / "kept.json"
    files.check_writable(kept)
    assert not kept.exists()
    kept.write_text("content")
    files.check_writable(kept)
    assert kept.read_text() == "content" and list(kept.parent.iterdir()) == [kept]
    with pytest.raises(L2LError, match="is a folder"):
        files.check_writable(tmp_path)


def test_attackers_that_draw_nothing_start_at_random_in_l2l_das_figure():
    strength = importlib.import_module("strength")
    draws = {"l2l_da": True, "l2l_star": False, "grad_l2l": False, "rnn_adv": True}
    assert {name: strength.draws({"method": name, "options": {}}) for name in draws} == draws
    assert not strength.draws({"method": "l2l_da", "options": {"latent": 0}})
    ball, x = threat.linf(0.1), jnp.full((4, 3, 3, 1), 0.5)
    still = lambda logits_fn, key, x, y: jnp.stack([x, x + 0.2])
    first, second = (strength.restarted(still, ball)(None, key, x, None) for key in jax.random.split(jax.random.key(0)))
    assert (first[0] != second[0]).all() and 0.08 < jnp.abs(first - x).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(first[1], jnp.minimum(first[0] + 0.2, x + 0.1), atol=1e-6)
