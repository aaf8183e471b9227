"""Losses against their formulas in NumPy, in float64, and where logits are extreme."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import losses
from l2ljax.types import L2LError

RNG = np.random.RandomState(0)
Z = (RNG.normal(size=(16, 5)) * np.logspace(-1, 4, 16)[:, None]).astype(np.float32)
W = RNG.normal(size=(16, 5)).astype(np.float32)
Y = RNG.randint(0, 5, 16)
HUGE = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, -1e4]], np.float32)
HUGE_Y = np.array([1, 1, 2])

per_example = pytest.mark.parametrize(
    "loss",
    [losses.cross_entropy, losses.margin, lambda z, y: losses.kl(z, jnp.zeros_like(z))],
    ids=["cross_entropy", "margin", "kl"],
)


def log_softmax(z):
    z = z.astype(np.float64) - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def margins(z, y):
    return np.array([max(np.delete(row, label)) - row[label] for row, label in zip(z, y, strict=True)])


def test_cross_entropy_equals_numpy():
    chex.assert_trees_all_close(losses.cross_entropy(Z, Y), -log_softmax(Z)[np.arange(16), Y], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(losses.cross_entropy(HUGE, HUGE_Y), np.array([2e4, 0, 2e4 + np.log(2)]), rtol=1e-6)


def test_margin_equals_numpy_and_is_positive_where_misclassified():
    margin = losses.margin(Z, Y)
    chex.assert_trees_all_close(margin, margins(Z, Y), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(margin) > 0, Z.argmax(axis=1) != Y)
    chex.assert_trees_all_close(losses.margin(HUGE, HUGE_Y), np.array([2e4, -1e4, 2e4]), rtol=1e-6)


def test_margin_is_cut_at_kappa_from_above():
    chex.assert_trees_all_close(losses.margin(Z, Y, kappa=0.5), np.minimum(margins(Z, Y), 0.5), rtol=1e-5, atol=1e-6)
    z, y = jnp.array([[0.0, 3.0], [0.0, 1.0]]), jnp.array([0, 0])  # of margin 3 and 1
    gradient = jax.grad(lambda z: losses.margin(z, y, kappa=2.0).sum())(z)
    chex.assert_trees_all_close(gradient, jnp.array([[0.0, 0.0], [-1.0, 1.0]]), atol=0)


def test_the_sign_of_a_tie_in_wide_logits_stays_in_single_precision():
    with jax.enable_x64(True):
        tie = losses.margin(jnp.zeros((2, 3), jnp.float64), jnp.array([0, 1]))  # the first class wins
        assert tie.dtype == jnp.float64 and tie.astype(jnp.float32)[0] < 0 < tie.astype(jnp.float32)[1]


def test_kl_equals_numpy():
    log_p, log_q = log_softmax(Z), log_softmax(W)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    chex.assert_trees_all_close(losses.kl(Z, W), expected, rtol=1e-4, atol=1e-5)
    assert (losses.kl(Z, W) >= 0).all()
    chex.assert_trees_all_close(losses.kl(HUGE[:1], HUGE[1:2]), np.array([2e4]), rtol=1e-6)


def test_kl_of_equals_is_zero_and_so_is_its_gradient():
    chex.assert_trees_all_close(losses.kl(Z, Z), np.zeros(16), atol=0)
    for argument in (0, 1):
        gradient = jax.grad(lambda p, q: losses.kl(p, q).sum(), argument)(jnp.asarray(W), jnp.asarray(W))
        chex.assert_trees_all_close(gradient, np.zeros((16, 5)), atol=1e-6)


@per_example
def test_huge_logits_have_finite_losses_and_gradients(loss):
    values, gradient = jax.value_and_grad(lambda z: loss(z, HUGE_Y).sum())(jnp.asarray(HUGE))
    assert jnp.isfinite(values) and jnp.isfinite(gradient).all()


@per_example
def test_bfloat16_logits_give_float32(loss):
    z = jnp.asarray(W, jnp.bfloat16)
    assert loss(z, Y).dtype == jnp.float32
    chex.assert_trees_all_close(loss(z, Y), loss(z.astype(jnp.float32), Y), rtol=1e-6, atol=1e-6)
    assert losses.accuracy(z, Y).dtype == jnp.float32


@per_example
def test_losses_are_per_example(loss):
    chex.assert_shape(loss(W, Y), (16,))
    chex.assert_trees_all_close(loss(W, Y)[3:5], loss(W[3:5], Y[3:5]), rtol=1e-6)


def test_accuracy_counts_nan_as_wrong():
    nan = np.nan
    z = np.array([[0, 1, 0], [1, 0, 0], [0, nan, 0], [0, 1, nan], [nan, nan, nan]])
    chex.assert_trees_all_close(losses.accuracy(z, np.ones(5, int)), np.array([1.0, 0, 0, 0, 0]), atol=0)


def test_labels_of_another_type_or_shape_are_refused():
    for labels in (Y.astype(float), np.eye(5, dtype=int)[Y]):
        with pytest.raises(L2LError, match=r"labels are .*64 .*give integers \[B\], or distributions \[B, K\]"):
            losses.cross_entropy(Z, labels)


def test_the_logarithm_of_the_cross_entropy_is_exact_for_confident_models():
    with jax.enable_x64(True):
        logits = jnp.array([[0.3, -1.0, 2.0], [12.0, 1.0, 0.0], [-4.0, 5.0, 1.0]])
        y = jnp.array([0, 0, 0])
        expected = jnp.log(losses.cross_entropy(logits, y))
        np.testing.assert_allclose(losses.log_cross_entropy(logits, y), expected, rtol=1e-7)
    sure = jnp.array([[40.0, 0.0, 1.0]])  # whose cross-entropy is 0 in float32
    value, gradient = jax.value_and_grad(lambda z: losses.log_cross_entropy(z, jnp.array([0]))[0])(sure)
    np.testing.assert_allclose(value, np.log(1 + np.e) - 40, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [-1, 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-5)
