"""The masking checks ring for planted illusions and not for an adversarially trained model; the report of them."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, data, threat
from l2ljax.attacks import ensemble, names
from l2ljax.evaluate import masking
from l2ljax.files import locked
from l2ljax.run import experiment, judge
from l2ljax.run.config import Config, resolve
from l2ljax.run.trained import load_classifier
from l2ljax.types import L2LError

KEY = jax.random.key(0)
BALL = threat.linf(0.1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A digits classifier, trained a little."""
    folder = tmp_path_factory.mktemp("robust") / "run"
    config = Config(
        method="pgd_adv", steps=2, eps="0.1", epochs=2, val_size=0, attacks="fgsm", eval_size=100, workdir=str(folder)
    )
    experiment.run(resolve("digits", "pgd_adv", config))
    return folder


@pytest.fixture(scope="module")
def sound():
    """An adversarially trained one."""
    return load_classifier("pretrained:digits_trades")


@pytest.fixture(scope="module")
def split():
    return data.load("digits").test.take(slice(120))


def ringing(logits_fn, split, **options):
    checks = masking.masking_checks(logits_fn, split, BALL, key=KEY, queries=60, **options)
    return {check.name for check in checks if not check.passed}, checks


def test_a_sound_model_rings_nowhere(sound, split):
    found, checks = ringing(sound, split)
    assert not found, checks
    assert len(checks) >= 10
    assert all(check.verdict == "ok" and check.figure for check in checks)


@pytest.mark.slow
def test_a_saturated_softmax_rings(sound, split):
    found, _ = ringing(lambda x: 1e4 * sound(x), split)
    assert any(name.startswith("gradients are not 0") for name in found)


def test_a_quantized_input_rings(sound, split):
    found, _ = ringing(lambda x: sound(jnp.round(8 * x) / 8), split)
    assert any(name.startswith("gradients are not 0") for name in found)
    assert (
        "random search is not stronger than the gradient" in found
        or "the black box is not stronger than the white box" in found
    )


def test_noise_rings(sound, split):

    def noisy(x, keys):
        return sound(x) + jax.vmap(lambda key: jax.random.normal(key, (10,)))(keys)

    check = masking._deterministic(noisy, split, KEY)
    assert not check.passed and "version rand" in check.figure
    assert masking._deterministic(lambda x, keys: sound(x), split, KEY).passed
    model = masking.randomized(noisy, KEY)
    x = jnp.asarray(split.images[:4], jnp.float32) / 255
    np.testing.assert_array_equal(model(x), model(x))  # pure, and yet
    one, two = model(x) - sound(x), model(x + 1e-6) - sound(x + 1e-6)
    assert jnp.abs(one - two).max() > 0.1  # other images meet other noise
    assert jnp.abs(one[0] - one[1]).max() > 0.1
    np.testing.assert_allclose(model(x[:1]), model(x)[:1], atol=1e-4)  # whatever their neighbours


def test_a_ball_without_a_norms_name_has_no_other_radius(split):
    with pytest.raises(L2LError, match="a ball named 'mine' has no other radius: name it after its norm"):
        masking.masking_checks(jnp.sum, split, BALL._replace(name="mine"), key=KEY)


def test_ties_and_missing_gradients_are_counted_along_the_path():
    x = np.linspace(0.1, 0.9, 8, dtype=np.float32).reshape(4, 2, 1, 1)

    def faults(model):
        found = masking.path_faults(model, data.Split(x, np.zeros(4, int)), BALL, key=KEY, steps=3)
        return [fractions.tolist() for fractions in found]

    def logits(x):
        return jnp.stack([x.sum(axis=(1, 2, 3)), 1 - x.mean(axis=(1, 2, 3)), 0 * x[:, 0, 0, 0] - 9], axis=1)

    assert faults(logits) == [[0, 0, 0], [0, 0, 0]]
    assert faults(lambda x: logits(x)[:, (0, 0, 2)]) == [[0, 0, 0], [1, 1, 1]]
    assert faults(lambda x: jax.lax.stop_gradient(logits(x))) == [[1, 1, 1], [0, 0, 0]]


