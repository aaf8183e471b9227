"""FGSM-SDI: the start is the network's, one step of FGSM follows, and the generator gets the gradient through it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, defenses, losses, threat
from l2ljax.models import attackers
from l2ljax.types import Batch, Players, example_keys
from tests.tiny import tiny_classifier

BALL = threat.linf(0.1)
KEYS = example_keys(jax.random.key(3), 6)


def build(**options):
    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1), float, -0.2, 1.2).clip(0, 1)  # with black and white pixels
    clf = tiny_classifier(dtype=x.dtype)
    defense = defenses.create("fgsm_sdi", clf, BALL, attacker_width=4, **options)
    variables = clf.init(jax.random.key(1), x)
    phi, phi_stats = defense.init(jax.random.key(2), x)
    params, stats = Players(variables["params"], phi), Players(variables["batch_stats"], phi_stats)
    return clf, defense, params, stats, Batch(x, jnp.arange(6))


def logits_of(clf, params, stats):
    return jax.tree_util.Partial(clf.logits, {"params": params.classifier, "batch_stats": stats.classifier})


def test_the_attack_is_one_step_of_fgsm_from_the_networks_start():
    clf, defense, params, stats, batch = build(step_size=0.07)
    params = params._replace(attacker=jax.tree.map(lambda a: 3 * a, params.attacker))
    logits, network = logits_of(clf, params, stats), attackers.create("one_block", width=4)
    sign = jax.jit(lambda x: jnp.sign(jax.grad(lambda x: losses.cross_entropy(logits(x), batch.y).sum())(x)))

    @jax.jit
    def generate(x):
        variables = {"params": params.attacker, "batch_stats": stats.attacker}
        return network.apply(variables, jnp.concatenate([x, sign(x)], axis=-1), channels=1, train=False)

    out = generate(batch.x)
    assert jnp.abs(out).max() > 0.9 and out.std() > 0.1  # it fills the ball
    attack = functools.partial(defense.attack, params.attacker, stats.attacker)
    path = jax.jit(attack(path=True))(logits, KEYS, batch.x, batch.y)
    np.testing.assert_allclose(path[0], np.clip(batch.x + 0.1 * out, 0, 1), atol=1e-6)
    moved = np.clip(path[0] + 0.07 * sign(path[0]), batch.x - 0.1, batch.x + 0.1)
    np.testing.assert_allclose(path[1], np.clip(moved, 0, 1), atol=1e-6)


def test_a_generator_of_zeros_leaves_fgsm_from_the_clean_image():
    clf, defense, params, stats, batch = build()
    logits, zeros = logits_of(clf, params, stats), jax.tree.map(jnp.zeros_like, params.attacker)
    ours, fgsm = defense.attack(zeros, stats.attacker), attacks.fgsm(BALL)
    np.testing.assert_array_equal(*(jax.jit(attack)(logits, KEYS, batch.x, batch.y) for attack in (ours, fgsm)))


@pytest.mark.usefixtures("float64")
def test_the_generators_gradient_is_the_losss_with_the_signs_held():
    """A small enough change of phi leaves all signs as they are; there the objective is smooth."""
    _, defense, params, stats, batch = build()

    def objective(phi):
        return defense.objective(params._replace(attacker=phi), stats, KEYS, batch, "attacker")[0]

    value = jax.jit(jax.value_and_grad(objective))
    gradient = value(params.attacker)[1]
    direction = jax.tree.map(lambda a: jax.random.normal(jax.random.key(4), a.shape, a.dtype), params.attacker)
    along = sum((g * d).sum() for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    up, down = (value(jax.tree.map(lambda p, d, h=h: p + h * d, params.attacker, direction))[0] for h in (1e-7, -1e-7))
    assert abs(along) > 1e-4
    np.testing.assert_allclose((up - down) / 2e-7, along, rtol=1e-4)


def test_the_generators_statistics_move_by_one_pass():
    clf, defense, params, stats, batch = build()
    one_step = defenses.create("grad_l2l", clf, BALL, attacker="one_block", attacker_width=4, normalize="sign")
    after, expected = (
        jax.jit(lambda d=d: d.objective(params, stats, KEYS, batch, "attacker")[1][0])() for d in (defense, one_step)
    )
    chex.assert_trees_all_close(after.attacker, expected.attacker, rtol=1e-5)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after.attacker, stats.attacker)), strict=True))
