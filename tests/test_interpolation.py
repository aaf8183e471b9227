"""AIT: the partner, the labels, the move towards its features, and a learned attacker that makes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import defenses, losses, threat
from l2ljax.attacks import learned
from l2ljax.defenses.interpolation import interpolated, nearest_labels
from l2ljax.types import Batch, L2LError, Players, example_keys, fold_in
from tests.tiny import tiny_classifier

BALL = threat.linf(0.1)
X = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))
BATCH = Batch(X, jnp.array([0, 1, 2, 2, 4, 5]))
KEY = jax.random.key(3)


def build(method, **options):
    clf = tiny_classifier()
    if method == "ait_l2l":
        options = {"attacker": "slim", "attacker_width": 4, **options}
    defense = defenses.create(method, clf, BALL, **options)
    variables = clf.init(jax.random.key(1), X)
    phi, phi_stats = defense.init(jax.random.key(2), X)
    return clf, defense, Players(variables["params"], phi), Players(variables["batch_stats"], phi_stats)


def reference(clf, params, stats):
    """The perturbed images of `ait` by hand: noise, one sign step down the distance to the reversed batch, cut."""
    variables = {"params": params.classifier, "batch_stats": stats.classifier}
    features = functools.partial(clf.features, variables)
    keys = fold_in(example_keys(KEY, 6), 1)
    x = X + jax.vmap(lambda k: jax.random.uniform(k, X.shape[1:], jnp.float32, -0.1, 0.1))(keys)

    def distance(x):
        a, b = features(x), features(X[::-1])
        return 1 - (a * b).sum(1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))

    moved = x - 0.1 * jnp.sign(jax.grad(lambda x: distance(x).sum())(x))
    return jnp.clip(jnp.clip(moved, X - 0.1, X + 0.1), 0, 1), distance


def test_the_loss_is_that_of_algorithm_2():
    clf, defense, params, stats = build("ait", label_eps=0.3)
    x_adv, distance = reference(clf, params, stats)
    assert (distance(x_adv) < distance(X)).all()  # every image moves towards its partner

    variables = {"params": params.classifier, "batch_stats": stats.classifier}
    logits, moved = clf.train(variables, x_adv, KEY)
    labels = np.zeros((6, 10))
    for i, (own, other) in enumerate(zip(BATCH.y, BATCH.y[::-1], strict=True)):
        labels[i] += 0.3 / 9
        labels[i, other] -= 0.3 / 9
        labels[i, own] += 0.7
    np.testing.assert_allclose(labels.sum(1), 1)
    expected = -(labels * jax.nn.log_softmax(logits)).sum(1).mean()
    value, (theirs, metrics) = defense.objective(params, stats, KEY, BATCH, "joint")
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["distance"], distance(x_adv).mean(), rtol=1e-3)
    np.testing.assert_allclose(value, expected - distance(x_adv).mean(), rtol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (theirs.classifier, moved)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # one training pass, at x_adv alone


def test_the_classifier_feels_the_labels_and_the_attacker_the_distance():
    _, _, params, stats = build("ait_l2l")

    def objective(params, label_eps):
        return build("ait_l2l", label_eps=label_eps)[1].objective(params, stats, KEY, BATCH, "joint")[0]

    one, two = (jax.jit(jax.grad(functools.partial(objective, label_eps=e)))(params) for e in (0.1, 0.9))
    same = [jnp.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.attacker, two.attacker)), strict=True)]
    assert max(same) < 1e-6
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(one.attacker)) > 1e-6
    other = zip(*map(jax.tree.leaves, (one.classifier, two.classifier)), strict=True)
    assert max(jnp.abs(a - b).max() for a, b in other) > 1e-3


def test_a_learned_attacker_moves_features_towards_the_partner():
    _, defense, params, stats = build("ait_l2l")
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(phi, stats, state):
        def loss(phi):
            value, aux = defense.objective(params._replace(attacker=phi), stats, KEY, BATCH, "attacker")
            return -value, aux

        grads, (stats, metrics) = jax.grad(loss, has_aux=True)(phi)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(phi, updates), stats, state, metrics["distance"]

    phi, state, distances = params.attacker, optimizer.init(params.attacker), []
    for _ in range(20):
        phi, stats, state, distance = step(phi, stats, state)
        distances.append(float(distance))
    assert distances[-1] < 0.9 * distances[0]


def test_perturbed_images_stay_in_the_ball_of_the_clean_ones():
    clf, defense, params, stats = build("ait_l2l")
    logits_fn = functools.partial(clf.logits, {"params": params.classifier, "batch_stats": stats.classifier})
    x_adv = defense.attack(params.attacker, stats.attacker)(logits_fn, KEY, X, BATCH.y)
    assert np.abs(x_adv - X).max() <= 0.1 + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("ball", [threat.linf(0.1), threat.l2(0.4), threat.l1(3.0)], ids=lambda ball: ball.name)
def test_the_noise_is_a_draw_of_the_ball(ball):
    """It hides no step as long as the radius, in any norm."""
    seen, clf = [], tiny_classifier()
    along = ball.steepest(jax.random.normal(jax.random.key(7), X.shape)) * ball.eps
    step = learned.fixed(optax.stateless(lambda g, p=None: along))
    watched = clf._replace(train=lambda v, x, *rest: seen.append(x) or clf.train(v, x, *rest))
    variables, x = clf.init(jax.random.key(1), X), 0.4 + 0.2 * X
    params, stats = Players(variables["params"], {}), Players(variables["batch_stats"], {})
    defense = interpolated(watched, step, ball, label_eps=0.5)
    defense.objective(params, stats, KEY, Batch(x, BATCH.y), "joint")
    moved = np.asarray(seen[0] - x)
    assert ball.norm(moved).max() <= ball.eps * (1 + 1e-5) and np.abs(moved).min() < np.abs(moved).max()
    part = (moved * along).sum((1, 2, 3)) / (along * along).sum((1, 2, 3))
    assert (part > 0.35).all() and (part < 1 - 1e-3).all()


def test_label_eps_out_of_range():
    with pytest.raises(L2LError, match="label_eps=1.5: give a number from 0 to 1"):
        build("ait", label_eps=1.5)


def test_cosine_distance_and_soft_labels_equal_numpy():
    rng = np.random.RandomState(0)
    a, b = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    cos = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(losses.cosine_distance(jnp.asarray(a), jnp.asarray(b)), 1 - cos, rtol=1e-5, atol=1e-6)
    faint = losses.cosine_distance(jnp.asarray(1e-5 * a), jnp.asarray(b))  # features that are nearly dead
    np.testing.assert_allclose(faint, 1 - cos, rtol=1e-5, atol=1e-6)
    labels = rng.dirichlet(np.ones(7), 4)
    log_p = a - np.log(np.exp(a).sum(1, keepdims=True))
    got = losses.cross_entropy(jnp.asarray(a), jnp.asarray(labels))
    np.testing.assert_allclose(got, -(labels * log_p).sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("eps", "label", "other", "rest"),
    [(0.0, 1.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0625), (1.0, 1 / 9, 0.0, 1 / 9), (0.05, 0.95, 0.0, 0.00625)],
)
def test_the_label_of_equation_6(eps, label, other, rest):
    """By hand, K = 10: the label's class keeps 1 - eps or falls to 1/9, the partner's gets nothing, the rest share."""
    y, partner = jnp.eye(10)[jnp.array([3])], jnp.eye(10)[jnp.array([7])]
    found = nearest_labels(y, partner, eps)[0]
    expected = jnp.full(10, rest).at[3].set(label).at[7].set(other)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_label_of_equation_6_is_the_nearest_of_many():
    draws = np.random.RandomState(0).dirichlet(np.full(4, 0.7), 20_000)
    for eps in (0.1, 0.35, 0.8):
        for j in (0, 2):
            y, partner = np.eye(4)[[0]], np.eye(4)[[j]]
            target = (1 - partner) / 3
            allowed = draws[(np.abs(draws - y) <= eps).all(axis=1)]
            found = nearest_labels(jnp.asarray(y), jnp.asarray(partner), eps)
            assert np.abs(found - y).max() <= eps + 1e-6 and abs(found.sum() - 1) < 1e-5
            assert ((found - target) ** 2).sum() <= ((allowed - target) ** 2).sum(axis=1).min() + 1e-6


def test_equation_6_moves_the_features_apart():
    distances = {}
    for source in ("code", "equation"):
        _, defense, params, stats = build("ait", as_in=source)
        distances[source] = defense.objective(params, stats, KEY, BATCH, "joint")[1][1]["distance"]
    assert distances["equation"] > distances["code"]
