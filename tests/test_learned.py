"""Learned attackers: their networks, what they see and accumulate, and which way their gradients take."""

import functools
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from l2ljax import attacks, defenses, losses, threat
from l2ljax.attacks import learned
from l2ljax.models import attackers
from l2ljax.types import L2LError, example_keys
from tests.reference import recurrent as reference
from tests.tiny import count, tiny_classifier

RNG = np.random.RandomState(0)
X = RNG.uniform(-0.5, 1.5, (4, 6, 6, 1)).clip(0, 1)  # with many black and white pixels
Y = np.array([0, 1, 2, 0])
W = RNG.normal(size=(36, 3))
V = RNG.normal(size=X.shape)
KEYS = example_keys(jax.random.key(5), 4)
BALL = threat.linf(0.3)


def loss_fn(x):
    return losses.cross_entropy(jnp.tanh(x.reshape(len(x), -1) - 0.5) @ W, Y), ()


def input_gradient(x):
    return jax.grad(lambda x: loss_fn(x)[0].sum())(x)


def ascend(rule, steps, loss_fn=loss_fn, x=X, ball=BALL):
    return attacks.ascend(loss_fn, rule, ball, jax.random.key(0), jnp.asarray(x), steps=steps, start=attacks.clean)


# RNN-Adv's recurrent optimizer


