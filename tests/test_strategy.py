"""LAS-AT: strategies from their tables, attacks that stop at their own step, and the policy gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, defenses, losses, threat
from l2ljax.defenses.strategy import policy_gradient, strategic
from l2ljax.models.attackers import StrategyNetwork
from l2ljax.types import Batch, Players, example_keys, fold_in
from tests.tiny import tiny_classifier

BALL = threat.linf(0.1)
X = jax.random.uniform(jax.random.key(0), (6, 6, 6, 1), float, -0.2, 1.2).clip(0, 1)  # with black and white pixels
Y = jnp.arange(6) % 3
W = jax.random.normal(jax.random.key(1), (36, 3))


def logits_fn(x):
    return jnp.tanh(x.reshape(len(x), -1) - 0.5) @ W


def attacked(player, params, keys, ball, steps, x=X, y=Y, start=attacks.clean):
    rule = player.rule(params, {}, keys, y)
    return attacks.ascend(
        lambda x: (losses.cross_entropy(logits_fn(x), y), ()), rule, ball, keys, x, steps=steps, start=start
    )


def free(ball):
    return ball._replace(project=lambda x, x0: x)


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("radius, steps, step_size", [(0.5, 2, 0.25), (1.5, 4, 0.75)])
def test_an_image_takes_its_own_steps_in_its_own_radius(norm, eps, radius, steps, step_size):
    ball, keys = threat.BALLS[norm](eps), example_keys(jax.random.key(2), 6)
    player = strategic(radii=[radius], steps=[steps], step_sizes=[step_size], width=2)
    params, _ = player.init(jax.random.key(3), X)
    ours = jax.jit(lambda: attacked(player, params, keys, free(ball), 5))()
    pgd = attacks.pgd(threat.BALLS[norm](radius * eps), step_size=step_size * eps, steps=steps, start=attacks.clean)
    expected = jax.jit(functools.partial(pgd, jax.tree_util.Partial(logits_fn)))(keys, X, Y)
    chex.assert_trees_all_close(ours.x, expected, atol=1e-6)
    chex.assert_trees_all_equal(ours.path[steps - 1], ours.x)
    assert (ours.path[steps - 2] != ours.x).any()
    np.testing.assert_allclose(ours.state.log_prob, 0)  # there was no choice


def test_strategies_are_drawn_from_their_tables_per_image():
    radii, steps, sizes = [0.5, 1.0, 1.5], [1, 3], [0.25, 0.5]
    player, keys, x = strategic(radii=radii, steps=steps, step_sizes=sizes), fold_in(jax.random.key(4), 0), X[:1]
    x, keys = jnp.repeat(x, 600, axis=0), example_keys(keys, 600)
    params, _ = player.init(jax.random.key(3), x)
    drawn = player.rule(params, {}, keys, jnp.zeros(600, int)).init(x)
    for values, table in ((drawn.radius, radii), (drawn.steps, steps), (drawn.step_size, sizes)):
        found, counts = np.unique(values, return_counts=True)
        np.testing.assert_allclose(found, table)
        assert np.abs(counts / 600 - 1 / len(table)).max() < 4 * 0.5 / np.sqrt(600)  # uniform before training
    np.testing.assert_allclose(drawn.log_prob, -np.log(12), rtol=1e-6)
    tail = player.rule(params, {}, keys[-2:], jnp.zeros(2, int)).init(x[-2:])
    chex.assert_trees_all_equal(tail.radius, drawn.radius[-2:])  # neighbours do not matter


def test_the_policy_gradient_estimates_that_of_the_expected_reward():
    """One image 4,096 times, with draws of its own each; against all four strategies and their probabilities."""
    radii, steps, sizes, n = [0.5, 1.5], [1, 4], [0.5], 4096
    player, x, y = strategic(radii=radii, steps=steps, step_sizes=sizes, width=2), X[:1], Y[:1]
    params, _ = player.init(jax.random.key(3), x)
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    many, labels, keys = jnp.repeat(x, n, axis=0), jnp.repeat(y, n), example_keys(jax.random.key(5), n)

    def reward(images, y):
        return losses.cross_entropy(logits_fn(images), y)

    @jax.jit
    @jax.grad
    def estimate(params):
        ascent = attacked(player, params, keys, free(BALL), 4, many, labels)
        return policy_gradient(ascent.state.log_prob, reward(ascent.x, labels))

    @jax.jit
    @jax.grad
    def exact(params):
        total = 0.0
        for radius in radii:
            for count in steps:
                one = strategic(radii=[radius], steps=[count], step_sizes=sizes, width=2)
                its = attacked(one, one.init(jax.random.key(0), x)[0], keys[:1], free(BALL), 4, x, y)
                of = jax.lax.stop_gradient(reward(its.x, y)[0])
                total += of * probability(params, radii.index(radius), steps.index(count))
        return total

    def probability(params, *chosen):
        logits = StrategyNetwork((2, 2, 1), 2).apply({"params": params}, x)
        return jnp.prod(jnp.array([jax.nn.softmax(a[0])[i] for a, i in zip(logits, chosen, strict=False)]))

    expected, got = (np.concatenate([a.ravel() for a in jax.tree.leaves(g(params))]) for g in (exact, estimate))
    assert np.linalg.norm(got - expected) < 0.1 * np.linalg.norm(expected)
    assert np.linalg.norm(expected) > 0.05


def build(**options):
    clf, x = tiny_classifier(), X
    defense = defenses.create("las_at", clf, BALL, attacker_width=2, steps=3, **options)
    variables = clf.init(jax.random.key(1), x)
    phi, phi_stats = defense.init(jax.random.key(2), x)
    params, stats = Players(variables["params"], phi), Players(variables["batch_stats"], phi_stats)
    return clf, defense, params, stats, Batch(x, Y)


def test_the_trained_attacker_keeps_to_the_threat_and_training_does_not():
    clf, defense, params, stats, batch = build(largest_radius=3.0)
    keys = example_keys(jax.random.key(6), 6)
    logits = jax.tree_util.Partial(clf.logits, {"params": params.classifier, "batch_stats": stats.classifier})
    x_adv = jax.jit(defense.attack(params.attacker, {}))(logits, keys, batch.x, batch.y)
    assert jnp.abs(x_adv - batch.x).max() <= 0.1 + 1e-6
    mean = {}
    for radius in (0.01, 3.0):
        d = build(largest_radius=radius)[1]
        value, (_, metrics) = jax.jit(functools.partial(d.objective, mode="attacker"))(params, stats, keys, batch)
        np.testing.assert_allclose(value, metrics["loss"], rtol=1e-6)
        mean[radius] = float(value)
    np.testing.assert_allclose(mean[0.01], losses.cross_entropy(logits(batch.x), batch.y).mean(), rtol=1e-2)
    assert mean[3.0] > losses.cross_entropy(logits(x_adv), batch.y).mean() > mean[0.01]


def test_phi_is_rewarded_for_the_classifier_after_its_step():
    clf, _, params, stats, batch = build()
    keys = example_keys(jax.random.key(6), 6)

    def phi_gradient(**weights):
        defense = build(**weights)[1]
        value = lambda phi: defense.objective(params._replace(attacker=phi), stats, keys, batch, "attacker")[0]
        return jax.jit(jax.grad(value))(params.attacker)

    alone, both = (phi_gradient(evaluation=w, clean=2 * w) for w in (0.0, 3.0))
    logits = jax.tree_util.Partial(clf.logits, {"params": params.classifier, "batch_stats": stats.classifier})
    moved = attacks.pgd(BALL, step_size=0.025, steps=10)(logits, fold_in(keys, 1), batch.x, batch.y)
    after = [losses.cross_entropy(logits(x), batch.y) for x in (moved, batch.x)]
    player = strategic(radii=jnp.arange(3, 16) / 8, steps=[3], step_sizes=jnp.arange(1, 6) / 8, width=2)

    @jax.grad
    def by_hand(phi):
        drawn = player.rule(phi, {}, fold_in(fold_in(keys, 0), 0), batch.y).init(batch.x)
        reward = -3 * after[0] - 6 * after[1]
        return ((reward - reward.mean()) * drawn.log_prob).mean()

    chex.assert_trees_all_close(jax.tree.map(jnp.subtract, both, alone), by_hand(params.attacker), rtol=1e-3, atol=1e-5)
