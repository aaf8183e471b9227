"""The updaters: starts, sizes, the gradient of theta_U by finite differences, ascent, seeds, donation, the bound."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from l2ljax.gail import discriminator, updaters
from l2ljax.types import L2LError
from tests.tiny import count

LEARNED = ["dense", "coordinate"]
each_learned = pytest.mark.parametrize("name", LEARNED)
CENTER = {"b": jnp.array([1.0, -2.0]), "w": jnp.array([[0.5, 3.0, -1.0], [0.0, 2.0, 1.0]])}
START = jax.tree.map(jnp.zeros_like, CENTER)


def hill(params, scale=1.0):
    """A concave toy with its top, 0, at CENTER."""
    gaps = jax.tree.map(lambda p, c: jnp.sum((p - c) ** 2), params, CENTER)
    return -0.5 * scale * sum(jax.tree.leaves(gaps))


def random_params(seed=0):
    rng = np.random.RandomState(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), CENTER)


def compiled(updater):
    return updaters.Updater(jax.jit(updater.init), jax.jit(updater.step, static_argnums=2))


@functools.cache
def make(name, *lr, **options):
    return compiled(getattr(updaters, name)(*lr, **options))


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(updater, state, params, steps, scale=1.0):
    """-> (params, state), metrics [steps]."""

    def body(carry, _):
        params, state, metrics = updater.step(carry[1], carry[0], lambda p: hill(p, scale))
        return (params, state), metrics

    return jax.lax.scan(body, (params, state), None, steps)


# Starts


@each_learned
def test_a_zero_last_layer_is_the_identity(name):
    updater = make(name, 1e-3)
    params = random_params()
    state = updater.init(jax.random.key(1), params)
    moved, after, _ = updater.step(state, params, hill)
    chex.assert_trees_all_equal(moved, params)
    moved, *_ = updater.step(after, moved, hill)  # theta_U's first move is felt in the second step
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(params), strict=True))


@each_learned
@pytest.mark.parametrize("alpha", [1.0, 0.03])
def test_the_ascent_start_is_a_gradient_step(name, alpha):
    updater = make(name, 1e-3, start="ascent", alpha=alpha)
    for seed in range(3):
        params = random_params(seed)
        moved, *_ = updater.step(updater.init(jax.random.key(seed), params), params, hill)
        expected = jax.tree.map(lambda p, g: p + alpha * g, params, jax.grad(hill)(params))
        chex.assert_trees_all_close(moved, expected, atol=1e-6)


@each_learned
def test_an_unknown_start_is_named(name):
    with pytest.raises(L2LError, match="start=zero: give identity or ascent"):
        make(name, 1e-3, start="zero")


@each_learned
def test_units_outside_of_the_route_start_random(name):
    network = make(name, 1e-3, start="ascent", alpha=0.1).init(jax.random.key(0), random_params()).network
    m = network[-1]["kernel"].shape[1]
    for layer in network[:-1]:
        kernel = np.asarray(layer["kernel"])[:, 2 * m :]
        assert np.abs(kernel).max() <= len(kernel) ** -0.5
        np.testing.assert_allclose(kernel.std(), (3 * len(kernel)) ** -0.5, rtol=0.35)
        assert len(np.unique(kernel)) > 0.99 * kernel.size


# Sizes


@pytest.mark.parametrize(
    "observation_size, actions, m, weights",
    [(4, 1, 2497, 324_220_468), (4, 2, 2561, 341_053_492), (2, 1, 2369, 291_832_372), (2, 3, 2497, 324_220_468)],
)
def test_the_dense_updater_has_the_papers_size(observation_size, actions, m, weights):
    params = jax.eval_shape(discriminator.create(observation_size, actions).init, jax.random.key(0))
    network = jax.eval_shape(updaters.dense(1e-6).init, jax.random.key(0), params).network
    assert [layer["kernel"].shape for layer in network] == [(2 * m, 8 * m), (8 * m, 4 * m), (4 * m, m)]
    assert sum(layer["kernel"].size for layer in network) == weights == 52 * m**2
    assert count(network) == weights + 13 * m + 2


@pytest.mark.parametrize("start", ["identity", "ascent"])
def test_the_coordinate_wise_updater_has_67_parameters_at_any_size(start):
    for params in (CENTER, {"x": jnp.zeros(100)}):
        network = jax.eval_shape(updaters.coordinate(1e-3, start=start).init, jax.random.key(0), params).network
        assert count(network) == 52 + 13 + 2


# The gradient of theta_U


def network_of(name):
    init, apply = getattr(updaters, f"{name}_network")("identity", 1.0)
    return updaters.Network(jax.jit(init), jax.jit(apply))


@each_learned
def test_the_gradient_of_theta_u_equals_finite_differences(name):
    """With theta and g held: g is not evaluated again where theta_U is perturbed, and is no function of it."""
    with jax.enable_x64(True):
        disc = discriminator.create(2, 1, hidden=(2,))
        params = jax.tree.map(lambda x: x.astype(jnp.float64), jax.jit(disc.init)(jax.random.key(0)))
        rng = np.random.RandomState(0)
        s, noise = jnp.asarray(rng.normal(size=(2, 9, 2)))
        objective_fn = lambda p: discriminator.objective(disc, p, (s, s[:, :1]), (s, noise[:, :1]))
        network = network_of(name)
        updater = compiled(updaters.learned(network, optax.sgd(1.0)))  # theta_U moves by its gradient
        state = updater.init(jax.random.key(2), params)
        assert {x.dtype for x in jax.tree.leaves(state)} <= {jnp.dtype("float64"), jnp.dtype("int32")}
        nudge = lambda x: x + 0.3 * rng.normal(size=x.shape)
        state = state._replace(network=jax.tree.map(nudge, state.network))  # generic, no layer at zero
        _, after, _ = updater.step(state, params, objective_fn)
        flat, unravel = ravel_pytree(state.network)
        picked = rng.choice(len(flat), min(len(flat), 200), replace=False)
        gradient = (ravel_pytree(after.network)[0] - flat)[picked]

        theta, restore = ravel_pytree(params)
        g = ravel_pytree(jax.jit(jax.grad(objective_fn))(params))[0]
        value = jax.jit(jax.vmap(lambda u: objective_fn(restore(theta + network.apply(unravel(u), theta, g)))))
        nudges = 1e-5 * jax.nn.one_hot(picked, len(flat))
        differences = (value(flat + nudges) - value(flat - nudges)) / 2e-5
        assert jnp.abs(gradient).max() > 1e-2
        np.testing.assert_allclose(differences, gradient, rtol=1e-5, atol=1e-8)


@each_learned
def test_theta_and_g_are_constants(name):
    """Through a step, nothing flows back to the discriminator's old parameters, by theta or by g."""
    updater = make(name, 1e-3, start="ascent")
    params = random_params()
    state = updater.init(jax.random.key(0), params)
    total = lambda state, params: sum(x.sum() for x in jax.tree.leaves(updater.step(state, params, hill)[0]))
    total_of = lambda u, params: total(state._replace(network=u), params)
    by_network, by_params = jax.jit(jax.grad(total_of, argnums=(0, 1)))(state.network, params)
    chex.assert_trees_all_equal(by_params, jax.tree.map(jnp.zeros_like, params))
    assert all(jnp.abs(layer["kernel"]).max() > 0 for layer in by_network)


