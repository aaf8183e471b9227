"""Numbers in attacks: in which type they compute, and what NaN, infinity, ties and ranks of classes mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2ljax import attacks, evaluate, losses, threat
from l2ljax.attacks import selection
from l2ljax.attacks.ascent import finite
from l2ljax.types import L2LError
from tests.test_entrance import KEY, LINF, X, Y, few, linear

# Half precision


HALVES = [jnp.float16, jnp.bfloat16]


def inside(ball, x_adv, x):
    """Whether images lie in the ball and in [0, 1], up to the rounding of float32."""
    delta = (np.asarray(x_adv, np.float64) - np.asarray(x, np.float64)).reshape(len(x), -1)
    length = np.abs(delta).max(axis=1) if ball.name == "linf" else np.linalg.norm(delta, axis=1)
    return (length <= ball.eps * (1 + 1e-6) + 1e-7).all() and x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("norm", threat.BALLS)
@few
@given(dtype=st.sampled_from(HALVES), eps=st.floats(0, 0.9), seed=st.integers(0, 99), length=st.floats(-3, 3))
def test_half_precision_stays_in_the_ball(norm, dtype, eps, seed, length):
    x, moved = np.random.RandomState(seed).uniform(size=(2, 2, 3, 3, 1))
    x, moved, ball = jnp.asarray(x, dtype), jnp.asarray(x + length * (moved - 0.5), dtype), threat.BALLS[norm](eps)
    for x_adv in (ball.project(moved, x), ball.sample(KEY, x)):
        assert x_adv.dtype == dtype and inside(ball, x_adv, x)
    assert (ball.project(x, x) == x).all()
    assert (ball.steepest(jnp.zeros_like(x)) == 0).all() and ball.steepest(x).dtype == dtype


def threshold(x):
    """The second class wins where the first pixel is above 0.5."""
    return jnp.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], axis=1).astype(jnp.float32)


@pytest.mark.parametrize("name", ["cw100", "cw_l2100", "pgd5", "apgd5"])
def test_attacks_on_half_precision_compute_in_single(name):
    dtype = HALVES[len(name) % 2]
    ball, x, y = threat.linf(0.2), jnp.full((2, 2, 2, 1), 0.4, dtype), jnp.zeros(2, int)
    seen = []
    model = lambda x: seen.append(x.dtype) or threshold(x)
    x_adv = attacks.create(name, ball)(model, KEY, x, y)
    assert {x_adv.dtype, *seen} == {jnp.dtype(dtype)} and inside(ball, x_adv, x)
    if name == "cw100":  # 100 steps of 0.001 do not reach the boundary
        assert jnp.abs(x_adv - x).max() > 0.05
    else:
        assert (losses.accuracy(threshold(x_adv), y) == 0).all()


def test_evaluations_take_half_precision():
    x = jnp.asarray(X, jnp.bfloat16)
    fgsm = {"fgsm": attacks.fgsm(LINF)}
    half, single = (evaluate.run_in_turn(linear, a, Y, fgsm, ball=LINF, key=KEY) for a in (x, x.astype(np.float32)))
    np.testing.assert_array_equal(half.x_adv, single.x_adv)
    rows = [evaluate.evaluate(linear, (a, Y), fgsm, ball=LINF, key=KEY).attacks for a in (x, x.astype(np.float32))]
    np.testing.assert_array_equal(*(row["fgsm"].correct for row in rows))


# Numbers that are not finite


@few
@given(
    hnp.arrays(
        np.float32,
        (3, 4),
        elements=st.one_of(st.floats(-(2.0**100), 2.0**100, width=32), st.sampled_from([np.nan, np.inf, -np.inf])),
    )
)
def test_gradients_are_finite_and_infinity_is_the_largest_entry(g):
    made = np.asarray(finite(jnp.asarray(g)))
    usual = np.isfinite(g)
    assert np.isfinite(made).all() and (made[np.isnan(g)] == 0).all()
    np.testing.assert_array_equal(made[usual], g[usual] if np.abs(g[usual]).min(initial=1) > 1e-37 else made[usual])
    np.testing.assert_array_equal(np.sign(made[np.isinf(g)]), np.sign(g[np.isinf(g)]))
    for row, before in zip(made, g, strict=True):
        known = np.abs(before[np.isfinite(before)]).max(initial=0)
        assert (np.abs(row[np.isinf(before)]) > known).all()


def rooted(x):
    """Class 0 wins until the sum of the pixels' roots is 2.6; at 0 all gradients are infinite or NaN."""
    s = jnp.sqrt(x).reshape(len(x), -1).sum(axis=1)
    z = 0 * s
    return jnp.stack([2.6 - s, s - 2.6, z - 9, z - 9.5], axis=1)


BLACK, NONE, SMALL = jnp.zeros((4, 4, 4, 1)), jnp.zeros(4, int), threat.linf(0.04)


@pytest.mark.parametrize("name", ["fgsm", "pgd3+best", "cw100", "cw_l2", "apgd3"])
def test_attacks_climb_where_gradients_are_infinite(name):
    x_adv = jax.jit(attacks.create(name, SMALL))(jax.tree_util.Partial(rooted), KEY, BLACK, NONE)
    assert inside(SMALL, x_adv, BLACK) and (losses.accuracy(rooted(x_adv), NONE) == 0).all()


