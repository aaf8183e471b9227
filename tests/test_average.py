"""Averaged weights: the moving average against a loop in NumPy, resumed, and without effect on training."""

import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2ljax
from l2ljax import defenses, threat
from l2ljax.run import settings
from l2ljax.run.trained import load_classifier
from l2ljax.train import AXIS, averaged, init_state, make_step, moving_average
from l2ljax.types import L2LError, Players
from tests.test_train import toy_batch
from tests.tiny import tiny_classifier

SHORT = {"method": "plain", "epochs": 2, "train_size": 300, "ema": 0.9}


def start():
    classifier, batch = tiny_classifier(), toy_batch()
    defense = defenses.create("pgd_adv", classifier, threat.linf(0.1), axis_name=AXIS, steps=1)
    optimizers = Players(optax.sgd(0.1), optax.identity())
    step = make_step(defense, optimizers)
    return step, init_state(jax.random.key(1), classifier, defense, optimizers, batch.x), batch


def raw(state):
    return jax.tree.map(np.asarray, (state.params.classifier, state.stats.classifier))


def close(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.leaves(one)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_a_moving_average_is_that_of_a_loop_and_training_does_not_see_it(decay):
    step, state, batch = start()
    kept = averaged(step, moving_average(decay))
    twin = jax.tree.map(jnp.copy, state)
    state = state._replace(average=jax.tree.map(jnp.copy, raw(state)))
    expected = raw(twin)
    for t in range(1, 5):
        twin, _ = step(twin, batch)
        state, _ = kept(state, batch)
        d = min(decay, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * b, expected, raw(twin))
    close(raw(state), raw(twin), rtol=0, atol=0)
    close(state.average, expected, rtol=1e-5, atol=1e-7)
    assert raw(state.evaluated) is not raw(state) and not state.evaluated.average
    close(raw(state.evaluated), state.average, rtol=0, atol=0)


def test_half_precision_is_averaged_in_single_resumed_and_loaded(tmp_path):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(x.reshape(len(x), -1))

    images, labels = np.random.RandomState(0).uniform(size=(90, 4, 4, 1)).astype(np.float32), np.arange(90) % 3
    flags = {**SHORT, "train_size": None, "batch_size": 15, "ema": 0.999, "attacks": "", "workdir": tmp_path / "run"}
    for _ in range(2):  # the second time from its checkpoint
        result = l2ljax.fit(Half(), (images, labels), **flags)
    kernel = result.state.average[0]["Dense_0"]["kernel"]
    assert kernel.dtype == jnp.float32 and not bool((kernel == kernel.astype(jnp.bfloat16)).all())
    loaded = l2ljax.load(tmp_path / "run", Half())[0]
    np.testing.assert_array_equal(loaded(images), result.logits_fn(images))
    assert {leaf.dtype for leaf in jax.tree.leaves(result.variables)} == {jnp.dtype(jnp.bfloat16)}


def test_integers_stay_integers_in_a_moving_average():
    """As a counter in BatchNorm's place: an average of another type could not be loaded."""
    state = SimpleNamespace(
        step=jnp.int32(3), params=Players({"w": jnp.float32(2)}, {}), stats=Players({"seen": jnp.int32(7)}, {}),
        average=({"w": jnp.float32(1)}, {"seen": jnp.int32(4)}),
    )  # fmt: skip
    params, stats = moving_average(0.3)(state)
    assert float(params["w"]) == pytest.approx(0.3 + 0.7 * 2)
    assert stats["seen"].dtype == jnp.int32 and int(stats["seen"]) == 7


def test_schedule_free_is_evaluated_at_its_average():
    given = {"lr": 0.1, "optimizer": "schedule_free", "lr_schedule": "constant"}
    chosen = settings.Settings("", "digits_cnn", "0.1", epochs=1, **given)
    optimizer = settings.optimizers(chosen, 10).classifier
    (w, state), x, z = ({"w": jnp.ones(3)}, optimizer.init({"w": jnp.ones(3)})), 1.0, 1.0
    scale = optax.scale_by_rms(decay=0.999, eps=1e-8, bias_correction=True)
    moments = scale.init({"w": jnp.ones(3)})
    for t in range(1, 5):  # Defazio et al. (2024), eq. 1-3: y = (1 - b) z + b x; z -= lr g; x = (1 - 1/t) x + z / t
        gradient = {"w": jnp.arange(1.0, 4.0) * t}
        updates, state = optimizer.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        direction, moments = scale.update(gradient, moments)
        z = z - 0.1 * direction["w"]
        x = (1 - 1 / t) * x + z / t
        np.testing.assert_allclose(w["w"], 0.1 * z + 0.9 * x, rtol=1e-4)
    _, made, _ = start()
    made = made._replace(params=Players(w, {}), opt_state=Players(state, ()))
    evaluated, stats = settings.average(chosen)(made)
    np.testing.assert_allclose(evaluated["w"], x, rtol=1e-4)
    close(stats, made.stats.classifier, rtol=0)


def test_an_averaged_run_is_validated_kept_and_resumed(tmp_path):
    whole = l2ljax.fit("digits_cnn", "digits", **SHORT, workdir=tmp_path / "whole", attacks="fgsm", eval_size=20)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"val_robust_acc", "raw_val_robust_acc"} <= rows[-1].keys()
    assert whole.report["raw"]["clean_acc"] >= 0 and whole.report["raw"] != whole.report["best"]
    assert "| plain (not averaged) " in (tmp_path / "whole" / "report.md").read_text()
    loaded = load_classifier(tmp_path / "whole")
    close(loaded.args[0]["params"], whole.state.average[0], rtol=0)
    close(whole.variables["params"], whole.state.average[0], rtol=0)

    def killed(*_):
        raise KeyboardInterrupt

    half = {**SHORT, "workdir": tmp_path / "half", "attacks": "fgsm", "eval_size": 20}
    with pytest.MonkeyPatch.context() as patch:
        validated = l2ljax.run.training.validate
        calls = []

        def second(*args):
            calls.append(1)
            return killed() if len(calls) == 2 else validated(*args)

        patch.setattr(l2ljax.run.training, "validate", second)
        with pytest.raises(KeyboardInterrupt):
            l2ljax.fit("digits_cnn", "digits", **half)
    resumed = l2ljax.fit("digits_cnn", "digits", **half)
    close(resumed.state.average, whole.state.average, rtol=0)
    close(raw(resumed.state), raw(whole.state), rtol=0)


