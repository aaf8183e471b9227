"""The attack that travels: its optimizer against NumPy, without a scale of the loss; what comes with the package."""

import dataclasses
import hashlib
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import attacks, data, losses, threat
from l2ljax.attacks import travelling
from l2ljax.attacks.travelling import annealed, traveller
from l2ljax.types import L2LError, example_keys
from travel import comparison, training

RNG = np.random.RandomState(0)
X = RNG.uniform(-0.2, 1.2, (4, 5, 5, 1)).clip(0, 1)
KEYS = example_keys(jax.random.key(0), 4)
BALL = threat.linf(0.2)
W = RNG.normal(size=(25, 3))
PARAMS = {
    **{name: RNG.normal(0, 0.8, 6) for name in "UVP"},
    "W": RNG.normal(0, 0.4, (6, 6)),
    "schedule": np.array([-0.5, 0.3, 0.2]),
}


def climb(loss_fn, params=PARAMS, steps=4, x=X):
    """x_1..x_T of the optimizer with these parameters."""
    rule = annealed(horizon=steps, hidden=len(params["U"])).rule(params, {}, None, None)
    losses_of = lambda x: (loss_fn(x.reshape(len(x), -1)), ())
    return attacks.ascend(losses_of, rule, BALL, KEYS, jnp.asarray(x), steps=steps, start=attacks.clean).path


def bent(x):
    return jnp.sum(jnp.tanh(x @ W), axis=1)


def test_the_optimizer_equals_numpy():
    with jax.enable_x64(True):
        got = climb(bent)
    x, h = X.copy(), np.zeros((*X.shape, 6))
    for t in range(4):
        g = ((1 - np.tanh(x.reshape(4, -1) @ W) ** 2) @ W.T).reshape(X.shape)
        share = np.abs(g) / np.abs(g).max(axis=(1, 2, 3), keepdims=True)
        seen = np.sign(g) * np.maximum(1 + np.log(share) / 7, 0)
        h = np.tanh(seen[..., None] * PARAMS["U"] + (x - X)[..., None] / 0.2 * PARAMS["P"] + h @ PARAMS["W"].T)
        s = PARAMS["schedule"]
        length = 0.2 * np.exp(s[0] + s[1] * np.log(0.4)) * (1 - t / 4) ** np.exp(s[2])
        x = np.clip(np.clip(x + length * np.tanh(h @ PARAMS["V"]), X - 0.2, X + 0.2), 0, 1)
        np.testing.assert_allclose(got[t], x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**10])
def test_no_scale_of_the_loss_matters(scale):
    path = climb(bent)
    np.testing.assert_allclose(climb(lambda x: scale * bent(x)), path, rtol=0, atol=1e-6)
    assert np.abs(path - X).max() > 0.03


def test_the_optimizer_is_odd():
    """Reflected at gray, the loss makes the reflected path."""
    np.testing.assert_allclose(climb(lambda x: bent(1 - x), x=1 - X), 1 - climb(bent), rtol=0, atol=1e-5)


