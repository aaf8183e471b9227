"""Passes of attacks against what they are known to take, and multiplications against formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, cost, models, threat
from l2ljax.attacks import learned
from l2ljax.models import attackers
from l2ljax.models.convolution import stock_convolution
from l2ljax.types import example_keys

RNG = np.random.RandomState(0)
X = RNG.uniform(size=(3, 6, 6, 1)).astype(np.float32)
Y = np.array([0, 1, 2])
W1 = RNG.normal(size=(36, 8)).astype(np.float32)
W2 = RNG.normal(size=(8, 3)).astype(np.float32)
BALL = threat.linf(0.1)


def logits(x):
    return jnp.tanh(x.reshape(len(x), -1) @ W1) @ W2


def zeros(init, x):
    """Parameters of the right shapes: nothing here is run."""
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(init, jax.random.key(0), x))


def own(attacker, steps):
    rule = attacker.rule(*zeros(attacker.init, X), example_keys(jax.random.key(0), 3), Y)
    return attacks.gradient_attack(BALL, rule, steps=steps, start=attacks.clean)


def convolutional(*inputs, steps, name="slim", width=2):
    return own(learned.convolutional(attackers.create(name, width=width), inputs=inputs), steps)


def l2l(*inputs, steps):
    return lambda: convolutional(*inputs, steps=steps)


PASSES = {
    "fgsm": 1,
    "pgd10": 10,
    "margin10": 10,
    "momentum5": 5,
    "random4": 4 / 2,  # forward only
    "bls2": 2 * (1 + 10 / 2),  # the gradient and ten forward passes each
}
LEARNED = {
    "naive": (l2l("image", steps=1), 0),
    "grad": (l2l("image", "gradient", steps=1), 1),
    "grad_only": (l2l("gradient", steps=1), 1),
    "two_step": (l2l("image", "gradient", steps=2), 2),
    "recurrent": (lambda: own(learned.recurrent(), 10), 10),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_of_attacks_by_name(name):
    assert cost.passes(attacks.create(name, BALL), logits, X, Y) == pytest.approx(PASSES[name])


@pytest.mark.parametrize("name", LEARNED)
def test_passes_of_learned_attackers_are_the_classifiers_alone(name):
    make, passes = LEARNED[name]
    assert cost.passes(make(), logits, X, Y) == pytest.approx(passes)


def test_the_attackers_own_network_counts_nothing():
    narrow, wide = (convolutional("gradient", steps=1, name="wide", width=width) for width in (2, 8))
    assert cost.passes(narrow, logits, X, Y) == cost.passes(wide, logits, X, Y) == 1


def test_a_model_without_a_gradient_has_passes_too():
    def rounded(x):
        return logits(jnp.round(x))

    assert cost.passes(attacks.create("random4", BALL), rounded, X, Y) == pytest.approx(4 / 2)


@pytest.mark.parametrize("name", ["square300", "square300+restarts2", "l2l_cw50", "cw_l2100"])
def test_searches_of_an_open_length_have_no_number_of_passes(name):
    assert cost.passes(attacks.create(name, BALL), logits, X, Y) is None


def test_a_loop_inside_the_model_counts_as_one_round():
    def looping(x):
        once = jax.lax.stop_gradient(x)
        return jax.lax.while_loop(lambda z: (z < 0).all(), lambda z: z + logits(once), -jnp.ones((len(x), 3)))

    assert cost.passes(attacks.create("random4", BALL), looping, X, Y) == pytest.approx(4 / 2)


def test_combinators_add_their_forward_passes():
    pgd = attacks.create("pgd3", BALL)
    assert cost.passes(attacks.restarts(pgd, 2), logits, X, Y) == pytest.approx(2 * (3 + 0.5) + 0.5)
    assert cost.passes(attacks.best_of([pgd, pgd]), logits, X, Y) == pytest.approx(2 * (3 + 0.5) + 0.5)


def test_passes_through_the_librarys_own_classifiers():
    classifier = models.create("digits_cnn")
    x = np.zeros((2, 8, 8, 1), np.float32)
    logits_fn = jax.tree_util.Partial(classifier.logits, zeros(classifier.init, x))
    assert cost.passes(attacks.create("pgd7", BALL), logits_fn, x, Y[:2]) == pytest.approx(7)


@pytest.mark.parametrize(
    "name, shape", [("digits_cnn", (8, 8, 1)), ("lenet5", (28, 28, 1)), ("small_cnn", (28, 28, 1))]
)
def test_a_forward_pass_is_about_half_a_pass(name, shape):
    classifier = models.create(name)
    x = np.zeros((2, *shape), np.float32)
    logits_fn = jax.tree_util.Partial(classifier.logits, zeros(classifier.init, x))
    assert cost.passes(attacks.create("random4", BALL), logits_fn, x, Y[:2]) == pytest.approx(2, rel=0.25)


# Multiplications


def test_matrix_products():
    marked = cost.mark(logits)
    forward = 3 * (36 * 8 + 8 * 3)
    assert cost.multiplications(marked, X) == forward
    assert cost.multiplications(jax.grad(lambda x: (marked(x) ** 2).sum()), X) == 2 * forward
    assert cost.multiplications(lambda x: (marked(x), logits(x)), X) == forward  # what is not marked is not counted
    assert cost.multiplications(lambda x: (marked(x), x)[1], X) == 0  # nor what nothing depends on


def test_batched_products():
    marked = cost.mark(lambda x: jnp.einsum("bij,bjk->bik", x, x))
    assert cost.multiplications(marked, jnp.ones((5, 4, 4))) == 5 * 4 * 4 * 4


@pytest.mark.parametrize("stride, padding, size", [(1, 1, 8), (2, 1, 4), (1, 0, 6), (2, 0, 3)])
def test_convolutions_with_strides(stride, padding, size):
    kernel = jnp.ones((3, 3, 2, 5))

    def convolve(x):
        pad = ((padding, padding),) * 2
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=dimensions)

    x = jnp.ones((4, 8, 8, 2))
    marked = cost.mark(convolve)
    met = sum(0 <= stride * o + k - padding < 8 for o in range(size) for k in range(3))  # along one axis
    forward = 4 * 5 * 2 * met**2
    assert cost.multiplications(marked, x) == forward
    # Backward the same pairs of an image's and a kernel's entry meet.
    assert cost.multiplications(lambda x: jax.vjp(marked, x)[1](jnp.ones((4, size, size, 5))), x) == forward


def test_scans_multiply_and_branches_take_the_longest():
    marked = cost.mark(logits)
    forward = 3 * (36 * 8 + 8 * 3)

    def scanned(x):
        return jax.lax.scan(lambda x, _: (x + marked(x).sum(), None), x, length=7)[0]

    def branched(x):
        branches = [lambda x: x, scanned, lambda x: x + marked(x).sum()]
        return jax.lax.switch(jnp.int32(x.sum()), branches, x)

    assert cost.multiplications(scanned, X) == 7 * forward
    assert cost.multiplications(branched, X) == 7 * forward
    assert cost.multiplications(jax.jit(scanned), X) == 7 * forward
    nested = cost.multiplications(lambda x: jax.lax.scan(lambda x, _: (scanned(x), None), X, length=3)[0], X)
    assert nested == 21 * forward


def test_stock_convolutions_count_like_the_librarys():
    classifier = models.create("digits_cnn")
    x = np.zeros((1, 8, 8, 1), np.float32)
    variables = zeros(classifier.init, x)

    def forward():
        return cost.multiplications(cost.mark(lambda x: classifier.logits(variables, x)), x)

    with stock_convolution():
        # Of the 3x3 taps those inside the image: 22 pairs along an axis of 8, 11 of stride 2, 10 along one of 4.
        expected = 32 * 22**2 + 64 * 32 * 11**2 + 64 * 64 * 10**2 + 1024 * 10
        assert forward() == expected
    assert forward() == expected


def test_a_model_without_products_is_counted_by_its_forward_passes():
    """Means over halves of the image: PGD-5 takes five passes of it, too, exactly; a constant model has none."""
    halves = lambda x: jnp.stack([x[:, :2].mean((1, 2, 3)), x[:, 2:].mean((1, 2, 3))], axis=1)
    x, y = jnp.full((3, 4, 4, 1), 0.5), jnp.zeros(3, int)
    ball = threat.linf(0.1)
    assert cost.passes(attacks.create("pgd5", ball), halves, x, y) == pytest.approx(5)
    assert cost.passes(attacks.create("pgd5", ball), lambda x: jnp.zeros((3, 2)), x, y) == 0
