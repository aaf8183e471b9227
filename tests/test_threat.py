"""Balls: where they project, what they draw, which way is steepest, and with which derivatives."""

import functools
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import threat
from l2ljax.types import L2LError, example_keys
from tests.reference import ascent as reference

EPS = {"linf": 0.1, "l2": 0.7, "l1": 2.0}
PROJECT = {"linf": reference.project_linf, "l2": reference.project_l2, "l1": reference.project_l1}
RNG = np.random.RandomState(0)
X0 = RNG.uniform(-0.3, 1.3, (8, 6, 6, 1)).clip(0, 1).astype(np.float32)  # with many black and white pixels
X = X0 + RNG.normal(0, 0.3, X0.shape).astype(np.float32) * np.linspace(0, 1, 8)[:, None, None, None]
X = X.astype(np.float32)

each_ball = pytest.mark.parametrize("name", threat.BALLS)


@functools.cache
def make(name, eps=None):
    """The ball, its functions compiled."""
    eps, *functions, name = threat.BALLS[name](EPS[name] if eps is None else eps)
    return threat.Ball(eps, *map(jax.jit, functions), name)


def norms(name, delta):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[name], axis=1)


def assert_inside(name, x, x0, eps):
    assert norms(name, x - x0).max() <= eps * (1 + 1e-5) + 1e-7
    assert x.min() >= 0 and x.max() <= 1


def assert_uniform(samples):
    """Kolmogorov and Smirnov's distance to U(0, 1); at a fixed key, so nothing here is left to chance."""
    ordered = np.sort(np.ravel(samples))
    distance = np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max()
    assert distance < 1.6 / np.sqrt(len(ordered))


# Projection


@each_ball
def test_projection_equals_numpy(name):
    expected = [PROJECT[name](x.ravel(), x0.ravel(), EPS[name]) for x, x0 in zip(X, X0, strict=True)]
    projected = make(name).project(X, X0)
    chex.assert_trees_all_close(projected.reshape(len(X), -1), np.array(expected), atol=1e-6)


@each_ball
def test_projection_is_inside_idempotent_and_leaves_what_is_inside(name):
    ball = make(name)
    projected = ball.project(X, X0)
    assert_inside(name, np.asarray(projected), X0, EPS[name])
    assert (norms(name, X - X0) > EPS[name]).any()  # or there was nothing to do
    chex.assert_trees_all_close(ball.project(projected, X0), projected, atol=1e-6)
    chex.assert_trees_all_close(ball.project(X0, X0), X0, atol=0)


def test_the_l1_projection_is_the_nearest_feasible_point():
    """No nearer one is among many feasible ones: random, on segments to it, and changed in two pixels at a time."""
    ball = make("l1")
    projected = np.asarray(ball.project(X, X0), np.float64)
    distance = ((projected - X) ** 2).sum(axis=(1, 2, 3))
    for i in range(400):
        if i % 2:
            other = PROJECT["l1"](RNG.uniform(-1, 2, X.size), X0.ravel(), EPS["l1"]).reshape(X.shape)
            other = X0 + (other - X0) / len(X)  # so that each of them is in its own ball
        else:
            other = projected.copy()
            a, b = RNG.choice(36, 2, replace=False)
            other.reshape(8, 36)[:, [a, b]] += RNG.uniform(-0.05, 0.05, (8, 2))
        other = np.clip(projected + RNG.uniform() * (other - projected), 0, 1)
        feasible = norms("l1", other - X0) <= EPS["l1"]
        assert (((other - X) ** 2).sum(axis=(1, 2, 3)) >= distance - 1e-5)[feasible].all()
    outside = norms("l1", np.clip(X, 0, 1) - X0) > EPS["l1"]
    np.testing.assert_allclose(norms("l1", projected - X0)[outside], EPS["l1"], rtol=1e-5)
    assert outside.any() and not outside.all()


@each_ball
def test_norm_equals_numpy(name):
    chex.assert_trees_all_close(make(name).norm(X - X0), norms(name, X - X0), rtol=1e-5)


@each_ball
def test_radius_zero_is_the_identity(name):
    ball = make(name, 0.0)
    chex.assert_trees_all_close(ball.project(X, X0), X0, atol=0)
    chex.assert_trees_all_close(ball.sample(jax.random.key(0), X0), X0, atol=0)


@each_ball
def test_radius_may_be_traced(name):
    traced = jax.jit(lambda eps: threat.BALLS[name](eps).project(X, X0))(EPS[name])
    chex.assert_trees_all_close(traced, make(name).project(X, X0), atol=1e-6)


# Derivatives


def test_clip_has_torchs_derivative():
    x = jnp.array([-0.1, 0.0, 0.5, 1.0, 1.1])
    value, gradient = jax.vmap(jax.value_and_grad(lambda x: threat.clip(x, 0, 1)))(x)
    chex.assert_trees_all_close(value, jnp.array([0.0, 0.0, 0.5, 1.0, 1.0]), atol=0)
    chex.assert_trees_all_close(gradient, jnp.array([0.0, 1.0, 1.0, 1.0, 0.0]), atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e9])