def test_dynamic_inference_rings_and_a_scan_does_not():
    x, w = jnp.ones((2, 3, 3, 1)), jnp.eye(9)

    def flat(x):
        return x.reshape(len(x), -1)

    def scanned(x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), flat(x), length=3)[0]

    def looping(x):
        return jax.lax.while_loop(lambda h: h.sum() < 100, lambda h: 2 * h, flat(x))

    def branching(x):
        return jax.lax.cond(x.sum() > 0, lambda h: h, lambda h: -h, flat(x))

    def purifying(x):
        return flat(x - jax.grad(lambda x: (x**2).sum())(x))

    found = [masking.data_dependent_operations(f, x) for f in (flat, scanned, looping, branching, purifying)]
    assert found == [[], [], ["while"], ["cond"], ["gradient"]]


def test_a_judgement_of_a_run_and_of_a_function(workdir, tmp_path, monkeypatch):
    flags = judge.Flags(
        victim=str(workdir), attacks="pgd10,fgsm", eval_size=60, masking=False, attack_seeds=2, figures="landscape",
        out=tmp_path / "a",
    )  # fmt: skip
    result = judge.run(flags)
    saved = json.loads((tmp_path / "a" / "robustbench.json").read_text())
    assert saved == json.loads(json.dumps(result))
    for name in (
        "name",
        "dataset",
        "architecture",
        "eps",
        "clean_acc",
        "autoattack_acc",
        "unreliable",
    ):  # RobustBench's
        assert name in saved
    assert saved["eps"] == "0.1" and saved["autoattack_acc"] is None
    known = saved["provenance"]
    assert known["seeds"] == [0, 1] and known["worst_case_acc"] <= min(known["attacks"].values())
    text = (tmp_path / "a" / "evaluation.md").read_text()
    assert "linf, eps = 0.1 (0.10000)" in text and "![landscape](landscape.png)" in text
    assert (tmp_path / "a" / "landscape.png").stat().st_size > 5000
    shown = json.loads((tmp_path / "a" / "landscape.json").read_text())
    assert shown["figure"] == "landscape" and list(shown["data"]["loss"]) == [workdir.name]

    (tmp_path / "their_model.py").write_text(
        "from l2ljax.run.trained import load_classifier\n"
        f"def make():\n    model = load_classifier({str(workdir)!r})\n    return lambda x: model(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"attacks": "pgd10", "eval_size": 60, "masking": False, "out": tmp_path / "b"}
    theirs = judge.run(judge.Flags(victim="their_model:make", dataset="digits", eps="0.1", **options))
    assert theirs["clean_acc"] == result["clean_acc"]
    sys.modules.pop("their_model")
    with pytest.raises(L2LError, match="needs --dataset and --eps"):
        judge.run(judge.Flags(victim="their_model:make", **options))
    with pytest.raises(L2LError, match="name an importable module"):
        judge.run(judge.Flags(victim="no_such_module:make", dataset="digits", eps="0.1", **options))
    with pytest.raises(L2LError, match="unknown attack"):
        judge.run(judge.Flags(victim=str(workdir), **{**options, "attacks": "pdg"}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"norm": "l2"}, "--norm=l2: give --eps too, that of .* is in linf"),
        ({"norm": "l2", "eps": "1.0", "attacks": "own"}, "attacks in linf, eps 0.1, not l2, 1: give one of the same"),
        ({"eps": "0.2", "attacks": "own"}, "attacks in linf, eps 0.1, not linf, 0.2"),
        ({"stochastic": True}, "--stochastic: .* is a run, whose classifier has no noise"),
        ({"attacks": "rand"}, "--attacks=rand is for models with noise of their own"),
        ({"baseline": "run"}, "--baseline=run: give --figures too"),
        ({"black_box": "pgd3"}, "--black-box=pgd3: give --surrogates too"),
        ({"norm": "l7"}, "--norm=l7: give linf or l2 or l1"),
        ({"attack_seeds": 0}, "--attack-seeds=0: give a whole number"),
        ({"batch_size": 0}, "--batch-size=0: give a whole number"),
        ({"seed": 2**32 - 1, "attack_seeds": 2}, "--seed plus --attack-seeds=4294967296"),
    ],
    ids=str,
)
def test_flags_are_applied_or_refused(workdir, tmp_path, changes, message):
    options = {"victim": str(workdir), "attacks": "fgsm", "eval_size": 20, "out": tmp_path / "out", **changes}
    with pytest.raises(L2LError, match=message):
        judge.run(judge.Flags(**options))
    assert not (tmp_path / "out").exists()


