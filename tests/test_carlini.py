"""Carlini & Wagner's searches: closed forms on linear models, plain NumPy loops, and what any model is promised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import losses, threat
from l2ljax.attacks.carlini import cw_l2, l2l_cw
from l2ljax.types import L2LError, example_keys

KEY = jax.random.key(0)
SHAPE = (5, 7, 3)
EPS = 0.012
TRACES = []


def linear(weights, x):
    TRACES.append(x.shape)
    return (x - 0.5).reshape(len(x), -1) @ weights[0] + weights[1]


@functools.cache
def problem(classes, n=8):
    """A linear model, images [n, 5, 7, 3], labels that it gives them, and their least distances in l2 and linf.

    For classes y and k with weights w and logits z the boundary is (z_y - z_k) / |w_y - w_k| away, in linf divided by
    the dual norm, the sum of absolute values. The images are gray, so that no pixel meets a bound on its way.
    """
    rng = np.random.RandomState(classes)
    w, b = rng.normal(size=(105, classes)), rng.normal(size=classes)
    x = rng.uniform(0.25, 0.75, (n, *SHAPE))
    z = (x - 0.5).reshape(n, -1) @ w + b
    y = z.argmax(axis=1)
    least = []
    for order in (2, 1):
        lengths = np.array([[np.linalg.norm(w[:, i] - w[:, k], order) for k in range(classes)] for i in y])
        gaps = z.max(axis=1, keepdims=True) - z
        least.append(np.where(gaps > 0, gaps / np.where(gaps > 0, lengths, 1), np.inf).min(axis=1))
    return jax.tree_util.Partial(linear, [w.astype(np.float32), b.astype(np.float32)]), x.astype(np.float32), y, *least


MAKE = {
    "l2l_cw": lambda: l2l_cw(threat.linf(EPS), steps=60),
    "cw_l2": cw_l2,
    "cw_l2-ball": lambda: cw_l2(threat.l2(0.2), steps=300),
}
each_attack = pytest.mark.parametrize("name", MAKE)


@functools.cache
def compiled(name):
    return jax.jit(MAKE[name]())


def attack(name, logits_fn, x, y, key=KEY):
    return np.asarray(compiled(name)(logits_fn, key, x, y))


def wrong(logits_fn, x, y):
    return np.asarray(losses.accuracy(logits_fn(x), y)) == 0


def length(delta, order=2):
    return np.linalg.norm(delta.reshape(len(delta), -1), order, axis=1)


# Closed forms


@pytest.mark.parametrize("classes", [2, 3])
def test_cw_l2_finds_the_least_distance(classes):
    logits_fn, x, y, least, _ = problem(classes)
    x_adv = attack("cw_l2", logits_fn, x, y)
    assert wrong(logits_fn, x_adv, y).all()
    far = least > 0.06  # nearer ones fall to the first step of Adam
    assert far.sum() >= 6
    ratio = length(x_adv - x) / least
    assert (ratio > 0.9999).all()
    assert (ratio[far] < 1.03).all()
    assert np.median(ratio) < 1.005


@pytest.mark.parametrize("classes", [2, 3])
def test_cw_l2_in_a_ball_returns_what_lies_in_it(classes):
    logits_fn, x, y, least, _ = problem(classes)
    x_adv, free = attack("cw_l2-ball", logits_fn, x, y), attack("cw_l2", logits_fn, x, y)
    inside = least < 0.97 * 0.2
    assert 0 < inside.sum() < 8 and not ((least > 0.97 * 0.2) & (least < 0.2)).any()
    np.testing.assert_array_equal(wrong(logits_fn, x_adv, y), inside)
    np.testing.assert_array_equal(x_adv[~inside], x[~inside])
    np.testing.assert_allclose(length(x_adv - x)[inside], length(free - x)[inside], rtol=0.02)


@pytest.mark.parametrize("classes", [2, 3])
def test_l2l_cw_succeeds_where_the_ball_reaches_the_boundary(classes):
    logits_fn, x, y, _, least = problem(classes)
    found = wrong(logits_fn, attack("l2l_cw", logits_fn, x, y), y)
    assert found[least < 0.8 * EPS].all() and (least < 0.8 * EPS).any()
    assert not found[least > EPS].any() and (least > EPS).any()


# Plain loops


def adam(g, m, v, t, rate):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def plain_l2l_cw(w, b, x, y, eps, steps, rate):
    """One image x [D] of two classes, logits (z, -z) with z = (x - 0.5) w + b; how many passes it took, and rounds."""
    side, tau, const, begin, passes, rounds = (1 - 2 * y) * 2.0, 1.0, 1e-5, x, 0, 0
    while tau > 1 / 256:
        u, m, v, t, solved, rounds = np.arctanh(0.9999 * (2 * begin - 1)), 0, 0, 0, False, rounds + 1
        while const < 99 and not solved:
            for _ in range(steps):
                passes, t = passes + 1, t + 1
                moved = np.tanh(u) / 2 + 0.5
                gap = side * ((moved - 0.5) @ w + b)  # z_y - z_other
                excess = np.maximum(np.abs(moved - x) - tau, 0)
                g = const * (gap > 0) * side * w + (excess > 0) * np.sign(moved - x)
                change, m, v = adam(g * (1 - np.tanh(u) ** 2) / 2, m, v, t, rate)
                u = u - change
                if gap < 0 and np.abs(moved - x).max() < eps:
                    return moved, passes, rounds
                if gap < 0 and const * max(gap, 0) + excess.sum() < 1e-4 * const:
                    solved = True
                    break
            else:
                const *= 10
        if not solved:
            return x, passes, rounds
        begin, tau = moved, 0.9 * min(tau, np.abs(moved - x).max())
    return x, passes, rounds


def plain_cw_l2(w, b, x, y, rate, steps, const, rounds, confidence):
    """The same for `cw_l2`."""
    side, lower, upper, best, nearest = (1 - 2 * y) * 2.0, 0.0, np.inf, x, np.inf
    for _ in range(rounds):
        u, m, v, before, fooled = np.arctanh(0.999999 * (2 * x - 1)), 0, 0, np.inf, False
        for t in range(steps):
            moved = np.tanh(u) / 2 + 0.5
            gap, distance = side * ((moved - 0.5) @ w + b), ((moved - x) ** 2).sum()
            loss = distance + const * max(gap + confidence, 0)
            g = const * (gap + confidence > 0) * side * w + 2 * (moved - x)
            change, m, v = adam(g * (1 - np.tanh(u) ** 2) / 2, m, v, t + 1, rate)
            u = u - change
            if gap < -confidence:
                fooled = True
                if distance < nearest:
                    best, nearest = moved, distance
            if t % (steps // 10) == 0:
                if loss > 0.9999 * before:
                    break
                before = loss
        lower, upper = (lower, min(upper, const)) if fooled else (max(lower, const), upper)
        const = (lower + upper) / 2 if upper < np.inf else 10 * const
    return best


@pytest.fixture
def two_classes():
    """In float64, with black and white pixels."""
    rng = np.random.RandomState(4)
    w, b = rng.normal(size=60), 0.2
    x = rng.uniform(-0.1, 1.1, (6, 60)).clip(0, 1)
    y = ((x - 0.5) @ w + b < 0).astype(int)
    with jax.enable_x64(True):
        columns = [jnp.stack([jnp.asarray(w), -jnp.asarray(w)], axis=1), jnp.array([b, -b])]
        yield w, b, x, y, jax.tree_util.Partial(linear, columns)


def test_l2l_cw_equals_a_plain_loop(two_classes):
    w, b, x, y, logits_fn = two_classes

    @jax.jit
    def run(eps, rate, x, y):
        return l2l_cw(threat.linf(eps), steps=25, learning_rate=rate)(logits_fn, KEY, x, y)

    later = set()
    for eps, rate in ((0.06, 0.02), (0.08, 0.05), (0.04, 0.1), (0.06, 0.3)):
        got = run(eps, rate, x.reshape(6, 4, 5, 3), y).reshape(6, 60)
        expected, passes, rounds = zip(*(plain_l2l_cw(w, b, x[i], y[i], eps, 25, rate) for i in range(6)), strict=True)
        changed = (np.stack(expected) != x).any(axis=1)
        assert 1 < changed.sum() < 6 and len(set(passes)) > 3 and max(passes) <= 59 * 25  # they end apart
        later |= set(np.array(rounds)[changed])
        np.testing.assert_allclose(got, np.stack(expected), atol=1e-8)
    assert len(later) >= 4  # found at once, and after several values of tau


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_cw_l2_equals_a_plain_loop(two_classes, confidence):
    w, b, x, y, logits_fn = two_classes
    run = jax.jit(cw_l2(learning_rate=0.02, steps=40, search_steps=5, confidence=confidence))
    got = run(logits_fn, KEY, x.reshape(6, 4, 5, 3), y).reshape(6, 60)
    expected = [plain_cw_l2(w, b, x[i], y[i], 0.02, 40, 1e-3, 5, confidence) for i in range(6)]
    assert (np.stack(expected) != x).any(axis=1).sum() >= 4
    np.testing.assert_allclose(got, np.stack(expected), atol=1e-9)
    margin = np.abs(2 * ((got - 0.5) @ w + b))
    assert (margin[(got != x).any(axis=1)] > confidence).all()


# What any model is promised


@pytest.mark.parametrize("name, n", [*((name, n) for name in MAKE for n in (1, 8)), ("l2l_cw", 3)])
def test_results_are_clean_or_misclassified_and_inside(name, n):
    logits_fn, x, y, *_ = problem(3)
    x, y = x[-n:], y[-n:].copy()
    if n > 1:
        y[0] = (y[0] + 1) % 3  # wrong already
    x_adv = attack(name, logits_fn, x, y)
    changed = (x_adv != x).any(axis=(1, 2, 3))
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert wrong(logits_fn, x_adv, y)[changed].all()
    assert not (n > 1 and changed[0])
    if name == "l2l_cw":
        assert np.abs(x_adv - x).max() < EPS
    if name == "cw_l2-ball":
        assert length(x_adv - x).max() <= 0.2
    if n == 8:
        assert changed.any() and not changed.all()


@each_attack
def test_examples_do_not_depend_on_their_neighbours(name):
    logits_fn, x, y, *_ = problem(3)
    whole = attack(name, logits_fn, x, y)
    parts = [attack(name, logits_fn, x[i : i + 1], y[i : i + 1], key=example_keys(KEY, 1)) for i in range(8)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    np.testing.assert_array_equal(
        wrong(logits_fn, np.concatenate(parts), y) | ~wrong(logits_fn, whole, y), np.ones(8, bool)
    )


@each_attack
def test_compiles_once_for_all_weights(name):
    logits_fn, x, y, *_ = problem(3)
    before = attack(name, logits_fn, x, y)
    traced = len(TRACES)
    w, b = logits_fn.args[0]
    after = attack(name, jax.tree_util.Partial(linear, [0.9 * w, b]), x, y)
    assert len(TRACES) == traced
    assert (after != before).any()


CONSTANT = [
    dict(id="l2l_cw", make=lambda: l2l_cw(threat.linf(0.1), steps=5), passes=7 * 5),
    dict(id="cw_l2", make=lambda: cw_l2(steps=20, search_steps=4, abort_early=False), passes=4 * 20),
    dict(id="aborts", make=lambda: cw_l2(steps=20, search_steps=4), passes=4 * 3),  # looks at the steps 0 and 2
]


@pytest.mark.parametrize("case", CONSTANT, ids=lambda case: case["id"])
def test_a_model_that_nothing_fools_ends_the_search(case):
    seen = []

    @jax.custom_vjp
    def count(x):
        return jax.pure_callback(lambda x: seen.append(len(x)) or np.float32(1), jax.ShapeDtypeStruct((), x.dtype), x)

    count.defvjp(lambda x: (count(x), x.shape), lambda shape, g: (jnp.zeros(shape),))
    logits_fn = jax.tree_util.Partial(lambda x: jnp.array([[1.0, 0.0], [0.0, 1.0]]) * count(x))
    x, y = jnp.full((2, 6, 6, 1), 0.5), jnp.array([0, 0])  # the second is wrong already
    x_adv = jax.jit(case["make"]())(logits_fn, KEY, x, y)
    np.testing.assert_array_equal(x_adv, x)
    assert len(seen) == 1 + case["passes"]


@pytest.mark.parametrize("name", ["cw_l2", "l2l_cw"])
def test_logits_may_be_wider_than_images(name):
    model, x, y, *_ = problem(3)
    expected = attack(name, model, x, y)
    with jax.enable_x64(True):
        wide = jax.tree_util.Partial(linear, [jnp.asarray(w, jnp.float64) for w in model.args[0]])
        x_adv = jax.jit(MAKE[name]())(wide, KEY, x, y)
    assert x_adv.dtype == jnp.float32
    np.testing.assert_allclose(x_adv, expected, atol=2e-3)


@pytest.mark.parametrize("make", [lambda: l2l_cw(threat.linf(0.1), steps=0), lambda: cw_l2(search_steps=0)])
def test_bad_options_are_told(make):
    with pytest.raises(L2LError, match="steps=0: give a whole number from 1"):
        make()
