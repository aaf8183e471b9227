"""Attacks that stop at success, in rounds on those that stand: the same images, and about half of the passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, threat
from l2ljax.attacks.gradient import Stopping
from l2ljax.data import Split
from l2ljax.evaluate import evaluate, rounds, run_in_turn
from l2ljax.types import example_keys

N, SHAPE, CLASSES = 64, (4, 4, 1), 3
RNG = np.random.RandomState(0)
IMAGES = RNG.randint(60, 190, (N, *SHAPE)).astype(np.uint8)  # the box does not bind
X = jnp.asarray(IMAGES, jnp.float32) / 255
WEIGHTS = jnp.asarray(RNG.randn(16, 8), jnp.float32), jnp.asarray(RNG.randn(8, CLASSES), jnp.float32)


def network(weights, x):
    hidden = jnp.tanh((x - 0.5).reshape(len(x), -1) @ weights[0])
    return hidden @ weights[1]


LOGITS_FN = jax.tree_util.Partial(network, WEIGHTS)
Y = np.asarray(LOGITS_FN(X)).argmax(1)
KEY = jax.random.key(0)


@functools.cache
def half_robust():
    """A radius at which about half of the images are fooled."""

    @jax.jit
    def robust(eps):
        x_adv = attacks.pgd(threat.linf(eps), step_size=eps / 10, steps=50)(LOGITS_FN, KEY, X, Y)
        return (LOGITS_FN(x_adv).argmax(1) == Y).mean()

    radii = np.linspace(0.005, 0.2, 40)
    return threat.linf(float(radii[np.abs(np.array([robust(eps) for eps in radii]) - 0.5).argmin()]))


@pytest.mark.parametrize("name", ["pgd100+first", "pgd25+first", "margin7+first", "momentum20+first", "bls12+first"])
def test_rounds_make_the_same_images(name):
    attack = attacks.create(name, half_robust())
    assert isinstance(attack, Stopping)
    whole = np.asarray(jax.jit(attack)(LOGITS_FN, KEY, X, Y))
    done = rounds.in_rounds(attack, LOGITS_FN, example_keys(KEY, N), X, Y)
    np.testing.assert_array_equal(done.x_adv, whole)
    fooled = np.asarray(LOGITS_FN(whole)).argmax(1) != Y
    assert 0.2 < fooled.mean() < 0.8 and done.passes <= attack.steps


def test_half_of_the_examples_cost_little_more_than_half_of_the_passes():
    attack = attacks.create("pgd100+first", half_robust())
    found = evaluate(LOGITS_FN, Split(IMAGES, Y), {"pgd": attack}, key=KEY, batch_size=32).attacks["pgd"]
    assert 0.4 < found.robust_acc < 0.6
    assert 50 < found.passes < 70


def test_only_those_that_stand_are_asked_and_batches_have_few_sizes():
    seen = []

    def counting(x):
        jax.debug.callback(lambda x: seen.append(len(x)), x)
        return network(WEIGHTS, x)

    attack = attacks.create("pgd30+first", half_robust())
    done = rounds.in_rounds(attack, jax.tree_util.Partial(counting), example_keys(KEY, N), X, Y)
    jax.effects_barrier()
    assert len(seen) == 30 and set(seen) <= set(range(8, N + 1, 8))
    assert seen == sorted(seen, reverse=True) and seen[0] == N > seen[-1]
    assert sum(seen) / N == done.passes


def test_nothing_is_done_once_all_are_fooled():
    attack = attacks.create("pgd100+first", threat.linf(1.0))
    done = rounds.in_rounds(attack, LOGITS_FN, example_keys(KEY, N), X, Y)
    assert done.passes <= 20
    assert (np.asarray(LOGITS_FN(done.x_adv)).argmax(1) != Y).all()


@pytest.mark.parametrize("batch_size", [64, 24])
def test_both_evaluations_agree_with_the_attack_at_once(batch_size, monkeypatch):
    attack = attacks.create("pgd50+first", half_robust())
    at_once = lambda f, k, x, y: attack.attack(f, k, x, y)
    split = Split(IMAGES, Y)
    one = evaluate(LOGITS_FN, split, {"pgd": attack}, key=KEY, batch_size=batch_size).attacks["pgd"]
    other = evaluate(LOGITS_FN, split, {"pgd": at_once}, key=KEY, batch_size=batch_size).attacks["pgd"]
    np.testing.assert_array_equal(one.correct, other.correct)
    assert one.passes < 0.8 * other.passes == pytest.approx(40)
    here, there = (run_in_turn(LOGITS_FN, X, Y, {"pgd": a}, key=KEY, batch_size=batch_size) for a in (attack, at_once))
    np.testing.assert_array_equal(here.x_adv, there.x_adv)
    np.testing.assert_array_equal(here.robust, there.robust)