def test_schedule_free_starts_from_the_loaded_classifier():
    flags = {"optimizer": "schedule_free", "lr_schedule": "constant", "lr": 1e-9, "train_size": 100, "val_size": 0}
    result = l2ljax.fit("digits_cnn", "digits", method="plain", epochs=1, init_from="pretrained:digits_trades", **flags)
    loaded = l2ljax.models.pretrained("digits_trades").variables["params"]
    close(result.variables["params"], loaded, rtol=1e-4, atol=1e-6)


def test_a_state_without_an_average_is_refused():
    step, state, batch = start()
    with pytest.raises(L2LError, match="the state has no average"):
        averaged(step, moving_average(0.9))(state, batch)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ema": 0.9}, "schedule_free averages the weights itself: give ema=0"),
        ({"ema": 0, "lr_schedule": "cosine"}, "schedule_free needs a rate that stays: give constant"),
    ],
)
def test_schedule_free_averages_and_falls_by_itself(flags, message):
    with pytest.raises(L2LError, match=message):
        l2ljax.fit("digits_cnn", "digits", **{**SHORT, **flags}, optimizer="schedule_free")


def test_schedules_have_their_shapes():
    made = settings.Settings("", "digits_cnn", "0.1", epochs=10, lr=0.4)
    at = lambda name, *steps: [float(settings.LR_SCHEDULES[name](made, 10)(step)) for step in steps]
    assert at("cyclic", 0, 20, 40, 70, 100) == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    assert at("onecycle", 0, 30, 100) == pytest.approx([0.4 / 25, 0.4, 0.4 / 25e4], rel=1e-4)
    assert at("warmup_cosine", 0, 5, 10, 55, 100) == pytest.approx([0, 0.2, 0.4, 0.2, 0], abs=1e-7)
    assert at("constant", 0, 100) == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize("name", settings.OPTIMIZERS)
def test_every_optimizer_moves_against_the_gradient(name):
    optimizer = settings.OPTIMIZERS[name](0.1, 0.0, False)
    w = {"w": jnp.array([1.0, -2.0])}
    updates, _ = optimizer.update({"w": jnp.array([1.0, -3.0])}, optimizer.init(w), w)
    assert (np.sign(updates["w"]) == [-1, 1]).all()
    decayed = settings.OPTIMIZERS[name](0.1, 0.5, False)
    shrunk, _ = decayed.update({"w": jnp.zeros(2)}, decayed.init(w), w)
    assert (np.sign(shrunk["w"]) == [-1, 1]).all()