def test_it_begins_close_to_annealed_signs():
    params, batch_stats = annealed(horizon=8).init(jax.random.key(3), jnp.zeros((1, 1, 1, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 31 and batch_stats == {}
    g = RNG.choice([-1.0, 1.0], 25) * RNG.uniform(0.3, 1, 25)
    x = np.full((4, 5, 5, 1), 0.5)
    wide = BALL._replace(project=lambda moved, x: moved)
    rule = annealed(horizon=8).rule(params, {}, None, None)
    path = attacks.ascend(
        lambda x: (x.reshape(4, -1) @ g, ()), rule, wide, KEYS, jnp.asarray(x), steps=8, start=attacks.clean
    ).path
    moves = np.diff(np.stack([x, *path]), axis=0).reshape(8, 4, 25) / 0.2
    longest = np.exp(0.4) * (1 - np.arange(8) / 8)
    assert (moves * np.sign(g) > 0.7 * longest[:, None, None]).all()
    assert (np.abs(moves) <= longest[:, None, None] + 1e-5).all()


def test_finite_differences_estimate_the_derivative():
    """Of a.a + c.a at a: 2 a + c; the antithetic pairs leave no curvature, and 4,096 of them little noise."""
    a, c = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.0, -4.0])
    got = training.evolution(lambda a: a @ a + c @ a, jax.random.key(0), a, pairs=4096)
    np.testing.assert_allclose(got, 2 * a + c, atol=0.25)


def test_the_summary_counts_where_it_is_as_strong():
    names = [f"{kind}{n}" for kind in ("traveller", "pgd", "apgd") for n in (10, 20, 40, 50, 100)]
    keys = ("loss", "accuracy", "largest_loss", "lowest_accuracy")
    rows = {v: {name: dict.fromkeys(keys, 0.5) for name in names} for v in "abc"}
    rows["a"]["pgd20"]["loss"] = 1.0  # twice the traveller's
    rows["b"]["pgd20"]["accuracy"] = 0.47  # three points below
    found = comparison.summary(rows)["traveller10 / pgd20, loss"]
    assert (found["victims"], found["loss_reached"], found["accuracy_reached"]) == (3, 2, 2)
    assert found["loss_ratio"] == pytest.approx({"mean": 5 / 6, "deviation": 2**0.5 / 6, "least": 0.5, "largest": 1})
    assert found["accuracy_points"]["largest"] == pytest.approx(3)


# What comes with the package


def test_the_weights_are_those_of_the_kept_result():
    kept = json.loads((Path(__file__).parent.parent / "experiments" / "results" / "traveller.json").read_text())
    assert hashlib.sha256(travelling.WEIGHTS.read_bytes()).hexdigest() == kept["sha256"]
    shapes = {name: value.shape for name, value in travelling.weights().items()}
    params, _ = annealed(horizon=1).init(jax.random.key(0), jnp.zeros((1, 1, 1, 1)))
    assert shapes == {name: value.shape for name, value in params.items()}


def test_the_comparison_keeps_results_of_its_own_settings_and_runs(tmp_path, monkeypatch):
    script, compared = importlib.import_module("traveller"), []
    monkeypatch.setattr(script, "HELD_OUT", [])
    monkeypatch.setattr(script, "LEARNING", [])
    monkeypatch.setattr(script, "prey", lambda *_, **__: None)
    monkeypatch.setattr(script, "other", lambda run, *_: run)
    monkeypatch.setattr(training, "learn", lambda *_, **how: training.drawn(how["seed"]))
    monkeypatch.setattr(comparison, "search", lambda *_: {"pgd10": {"size": 0.5}})

    def compare(make, params, sizes):
        compared.append(make())
        return {make(): {"largest_loss": float(len(compared))}}

    monkeypatch.setattr(comparison, "compare", compare)
    flags = script.Flags(others="a/x,b/x", folder=tmp_path / "folder", out=tmp_path / "out.json")
    for _ in range(2):
        script.main(flags)
        rows = json.loads(flags.out.read_text())["rows"]
        assert compared == list(rows) == ["a/x", "b/x"]
        assert [row[name]["largest_loss"] for name, row in rows.items()] == [1.0, 2.0]
    for name in ("steps", "batch_size", "search_size", "eval_size", "seed"):
        with pytest.raises(L2LError, match=f"folder holds results with .*'{name}': .*: choose another"):
            script.main(dataclasses.replace(flags, **{name: 7}))


def test_damaged_weights_and_other_balls_are_refused(tmp_path, monkeypatch):
    with pytest.raises(L2LError, match="linf balls, not l2: give threat.linf"):
        traveller(threat.l2(0.5))
    content = bytearray(travelling.WEIGHTS.read_bytes())
    content[200] ^= 1  # a number of the first array
    (tmp_path / "damaged.npz").write_bytes(content)
    for name in ("damaged.npz", "none.npz"):
        monkeypatch.setattr(travelling, "WEIGHTS", tmp_path / name)
        travelling.weights.cache_clear()
        with pytest.raises(L2LError, match=f"{name} cannot be read .*: install l2ljax again"):
            attacks.create("traveller10", BALL)
    monkeypatch.undo()
    assert travelling.weights()


@pytest.fixture(scope="module")
def digits():
    """A small network trained on digits, images and labels to attack it on."""
    train, test = (data.load("digits").train, data.load("digits").test)
    x, y = jnp.asarray(data.pixels(train.images)), jnp.asarray(train.labels)
    shapes = {"w1": (64, 32), "w2": (32, 10)}
    params = {n: jnp.asarray(np.random.RandomState(1).normal(0, 0.2, s), jnp.float32) for n, s in shapes.items()}
    network = lambda params, x: jnp.tanh((x.reshape(len(x), -1) - 0.3) @ params["w1"]) @ params["w2"]
    mover = optax.adam(0.02)

    @jax.jit
    def train_it(params):
        def step(carry, _):
            params, state = carry
            gradient = jax.grad(lambda p: losses.cross_entropy(network(p, x), y).mean())(params)
            updates, state = mover.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, mover.init(params)), length=60)[0][0]

    logits_fn = jax.tree_util.Partial(network, train_it(params))
    return logits_fn, jnp.asarray(data.pixels(test.images[:100])), jnp.asarray(test.labels[:100])


def test_it_is_stronger_than_one_step_and_as_strong_as_pgd_of_more(digits):
    logits_fn, x, y = digits
    reached = {}
    for name in ("fgsm", "pgd10", "pgd50", "traveller10"):
        x_adv = jax.jit(attacks.create(name, threat.linf(0.1)))(logits_fn, jax.random.key(2), x, y)
        reached[name] = float(losses.cross_entropy(logits_fn(x_adv), y).mean())
    assert reached["traveller10"] > 1.02 * reached["fgsm"]
    assert reached["traveller10"] > reached["pgd10"]
    assert reached["traveller10"] > 0.995 * reached["pgd50"]


def test_an_example_that_is_fooled_may_leave(digits):
    """The state is per example: in pieces of two steps, on the examples that stand, it is the same attack."""
    logits_fn, x, y = digits
    attack = attacks.create("traveller6+first", threat.linf(0.1))
    whole = jax.jit(attack)(logits_fn, jax.random.key(2), x, y)
    ((init, advance, steps),) = attack.solvers
    keys, carry, rows = example_keys(jax.random.key(2), len(x)), None, np.arange(len(x))
    x_adv = np.array(whole) * np.nan
    for begun in range(0, steps, 2):
        part = (logits_fn, keys[rows], x[rows], y[rows])
        carry = advance(*part, init(*part) if begun == 0 else carry, 2)
        x_adv[rows] = carry.x
        stands = np.flatnonzero(~np.asarray(carry.done))
        rows, carry = rows[stands], jax.tree.map(lambda a, stands=stands: a[stands], carry)
    assert 0 < len(rows) < len(x)
    np.testing.assert_allclose(x_adv, whole, rtol=0, atol=1e-5)
