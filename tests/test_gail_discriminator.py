"""The discriminator: eq. 4 in float64, its optimum, the rewards' signs, extreme logits, actions of both kinds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax.gail import discriminator, updaters
from l2ljax.types import L2LError

EXTREME = jnp.array([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])


def create(*sizes, **options):
    disc = discriminator.create(*sizes, **options)
    return disc._replace(init=jax.jit(disc.init))


def pairs(n, shift=0.0, actions=2):
    rng = np.random.RandomState(n)
    return jnp.asarray(rng.normal(shift, 1, (n, 4))), jnp.asarray(rng.randint(0, actions, n))


def batches():
    """Of unequal sizes, which a mean over both together would notice."""
    return pairs(30), pairs(11, 0.5)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("lr", "steps", "entropy"))
def fit(disc, params, policy, expert, *, lr=0.05, steps=300, entropy=0.0):
    adam = updaters.adam(lr)
    objective_fn = lambda p: discriminator.objective(disc, p, policy, expert, entropy=entropy)

    def body(carry, _):
        params, state, metrics = adam.step(carry[1], carry[0], objective_fn)
        return (params, state), metrics["objective"]

    (params, _), values = jax.lax.scan(body, (params, adam.init(jax.random.key(0), params)), None, steps)
    return params, values


# The objective


def naive(disc, params, policy, expert, entropy):
    """As the papers write it, with D the probability of "policy"."""
    d_policy = 1 / (1 + jnp.exp(disc.logits(params, *policy)))
    d_expert = 1 / (1 + jnp.exp(disc.logits(params, *expert)))
    h = lambda d: -d * jnp.log(d) - (1 - d) * jnp.log(1 - d)
    eq4 = jnp.log(d_policy).sum() / len(d_policy) + jnp.log(1 - d_expert).sum() / len(d_expert)
    return eq4 + entropy * (h(d_policy).sum() / len(d_policy) + h(d_expert).sum() / len(d_expert))


@pytest.mark.parametrize("entropy", [0.0, 1e-3, 0.5])
def test_the_objective_and_its_gradient_are_those_of_equation_4(entropy):
    with jax.enable_x64(True):
        disc = create(4, 2)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), disc.init(jax.random.key(0)))
        policy, expert = batches()
        both = lambda p: (
            discriminator.objective(disc, p, policy, expert, entropy=entropy),
            naive(disc, p, policy, expert, entropy),
        )
        (ours, papers), gradients = both(params), jax.jit(jax.jacrev(both))(params)
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, papers, rtol=1e-12)
        chex.assert_trees_all_close(*gradients, rtol=1e-12, atol=1e-14)


def test_ascending_it_raises_the_logit_of_the_expert():
    disc = create(4, 2)
    policy, expert = batches()
    before = disc.init(jax.random.key(0))
    after, _ = fit(disc, before, policy, expert, lr=1e-3, steps=1)
    gap = lambda p: disc.logits(p, *expert).mean() - disc.logits(p, *policy).mean()
    assert gap(after) > gap(before)


def test_where_the_expert_is_the_policy_the_optimum_is_a_coins():
    disc = create(4, 2, hidden=(8,))
    data = pairs(20)
    params, values = fit(disc, disc.init(jax.random.key(0)), data, data, steps=1000)
    assert (values <= -2 * np.log(2) + 1e-6).all() and values[0] < -1.4
    np.testing.assert_allclose(values[-1], -2 * np.log(2), atol=1e-5)
    np.testing.assert_allclose(discriminator.reward(disc.logits(params, *data), 1), np.log(2), atol=0.01)
    np.testing.assert_allclose(discriminator.reward(disc.logits(params, *data), -1), -np.log(2), atol=0.01)


def test_the_entropy_regularizer_adds_two_log_2_at_the_coin():
    disc = create(4, 2)
    zero = jax.tree.map(jnp.zeros_like, disc.init(jax.random.key(0)))
    value = discriminator.objective(disc, zero, *batches(), entropy=0.1)
    np.testing.assert_allclose(value, (-2 + 0.1 * 2) * np.log(2), rtol=1e-6)


def test_fitted_on_separable_pairs_it_is_right_about_all():
    disc = create(4, 2)
    s, _ = pairs(40)
    policy, expert = (s, (s[:, 0] > 0).astype(int)), (s, (s[:, 0] <= 0).astype(int))  # neither s nor a alone tells
    before = disc.init(jax.random.key(1))
    after, _ = fit(disc, before, policy, expert)
    assert discriminator.accuracy(disc, before, policy, expert) < 0.9
    assert discriminator.accuracy(disc, after, policy, expert) == 1
    assert discriminator.accuracy(disc, after, expert, policy) == 0


def test_accuracy_weighs_the_batches_equally_and_a_coin_is_right_half_of_the_time():
    disc = discriminator.Discriminator(lambda key: {}, lambda params, s, a: s[:, 0])
    batch = lambda *logits: (jnp.array(logits)[:, None], jnp.zeros(len(logits), int))
    assert discriminator.accuracy(disc, {}, batch(-1.0, -2.0, -3.0, 4.0), batch(1.0)) == (0.75 + 1) / 2
    assert discriminator.accuracy(disc, {}, batch(0.0), batch(0.0, 0.0)) == 0.5


# The reward


def test_rewards_are_those_of_the_papers_d_and_have_their_sign():
    logits = np.linspace(-5, 5, 11)
    d = 1 / (1 + np.exp(logits))
    np.testing.assert_allclose(discriminator.reward(jnp.asarray(logits), 1), -np.log(d), rtol=1e-5)
    np.testing.assert_allclose(discriminator.reward(jnp.asarray(logits), -1), np.log(1 - d), rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_either_reward_grows_with_the_logit_of_the_expert(sign):
    reward = discriminator.reward(jnp.linspace(-5, 5, 50), sign)
    assert (jnp.diff(reward) > 0).all()
    assert (sign * reward > 0).all()


@pytest.mark.parametrize("sign", [0, 2, None])
def test_a_reward_has_one_of_two_signs(sign):
    with pytest.raises(L2LError, match="sign="):
        discriminator.reward(EXTREME, sign)


# Extreme logits


@pytest.mark.parametrize("sign", [1, -1])
def test_rewards_of_extreme_logits_are_finite_and_linear_in_their_tail(sign):
    value, gradient = jax.vmap(jax.value_and_grad(lambda logit: discriminator.reward(logit, sign)))(EXTREME)
    chex.assert_tree_all_finite((value, gradient))
    assert value[-1 if sign == 1 else 0] == sign * 1e4
    assert value[0 if sign == 1 else -1] == 0


def test_the_objective_at_extreme_logits_is_finite():
    disc = discriminator.Discriminator(lambda key: {}, lambda scale, s, a: scale * s[:, 0])
    sides = (jnp.array([[-1.0], [1.0]]), jnp.zeros(2, int))
    value, gradient = jax.value_and_grad(lambda p: discriminator.objective(disc, p, sides, sides))(1e4)
    np.testing.assert_allclose(value, -1e4, rtol=1e-6)
    np.testing.assert_allclose(gradient, -1, rtol=1e-6)


def test_bernoulli_entropy():
    p = np.array([0.1, 0.3, 0.5, 0.9])
    expected = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(discriminator.bernoulli_entropy(jnp.log(p / (1 - p))), expected, rtol=1e-5)
    np.testing.assert_allclose(discriminator.bernoulli_entropy(EXTREME)[jnp.array([0, 1, 5, 6])], 0, atol=1e-5)


# The network


@pytest.mark.parametrize("sizes, m", [((4, 2), 2561), ((4, 1), 2497), ((2, 3), 2497), ((2, 1), 2369)])
def test_the_papers_discriminators_have_these_many_parameters(sizes, m):
    params = jax.eval_shape(discriminator.create(*sizes).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == m


def test_logits_equal_numpys():
    disc = create(4, 3, hidden=(5, 6))
    params = disc.init(jax.random.key(0))
    s, a = pairs(7, actions=3)
    x = np.concatenate([s, np.eye(3)[np.asarray(a)]], axis=1)
    layers = [params[name] for name in sorted(params)]
    assert [layer["kernel"].shape for layer in layers] == [(7, 5), (5, 6), (6, 1)]
    for layer in layers[:-1]:
        x = np.tanh(x @ layer["kernel"] + layer["bias"])
    np.testing.assert_allclose(disc.logits(params, s, a), (x @ layers[-1]["kernel"])[:, 0], rtol=1e-5)


def test_integers_become_one_hot_and_floats_pass():
    disc = create(4, 2)
    params = disc.init(jax.random.key(0))
    s, a = pairs(6)
    one_hot = jnp.eye(2)[a]
    chex.assert_trees_all_close(disc.logits(params, s, a), disc.logits(params, s, one_hot), atol=0)
    assert (disc.logits(params, s, one_hot) != disc.logits(params, s, one_hot + 0.3)).all()


def test_shapes_that_do_not_fit_are_named():
    disc = create(4, 2)
    params = disc.init(jax.random.key(0))
    s, a = pairs(6)
    with pytest.raises(L2LError, match="give \\[N, 4\\]"):
        disc.logits(params, s[:, :3], a)
    for wrong in (a[:5], a[:, None], a.astype(float), jnp.zeros((6, 3))):
        with pytest.raises(L2LError, match="give integers \\[6\\] or floats \\[6, 2\\]"):
            disc.logits(params, s, wrong)
    with pytest.raises(L2LError, match="actions=0"):
        discriminator.create(4, 0)