def recurrent_parameters(biases=False, hidden=10):
    shapes = {"U": (hidden,), "W": (hidden, hidden), "V": (hidden,)}
    shapes |= {"b_1": (), "b_2": (hidden,)} if biases else {}
    return {name: jnp.asarray(RNG.normal(0, 0.6, shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("biases, hidden, size", [(False, 10, 120), (True, 10, 131), (False, 4, 24)])
def test_recurrent_optimizer_has_few_parameters(biases, hidden, size):
    params, batch_stats = jax.eval_shape(learned.recurrent(hidden=hidden, biases=biases).init, jax.random.key(0), X)
    assert count(params) == size
    assert batch_stats == {}
    chex.assert_trees_all_equal_shapes(params, recurrent_parameters(biases, hidden))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.usefixtures("float64")
def test_recurrent_optimizer_equals_numpy(biases):
    params = recurrent_parameters(biases)
    network = attackers.RecurrentOptimizer(use_bias=biases)
    gradients = RNG.normal(size=(3, *X.shape))
    h, deltas = network.initial_state(jnp.asarray(X)), []
    for g in gradients:
        delta, h = network.apply({"params": params}, jnp.asarray(g), h)
        deltas.append(delta)
    expected = reference.run(params, gradients.reshape(3, -1)).reshape(gradients.shape)
    chex.assert_trees_all_close(jnp.stack(deltas), expected, rtol=1e-10)


@pytest.mark.parametrize("normalize", ["none", "example", "batch"])
@pytest.mark.usefixtures("float64")
def test_recurrent_attack_moves_by_scaled_outputs_on_the_gradient(normalize):
    params = recurrent_parameters()
    rule = learned.recurrent(scale=0.4, normalize=normalize).rule(params, {}, KEYS, Y)
    result = ascend(rule, steps=3)
    before = np.stack([X, *result.path[:-1]])
    g = np.array([input_gradient(jnp.asarray(x)) for x in before])
    axes = {"none": (), "example": (2, 3, 4), "batch": (1, 2, 3, 4)}[normalize]
    g = g / np.abs(g).max(axis=axes, keepdims=True) if axes else g
    delta = reference.run(params, g.reshape(3, -1)).reshape(g.shape)
    x = X
    for t in range(3):
        x = np.clip(np.clip(x + 0.4 * BALL.eps * delta[t], X - BALL.eps, X + BALL.eps), 0, 1)
        chex.assert_trees_all_close(result.path[t], x, rtol=0, atol=1e-10)


def test_recurrent_optimizer_works_on_each_pixel_by_itself():
    rule = learned.recurrent(scale=0.1).rule(recurrent_parameters(), {}, KEYS, Y)  # so small that the ball never binds

    def run(g):
        gray = np.full(X.shape, 0.5)
        return np.asarray(ascend(rule, steps=3, loss_fn=lambda x: (jnp.sum(g * x, axis=(1, 2, 3)), ()), x=gray).x)

    g = RNG.normal(size=X.shape)
    g[1, 2, 3, 0], g[1, 0, 0, 0] = 0.2, 2  # the largest entry, by which an example's are divided, stays
    other = g.copy()
    other[1, 2, 3, 0] += 1
    np.testing.assert_array_equal(np.argwhere(run(g) != run(other)), [[1, 2, 3, 0]])


def test_recurrent_optimizer_without_biases_stays_where_the_gradient_is_zero():
    def flat(x):
        return jnp.zeros(len(x)), ()

    stays = ascend(learned.recurrent().rule(recurrent_parameters(), {}, KEYS, Y), steps=2, loss_fn=flat).x
    chex.assert_trees_all_equal(stays, jnp.asarray(X))
    moves = ascend(
        learned.recurrent(biases=True).rule(recurrent_parameters(biases=True), {}, KEYS, Y), steps=2, loss_fn=flat
    ).x
    assert jnp.abs(moves - X).max() > 1e-3


# Normalization of the gradient


@pytest.mark.parametrize("how, axes", [("none", None), ("example", (1, 2, 3)), ("batch", (0, 1, 2, 3))])
def test_normalize_gradient_equals_numpy(how, axes):
    g = RNG.normal(size=(3, 4, 4, 2)).astype(np.float32) * np.array([1e-25, 1, 100])[:, None, None, None]
    g = g.astype(np.float32)
    expected = g if axes is None else g / np.abs(g).max(axis=axes, keepdims=True)
    chex.assert_trees_all_close(learned.normalize_gradient(jnp.asarray(g), how), expected, rtol=1e-5)


@pytest.mark.parametrize("how", ["none", "example", "batch", "log"])
def test_gradients_of_zero_stay_zero(how):
    zero = jnp.zeros((2, 3, 3, 1))
    chex.assert_trees_all_equal(learned.normalize_gradient(zero, how), zero)
    one = learned.normalize_gradient(zero.at[0].set(2.0), how)
    chex.assert_trees_all_equal(one[1], zero[1])


def test_the_batch_maximum_is_taken_over_the_devices():
    g = jnp.asarray(RNG.normal(size=(3, 2, 4, 4, 1)))
    split = jax.vmap(lambda g: learned.normalize_gradient(g, "batch", "devices"), axis_name="devices")(g)
    chex.assert_trees_all_close(split, g / jnp.abs(g).max(), rtol=1e-6)


def test_an_attacker_trained_over_devices_attacks_on_one():
    """Attacks run outside of the pmapped axis that the defense was built with."""
    x, y, key = jnp.asarray(X, jnp.float32), jnp.asarray(Y), jax.random.key(0)
    classifier = tiny_classifier()
    variables = jax.jit(classifier.init)(key, x)
    logits_fn = jax.tree_util.Partial(classifier.logits, variables)
    made = {}
    for axis_name in (None, "devices"):
        defense = defenses.create("rnn_adv", classifier, BALL, axis_name=axis_name, normalize="batch", steps=2)
        own = defense.attack(*defense.init(key, x))
        made[axis_name] = jax.jit(own)(logits_fn, key, x, y)
    chex.assert_trees_all_close(made["devices"], made[None], atol=1e-6)


# L2L's convolutional attackers


def initialize(name, width=None, size=32, inputs=("image", "gradient"), channels=3):
    attacker = learned.convolutional(attackers.create(name, width=width), inputs=inputs)
    return attacker.init, jnp.zeros((1, size, size, channels))


@pytest.mark.parametrize(
    "name, inputs, size, normalized",
    [
        ("wide", ("image", "gradient"), 1_747_851, 1280),
        ("wide", ("image",), 1_746_123, 1280),
        ("wide", ("gradient",), 1_746_123, 1280),
        ("wide_paper", ("image", "gradient"), 1_630_601, 1024),
        ("slim", ("image", "gradient"), 1_434_359, 1040),
        ("slim_no_skip", ("image", "gradient"), 1_434_197, 1040),
    ],
)
def test_the_papers_attackers_have_their_parameters_and_normalized_channels(name, inputs, size, normalized):
    init, x = initialize(name, inputs=inputs)
    params, batch_stats = jax.eval_shape(init, jax.random.key(0), x)
    assert count(params) == size
    assert count(batch_stats) == 2 * normalized  # a mean and a variance each


@pytest.mark.parametrize("name", attackers.ATTACKERS)
def test_width_narrows(name):
    sizes = []
    for width in (None, 16, 4, 1):
        init, x = initialize(name, width=width)
        params, _ = jax.eval_shape(init, jax.random.key(0), x)
        assert params["Conv_0"]["kernel"].shape == (3, 3, 6, width or attackers.ATTACKERS[name][0])
        sizes.append(count(params))
    assert sizes == sorted(sizes, reverse=True)
    # all layers, not only the first; one_block's first and last, which grow with the width alone, are a sixth of it
    assert sizes[0] / sizes[1] > 0.8 * (attackers.ATTACKERS[name][0] / 16) ** 2


@pytest.mark.parametrize("name", attackers.ATTACKERS)
def test_outputs_are_images_between_minus_one_and_one(name):
    network = attackers.create(name, width=2)
    features = RNG.normal(size=(2, 8, 8, 6)).astype(np.float32)

    @jax.jit
    def output(key):
        return network.init_with_output(key, features, channels=3, train=False)[0]

    out = output(jax.random.key(0))
    chex.assert_shape(out, (2, 8, 8, 3))
    assert jnp.abs(out).max() < 1
    assert out.std() > 0.01


@pytest.mark.parametrize("name", ["slim", "wide"])
def test_statistics_move_in_training_only(name):
    attacker = learned.convolutional(attackers.create(name, width=2), inputs=["image", "gradient"])

    @functools.partial(jax.jit, static_argnums=1)
    def run(key, train):
        params, batch_stats = attacker.init(key, jnp.asarray(X))
        result = ascend(attacker.rule(params, batch_stats, KEYS, Y, train=train), steps=1)
        return batch_stats, attacker.batch_stats(result.state)

    before, after = run(jax.random.key(0), False)
    chex.assert_trees_all_equal(before, after)
    before, after = run(jax.random.key(0), True)
    chex.assert_trees_all_equal_structs(before, after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert jnp.abs(old - new).max() > 1e-4


class Pixelwise(nn.Module):
    """A small network in the place of the papers', whose outputs change their sign and add up to leave the ball."""

    @nn.compact
    def __call__(self, x, *, channels, train, axis_name=None, **_):
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)(x - 0.4)
        return jnp.sin(9 * nn.Dense(channels)(jnp.tanh(3 * nn.Dense(6)(y))))


def explicit(variables, inputs, *, of_gradient=stop_gradient, of_image=lambda x: x, cut=(-1, 2)):
    """Two steps of Pixelwise as L2L's code takes them -> x_2 and what there was on the way.

    `of_gradient`, `of_image`: what passes through the features; `cut`: where x_0 + delta is cut in between.
    """
    x_0, delta = jnp.asarray(X), jnp.zeros(X.shape)
    x, trace = x_0, []
    for _ in range(2):
        g = of_gradient(input_gradient(x))
        seen = {"image": of_image(x), "gradient": g / jnp.abs(g).max()}
        features = jnp.concatenate([seen[name] for name in inputs], axis=-1)
        out = Pixelwise().apply(variables, features, channels=1, train=False)
        total = threat.clip(x_0 + delta, *cut) - x_0 + BALL.eps * out
        delta = threat.clip(total, -BALL.eps, BALL.eps)
        x = threat.clip(x_0 + delta, 0, 1)
        trace.append(types.SimpleNamespace(total=total, delta=delta, x=x))
    return trace


def pixelwise(inputs):
    attacker = learned.convolutional(Pixelwise(), inputs=inputs, normalize="batch")
    variables = jax.jit(attacker.init)(jax.random.key(2), jnp.asarray(X))
    return attacker, jax.tree.map(jnp.float64, variables)


each_input = pytest.mark.parametrize("inputs", [("image",), ("gradient",), ("image", "gradient")], ids="+".join)


@each_input
@pytest.mark.usefixtures("float64")
def test_two_steps_add_up_and_only_their_sum_is_cut(inputs):
    attacker, (params, batch_stats) = pixelwise(inputs)
    variables = {"params": params, "batch_stats": batch_stats}
    result = ascend(attacker.rule(params, batch_stats, KEYS, Y), steps=2)
    first, second = explicit(variables, inputs)
    chex.assert_trees_all_close(result.path, jnp.stack([first.x, second.x]), rtol=0, atol=1e-10)
    chex.assert_trees_all_close(result.state.delta, second.delta, rtol=0, atol=1e-10)
    assert (jnp.abs(second.total) > BALL.eps).any()  # the cut to +-eps was at work
    _, other = explicit(variables, inputs, cut=(0, 1))
    assert jnp.abs(second.x - other.x).max() > 1e-3  # and a cut to pixels in between would have shown


@pytest.mark.usefixtures("float64")
def test_training_mode_normalizes_by_the_batch_and_keeps_its_statistics():
    attacker, (params, batch_stats) = pixelwise(("image",))
    result = ascend(attacker.rule(params, batch_stats, KEYS, Y, train=True), steps=2)
    x, delta, stats = jnp.asarray(X), 0, batch_stats
    for reached in result.path:
        variables = {"params": params, "batch_stats": stats}
        out, changed = Pixelwise().apply(variables, x, channels=1, train=True, mutable=["batch_stats"])
        delta, stats = jnp.clip(delta + BALL.eps * out, -BALL.eps, BALL.eps), changed["batch_stats"]
        x = jnp.clip(X + delta, 0, 1)
        chex.assert_trees_all_close(reached, x, rtol=0, atol=1e-10)
    chex.assert_trees_all_close(attacker.batch_stats(result.state), stats, rtol=1e-10)


@each_input
@pytest.mark.usefixtures("float64")
def test_the_attackers_gradient_goes_through_the_second_image_but_not_through_the_gradient(inputs):
    attacker, (params, batch_stats) = pixelwise(inputs)

    def by_ascend(params):
        return jnp.sum(V * ascend(attacker.rule(params, batch_stats, KEYS, Y), steps=2).x)

    def by_hand(params, **ways):
        return jnp.sum(V * explicit({"params": params, "batch_stats": batch_stats}, inputs, **ways)[-1].x)

    def gradient(objective, **ways):
        return jax.jit(jax.grad(functools.partial(objective, **ways)))(params)

    def distance(a, b):
        return max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, a, b)))

    got = gradient(by_ascend)
    chex.assert_trees_all_close(got, gradient(by_hand), rtol=1e-8, atol=1e-10)
    if "image" in inputs:
        assert distance(got, gradient(by_hand, of_image=stop_gradient)) > 1e-3
    if "gradient" in inputs:
        assert distance(got, gradient(by_hand, of_gradient=lambda g: g)) > 1e-3


