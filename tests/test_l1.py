"""Attacks in an l1 ball: APGD equals a NumPy reference and the optimum of linear models; FAB and Square refuse it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, losses, threat
from l2ljax.attacks import auto_pgd, sparse_ascent
from l2ljax.evaluate import run_standard_evaluation
from l2ljax.types import L2LError
from tests.reference.ascent import project_l1

RNG = np.random.RandomState(0)
N, D, EPS, SMALL, KEY = 6, 48, 3.0, 0.6, jax.random.key(0)
X = RNG.uniform(0, 1, (N, 4, 4, 3)).astype(np.float32)
WEIGHTS = RNG.normal(0, 1, (D, 5)).astype(np.float32)
LOGITS = jax.tree_util.Partial(lambda w, x: (x - 0.5).reshape(len(x), -1) @ w, jnp.asarray(WEIGHTS))
Y = np.asarray(LOGITS(X)).argmax(axis=1)


def climb_in_numpy(loss_and_gradient, x0, start, eps, steps):
    """`ascend_sparsely` for one flat image: the best point and its loss."""
    x, eta, support = start, eps, np.sum(np.abs(start - x0) > 1e-12)
    count, best, top = np.ceil(support / 1.5), None, -np.inf
    for t in range(steps + 1):
        loss, g = loss_and_gradient(x)
        if loss > top:
            best, top, best_g = x, loss, g
        if t and t % max(int(0.04 * steps), 1) == 0:
            changed = np.sum(np.abs(best - x0) > 1e-12)
            count = np.ceil(changed / 1.5)
            if changed < 0.95 * support:
                eta, x, g = eps, best, best_g
            else:
                eta = max(eta / 1.5, eps / 10)
            support = changed
        chosen = np.argsort(-np.abs(g))[: max(int(count), 1)]
        step = np.zeros_like(x)
        step[chosen] = eta * np.sign(g[chosen]) / len(chosen)
        x = project_l1(x + step, x0, eps)
    return best, top


@pytest.mark.parametrize("steps", [10, 60])
def test_the_ascent_equals_numpys(steps):
    curvature = RNG.normal(0, 0.3, (D, D))
    matrix, slope = curvature @ curvature.T, RNG.normal(0, 1, (N, D))
    value = lambda x, w: w @ x - x @ matrix @ x / 2
    with jax.enable_x64(True):
        x0 = X.astype(np.float64)
        ball = threat.l1(EPS)
        start = ball.sample(KEY, x0)

        def gradient_fn(x, t):
            flat = x.reshape(N, D)
            along = slope - flat @ matrix
            return along.reshape(x.shape), jax.vmap(value)(flat, jnp.asarray(slope)), jnp.zeros(N, bool)

        found = jax.jit(lambda s: sparse_ascent.ascend_sparsely(gradient_fn, ball, jnp.asarray(x0), s, steps))(start)
    for i in range(N):
        own = lambda x, i=i: (value(x, slope[i]), slope[i] - matrix @ x)
        best, top = climb_in_numpy(own, x0[i].ravel(), np.asarray(start[i]).ravel(), EPS, steps)
        np.testing.assert_allclose(found.best_loss[i], top, rtol=1e-8)
        np.testing.assert_allclose(np.asarray(found.best[i]).ravel(), best, atol=1e-8)


def test_a_run_starts_in_the_ball_of_three_eps():
    """The first phase's, as released: more entries change than in the ball of eps."""
    seen = []

    def start(ball, key, x0):
        seen.append((ball, auto_pgd.surface(ball, key, x0)))
        return seen[-1][1]

    with jax.disable_jit():
        attacks.apgd(threat.l1(EPS), steps=2, start=start)(LOGITS, KEY, jnp.asarray(X), Y)
    [(ball, begun)] = seen
    assert ball.name == "l1" and ball.eps == 3 * EPS
    np.testing.assert_allclose(ball.norm(begun - X), 3 * EPS, rtol=1e-4)


def strongest(x0, w):
    """The largest <w, delta> in the ball and in [0, 1]: pixels of large |w| go to their bounds, until eps is spent."""
    left, total = EPS, 0.0
    room = np.where(w > 0, 1 - x0, x0)
    for i in np.argsort(-np.abs(w)):
        used = min(left, room[i])
        left, total = left - used, total + used * abs(w[i])
    return total


def test_linear_models_fall_nearly_as_far_as_they_can():
    """Of the margin's largest rise towards a class, APGD finds 99 %; PGD moves few pixels, and stays with them."""
    towards = (Y + 1) % 5
    loss = lambda logits, y: jnp.take_along_axis(logits, ((y + 1) % 5)[:, None], 1)[:, 0] - logits[jnp.arange(N), y]
    direction = WEIGHTS[:, towards].T - WEIGHTS[:, Y].T
    most = [strongest(x.ravel(), w) for x, w in zip(X, direction, strict=True)]
    ball = threat.l1(EPS)
    gradient_fn = auto_pgd.gradients(loss, LOGITS, jnp.asarray(Y), KEY)
    climb = jax.jit(lambda x, start: sparse_ascent.ascend_in_l1(gradient_fn, ball, x, start, steps=100))
    start = auto_pgd.surface(ball, KEY, jnp.asarray(X))
    apgd, pgd = climb(X, start).best, attacks.pgd(ball, step_size=0.3, steps=100, loss=loss)(LOGITS, KEY, X, Y)
    for x_adv, share in ((apgd, 0.99), (pgd, 0.3)):
        moved = np.asarray(x_adv - X).reshape(N, D)
        assert np.abs(moved).sum(axis=1).max() <= EPS * (1 + 1e-5)
        assert (np.asarray(x_adv) >= 0).all() and (np.asarray(x_adv) <= 1).all()
        assert ((moved * direction).sum(axis=1) >= share * np.array(most)).all()


def test_only_what_falls_in_the_ball_itself_counts():
    """The first phases reach three and two times as far, and fool more."""
    apgd = jax.jit(lambda eps: attacks.apgd(threat.l1(eps), steps=10)(LOGITS, KEY, X, Y))
    x_adv, wide = np.asarray(apgd(SMALL)), np.asarray(apgd(3 * SMALL))
    fooled, fooled_wide = (np.asarray(losses.accuracy(LOGITS(x), Y)) == 0 for x in (x_adv, wide))
    assert fooled_wide.sum() > fooled.sum() > 0
    assert np.abs(x_adv - X).sum(axis=(1, 2, 3)).max() <= SMALL * (1 + 1e-5)
    np.testing.assert_array_equal(x_adv[~fooled], X[~fooled])


def test_attacks_without_an_l1_form_say_so_in_a_line():
    ball = threat.l1(SMALL)
    for make in (attacks.fab, attacks.fab_targeted, attacks.square, attacks.square_on_budget, attacks.autoattack):
        with pytest.raises(L2LError, match="l1"):
            make(ball)
    with pytest.raises(L2LError, match="l1"):
        run_standard_evaluation(LOGITS, X, Y, ball=ball, key=KEY)
    found = run_standard_evaluation(LOGITS, X, Y, ball=ball, key=KEY, only="apgd-ce")
    assert 0 < found.robust_acc < 1
