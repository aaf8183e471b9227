"""One table over all attacks: inside ball and range, lowers the accuracy, reproducible, compiles once, per example."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, losses, threat
from l2ljax.attacks import FAMILIES, learned
from l2ljax.models import attackers
from l2ljax.models.generators import UNet
from l2ljax.types import L2LError, example_keys
from tests.victim import KEY, L2, LINF, LOGITS, TRACES, WEIGHTS, X, Y, network

RNG = np.random.RandomState(0)


def trained(attacker, *, steps, larger=1):
    """A learned attacker as `own`, its parameters drawn (the kernels `larger` times as large) and not trained."""
    params, batch_stats = attacker.init(jax.random.key(5), jnp.asarray(X))
    params = jax.tree.map(lambda w: larger * w if w.ndim > 1 else w, params)

    def own(ball):
        def attack(logits_fn, key, x, y):
            rule = attacker.rule(params, batch_stats, example_keys(key, len(x)), y)
            return attacks.gradient_attack(ball, rule, steps=steps, start=attacks.clean)(logits_fn, key, x, y)

        return attack

    return own


def named(name):
    return functools.partial(attacks.create, name)


def convolutional(normalize):
    network = attackers.create("slim", width=4)
    return learned.convolutional(network, inputs=["image", "gradient"], normalize=normalize)


def generator():
    inputs = ["clean", "gradient", "delta"]
    return learned.convolutional(UNet(4, 8, 5), inputs=inputs, normalize="channel", step=0.25, latent=8)


# Of each name: its number here, whether its result depends on the key, whether half of the examples or more fall.
NAMES = {
    "fgsm": ("", False, True),
    "pgd": (10, True, True),
    "margin": (10, True, True),
    "momentum": (10, False, True),
    "traveller": (10, True, True),
    "bls": (5, True, True),
    "random": (20, True, False),
    "cw": (40, False, False),
    "l2l_cw": (3, False, True),
    "cw_l2": (10, False, True),
    "apgd": (10, True, True),
    "apgd_t": (5, True, True),
    "fab": (5, False, True),
    "square": (50, True, True),
}


def case_of(name, family):
    """The case of a name; of one that a plugin has registered neither `draws` nor `strong` is known."""
    n, draws, strong = NAMES.get(name, ("" if family.n == 0 else 10, None, False))
    ball = threat.l2(0.4) if name == "cw_l2" else LINF  # which looks for the least change in l2
    return dict(id=f"{name}{n}", make=named(f"{name}{n}"), ball=ball, draws=draws, strong=strong)


# `draws`: the result depends on the key; `strong`: half of the examples or more fall.
TABLE = [
    *(case_of(*record) for record in FAMILIES.items()),
    dict(id="fgsm-l2", make=named("fgsm"), ball=L2, strong=True),
    dict(id="pgd10-l2", make=named("pgd10"), ball=L2, draws=True, strong=True),
    dict(id="pgd20@l2l", make=named("pgd20@l2l"), draws=True, strong=True),
    dict(id="pgd10@rnn", make=named("pgd10@rnn"), draws=True, strong=True),
    dict(id="pgd3@l2l_da", make=named("pgd3@l2l_da"), draws=True, strong=True),
    dict(
        id="line_search-l2",
        make=lambda ball: attacks.line_search(ball, max_step=10 * ball.eps, steps=3, c=0.3),
        ball=L2,
        draws=True,
        strong=True,
    ),
    dict(id="random20-l2", make=named("random20"), ball=L2, draws=True),
    dict(
        id="best_of",
        make=lambda ball: attacks.best_of([attacks.create(n, ball) for n in ("fgsm", "pgd3")]),
        draws=True,
        strong=True,
    ),
    dict(id="restarts", make=lambda ball: attacks.restarts(attacks.create("pgd3", ball), 3), draws=True, strong=True),
    dict(id="own-recurrent", make=trained(learned.recurrent(), steps=4)),
    dict(id="own-convolutional", make=trained(convolutional("example"), steps=2)),
    dict(id="own-generator", make=trained(generator(), steps=3, larger=6), draws=True),
    dict(id="cw2", make=lambda ball: attacks.l2l_da_cw(ball, steps=2, learning_rate=0.05), strong=True),
    dict(id="pgd10+best", make=named("pgd10+best"), draws=True, strong=True),
    dict(id="pgd10+first", make=named("pgd10+first"), draws=True, strong=True),
    dict(id="pgd5+targeted+restarts2", make=named("pgd5+targeted+restarts2"), draws=True, strong=True),
    dict(id="apgd10-l2", make=named("apgd10"), ball=L2, draws=True, strong=True),
    dict(id="random_signs", make=attacks.random_signs, draws=True, blind=True),
]
CASES = {case["id"]: case for case in TABLE}
each_attack = pytest.mark.parametrize("case", TABLE, ids=lambda case: case["id"])


def build(case):
    return case["make"](case.get("ball", LINF))


@functools.cache
def compiled(index):
    return jax.jit(build(TABLE[index]))


def attack(case, logits_fn=LOGITS, key=KEY, x=X, y=Y):
    return np.asarray(compiled(TABLE.index(case))(logits_fn, key, x, y))


def accuracy(x):
    return float(losses.accuracy(LOGITS(x), Y).mean())


@each_attack
def test_stays_inside(case):
    ball, x_adv = case.get("ball", LINF), attack(case)
    assert x_adv.shape == X.shape and x_adv.dtype == X.dtype
    assert ball.norm(x_adv - X).max() <= ball.eps * (1 + 1e-5)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert ball.norm(x_adv - X).max() > 0.3 * ball.eps  # it did go somewhere


@pytest.mark.parametrize("case", [case for case in TABLE if case.get("strong")], ids=lambda case: case["id"])
def test_lowers_the_accuracy(case):
    assert accuracy(X) == 1
    assert accuracy(attack(case)) <= 0.5


@each_attack
def test_the_key_decides(case):
    np.testing.assert_array_equal(attack(case), attack(case))
    other = attack(case, key=jax.random.key(1))
    if (draws := case.get("draws", False)) is not None:
        assert (np.abs(other - attack(case)).max() > 1e-3) == draws


@each_attack
def test_compiling_changes_nothing(case):
    with jax.disable_jit():
        x_adv = build(case)(LOGITS, KEY, jnp.asarray(X), jnp.asarray(Y))
    # traveller: the logarithm of a small gradient magnifies rounding, up to 160 times, then the network; 4e-6 was seen
    atol = 2e-5 if case["id"].startswith("traveller") else 1e-6
    chex.assert_trees_all_close(x_adv, attack(case), atol=atol)


@each_attack
def test_compiles_once_for_all_weights(case):
    before = attack(case)
    traced = len(TRACES)
    after = attack(case, logits_fn=jax.tree_util.Partial(network, WEIGHTS | {"w2": -WEIGHTS["w2"]}))
    assert len(TRACES) == traced
    assert (np.abs(after - before).max() > 1e-3) == (not case.get("blind"))  # and the weights are not baked in


@each_attack
def test_examples_do_not_depend_on_their_neighbours(case):
    keys = example_keys(KEY, len(X))
    parts = [attack(case, key=keys[i : i + 2], x=X[i : i + 2], y=Y[i : i + 2]) for i in range(0, len(X), 2)]
    chex.assert_trees_all_close(np.concatenate(parts), attack(case), atol=1e-6)


def test_one_key_is_folded_with_each_examples_position():
    keys, expected = example_keys(KEY, 3), [jax.random.fold_in(KEY, i) for i in range(3)]
    chex.assert_trees_all_equal(jax.random.key_data(keys), jnp.stack([jax.random.key_data(k) for k in expected]))
    assert example_keys(keys, 3) is keys


def test_the_batchwise_gradient_maximum_does_depend_on_neighbours():
    own = jax.jit(trained(convolutional("batch"), steps=2)(LINF))
    whole = own(LOGITS, KEY, X, Y)
    alone = own(LOGITS, KEY, X[:2], Y[:2])
    assert np.abs(whole[:2] - alone).max() > 1e-3


# What single attacks promise


def test_fgsm_takes_one_step_as_long_as_the_radius():
    g = np.asarray(jax.jit(jax.grad(lambda x: losses.cross_entropy(LOGITS(x), Y).sum()))(X))
    x_adv = attack(CASES["fgsm"])
    chex.assert_trees_all_close(x_adv, np.clip(X + LINF.eps * np.sign(g), 0, 1), atol=1e-6)
    x_adv = attack(CASES["fgsm-l2"])
    length = np.sqrt((g**2).sum(axis=(1, 2, 3), keepdims=True))
    chex.assert_trees_all_close(x_adv, np.clip(X + L2.eps * g / length, 0, 1), atol=1e-6)


@pytest.mark.parametrize("tau", [0.03, 1.0])
def test_the_papers_cw_equals_numpy(tau):
    """Adam on min(margin, 0) - max(|delta|_inf - tau, 0) from 0, projected each step; two classes, a linear model."""
    with jax.enable_x64(True):
        w, x = RNG.normal(size=36), RNG.uniform(0.2, 0.8, (3, 6, 6, 1))
        logits_fn = lambda z: (z - 0.5).reshape(len(z), -1) @ jnp.stack([jnp.asarray(w), -jnp.asarray(w)], axis=1)
        y = np.asarray(logits_fn(x)).argmax(1)
        got = attacks.l2l_da_cw(threat.linf(0.05), steps=30, learning_rate=0.004, tau=tau)(logits_fn, KEY, x, y)
    m, v, moved = np.zeros_like(x), np.zeros_like(x), x.copy()
    for t in range(1, 31):
        side = np.where(y == 0, -2.0, 2.0)[:, None, None, None] * w.reshape(1, 6, 6, 1)  # d margin / d x
        margin = (side * (moved - 0.5)).sum((1, 2, 3))
        g = np.where(margin < 0, 1.0, 0.0)[:, None, None, None] * side
        delta = moved - x
        for i in range(3):
            if np.abs(delta[i]).max() > tau:
                largest = np.abs(delta[i]) == np.abs(delta[i]).max()
                g[i] -= np.where(largest, np.sign(delta[i]) / largest.sum(), 0)
        m, v = 0.9 * m - 0.1 * g, 0.999 * v + 0.001 * g**2
        moved = moved - 0.004 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        moved = np.clip(np.clip(moved, x - 0.05, x + 0.05), 0, 1)
    np.testing.assert_allclose(got, moved, atol=1e-9)


def test_the_margin_sees_what_a_saturated_softmax_hides():
    """Where softmax is 1 in float32, cross-entropy has gradient 0 and PGD stays at its start."""
    saturated = jax.tree_util.Partial(lambda weights, x: 1e3 * network(weights, x), WEIGHTS)
    fooled = {}
    for name in ("pgd10", "margin10"):
        x_adv = jax.jit(attacks.create(name, LINF))(saturated, KEY, X, Y)
        fooled[name] = 1 - float(losses.accuracy(saturated(x_adv), Y).mean())
    assert fooled["margin10"] >= fooled["pgd10"] + 0.5


# Keys


@pytest.mark.parametrize("name", ["pgd3", "apgd3", "square10", "random3", "fgsm+restarts2", "pgd3+targeted"])
def test_keys_of_all_forms_are_the_same_keys(name):
    run = jax.jit(attacks.create(name, LINF))
    expected = run(LOGITS, jax.random.key(7), X, Y)
    for key in (jax.random.PRNGKey(7), 7, np.int64(7)):
        np.testing.assert_array_equal(run(LOGITS, key, X, Y), expected)
    each = jax.random.split(jax.random.key(8), 6)
    own = run(LOGITS, jax.random.key_data(each), X, Y)
    np.testing.assert_array_equal(own, run(LOGITS, each, X, Y))
    assert name.startswith("fgsm") or np.abs(own - expected).max() > 0.01


def test_other_keys_are_refused_in_one_line():
    for key, told in [
        (None, "a NoneType"),
        (0.5, "a float"),
        (X, "float32 \\[6, 8, 8, 1\\]"),
        (Y, "int64 \\[6\\]"),
        (True, "a bool"),
    ]:
        with pytest.raises(L2LError, match=f"the key is {told}: give jax.random.key\\(0\\), or an integer seed"):
            attacks.create("pgd3", LINF)(LOGITS, key, X, Y)