def test_the_l1_projection_holds_for_moves_of_any_length(scale):
    ball, x0 = threat.l1(12.0), jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    x = ball.project(x0 + scale * jax.random.normal(jax.random.key(1), x0.shape), x0)
    assert (ball.norm(x - x0) <= 12.0 * (1 + 2e-5)).all() and ((x >= 0) & (x <= 1)).all()


def test_linf_projection_passes_the_gradient_at_exact_bounds():
    x0 = jnp.array([0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0])
    eps = 0.125  # exact in binary
    x = jnp.array([0.625, 0.375, 0.626, 0.374, 0.0, -0.01, 1.0, 1.01])
    ball = threat.linf(eps)
    gradient = jax.grad(lambda x: ball.project(x[None], x0[None]).sum())(x)
    chex.assert_trees_all_close(gradient, jnp.array([1.0, 1, 0, 0, 1, 0, 1, 0]), atol=0)


def test_l2_projection_derivative():
    x0 = jnp.array([[0.5, 0.5, 0.5, 0.0]])
    ball = threat.l2(0.25)
    jacobian = jax.jacobian(lambda x: ball.project(x[None], x0)[0])
    chex.assert_trees_all_close(jacobian(x0[0]), jnp.eye(4), atol=0)  # black pixels and the center too
    delta = np.array([0.3, -0.4, 0.1, 0.2])
    length = np.linalg.norm(delta)
    expected = 0.25 / length * (np.eye(4) - np.outer(delta, delta) / length**2)
    chex.assert_trees_all_close(jacobian(x0[0] + delta), expected, atol=1e-6)


def test_l1_projection_derivative():
    """The identity inside; outside, what all pixels lose is shared by those that move freely."""
    x0, ball = jnp.array([[0.5, 0.5, 0.5, 0.5, 0.9]]), threat.l1(0.6)
    jacobian = jax.jacobian(lambda x: ball.project(x[None], x0)[0])
    chex.assert_trees_all_close(jacobian(x0[0]), jnp.eye(5), atol=0)
    delta = jnp.array([0.3, -0.4, 0.2, 0.01, 0.5])  # the last is cut at 1, the one before vanishes
    signs = np.array([1, -1, 1])
    expected = np.zeros((5, 5))
    expected[:3, :3] = np.eye(3) - np.outer(signs, signs) / 3
    chex.assert_trees_all_close(jacobian(x0[0] + delta), expected, atol=1e-6)


