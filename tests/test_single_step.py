"""Training on one step: images of FGSM with a random start, of N-FGSM, which leave the ball, ELLE's penalty, and free
training, step by step in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import data, defenses, models, threat, train
from l2ljax.types import Batch, Classifier, L2LError, Players, example_keys, fold_in

KEY, EPS = jax.random.key(7), 0.05
X, Y = jax.random.uniform(jax.random.key(0), (16, 4, 4, 1)), jnp.arange(16) % 3
W = jax.random.normal(jax.random.key(1), (16, 3))
LINEAR = models.from_functions(
    lambda key, x: {"params": jnp.copy(W)}, lambda variables, x: x.reshape(len(x), -1) @ variables["params"]
)


def passes(method, ball, **options):
    """The images of a linear classifier's training passes, in order, and the loss."""
    seen = []

    def logits(variables, x):
        return x.reshape(len(x), -1) @ variables["params"]

    def train(variables, x, key, axis_name=None):
        seen.append(np.asarray(x))
        return logits(variables, x), {}

    defense = defenses.create(method, Classifier(None, logits, train, None), ball, **options)
    return seen, defense.objective(Players(W, {}), Players({}, {}), KEY, Batch(X, Y), "joint")[0]


def images(method, ball, **options):
    return passes(method, ball, **options)[0][0]


def by_hand(noise, step, project):
    """x + eta + step sign(gradient at x + eta), in NumPy."""
    keys = fold_in(example_keys(KEY, len(X)), 0)
    eta = jax.vmap(lambda k: jax.random.uniform(k, X.shape[1:], minval=-noise, maxval=noise))(keys)
    x, w = np.asarray(X), np.asarray(W)
    start = np.clip(x + np.asarray(eta), 0, 1)
    z = np.exp(start.reshape(len(x), -1) @ w)
    gradient = (z / z.sum(axis=1, keepdims=True) - np.eye(3)[np.asarray(Y)]) @ w.T
    return np.clip(project(start + step * np.sign(gradient).reshape(x.shape) - x) + x, 0, 1)


@pytest.mark.parametrize("options", [{}, {"step": 0.5}])
def test_fgsm_with_a_random_start_is_projected(options):
    step = options.get("step", 1.25) * EPS
    expected = by_hand(EPS, step, lambda delta: np.clip(delta, -EPS, EPS))
    np.testing.assert_allclose(images("fgsm_rs", threat.linf(EPS), **options), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"step": 0.5, "noise": 1.0}, {"noise": 0.0}])
def test_the_noise_of_n_fgsm_is_not_clipped_to_the_ball(options):
    step, noise = options.get("step", 1.0), options.get("noise", 2.0)
    made = images("n_fgsm", threat.linf(EPS), **options)
    np.testing.assert_allclose(made, by_hand(noise * EPS, step * EPS, lambda delta: delta), atol=1e-6)
    moved = np.abs(made - X)
    assert 0.9 * (noise + step) * EPS < moved.max() <= 1.001 * (noise + step) * EPS
    assert made.min() >= 0 and made.max() <= 1
    assert (moved > 1.001 * EPS).mean() > 0.2 or not noise


def test_n_fgsm_in_the_euclidean_norm():
    moved = threat.l2(1.0).norm(images("n_fgsm", threat.l2(0.2)) - X)
    assert 0.2 < moved.max() <= 0.6001


def test_noise_beyond_the_range_of_pixels_is_refused():
    with pytest.raises(L2LError, match="noise=3 at eps=0.4 is more than the pixels. range: give 2.5 or less"):
        defenses.create("n_fgsm", None, threat.linf(0.4), noise=3.0)


@pytest.mark.parametrize("weight", [0.0, 1000.0])
def test_elle_adds_the_squared_error_of_interpolated_losses(weight):
    eps = 0.2  # a linear classifier's loss is nearly linear in a smaller ball
    (x_adv, points), value = passes("elle", threat.linf(eps), weight=weight)
    x, w, y = np.asarray(X), np.asarray(W), np.asarray(Y)
    x_a, x_b, x_c = np.split(points, 3)
    assert all(0.9 * eps < np.abs(p - x).max() <= 1.001 * eps for p in (x_a, x_b))
    a = ((x_c - x_a) * (x_b - x_a)).sum(axis=(1, 2, 3)) / ((x_b - x_a) ** 2).sum(axis=(1, 2, 3))
    assert ((a >= 0) & (a <= 1)).all() and a.std() > 0.1
    np.testing.assert_allclose(x_c, x_a + a[:, None, None, None] * (x_b - x_a), atol=1e-6)

    def loss(x):
        z = x.reshape(len(x), -1) @ w
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(x)), y]

    error = loss(x_c) - (1 - a) * loss(x_a) - a * loss(x_b)
    np.testing.assert_allclose(x_adv, by_hand(0.0, eps, lambda delta: delta), atol=1e-6)
    np.testing.assert_allclose(value, (loss(x_adv) + weight * error**2).mean(), rtol=1e-4)
    assert 1000 * (error**2).mean() > 1e-3 * loss(x_adv).mean()  # ten times that tolerance


