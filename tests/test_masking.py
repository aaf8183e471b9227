"""The masking checks ring for planted illusions and not for an adversarially trained model; the report of them."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import data, experiment, judge, losses, threat
from l2ljax.config import Config, resolve
from l2ljax.evaluate import masking
from l2ljax.setup import load_classifier
from l2ljax.types import L2LError

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)
BALL = threat.linf(0.1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """An adversarially trained digits classifier."""
    folder = tmp_path_factory.mktemp("robust") / "run"
    config = Config(
        method="pgd_adv", steps=4, eps="0.1", epochs=12, val_size=0, attacks="fgsm", eval_size=100, workdir=str(folder)
    )
    experiment.run(resolve("digits", "pgd_adv", config))
    return folder


@pytest.fixture(scope="module")
def split():
    return data.Split(*(a[:120] for a in data.load("digits").test))


def ringing(logits_fn, split, **options):
    checks = masking.masking_checks(logits_fn, split, BALL, key=KEY, queries=60, **options)
    return {check.name for check in checks if not check.passed}, checks


def test_a_sound_model_rings_nowhere(workdir, split):
    found, checks = ringing(load_classifier(str(workdir)), split)
    assert not found, checks
    assert len(checks) >= 10
    assert all(check.verdict == "ok" and check.figure for check in checks)


def test_a_saturated_softmax_rings(workdir, split):
    sound = load_classifier(str(workdir))
    found, _ = ringing(lambda x: 1e4 * sound(x), split)
    assert any(name.startswith("gradients are not 0") for name in found)


def test_a_quantized_input_rings(workdir, split):
    sound = load_classifier(str(workdir))
    found, _ = ringing(lambda x: sound(jnp.round(8 * x) / 8), split)
    assert any(name.startswith("gradients are not 0") for name in found)
    assert (
        "random search is not stronger than the gradient" in found
        or "the black box is not stronger than the white box" in found
    )


def test_noise_rings(workdir, split):
    sound = load_classifier(str(workdir))

    def noisy(x, key):
        return sound(x) + jax.random.normal(key, (len(x), 10))

    check = masking._deterministic(noisy, split, KEY)
    assert not check.passed and "version rand" in check.figure
    assert masking._deterministic(lambda x, key: sound(x), split, KEY).passed
    model = masking.randomized(noisy, KEY)
    x = jnp.asarray(split.images[:4], jnp.float32) / 255
    np.testing.assert_array_equal(model(x), model(x))  # pure, and yet
    one, two = model(x) - sound(x), model(x + 1e-6) - sound(x + 1e-6)
    assert jnp.abs(one - two).max() > 0.1  # other images meet other noise


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


def test_best_of_path_returns_a_success_that_the_last_iterate_lost():
    """A model that one step fools and the second step, beyond the narrow window, does not."""

    def window(x):
        inside = (jnp.abs(x[:, 0, 0, 0] - 0.55) < 0.02).astype(x.dtype)
        return jnp.stack([1 - inside - 10 * x[:, 0, 0, 0] * 0, inside + 0 * x[:, 0, 0, 0]], axis=1) + jnp.stack(
            [-1e-3 * x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], axis=1
        )

    x, y = jnp.full((1, 1, 1, 1), 0.5), jnp.array([0])
    ball = threat.linf(0.2)._replace(sample=lambda key, x: x)
    attack = masking.best_of_path(ball, steps=4, step_size=0.05)
    x_adv = attack(window, KEY, x, y)
    np.testing.assert_allclose(x_adv, 0.55, atol=1e-6)
    assert losses.accuracy(window(x_adv), y) == 0
    np.testing.assert_allclose(masking.best_of_path(ball, steps=1, step_size=0.05)(window, KEY, x, y), 0.55, atol=1e-6)


def test_a_judgement_of_a_run_and_of_a_function(workdir, tmp_path, monkeypatch):
    flags = judge.Flags(
        victim=str(workdir), attacks="pgd10,fgsm", eval_size=60, masking=False, attack_seeds=2, sweep=True,
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
    assert "linf, eps = 0.1 (0.10000)" in text and "![sweep](sweep.png)" in text
    assert (tmp_path / "a" / "sweep.png").stat().st_size > 5000

    (tmp_path / "their_model.py").write_text(
        "from l2ljax.setup import load_classifier\n"
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
        judge.run(judge.Flags(victim=str(workdir), **{**options, "attacks": "pgd"}))
