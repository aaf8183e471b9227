"""AWP: the classifier descends the loss at weights that ascended it, with any method; v is taken off again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import cost, defenses, models, threat
from l2ljax.train import AXIS, init_state, make_step
from l2ljax.types import Batch, Classifier, Defense, L2LError, Players
from papers import effort
from tests.test_train import toy_batch
from tests.tiny import small, tiny_classifier

GAMMA, EPS, LR = 0.3, 0.05, 0.1
KEY = jax.random.key(3)
X, Y = np.asarray(jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))), np.arange(8) % 3
W, B = np.asarray(jax.random.normal(jax.random.key(1), (16, 3))), np.array([0.3, -0.2, 0.1], np.float32)


def linear():
    def logits(variables, x):
        return x.reshape(len(x), -1) @ variables["params"]["w"] + variables["params"]["b"]

    init = lambda key, x: {"params": {"w": jnp.asarray(W), "b": jnp.asarray(B)}, "batch_stats": {}}
    return Classifier(init, logits, lambda variables, x, key, axis_name=None: (logits(variables, x), {}), None)


def by_hand(w, b, x):
    """(mean cross-entropy, its gradients in w, b and x) of a linear classifier, in NumPy."""
    flat = x.reshape(len(x), -1)
    z = flat @ w + b
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    off = p - np.eye(3)[Y]
    mean = -np.log(p[np.arange(len(x)), Y]).mean()
    return mean, flat.T @ off / len(x), off.mean(axis=0), (off @ w.T).reshape(x.shape)


def test_the_update_is_from_theta_along_the_gradient_at_the_perturbed_weights():
    """FGSM at w; v the normalized gradient there, of the matrix alone; w - lr grad J(w + v), so v is off again."""
    x_adv = np.clip(X + EPS * np.sign(by_hand(W, B, X)[3]), 0, 1)
    gradient = by_hand(W, B, x_adv)[1]
    v = GAMMA * np.linalg.norm(W) * gradient / np.linalg.norm(gradient)
    loss, in_w, in_b, _ = by_hand(W + v, B, x_adv)

    defense = defenses.create("fgsm_adv", linear(), threat.linf(EPS), axis_name=AXIS)
    defense = defenses.perturbed(defense, gamma=GAMMA, axis_name=AXIS)
    movers = Players(optax.sgd(LR), optax.sgd(LR))
    state = init_state(KEY, linear(), defense, movers, jnp.asarray(X))
    state, metrics = make_step(defense, movers)(state, Batch(jnp.asarray(X), jnp.asarray(Y)))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(state.params.classifier["w"], W - LR * in_w, atol=1e-6)
    np.testing.assert_allclose(state.params.classifier["b"], B - LR * in_b, atol=1e-6)
    assert loss > 1.05 * by_hand(W, B, x_adv)[0]


def test_each_layers_perturbation_has_its_own_length():
    rng = np.random.default_rng(0)
    theta = {"kernel": rng.normal(size=(3, 3, 2, 4)), "dense": 9 * rng.normal(size=(5, 2)), "scale": np.ones(4)}
    gradient = jax.tree.map(lambda w: rng.normal(size=w.shape), theta)
    v = defenses.weights.perturbation(theta, gradient, 0.01)
    for name in ("kernel", "dense"):
        np.testing.assert_allclose(np.linalg.norm(v[name]), 0.01 * np.linalg.norm(theta[name]), rtol=1e-5)
        np.testing.assert_allclose(v[name] / gradient[name], (v[name] / gradient[name]).mean(), rtol=1e-5)
    assert not v["scale"].any()
    assert not defenses.weights.perturbation(theta, jax.tree.map(np.zeros_like, theta), 0.01)["dense"].any()


def test_without_length_nothing_changes():
    """Dropout's masks and BatchNorm's statistics included."""
    clf, batch = tiny_classifier(rate=0.3), toy_batch(8)
    defense = defenses.create("fgsm_adv", clf, threat.linf(EPS))
    variables = clf.init(KEY, batch.x)
    params, stats = Players(variables["params"], {}), Players(variables["batch_stats"], {})

    def found(defense):
        gradient = jax.jit(jax.grad(defense.objective, has_aux=True), static_argnums=4)
        return gradient(params, stats, KEY, batch, "joint")

    pairs = zip(*map(jax.tree.leaves, (found(defense), found(defenses.perturbed(defense, gamma=0)))), strict=True)
    for without, none in pairs:
        np.testing.assert_allclose(none, without, atol=1e-6)


CHEAP = [("rnn_trades", "joint"), ("rnn_adv", "alternating")]
LEARNED = [(method, "joint") for method, record in defenses.METHODS.items() if record.learns]


@pytest.mark.parametrize(
    "method, schedule", [*CHEAP, *(pytest.param(*case, marks=pytest.mark.slow) for case in LEARNED)]
)
def test_both_players_move_with_it(method, schedule):
    defense = defenses.create(method, tiny_classifier(), threat.linf(0.1), axis_name=AXIS, **small(method))
    defense = defenses.perturbed(defense, gamma=0.05, axis_name=AXIS)
    movers, batch = Players(optax.sgd(0.1), optax.sgd(0.1)), toy_batch(8)
    state = init_state(KEY, tiny_classifier(), defense, movers, batch.x)
    before = jax.tree.map(np.array, state.params)
    state, metrics = make_step(defense, movers, schedule=schedule)(state, batch)
    assert np.isfinite(metrics["loss"])
    for one, other in zip(before, state.params, strict=True):
        assert optax.tree.norm(jax.tree.map(lambda a, b: a - np.array(b), one, other)) > 0


@pytest.mark.parametrize("method", defenses.METHODS)
def test_with_any_method_it_costs_the_ends_passes(method):
    """The attack is made once: the program has the passes of the end twice, and no other one."""
    clf = models.create("digits_cnn")
    marked = clf._replace(logits=cost.mark(clf.logits), train=cost.mark(clf.train))
    batch = Batch(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, int))
    variables = jax.eval_shape(clf.init, KEY, batch.x)
    defense = defenses.create(method, marked, threat.linf(0.2), **small(method))
    phi, phi_stats = jax.eval_shape(defense.init, KEY, batch.x)
    both = Players(variables["params"], phi), Players(variables["batch_stats"], phi_stats)

    def count(defense):
        gradient = jax.grad(defense.objective, has_aux=True)
        return cost.multiplications(lambda params, stats: gradient(params, stats, KEY, batch, "joint")[0], *both)

    def one(variables):
        return jax.grad(lambda v: jnp.sum(marked.train(v, batch.x, KEY)[0] ** 2))(variables)

    extra = count(defenses.perturbed(defense, gamma=0.005)) - count(defense)
    assert extra == pytest.approx(effort.ENDS.get(method, 1) * cost.multiplications(one, variables), rel=0.02)


def test_an_objective_that_does_not_take_it_is_refused():
    mine = Defense(None, lambda params, stats, key, batch, mode: None, None)
    with pytest.raises(L2LError, match="takes no `shift`: build it with saddle.unrolled, or leave out --awp"):
        defenses.perturbed(mine, gamma=0.005)


def test_a_run_takes_it_as_a_setting():
    from l2ljax.run.config import Config, resolve
    from l2ljax.run.setup import prepare

    settings = resolve("digits", "pgd_adv", Config(awp=0.01, batch_size=20, train_size=20, val_size=0))
    assert settings.awp == 0.01 and not resolve("digits", "pgd_adv", Config()).awp
    objective = prepare(settings)[0].defense.objective
    assert isinstance(objective, functools.partial) and "shift" in objective.keywords
