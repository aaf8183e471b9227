"""Attacks in pieces, on those that stand: the same images, and about half of the passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import attacks, threat
from l2ljax.attacks import learned
from l2ljax.attacks.solver import solvers
from l2ljax.data import Split
from l2ljax.evaluate import evaluate, run_in_turn
from l2ljax.types import example_keys, fold_in

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


def at_once(attack):
    """The same attack for a host that may not look in between."""
    return lambda logits_fn, key, x, y: attack(logits_fn, key, x, y)


def evaluated(attack, logits_fn=LOGITS_FN, batch_size=32):
    return evaluate(logits_fn, Split(IMAGES, Y), {"it": attack}, key=KEY, batch_size=batch_size).attacks["it"]


NAMES = ("pgd100+first", "pgd25+first", "margin7+first", "momentum20+first", "bls12+first", "cw60+first",
         "traveller9+first")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_any_length_are_the_attack_at_once(name):
    attack = attacks.create(name, threat.linf(2 * half_robust().eps) if name.startswith("cw") else half_robust())
    whole = np.asarray(jax.jit(attack)(LOGITS_FN, KEY, X, Y))
    fooled = np.asarray(LOGITS_FN(whole)).argmax(1) != Y
    assert 0.2 < fooled.mean() < 0.9
    (solver,) = solvers(attack)
    advance = jax.jit(solver.advance, static_argnames="n")
    for n in (1, 7, solver.steps):
        carry = jax.jit(solver.init)(LOGITS_FN, example_keys(KEY, N), X, Y)
        for begun in range(0, solver.steps, n):
            carry = advance(LOGITS_FN, KEY, X, Y, carry, n=min(n, solver.steps - begun))
        np.testing.assert_array_equal(carry.x, whole)
        np.testing.assert_array_equal(carry.done & fooled, carry.done)


@pytest.mark.parametrize("name", ["pgd25+first", "bls12+first", "cw60+first"])
@pytest.mark.usefixtures("float64")  # the order in which a matrix product sums depends on how many stand
def test_examples_that_leave_do_not_change_the_others(name):
    attack, split, x = attacks.create(name, half_robust()), Split(IMAGES, Y), jnp.asarray(IMAGES, jnp.float64) / 255
    here, there = (run_in_turn(LOGITS_FN, x, Y, {"it": a}, key=KEY, batch_size=24) for a in (attack, at_once(attack)))
    np.testing.assert_allclose(here.x_adv, there.x_adv, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(here.robust, there.robust)
    both = evaluate(LOGITS_FN, split, {"pieces": attack, "whole": at_once(attack)}, key=KEY, batch_size=24).attacks
    np.testing.assert_array_equal(both["pieces"].correct, both["whole"].correct)
    assert both["pieces"].passes < 0.92 * both["whole"].passes  # half of them leave out 2 of the 12 steps of bls


def test_a_rule_with_a_count_of_steps_for_all_examples_can_be_stopped():
    attack = attacks.gradient_attack(half_robust(), optax.adam(0.01), steps=35, keep="first")
    whole = jax.jit(attack)(LOGITS_FN, KEY, X, Y)
    found = run_in_turn(LOGITS_FN, X, Y, {"adam": at_once(attack)}, key=KEY)
    np.testing.assert_array_equal(run_in_turn(LOGITS_FN, X, Y, {"adam": attack}, key=KEY).x_adv, found.x_adv)
    assert 0.2 < (np.asarray(LOGITS_FN(whole)).argmax(1) == Y).mean() < 0.9


@pytest.mark.parametrize("hidden", [1, 10])
def test_a_rule_whose_state_is_not_per_example_keeps_all_examples(hidden):
    """A learned optimizer's hidden state is [hidden, all pixels]: examples cannot be cut out of it."""
    optimizer = learned.recurrent(hidden=hidden, scale=0.1)
    params, _ = optimizer.init(jax.random.key(3), X)
    rule = optimizer.rule(params, {}, None, None)
    attack = attacks.gradient_attack(half_robust(), rule, steps=25, keep="first")
    whole = np.asarray(jax.jit(attack)(LOGITS_FN, example_keys(KEY, N), X, Y))
    np.testing.assert_array_equal(evaluated(attack).correct, evaluated(at_once(attack)).correct)
    assert 0 < (np.asarray(LOGITS_FN(whole)).argmax(1) == Y).mean() < 1


def test_a_wrapper_is_not_passed_by():
    """functools.wraps copies an attack's pieces onto its wrapper, which does something else."""
    pgd = attacks.create("pgd20+first", half_robust())

    @functools.wraps(pgd)
    def nothing(logits_fn, key, x, y):
        return x

    assert evaluated(nothing).robust_acc == 1 and len(solvers(nothing)) == 1 and solvers(nothing)[0].steps == 0