# Ascent


@each_learned
@pytest.mark.parametrize("start", ["identity", "ascent"])
def test_theta_u_ascends(name, start):
    """From the same theta and g, the next theta_U makes a better theta than the one before it."""
    updater = make(name, 1e-4, start=start, alpha=0.1)
    params = random_params()
    state = updater.init(jax.random.key(0), params)
    first, after, _ = updater.step(state, params, hill)
    second, *_ = updater.step(after, params, hill)
    assert hill(second) > hill(first)


ASCENT = {"start": "ascent", "alpha": 0.01}


@pytest.mark.parametrize(
    "name, lr, options",
    [("adam", 0.1, {})] + [(name, 1e-3, options) for name in LEARNED for options in ({}, ASCENT)],
)
def test_on_a_hill_every_updater_climbs(name, lr, options):
    updater = make(name, lr, **options)
    (params, _), metrics = run(updater, updater.init(jax.random.key(0), START), START, 100)
    assert metrics["objective"][0] == hill(START)
    assert hill(params) > 0.1 * hill(START)
    np.testing.assert_allclose(metrics["max_abs"][-1], max(jnp.abs(x).max() for x in jax.tree.leaves(params)))


@each_learned
def test_learning_beats_the_start(name):
    """The same first rule, steps of 0.01 times the gradient, gets further where theta_U learns."""
    reached = {}
    for lr in (0.0, 1e-3):
        updater = make(name, lr, start="ascent", alpha=0.01)
        (params, _), _ = run(updater, updater.init(jax.random.key(0), START), START, 60)
        reached[lr] = hill(params)
    np.testing.assert_allclose(reached[0.0], hill(START) * 0.99**120, rtol=1e-4)
    assert reached[1e-3] > 0.3 * reached[0.0]


@each_learned
def test_steps_are_algorithm_3_with_adam_ascending(name):
    """theta' by the old theta_U, theta_U by the gradient at that theta'; Adam's moments go on from step to step."""
    network, optimizer = network_of(name), optax.adam(1e-3)
    updater = make(name, 1e-3)
    state = updater.init(jax.random.key(0), START)
    theta, unravel = ravel_pytree(START)
    theta_u = network.init(jax.random.key(0), theta)
    moments = optimizer.init(theta_u)
    (params, state), _ = run(updater, state, START, 4)

    @jax.jit
    def step(theta, theta_u, moments):
        g = jax.grad(lambda theta: hill(unravel(theta)))(theta)
        descent = jax.grad(lambda u: -hill(unravel(theta + network.apply(u, theta, g))))(theta_u)
        updates, moments = optimizer.update(descent, moments)
        return theta + network.apply(theta_u, theta, g), optax.apply_updates(theta_u, updates), moments

    for _ in range(4):
        theta, theta_u, moments = step(theta, theta_u, moments)
    chex.assert_trees_all_close(params, unravel(theta), rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state.network, theta_u, rtol=1e-4, atol=1e-6)