def test_standard_evaluation_climbs_where_gradients_are_infinite():
    found = evaluate.run_standard_evaluation(rooted, BLACK, NONE, ball=SMALL, key=KEY, only=["apgd-t", "fab-t"])
    assert found.robust_acc == 0 and np.isfinite(found.x_adv).all()


def test_the_nearest_boundary_has_a_finite_normal():
    value, w = attacks.boundary.nearest_boundary(rooted, SMALL, BLACK, NONE, jnp.ones((1, 4), int))
    np.testing.assert_allclose(value, -5.2, rtol=1e-6)
    np.testing.assert_array_equal(w, jnp.ones_like(BLACK))


def test_images_with_nan_are_never_handed_on():
    broken = lambda f, key, x, y: jnp.where((jnp.arange(len(x)) % 2 == 0).reshape(-1, 1, 1, 1), jnp.nan, x)
    for attack in (attacks.best_of([broken]), attacks.cascade([broken]), attacks.restarts(broken, 2)):
        np.testing.assert_array_equal(attack(linear, KEY, X, Y), X)
    for judge in (evaluate.evaluate, lambda f, split, *a, **k: evaluate.run_in_turn(f, *split, *a, **k)):
        with pytest.raises(L2LError, match=r"broken left \[0, 1\] or returned NaN"):
            judge(linear, (X, np.asarray(linear(X)).argmax(1)), {"broken": broken}, key=KEY)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_on_the_host(value):
    breaks = lambda x: jnp.where(x.max(axis=(1, 2, 3), keepdims=True)[:, 0, 0] > 0.99, value, linear(x))
    x, white = 0.9 * X, {"white": lambda f, key, x, y: jnp.ones_like(x)}
    y = np.asarray(linear(x)).argmax(axis=1)
    with pytest.raises(L2LError, match="white reached images with NaN logits or infinite ones"):
        evaluate.evaluate(breaks, (x, y), white, key=KEY)
    with pytest.raises(L2LError, match="the model returned NaN logits or infinite ones"):
        evaluate.evaluate(breaks, (np.ones_like(X), y), {}, key=KEY)


# Misclassified


@few
@given(
    hnp.arrays(np.float32, (4, 3), elements=st.sampled_from([0.0, 1.0, 2.0, np.inf, -np.inf, np.nan])),
    st.integers(0, 2),
)
def test_the_margin_has_the_sign_of_accuracy(logits, label):
    y = jnp.full(4, label)
    right = np.asarray(losses.accuracy(logits, y)) == 1
    np.testing.assert_array_equal(right, (logits.argmax(axis=1) == label) & ~np.isnan(logits).any(axis=1))
    margin = np.asarray(losses.margin(jnp.asarray(logits), y))
    np.testing.assert_array_equal(margin < 0, right)
    np.testing.assert_array_equal(margin > 0, ~right)
    apart = np.isfinite(logits).all(axis=1) & (np.abs(margin) > 1e-30)
    others = np.where(np.arange(3) == label, -np.inf, logits).max(axis=1)
    np.testing.assert_array_equal(margin[apart], others[apart] - logits[apart, label])


def tied(x):
    """Class 0 ties with class 1 where a pixel reaches 0.5, and then wins; else class 1 does."""
    return jnp.stack([(x.reshape(len(x), -1).max(axis=1) >= 0.5).astype(float), jnp.ones(len(x))], axis=1)


@pytest.mark.parametrize("name", ["square20", "random5", "random_signs", "targeted"])
def test_a_tie_that_the_label_loses_counts(name):
    made = {
        "random_signs": attacks.random_signs(LINF),
        "targeted": attacks.targeted(attacks.create("square20", LINF), 0),
    }
    x, y = jnp.full((2, 6, 6, 1), 0.45), jnp.ones(2, int)
    attack = made.get(name) or attacks.create(name, LINF)
    assert (losses.accuracy(tied(attack(tied, KEY, x, y)), y) == 0).all()


# Ranks of target classes


@few
@given(st.integers(2, 6), st.integers(1, 9), st.integers(0, 6), st.integers(0, 99))
def test_targets_begin_at_their_rank(classes, n, first, seed):
    logits = np.random.RandomState(seed).normal(size=(3, classes)).astype(np.float32)
    y = np.arange(3) % classes
    order = np.argsort(-np.where(np.eye(classes, dtype=bool)[y], np.inf, logits), axis=1)[:, 1:].T
    if first >= classes - 1:
        with pytest.raises(L2LError, match=f"first={first}: {classes - 1} wrong classes are ranked"):
            selection.likeliest_wrong(logits, y, n, first)
    else:
        np.testing.assert_array_equal(selection.likeliest_wrong(logits, y, n, first), order[first : first + n])
        traced = jax.jit(lambda first: selection.likeliest_wrong(logits, y, n, first))(first)
        np.testing.assert_array_equal(traced[: len(order[first : first + n])], order[first : first + n])