def test_in_a_ball_of_radius_0_one_step_moves_nothing():
    defense = defenses.fgsm_rs(LINEAR, threat.linf(0.0))
    plain = defenses.create("plain", LINEAR, threat.linf(0.0))
    players = Players(jnp.ones((X[0].size, 3)), {}), Players({}, {})
    loss = lambda method: method.objective(*players, KEY, Batch(X, Y), "classifier")[0]
    np.testing.assert_allclose(loss(defense), loss(plain), rtol=1e-6)


@pytest.mark.parametrize("ball", [threat.linf(0.3), threat.l2(0.5)])
def test_free_perturbations_are_those_of_a_loop_and_live_on(ball):
    step, rate = 0.7, 0.1
    defense = defenses.free_adv(LINEAR, ball, step=step, axis_name=train.AXIS)
    optimizers = Players(optax.sgd(rate), defense.mover)
    state = train.init_state(KEY, LINEAR, defense, optimizers, X)
    one = train.make_step(defense, optimizers)
    w, delta = np.asarray(state.params.classifier, np.float64), np.zeros(X.shape)
    for _, batch in itertools.islice(data.repeated(iter([(0, Batch(X, Y)), (1, Batch(X[::-1], Y))]), 3), 6):
        x, y = np.asarray(batch.x), np.asarray(batch.y)
        moved = np.clip(x + delta, 0, 1)
        z = np.exp(moved.reshape(16, -1) @ w)
        error = z / z.sum(axis=1, keepdims=True) - np.eye(3)[y]
        g = (error @ w.T).reshape(X.shape) * ((x + delta >= 0) & (x + delta <= 1))
        w = w - rate * moved.reshape(16, -1).T @ error / 16
        length = lambda a: np.sqrt((a**2).sum(axis=(1, 2, 3), keepdims=True))
        delta = delta + step * ball.eps * (np.sign(g) if ball.name == "linf" else g / length(g))
        delta = np.clip(delta, -0.3, 0.3) if ball.name == "linf" else delta / np.maximum(length(delta) / 0.5, 1)
        state, _ = one(state, Batch(*map(jnp.copy, batch)))
    np.testing.assert_allclose(state.params.attacker["delta"], delta, atol=2e-6)
    np.testing.assert_allclose(state.params.classifier, w, atol=2e-6)
    assert np.isclose(np.asarray(ball.norm(jnp.asarray(delta))), ball.eps).any()  # some were projected
    with pytest.raises(L2LError, match="16 perturbations for a batch of 8: give init such a batch"):
        one(state, Batch(X[:8], Y[:8]))


@pytest.mark.parametrize("ball", [threat.l2(3.0), threat.l1(3.0), threat.linf(0.8)], ids=lambda ball: ball.name)
def test_free_perturbations_fill_a_ball_wider_than_half_the_pixels_range(ball):
    """One pixel, pushed on: its change is the ball's radius, or the sparse direction's share of it."""
    mover = defenses.free_adv(LINEAR, ball, step=0.7).mover
    delta, gradient = jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(-1.0)
    for _ in range(2):
        delta += mover.update(gradient, mover.init(delta), delta)[0]
    np.testing.assert_allclose(delta, -ball.eps * gradient, atol=1e-6)


def test_repeated_batches_go_on_from_any_step():
    batches = lambda first: ((i, 10 * i) for i in itertools.count(first))
    whole = list(itertools.islice(data.repeated(batches(0), 3), 12))
    assert whole == [(s, 10 * (s // 3)) for s in range(12)]
    for start in range(9):
        assert list(itertools.islice(data.repeated(batches(start // 3), 3, start), 3)) == whole[start : start + 3]