def test_l2_norm_has_the_derivative_zero_at_zero():
    gradient = jax.grad(lambda d: threat.l2(0.5).norm(d).sum())(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    chex.assert_trees_all_close(gradient, jnp.array([[0.0, 0.0], [0.6, 0.8]]), atol=0)


# Samples


@each_ball
def test_samples_are_inside(name):
    ball = make(name)
    sample = np.asarray(ball.sample(jax.random.key(0), X0))
    assert_inside(name, sample, X0, EPS[name])
    assert norms(name, sample - X0).min() > 0.1 * EPS[name]


def test_linf_samples_are_uniform():
    x0 = jnp.full((300, 6, 6, 1), 0.5)
    u = (np.asarray(make("linf", 0.3).sample(jax.random.key(1), x0)) - 0.5) / 0.3
    assert_uniform((u + 1) / 2)
    u = u.reshape(300, 36)
    correlation = np.corrcoef(u.T) - np.eye(36)  # the pixels are drawn independently
    assert np.abs(correlation).max() < 0.3


def test_l2_samples_are_uniform():
    size, eps = 36, 0.4
    x0 = jnp.full((4000, 6, 6, 1), 0.5)
    delta = np.asarray(make("l2", eps).sample(jax.random.key(2), x0)).reshape(4000, size) - 0.5
    assert_uniform((norms("l2", delta) / eps) ** size)
    covariance = delta.T @ delta / len(delta)  # of a uniform ball: eps^2 / (D + 2) I
    np.testing.assert_allclose(covariance * (size + 2) / eps**2, np.eye(size), atol=0.12)


def test_l1_samples_are_uniform():
    size, eps = 36, 0.4
    x0 = jnp.full((4000, 6, 6, 1), 0.5)
    delta = np.asarray(make("l1", eps).sample(jax.random.key(2), x0)).reshape(4000, size) - 0.5
    assert_uniform((norms("l1", delta) / eps) ** size)
    covariance = delta.T @ delta / len(delta)  # of a uniform l1 ball: 2 eps^2 / ((D + 1) (D + 2)) I
    np.testing.assert_allclose(covariance * (size + 1) * (size + 2) / 2 / eps**2, np.eye(size), atol=0.2)


@each_ball
def test_a_sample_depends_on_its_own_key_alone(name):
    ball = make(name)
    keys = example_keys(jax.random.key(3), len(X0))
    whole = np.asarray(ball.sample(jax.random.key(3), X0))
    chex.assert_trees_all_close(ball.sample(keys, X0), whole, atol=1e-7)
    halves = [ball.sample(keys[:4], X0[:4]), ball.sample(keys[4:], X0[4:])]
    chex.assert_trees_all_close(np.concatenate(halves), whole, atol=1e-7)
    others = np.roll(X0, 1, axis=0)
    others[3] = X0[3]
    chex.assert_trees_all_close(ball.sample(keys, others)[3], whole[3], atol=1e-7)
    noise = np.asarray(ball.sample(keys, np.full_like(X0, 0.5)))
    assert np.abs(noise[0] - noise[1]).max() > 0.01  # no two examples share their draw


# Steepest directions


@each_ball
def test_steepest_maximizes_the_product_over_the_unit_ball(name):
    ball, g = make(name), (X - X0)[1:]
    steepest = np.asarray(ball.steepest(g))
    np.testing.assert_allclose(norms(name, steepest), 1, rtol=1e-5)
    reached = np.sum(g * steepest, axis=(1, 2, 3))
    if name == "l1":  # among those whose entries are no larger: here two of 36
        np.testing.assert_array_equal(np.sort(np.abs(steepest).reshape(7, -1))[:, -3:], [[0, 0.5, 0.5]] * 7)
        chex.assert_trees_all_close(reached, np.sort(np.abs(g).reshape(7, -1))[:, -2:].mean(axis=1), rtol=1e-5)
        return
    for _ in range(20):
        d = RNG.normal(size=g.shape)
        d = d / norms(name, d).reshape(-1, 1, 1, 1)
        assert (np.sum(g * d, axis=(1, 2, 3)) <= reached).all()
    dual = np.abs(g).sum(axis=(1, 2, 3)) if name == "linf" else norms(name, g)
    chex.assert_trees_all_close(reached, dual, rtol=1e-5)


@each_ball
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_steepest_does_not_depend_on_the_scale(name, scale):
    ball, g = make(name), (X - X0)[1:]
    chex.assert_trees_all_close(ball.steepest(np.float32(scale) * g), ball.steepest(g), rtol=1e-4)


@each_ball
def test_steepest_is_zero_where_the_gradient_is(name):
    g = (X - X0)[1:]
    g[2] = 0
    steepest = np.asarray(make(name).steepest(g))
    assert (steepest[2] == 0).all()
    np.testing.assert_allclose(np.delete(norms(name, steepest), 2), 1, rtol=1e-5)


# Radii


@pytest.mark.parametrize(
    "text, value",
    [("8/255", 8 / 255), ("0.031", 0.031), ("1e-2", 0.01), ("0", 0.0), (0.1, 0.1), (1, 1.0)],
)
def test_parse_eps(text, value):
    assert threat.parse_eps(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "eight", "8/", "/255", "8/0", "8/255/2", "nan", "inf", "0,031", "1e999999999", "1e400", "-8/255", "1_0/255",
        "\uff18/255", "٨/255", "1e300/1e-300", "1e-400", "1e-300/1e300", True, float("nan"), None,
        9 * "9999999999" * 1000,
    ],
)  # fmt: skip
def test_parse_eps_names_a_bad_text(text):
    with pytest.raises(L2LError, match="8/255") as error:
        threat.parse_eps(text)
    assert repr(text) in str(error.value)


@each_ball
@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf"), 10**400])
def test_a_radius_must_be_one(name, eps):
    with pytest.raises(L2LError, match="eps="):
        threat.BALLS[name](eps)


@pytest.mark.parametrize("number", [Fraction(8, 255), np.longdouble(8 / 255), np.float64(8 / 255)])
def test_a_radius_is_a_python_float(number):
    assert type(threat.linf(number).eps) is float and threat.linf(number).eps == threat.parse_eps(number) == 8 / 255
    with pytest.raises(L2LError, match="eps=inf is no radius"):
        threat.parse_eps(10**5000)


def test_linf_radius_in_grey_levels_is_named():
    with pytest.raises(L2LError, match="8/255"):
        threat.linf(8)
    assert threat.linf(1.0).eps == 1.0
    assert threat.l2(8).eps == 8


@pytest.mark.parametrize("name", threat.BALLS)
def test_another_radius_is_of_the_same_norm(name):
    other = threat.resized(threat.BALLS[name](0.1), 0.3)
    assert (other.name, other.eps) == (name, 0.3)
    assert repr(other) == f"{name}(0.3)" and str(threat.create(name, "3/10")) == f"{name}(0.3)"
    with pytest.raises(L2LError, match="a ball named '' has no other radius: name it after its norm"):
        threat.resized(threat.BALLS[name](0.1)._replace(name=""), 0.3)