# What is refused, and what learns nothing


@pytest.mark.parametrize("inputs", [(), ("image", "noise"), ("images",)])
def test_unknown_inputs_are_told_the_known_ones(inputs):
    with pytest.raises(L2LError, match="image, clean, gradient, delta, pattern, not"):
        learned.convolutional(Pixelwise(), inputs=inputs)


@pytest.mark.parametrize("name", ["slim", "slim_no_skip"])
def test_odd_images_are_refused_by_the_attacker_that_halves_them(name):
    attacker = learned.convolutional(attackers.create(name, width=8), inputs=("image",))
    with pytest.raises(L2LError, match="images are 8 x 9: this attacker needs multiples of 2: pad them, or choose"):
        jax.eval_shape(attacker.init, jax.random.key(0), jnp.zeros((1, 8, 9, 3)))


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(L2LError, match=r"'huge'.*wide, wide_paper, one_block, slim, slim_no_skip"):
        attackers.create("huge")
    with pytest.raises(L2LError, match="width=0: give a whole number"):
        attackers.create("wide", width=0)
    with pytest.raises(L2LError, match="kind=max: give none or mean or example"):
        learned.normalize_gradient(jnp.ones((1, 2, 2, 1)), "max")


def test_a_fixed_rule_has_no_parameters():
    rule = learned.recurrent().rule({}, {}, KEYS, Y)
    attacker = learned.fixed(rule)
    assert attacker.init(jax.random.key(0), jnp.asarray(X)) == ({}, {})
    assert attacker.rule({}, {}, KEYS, Y, train=True) is rule
    assert attacker.batch_stats(None) == {}
