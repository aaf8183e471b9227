"""FAB: projections against linear programs and bisection, AutoAttack's trace, exact distances of linear models."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from l2ljax import losses, threat
from l2ljax.attacks import boundary
from l2ljax.types import example_keys, fold_in

KEY = jax.random.key(0)
each_norm = pytest.mark.parametrize("norm", ["linf", "l2"])

# The projection on a hyperplane in the box


def planes():
    """(x [B, 7], w, value) with pixels at the bounds, equal pixels and weights, zero weights, planes out of reach."""
    rng = np.random.RandomState(0)
    x, w = rng.uniform(-0.3, 1.3, (40, 7)).clip(0, 1), rng.normal(size=(40, 7))
    w[4:8, :3] = 0
    w[8:12] = np.sign(w[8:12])
    w[12:16], x[12:16] = np.sign(w[12:16]), 0.25  # all coordinates reach their bounds at two times
    w[16] = 0
    w[17:20] *= 1e-9
    value = (w * np.where(rng.uniform(size=(40, 7)) < 0.5, x, x - 1)).sum(1) * rng.uniform(0.1, 0.9, 40)
    value[20:24] = 0
    value[24:28] *= 1e3
    full = np.where(w > 0, 1 - x, -x)  # the furthest corner, which a plane touches
    value[28:30] = -(w * full).sum(1)[28:30]
    return x, w, value


def shortest_move(norm, x, w, value):
    """The NumPy and SciPy answer for one example, or the corner that comes nearest to the plane."""
    corner = np.where(-np.sign(value) * w > 0, 1 - x, -x) * (w != 0) * (value != 0)
    if abs(w @ corner) <= abs(value) * (1 + 1e-12):
        return corner
    if norm == "linf":  # min r with |d| <= r, as a linear program in (d, r)
        n, eye = len(x), np.eye(len(x))
        ones = np.ones((n, 1))
        scale = np.abs(w).max()
        program = linprog(
            np.r_[np.zeros(n), 1],
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(2 * n),
            A_eq=np.r_[w, 0][None] / scale,
            b_eq=[-value / scale],
            bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
        )
        return program.x[:n]
    low, high = 0.0, 1e12
    for _ in range(300):  # the multiplier of the plane
        middle = (low + high) / 2
        d = np.clip(x - np.sign(value) * middle * w, 0, 1) - x
        low, high = (middle, high) if abs(w @ d) < abs(value) else (low, middle)
    return d


@each_norm
def test_the_move_onto_a_hyperplane_is_the_shortest(norm):
    x, w, value = planes()
    with jax.enable_x64(True):
        d = jax.jit(functools.partial(boundary.move_onto_hyperplane, threat.BALLS[norm](0.1)))(x, value, w)
    d, length = np.asarray(d), lambda d: np.linalg.norm(d, np.inf if norm == "linf" else 2)
    reached = 0
    for i in range(len(x)):
        expected = shortest_move(norm, x[i], w[i], value[i])
        scale = np.abs(w[i]).max() + (w[i] == 0).all()
        assert abs(w[i] @ d[i] - w[i] @ expected) < 1e-10 * scale, i
        assert abs(length(d[i]) - length(expected)) < 1e-10, i
        assert (d[i][w[i] == 0] == 0).all() and (x[i] + d[i] > -1e-15).all() and (x[i] + d[i] < 1 + 1e-15).all(), i
        if norm == "l2":  # the only shortest one
            np.testing.assert_allclose(d[i], expected, atol=1e-10)
        reached += abs(value[i] + w[i] @ d[i]) < 1e-10 * scale
    assert reached >= 30 and reached < 37


@each_norm
def test_single_precision_suffices_for_many_pixels(norm):
    rng = np.random.RandomState(1)
    x, w = (
        rng.uniform(-0.2, 1.2, (4, 3072)).clip(0, 1),
        rng.normal(size=(4, 3072)) * np.c_[[1, 1, 1e-12, 1e9]],
    )
    value = np.abs(w).sum(1) * [0.1, 0.4, 0.1, 0.1]
    move = jax.jit(functools.partial(boundary.move_onto_hyperplane, threat.BALLS[norm](0.1)))
    got = move(*(a.astype(np.float32) for a in (x, value, w)))
    with jax.enable_x64(True):
        expected = move(x, value, w)
    np.testing.assert_allclose(got, expected, atol=3e-7)
    assert got.dtype == np.float32 and np.abs(got).max() > 0.01


# The trace of AutoAttack's


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parent / "golden" / "fab.npz")


def tanh_network(w1, w2, x):
    return jnp.tanh((x - 0.5).reshape(len(x), -1) @ w1) @ w2


def listening(logits_fn, asked):
    """The same function, which also appends the images it is called with to the list `asked`."""

    def note(x):
        asked.append(np.array(x))
        return np.int32(0)

    def heard(x):  # the 0 is added so that the call cannot be moved
        zero = jax.pure_callback(note, jax.ShapeDtypeStruct((), jnp.int32), jax.lax.stop_gradient(x))
        return logits_fn(x + zero)

    return heard


@each_norm
@pytest.mark.parametrize("targets", [0, 2])
def test_asks_the_model_what_autoattack_asks(golden, norm, targets):
    expected = golden[f"{norm}_{targets}_points"]
    steps, asked = len(expected), []
    assert steps >= 30
    with jax.enable_x64(True):
        logits_fn = functools.partial(tanh_network, *(jnp.asarray(golden[k]) for k in ("w1", "w2")))
        towards = dict(target_classes=1, first=targets - 1) if targets else {}
        search = boundary.minimal_perturbation(threat.BALLS[norm](0.3), steps=steps, **towards)
        run = jax.jit(functools.partial(search, listening(logits_fn, asked)))
        nearest = jax.tree.map(np.asarray, run(KEY, golden["x"], golden["y"]))
    assert len(asked) == 1 + 2 * steps
    np.testing.assert_allclose(np.stack(asked[1:]).reshape(expected.shape), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(nearest.x, golden[f"{norm}_{targets}_best"], rtol=0, atol=1e-9)


# Linear models, where the least distance is known


def linear(weights, x):
    w, b = weights
    return (x - 0.5).reshape(len(x), -1) @ w + b


def linear_case(shape, batch, classes, seed=0):
    """Gray images, a linear model, its labels, and the exact distances min_k (z_y - z_k) / |w_k - w_y|_*."""
    rng = np.random.RandomState(seed)
    x = rng.uniform(0.4, 0.6, (batch, *shape)).astype(np.float32)
    w, b = rng.normal(size=(np.prod(shape), classes)).astype(np.float32), rng.normal(size=classes).astype(np.float32)
    logits = (x - 0.5).reshape(batch, -1).astype(np.float64) @ w + b
    y = logits.argmax(1)
    exact = {}
    for norm, dual in (("l2", 2), ("linf", 1)):
        distances = [
            [(z[c] - z[k]) / np.linalg.norm(w[:, k] - w[:, c], dual) if k != c else np.inf for k in range(classes)]
            for z, c in zip(logits, y, strict=True)
        ]
        exact[norm] = np.min(distances, axis=1)
    return x, y, jax.tree_util.Partial(linear, (w, b)), exact


@pytest.mark.parametrize(
    "norm, targets, shape, batch, classes",
    [
        ("linf", 0, (5, 7, 3), 8, 6),
        ("l2", 0, (5, 7, 3), 3, 6),
        ("linf", 9, (9, 4, 1), 1, 3),
        ("l2", 9, (5, 7, 3), 8, 4),
    ],
)
def test_finds_the_exact_distance_of_linear_models(norm, targets, shape, batch, classes):
    x, y, logits_fn, exact = linear_case(shape, batch, classes)
    ball = threat.BALLS[norm](0.1)
    nearest = jax.jit(boundary.minimal_perturbation(ball, steps=20, target_classes=targets))(logits_fn, KEY, x, y)
    assert (np.asarray(nearest.x) > 0).all() and (np.asarray(nearest.x) < 1).all()  # so the box did not bind
    np.testing.assert_allclose(ball.norm(nearest.x - x), nearest.distance, rtol=1e-5)
    ratio = np.asarray(nearest.distance) / exact[norm]
    assert ratio.min() > 1 - 1e-4 and ratio.max() < 1.01
    assert not losses.accuracy(logits_fn(nearest.x), y).any()


def test_the_final_search_ends_on_the_boundary():
    (x, y, logits_fn, exact), ball = linear_case((5, 7, 3), 4, 3), threat.l2(0.1)
    search = functools.partial(boundary.minimal_perturbation, ball, steps=1, eta=1.5)
    far, near = jax.jit(lambda *args: (search()(*args), search(final_search=3)(*args)))(logits_fn, KEY, x, y)
    assert (far.distance / exact["l2"]).min() > 1.4  # as far beyond the boundary as eta says
    assert (near.distance / exact["l2"]).min() > 1 and (near.distance / exact["l2"]).max() < 1.01
    np.testing.assert_allclose(ball.norm(near.x - x), near.distance, rtol=1e-5)
    assert not losses.accuracy(logits_fn(near.x), y).any()


# What the attacks promise

RNG = np.random.RandomState(0)
WEIGHTS = {"w1": RNG.normal(0, 0.5, (36, 16)).astype(np.float32), "w2": RNG.normal(0, 1, (16, 5)).astype(np.float32)}
X = RNG.uniform(-0.2, 1.2, (6, 6, 6, 1)).clip(0, 1).astype(np.float32)
CLEAN_LABELS = np.asarray(tanh_network(WEIGHTS["w1"], WEIGHTS["w2"], X)).argmax(1)
Y = (CLEAN_LABELS + np.eye(6, dtype=int)[2]) % 5  # one is misclassified as it is
TRACES = []


def network(weights, x):
    TRACES.append(x.shape)
    return tanh_network(weights["w1"], weights["w2"], x)


LOGITS = jax.tree_util.Partial(network, WEIGHTS)
# The radii let some of the examples fall and some not.
CASES = {
    "fab-linf": lambda: (threat.linf(0.03), functools.partial(boundary.fab, steps=5)),
    "fab_targeted-l2": lambda: (threat.l2(0.15), functools.partial(boundary.fab_targeted, steps=4, restarts=2)),
}
each_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def compiled(case):
    ball, make = CASES[case]()
    return jax.jit(make(ball))


def attack(case, logits_fn=LOGITS, key=KEY, x=X, y=Y):
    return np.asarray(compiled(case)(logits_fn, key, x, y))


@each_case
def test_returns_what_it_fooled_in_the_ball_and_else_the_image(case):
    ball, x_adv = CASES[case]()[0], attack(case)
    moved = (x_adv != X).any((1, 2, 3))
    assert x_adv.dtype == X.dtype and x_adv.min() >= 0 and x_adv.max() <= 1
    assert ball.norm(x_adv - X).max() <= ball.eps * (1 + 1e-6)
    assert not losses.accuracy(LOGITS(x_adv), Y)[moved].any()
    assert 0 < moved.sum() < 5
    assert not moved[2]


@each_case
def test_examples_do_not_depend_on_their_neighbours(case):
    keys = example_keys(KEY, len(X))
    parts = [attack(case, key=keys[i : i + 1], x=X[i : i + 1], y=Y[i : i + 1]) for i in range(len(X))]
    chex.assert_trees_all_close(np.concatenate(parts), attack(case), atol=1e-6)


@each_case
def test_compiles_once_for_all_weights(case):
    before, traced = attack(case), len(TRACES)
    after = attack(case, logits_fn=jax.tree_util.Partial(network, WEIGHTS | {"w2": -WEIGHTS["w2"]}))
    assert len(TRACES) == traced and np.abs(after - before).max() > 1e-3


def test_without_restarts_the_key_does_not_matter():
    np.testing.assert_array_equal(attack("fab-linf", key=jax.random.key(1)), attack("fab-linf"))


def test_targets_can_be_tried_one_by_one():
    search = functools.partial(boundary.minimal_perturbation, threat.l2(0.1), steps=2)
    one = jax.jit(lambda first: search(target_classes=1, first=first)(LOGITS, KEY, X, Y).distance)
    distances = np.stack([one(first) for first in (0, 1)])
    assert len(set(distances.argmin(0))) == 2
    both = jax.jit(search(target_classes=2))(LOGITS, KEY, X, Y).distance
    chex.assert_trees_all_close(both, distances.min(0), atol=1e-6)


@each_norm
def test_restarts_start_at_a_draw_from_half_the_radius_or_half_the_best(norm):
    asked, steps = [], 6
    heard, length = listening(LOGITS, asked), jax.jit(threat.BALLS[norm](1.0).norm)

    @jax.jit
    def run(eps, key, first):
        ball, target = threat.BALLS[norm](eps), dict(target_classes=1, first=first)
        drawn = ball.sample(fold_in(example_keys(key, 6), 2 * first + 1), jnp.asarray(X))
        return boundary.minimal_perturbation(ball, steps=steps, restarts=2, **target)(heard, key, X, Y), drawn

    for eps, seed, first in ((0.001, 0, 0), (1.0, 0, 0), (1.0, 1, 1)):
        asked.clear()
        nearest, drawn = jax.block_until_ready(run(eps, jax.random.key(seed), first))
        assert (nearest.distance[2], (nearest.x[2] == X[2]).all()) == (0, True)  # misclassified as it is
        np.testing.assert_array_equal(asked[1], X)
        tried = np.stack(asked[2 : 1 + 2 * steps : 2])
        wrong = np.stack([losses.accuracy(LOGITS(x), Y) == 0 for x in tried])
        best = np.where(wrong, [length(x - X) for x in tried], np.inf).min(0) * (Y == CLEAN_LABELS)
        assert (best > 0.001).any() and (best < 1).all()
        shrunk = np.minimum(best / eps, 1)[:, None, None, None] / 2 * (drawn - X)
        np.testing.assert_allclose(asked[1 + 2 * steps], X + shrunk, atol=1e-6)


def test_a_loss_that_sees_the_result_as_constant_has_a_gradient():
    def loss(weights):
        logits_fn = jax.tree_util.Partial(network, weights)
        x_adv = jax.lax.stop_gradient(attack_of_two_steps(logits_fn, KEY, X, Y))
        return losses.cross_entropy(logits_fn(x_adv), Y).sum()

    attack_of_two_steps = boundary.fab_targeted(threat.l2(1.0), steps=2, target_classes=1)
    gradient = jax.jit(jax.grad(loss))(WEIGHTS)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradient.values())


@pytest.mark.parametrize("norm, nearest", [("linf", 1), ("l2", 2)])
def test_the_nearest_boundary_is_nearest_in_the_balls_norm(norm, nearest):
    """Dual norms of the weights of classes 1, 2, 3: 36, 10, 1 for linf and 6, 10, 1 for l2; values 1, 1, 0.5."""
    w = np.stack([np.zeros(36), np.ones(36), 10 * np.eye(36)[4], np.eye(36)[7]], axis=1).astype(np.float32)
    logits_fn, x = functools.partial(linear, (w, np.array([1, 0, 0, 0.5]))), np.full((1, 6, 6, 1), 0.5, np.float32)
    value, slope = boundary.nearest_boundary(
        logits_fn, threat.BALLS[norm](0.1), x, np.array([0]), np.array([[1], [2], [3]])
    )
    assert value == -1
    np.testing.assert_array_equal(slope.ravel(), w[:, nearest])