def test_jitted_attacks_are_judged_and_combined_as_they_are():
    """Inside another program an attack gets the model as a function, which a jitted one could not take."""
    for name in ("pgd20+first", "pgd5"):
        attack = attacks.create(name, half_robust())
        jitted = jax.jit(attack)
        np.testing.assert_array_equal(evaluated(jitted).correct, evaluated(attack).correct)
        found, expected = (run_in_turn(LOGITS_FN, X, Y, {"it": a}, key=KEY).x_adv for a in (jitted, attack))
        np.testing.assert_array_equal(found, expected)
        for make in (
            lambda a: attacks.best_of([a]), lambda a: attacks.restarts(a, 2), lambda a: attacks.cascade([a]),
            lambda a: attacks.targeted(a, 1),
        ):  # fmt: skip
            np.testing.assert_array_equal(*(jax.jit(make(a))(LOGITS_FN, KEY, X, Y) for a in (jitted, attack)))


def test_half_of_the_examples_cost_little_more_than_half_of_the_passes():
    row = evaluated(attacks.create("pgd100+first", half_robust()))
    assert 0.4 < row.robust_acc < 0.6
    assert 50 < row.passes < 70
    assert evaluated(at_once(attacks.create("pgd100+first", half_robust()))).passes == pytest.approx(100)


def counting(seen):
    def model(x):
        jax.debug.callback(lambda x: seen.append(len(x)), x)
        return network(WEIGHTS, x)

    return jax.tree_util.Partial(model)


def test_only_those_that_stand_are_asked_and_batches_have_few_sizes():
    seen = []
    row = evaluated(attacks.create("pgd30+first", half_robust()), counting(seen), batch_size=N)
    jax.effects_barrier()
    clean, *steps, end = seen
    assert clean == end == N and len(steps) == 30 and set(steps) <= set(range(8, N + 1, 8))
    assert steps == sorted(steps, reverse=True) and steps[0] == N > steps[-1]
    assert row.passes <= sum(steps) / N < row.passes + 30 * 8 / N  # copies fill the batches
    other = evaluated(attacks.create("pgd30+first", half_robust()), batch_size=7)
    np.testing.assert_array_equal(row.correct, other.correct)
    assert row.passes == other.passes


def test_nothing_is_done_once_all_are_fooled():
    row = evaluated(attacks.create("pgd100+first", threat.linf(1.0)))
    assert row.passes <= 20 and row.robust_acc == 0


@pytest.mark.parametrize("form", ["restarts", "best_of"])
def test_runs_one_after_another_leave_out_those_that_earlier_ones_fooled(form):
    pgd = attacks.create("pgd20+first", half_robust())
    attack = attacks.restarts(pgd, 4) if form == "restarts" else attacks.best_of([pgd] * 4)
    seen = []
    row = evaluated(attack, counting(seen), batch_size=N)
    other = evaluated(at_once(attack), batch_size=N)
    np.testing.assert_array_equal(row.correct, other.correct)
    first = evaluated(pgd)
    assert row.robust_acc < first.robust_acc  # a later run fools some more, with its own draws
    jax.effects_barrier()
    assert seen.count(N) < 20 + 1 + 4 + 1  # the first run, clean images, after each run
    assert row.passes < 0.7 * other.passes
    found = run_in_turn(LOGITS_FN, X, Y, {"it": attack}, key=KEY, batch_size=24)
    np.testing.assert_array_equal(found.robust, run_in_turn(LOGITS_FN, X, Y, {"it": at_once(attack)}, key=KEY).robust)


def test_pieces_of_members_draw_as_the_members_at_once():
    member = attacks.square_on_budget(half_robust(), queries=12)
    run = jax.jit(lambda keys: member(LOGITS_FN, keys, X, Y))
    keys = example_keys(KEY, N)
    for i, solver in enumerate(solvers(attacks.restarts(member, 2))):
        carry = jax.jit(solver.init)(LOGITS_FN, keys, X, Y)
        carry = jax.jit(solver.advance, static_argnames="n")(LOGITS_FN, keys, X, Y, carry, n=solver.steps)
        np.testing.assert_array_equal(carry.x, run(fold_in(keys, i)))
        assert 0.02 < (carry.x != X).any(axis=(1, 2, 3)).mean() < 0.98


def test_other_attacks_are_one_piece():
    for name in ("pgd5", "pgd5+best", "pgd5+restarts2", "pgd5+first+targeted", "random3"):
        (solver,) = solvers(attacks.create(name, half_robust()))
        carry = solver.init(LOGITS_FN, example_keys(KEY, N), X, Y)
        assert solver.steps == 0 and carry.done.all()
