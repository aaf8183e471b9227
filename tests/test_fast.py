"""The version fast: targets by distance, Square on a budget per image, and its passes beside those of standard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from bench import passes as bench
from l2ljax import attacks, threat
from l2ljax.attacks import boundary, ensemble
from l2ljax.attacks.square_search import nothing, queries_of
from l2ljax.evaluate import run_standard_evaluation
from l2ljax.types import example_keys

RNG = np.random.RandomState(0)
SHAPE, K, N, KEY = (4, 4, 1), 7, 12, jax.random.key(0)
X = RNG.uniform(0.3, 0.7, (N, *SHAPE)).astype(np.float32)
W1, W2 = RNG.normal(0, 0.5, (16, 8)).astype(np.float32), RNG.normal(0, 1, (8, K)).astype(np.float32)


def network(weights, x):
    return jnp.tanh((x - 0.5).reshape(len(x), -1) @ weights[0]) @ weights[1]


LOGITS = Partial(network, (jnp.asarray(W1), jnp.asarray(W2)))
Y = np.asarray(LOGITS(X)).argmax(axis=1)
ROUNDED = Partial(lambda model, x: model(jnp.round(x * 20) / 20), LOGITS)
"""Its gradient is 0."""


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2)])
def test_the_nearest_classes_are_numpys(norm, dual):
    x = X.reshape(N, -1).astype(np.float64) - 0.5
    hidden = np.tanh(x @ W1)
    logits = hidden @ W2
    expected = []
    for i, y in enumerate(Y):
        jacobian = (W1 * (1 - hidden[i] ** 2)) @ W2
        gaps, slopes = logits[i, y] - logits[i], np.linalg.norm(jacobian - jacobian[:, [y]], ord=dual, axis=0)
        far = [gaps[k] / slopes[k] if k != y else np.inf for k in range(K)]
        expected.append(np.argsort(far)[: K - 1])
    ball = threat.BALLS[norm](0.1)
    ranked = jax.jit(lambda x: boundary.nearest_wrong(LOGITS, ball, x, jnp.asarray(Y), 9))(X)
    np.testing.assert_array_equal(ranked.T, expected)
    assert (np.asarray(expected) != np.argsort(-logits, axis=1)[:, 1:]).any()  # or the logits would do
    one = jax.jit(lambda x, rank: boundary.nearest_wrong(LOGITS, ball, x, jnp.asarray(Y), 1, rank))(X, 2)
    np.testing.assert_array_equal(one, ranked[2:3])


def test_fast_tries_three_targets_and_standard_nine():
    of = lambda version: [name for name, _ in ensemble.stages(threat.linf(0.1), version, num_classes=10)]
    assert of("fast") == ["apgd-ce", *["apgd-t"] * 3, "square"]
    assert of("standard") == ["apgd-ce", *["apgd-t"] * 9, *["fab-t"] * 9, "square"]


def spent(model, ball, version, **how):
    """The verdicts of a version, and its passes per image."""
    before = bench.Counter.read()
    found = run_standard_evaluation(Partial(bench.counted, model), X, Y, ball=ball, version=version, key=KEY, **how)
    return found.robust, (bench.Counter.read() - before) / N


def test_where_all_images_stand_fast_takes_less_than_a_fifth_of_the_passes():
    ball = threat.linf(0.0001)
    stands, passes = spent(LOGITS, ball, "fast")
    assert stands.all()
    clean, ce, ranking = 0.5, 0.5 + 11 + 0.5, 0.5 + (K - 1) / 2
    exactly = clean + ce + 3 * (0.5 + ranking + 101 + 0.5) + 0.5 * (1 + 600 + 1)  # all are given up at the first check
    assert passes == exactly
    # standard's, as an example pays for them: the clean image, APGD-CE, 9 APGD-T, 9 FAB-T, 5,000 queries of Square
    assert passes < (1 + 101 + (K - 1) * 102 + (K - 1) * 151 + 2501) / 5


def reference(margins, queries, trial, slack):
    """The query after which an image falls or is given up, by its margins after 1..queries of them; else the last."""
    falls = next((i + 1 for i, margin in enumerate(margins) if margin > 0), queries)
    while trial < falls:
        now, half, quarter = (margins[trial // n - 1] for n in (1, 2, 4))
        rise = max(now - half, half - quarter)
        if now + slack * rise * np.log2(queries / trial) < 0:
            return trial
        trial *= 2
    return falls


def test_square_gives_up_where_its_headway_is_too_small():
    """Image by image, where NumPy's rule does on the margins of the whole search, with its adversarial images."""
    ball, keys = threat.linf(0.02), example_keys(KEY, N)
    size = {"queries": 320, "trial": 20, "slack": 4.0}
    query = queries_of(ROUNDED, ball, keys, X, jnp.asarray(Y), queries=320, p_init=0.8, rescale=False)
    whole = jax.jit(
        lambda: jax.lax.scan(lambda b, i: ((b := query(i, b)), b), nothing(jnp.asarray(X)), jnp.arange(321))
    )
    images, margins = map(np.asarray, whole()[1])
    stops = [reference(margins[1:, i], **size) for i in range(N)]
    attack = attacks.square_on_budget(ball, **size)
    solver, seen = attack.solvers[0], []
    step = jax.jit(lambda carry: solver.advance(ROUNDED, keys, X, Y, carry, 1))
    carry = solver.init(ROUNDED, keys, jnp.asarray(X), jnp.asarray(Y))
    for _ in range(320):
        carry = step(carry)
        seen.append(np.asarray(carry.done))
    np.testing.assert_array_equal(np.argmax(seen, axis=0) + 1, stops)
    expected = [images[stop, i] if margins[stop, i] > 0 else X[i] for i, stop in enumerate(stops)]
    np.testing.assert_array_equal(carry.x, expected)
    np.testing.assert_array_equal(jax.jit(attack)(ROUNDED, keys, X, Y), expected)
    fell = margins[-1] > 0
    assert 0 < fell.sum() < N and len(set(stops)) > 3 and (np.array(stops)[~fell] < 320).any()
