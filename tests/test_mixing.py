"""Cutout, CutMix and label smoothing: pixels and labels against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import defenses, losses, threat
from l2ljax.data.mixing import Mixing, mix, mixed
from l2ljax.types import Batch, L2LError, Players, example_keys
from tests.tiny import small, tiny_classifier

N = 256
KEYS = example_keys(jax.random.key(3), N)
BATCH = Batch(jnp.broadcast_to(jnp.arange(1, N + 1)[:, None, None, None] / N, (N, 8, 6, 2)), jnp.arange(N) % 5)


def test_cutout_clears_one_square_whose_center_is_uniform():
    x, y = mix(BATCH, KEYS, Mixing(cutout=3), classes=5)
    cut = np.asarray(x == 0)
    assert (y == BATCH.y).all() and (cut == cut[..., :1]).all()
    rows, columns = cut[..., 0].any(axis=2).sum(axis=1), cut[..., 0].any(axis=1).sum(axis=1)
    assert (cut[..., 0].sum(axis=(1, 2)) == rows * columns).all() and set(rows) == set(columns) == {2, 3}
    kept = ~cut
    np.testing.assert_array_equal(np.asarray(x)[kept], np.asarray(BATCH.x)[kept])
    share = cut[..., 0].mean(axis=0)  # of 8 x 6 centers, a pixel within the border is cleared by 9
    np.testing.assert_allclose(share[1:-1, 1:-1], 9 / 48, atol=0.1)


def test_cutmix_shares_the_label_as_the_pixels():
    x, y = map(np.asarray, mix(BATCH, KEYS, Mixing(cutmix=0.5), classes=5))
    own, other = np.asarray(BATCH.x), np.asarray(BATCH.x)[::-1]
    assert ((x == own) | (x == other)).all()
    pasted = (x == other)[..., 0].mean(axis=(1, 2))
    one_hot = np.eye(5)[np.asarray(BATCH.y)]
    np.testing.assert_allclose(y, (1 - pasted)[:, None] * one_hot + pasted[:, None] * one_hot[::-1], atol=1e-6)
    assert 0.4 < (pasted > 0).mean() < 0.6  # half of the images, less the empty boxes
    assert 0.25 < pasted[pasted > 0].mean() < 0.45  # 1/2, less what lies over the border


def test_smoothed_labels():
    x, y = mix(BATCH, KEYS, Mixing(label_smoothing=0.2), classes=5)
    np.testing.assert_allclose(y, 0.8 * np.eye(5)[np.asarray(BATCH.y)] + 0.04, atol=1e-6)
    assert (x == BATCH.x).all()


def test_draws_depend_on_the_step_alone():
    at = lambda start: dict(mixed(((s, BATCH) for s in range(start, 4)), jax.random.key(0), Mixing(2, 0.5, 0.1), 5))
    whole, later = at(0), at(2)
    np.testing.assert_array_equal(whole[3].x, later[3].x)
    np.testing.assert_array_equal(whole[3].y, later[3].y)
    assert (whole[2].x != whole[3].x).any()


def test_losses_of_distributions():
    logits, y = jax.random.normal(jax.random.key(0), (6, 5)), jnp.arange(6) % 5
    one_hot = jax.nn.one_hot(y, 5)
    for loss in (losses.cross_entropy, losses.margin, losses.dlr, losses.accuracy, losses.log_cross_entropy):
        np.testing.assert_allclose(loss(logits, one_hot), loss(logits, y), rtol=1e-6)
    soft = 0.9 * one_hot + 0.02
    expected = -(np.asarray(soft) * np.asarray(jax.nn.log_softmax(logits))).sum(axis=1)
    np.testing.assert_allclose(losses.cross_entropy(logits, soft), expected, rtol=1e-5)
    with pytest.raises(L2LError, match="give a number per class"):
        losses.cross_entropy(logits, one_hot[:, :4])


@pytest.mark.parametrize("method", defenses.METHODS)
def test_objectives_take_distributions_as_labels(method):
    value, y = objective_of(method)
    for mode in ("joint", "attacker") if defenses.METHODS[method].learns else ("classifier",):
        soft = jax.eval_shape(functools.partial(value, mode=mode), jax.nn.one_hot(y, 10))
        assert soft == jax.eval_shape(functools.partial(value, mode=mode), y)


@pytest.mark.parametrize("method", ["mart", "elle", "ait", "rnn_adv"])
def test_objectives_of_hard_labels_are_those_of_their_distributions(method):
    value, y = objective_of(method)
    value = jax.jit(functools.partial(value, mode="joint"))
    np.testing.assert_allclose(value(jax.nn.one_hot(y, 10)), value(y), rtol=1e-5)


def test_the_doubt_of_mart_is_in_the_likeliest_class_of_a_smoothed_label():
    """With a clean image classified well the divergence counts nothing, however the label is smoothed."""
    classifier, x = tiny_classifier(), jnp.zeros((1, 8, 8, 1))
    smooth = jnp.full((1, 10), 0.01).at[0, 3].set(0.91)
    three, five = 50.0 * jax.nn.one_hot(3, 10), 10.0 * jax.nn.one_hot(5, 10)
    sure = lambda variables, images: three + five * images.sum(axis=(1, 2, 3), keepdims=True)[..., 0, 0]  # at 0 alone
    train = lambda variables, images, *_, **__: (sure(variables, images), {})
    classifier = classifier._replace(logits=sure, train=train)
    values = []
    for beta in (1.0, 1000.0):
        defense = defenses.create("mart", classifier, threat.linf(0.1), beta=beta, steps=1)
        players = Players({}, {}), Players({}, {})
        values.append(float(defense.objective(*players, jax.random.key(3), Batch(x, smooth), "classifier")[0]))
    assert values[0] == pytest.approx(values[1])


def objective_of(method):
    classifier, x, y = tiny_classifier(), jax.random.uniform(jax.random.key(0), (4, 8, 8, 1)), jnp.arange(4)
    defense = defenses.create(method, classifier, threat.linf(0.1), **small(method))
    variables, (phi, stats) = classifier.init(jax.random.key(1), x), defense.init(jax.random.key(2), x)
    both = Players(variables["params"], phi), Players(variables["batch_stats"], stats)
    return lambda y, mode: defense.objective(*both, jax.random.key(3), Batch(x, y), mode)[0], y


def test_a_process_draws_for_its_part_as_for_the_whole():
    whole = dict(mixed([(0, BATCH)], jax.random.key(0), Mixing(cutout=3), 5))[0].x
    half = Batch(*(a[N // 2 :] for a in BATCH))
    part = dict(mixed([(0, half)], jax.random.key(0), Mixing(cutout=3), 5, (1, 2)))[0].x
    np.testing.assert_array_equal(part, whole[N // 2 :])