def test_adam_equals_optax_descending_the_negative():
    adam = make("adam", 0.1)
    (ours, _), _ = run(adam, adam.init(jax.random.key(0), START), START, 5)
    optimizer = optax.adam(0.1)
    params, state = START, optimizer.init(START)
    for _ in range(5):
        updates, state = optimizer.update(jax.grad(lambda p: -hill(p))(params), state)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(ours, params, rtol=1e-6)


def test_frozen_moves_nothing():
    params = random_params()
    frozen = make("frozen")
    (after, _), metrics = run(frozen, frozen.init(jax.random.key(0), params), params, 3)
    chex.assert_trees_all_equal(after, params)
    chex.assert_trees_all_close(metrics["objective"], jnp.full(3, hill(params)), rtol=1e-6)


# One network


def test_dense_equals_numpy():
    network = network_of("dense")
    theta, g = jax.random.normal(jax.random.key(0), (2, 3))
    layers = network.init(jax.random.key(1), theta)
    layers = jax.tree.map(lambda x: x + 0.1, layers)
    x = np.concatenate([theta, g])
    for layer in layers[:-1]:
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) + layer["slope"] * np.minimum(x, 0)
    expected = x @ layers[-1]["kernel"] + layers[-1]["bias"]
    np.testing.assert_allclose(network.apply(layers, theta, g), expected, rtol=1e-5)


def test_coordinate_wise_is_the_dense_one_of_size_one_at_each_coordinate():
    dense, coordinate = network_of("dense"), network_of("coordinate")
    theta, g = jax.random.normal(jax.random.key(0), (2, 5))
    layers = jax.tree.map(lambda x: x + 0.1, coordinate.init(jax.random.key(1), theta))
    one_by_one = jnp.concatenate([dense.apply(layers, theta[i : i + 1], g[i : i + 1]) for i in range(5)])
    chex.assert_trees_all_close(coordinate.apply(layers, theta, g), one_by_one, rtol=1e-5)


# Seeds, memory, the bound

ALL = {
    "adam": updaters.adam(0.01),
    "frozen": updaters.frozen(),
    "dense": updaters.dense(1e-3, start="ascent", alpha=0.1),
    "coordinate": updaters.coordinate(1e-3, start="ascent", alpha=0.1),
}


@pytest.mark.parametrize("name", ALL)
def test_seeds_together_equal_one_by_one(name):
    updater = ALL[name]
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.tree.map(lambda *x: jnp.stack(x), *[random_params(i) for i in range(3)])
    scales = jnp.array([0.5, 1.0, 2.0])

    def train(key, params, scale):
        (params, _), metrics = run(updater, updater.init(key, params), params, 4, scale)
        return params, metrics

    together = jax.jit(jax.vmap(train))(keys, params, scales)
    train = jax.jit(train)
    for i in range(3):
        alone = train(keys[i], jax.tree.map(lambda x, i=i: x[i], params), scales[i])
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_step_keeps_shapes_and_types_and_can_be_donated(name):
    updater = ALL[name]
    params = random_params()
    state = updater.init(jax.random.key(0), params)  # not compiled: no two arrays may be one buffer, donated twice
    step = jax.jit(lambda state, params: updater.step(state, params, hill), donate_argnums=(0, 1))
    types = jax.tree.map(jax.typeof, (params, state))
    params, state, metrics = step(state, params)
    assert jax.tree.map(jax.typeof, (params, state)) == types
    assert {key: x.shape for key, x in metrics.items()} == {"objective": (), "max_abs": ()}


@pytest.mark.parametrize("bad", [2e6, np.inf, np.nan])
def test_the_bound_names_a_runaway(bad):
    updaters.check(jnp.full((2, 3), 9e5))
    with pytest.raises(L2LError, match="lower the updater's learning rate"):
        updaters.check(jnp.full((2, 3), 1.0).at[1, 2].set(bad))
    with pytest.raises(L2LError, match="beyond 10:"):
        updaters.check(jnp.array(11.0), bound=10)


def test_the_metric_is_the_largest_magnitude_after_the_step():
    _, _, metrics = updaters.frozen().step((), {"x": jnp.array([-3.0, 2.0]), "y": jnp.array(1.0)}, lambda params: 0.0)
    assert metrics["max_abs"] == 3


def test_a_runaway_shows_in_the_metric():
    updater = make("coordinate", 1e-3, start="ascent", alpha=3.0)  # on a hill of curvature 1: |1 - 3| > 1
    _, metrics = run(updater, updater.init(jax.random.key(0), START), START, 60, 1.0)
    with pytest.raises(L2LError):
        updaters.check(metrics["max_abs"])