def test_black_box_attacks_are_known_ones(workdir, tmp_path):
    with pytest.raises(L2LError, match="unknown attack 'foo'"):
        judge.run(judge.Flags(victim=str(workdir), surrogates=str(workdir), black_box="foo", out=tmp_path / "out"))


def test_surrogates_are_runs_on_the_same_data(workdir, tmp_path):
    """Their network would take these images too."""
    saved = json.loads((workdir / "config.json").read_text())
    saved |= {"dataset": "digits.npz", "image_shape": [8, 8, 1], "num_classes": 10}
    shutil.copytree(workdir, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(saved))
    flags = {"victim": str(workdir), "attacks": "", "black_box": "fgsm", "masking": False, "out": tmp_path / "out"}
    with pytest.raises(L2LError, match=r"other is a run on digits.npz, not digits: give one on that"):
        judge.run(judge.Flags(**flags, eval_size=20, surrogates=f"{workdir},{tmp_path / 'other'}"))
    assert not (tmp_path / "out").exists()


def test_saved_states_have_different_names():
    titles = ["pgd20", "trained:ra-b", "trained:ra_b", "pgd3 on r/a", "pgd3 on r-a", "x" * 300, "x" * 301]
    files = [judge._file_name(title) for title in titles]
    assert files[0] == "pgd20" and len(set(files)) == len(files) and max(map(len, files)) < 120


def test_a_saved_state_belongs_to_the_keywords_behind_a_name(monkeypatch):
    ball, family = threat.linf(0.1), names.FAMILIES["pgd"]
    about = [judge._job("pgd5", "", ball, jnp.sum).keywords["about"]]
    monkeypatch.setitem(names.FAMILIES, "pgd", family._replace(parameters=lambda b, n: {"steps": n, "step_size": 0.5}))
    about += [judge._job("pgd5", "", ball, jnp.sum).keywords["about"] for _ in range(2)]
    assert about[0] != about[1] == about[2]


def test_the_threat_asked_for_is_the_threat_reported(workdir, tmp_path):
    options = {"victim": str(workdir), "attacks": "pgd5", "eval_size": 60, "masking": False}
    far = judge.run(judge.Flags(**options, norm="l2", eps="1.0", out=tmp_path))["provenance"]
    assert (far["norm"], far["eps_value"], far["parameters"]["pgd5"]["norm"]) == ("l2", 1.0, "l2")
    with locked(tmp_path), pytest.raises(L2LError, match="is in use by process"):
        judge.run(judge.Flags(**options, out=tmp_path))


def test_a_function_that_is_trained_anew_is_judged_anew(tmp_path, monkeypatch):
    (tmp_path / "linear_model.py").write_text(
        "import numpy as np, jax.numpy as jnp\n"
        f"def make():\n    w = jnp.asarray(np.load({str(tmp_path / 'w.npy')!r}))\n"
        "    return lambda x: x.reshape(len(x), -1) @ w\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = {"victim": "linear_model:make", "dataset": "digits", "eps": "0.1", "eval_size": 60, "masking": False}
    flags |= {"attacks": "fgsm", "out": tmp_path / "out"}
    for seed in (0, 1):
        np.save(tmp_path / "w.npy", np.random.RandomState(seed).normal(0, 1, (64, 10)).astype(np.float32))
        if seed:
            with pytest.raises(L2LError, match="state of another evaluation .model, .*delete it"):
                judge.run(judge.Flags(**flags))
        else:
            assert judge.run(judge.Flags(**flags))["provenance"]["model_sha256"] is None


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1]", b"null", b"{}", b'{"norm": 3}', b"[" * 100_000])
def test_a_config_of_another_kind_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(L2LError, match="config.json.*: give the workdir of a run") as error:
        judge.run(judge.Flags(victim=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_judgement_goes_on_where_it_was_killed(workdir, tmp_path, monkeypatch):
    options = {"victim": str(workdir), "attacks": "fgsm,pgd5", "eval_size": 60, "masking": False}
    whole = judge.run(judge.Flags(**options, out=tmp_path / "whole"))
    run_in_turn, begun = judge.run_in_turn, []

    def dies(*args, attacks, **how):
        begun.append(next(iter(attacks)))
        if begun == ["fgsm", "pgd5"]:
            raise KeyboardInterrupt
        return run_in_turn(*args, attacks=attacks, **how)

    monkeypatch.setattr(judge, "run_in_turn", dies)
    flags = judge.Flags(**options, out=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        judge.run(flags)
    assert [file.name for file in (tmp_path / "killed" / "states").iterdir()] == ["fgsm_0.npz"]
    resumed = judge.run(flags)
    assert resumed["provenance"]["attacks"] == whole["provenance"]["attacks"]
    one, two = (np.load(tmp_path / folder / "states" / "pgd5_0.npz") for folder in ("whole", "killed"))
    np.testing.assert_array_equal(one["x_adv"], two["x_adv"])
    with pytest.raises(L2LError, match="state of another evaluation"):
        judge.run(judge.Flags(**{**options, "eps": "0.2"}, out=tmp_path / "killed"))


def test_the_black_box_attacks_the_surrogate(workdir, tmp_path):
    """With the victim as its own surrogate the black box is the white box; a plain model's images transfer worse."""
    plain = tmp_path / "plain"
    config = Config(method="plain", epochs=3, val_size=0, attacks="fgsm", eval_size=100, workdir=str(plain))
    experiment.run(resolve("digits", "plain", config))
    result = judge.run(
        judge.Flags(
            victim=str(workdir), attacks="fgsm", surrogates=f"{workdir},{plain}", black_box="fgsm", eval_size=200,
            masking=False, out=tmp_path / "out",
        )
    )  # fmt: skip
    known = result["provenance"]
    assert known["black_box"][str(workdir)]["fgsm"] == known["attacks"]["fgsm"]
    assert known["black_box"][str(plain)]["fgsm"] > known["attacks"]["fgsm"]
    assert f"| {plain} " in (tmp_path / "out" / "evaluation.md").read_text()
    assert known["parameters"]["fgsm"] == {
        "attack": "fgsm", "norm": "linf", "eps": 0.1, "loss": "cross_entropy", "start": "clean", "keep": "last",
        "unroll": 1, "targeted": False, "restarts": 1,
    }  # fmt: skip


def test_a_stochastic_victim_is_judged_by_the_version_rand(workdir, tmp_path, monkeypatch):
    (tmp_path / "noisy_model.py").write_text(
        "import jax\n"
        "from l2ljax.run.trained import load_classifier\n"
        f"def make():\n    model = load_classifier({str(workdir)!r})\n"
        "    noise = jax.vmap(lambda key, x: 0.1 * jax.random.normal(key, x.shape))\n"
        "    return lambda x, keys: model(x + noise(keys, x))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(
        ensemble.VERSIONS, "rand", ensemble.Version({"apgd-ce": (attacks.apgd, {"eot": 3, "steps": 5})}, True)
    )
    flags = judge.Flags(
        victim="noisy_model:make", stochastic=True, dataset="digits", eps="0.1", attacks="rand,pgd5", eval_size=60,
        masking=False, out=tmp_path / "out",
    )  # fmt: skip
    known = judge.run(flags)["provenance"]
    assert 0 < known["attacks"]["rand"] < 0.9 and 0 < known["attacks"]["pgd5"] < 1
