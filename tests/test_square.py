"""Square: the golden trace of AutoAttack's code, and what the search promises of any network."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import losses, threat
from l2ljax.attacks.square_search import MOVES, Draw, accept, bumps, halvings, propose, square
from l2ljax.types import L2LError, example_keys, fold_in

GOLDEN = np.load(Path(__file__).parent / "golden" / "square.npz")
RNG = np.random.RandomState(0)
KEY = jax.random.key(0)
BALLS = {"linf": threat.linf(0.05), "l2": threat.l2(0.5)}
each_norm = pytest.mark.parametrize("norm", BALLS)
TRACES = []


def network(weights, x):
    TRACES.append(x.shape)
    return jnp.tanh(x.reshape(len(x), -1) @ weights[0]) @ weights[1]


def model(n, shape=(5, 7, 3), seed=0):
    """A network, and n images with black and white pixels near its boundary; it labels all but the last right."""
    rng = np.random.RandomState(seed)
    weights = [
        rng.normal(0, scale, size).astype(np.float32) for scale, size in ((0.2, (np.prod(shape), 8)), (1, (8, 4)))
    ]
    x = rng.uniform(-0.2, 1.2, (200, *shape)).clip(0, 1).astype(np.float32)
    logits_fn = jax.tree_util.Partial(network, weights)
    first, second = np.sort(logits_fn(x), axis=1)[:, ::-1][:, :2].T
    x = x[np.argsort(first - second)[10 : 10 + 8 * n : 8]]
    y = np.array(logits_fn(x).argmax(axis=1))
    y[-1] = (y[-1] + 1) % 4 if n > 1 else y[-1]
    return logits_fn, x, y


@functools.cache
def compiled(norm, queries):
    return jax.jit(square(BALLS[norm], queries=queries))


def attack(logits_fn, x, y, norm, queries=40, key=KEY):
    return np.asarray(compiled(norm, queries)(logits_fn, key, x, y))


# AutoAttack's code


def test_the_schedule_is_autoattacks():
    np.testing.assert_array_equal(0.8 / 2.0 ** halvings(10_000), GOLDEN["schedule"])
    np.testing.assert_array_equal(0.8 / 2.0 ** halvings(1000, rescale=True), GOLDEN["schedule_1000"])


@pytest.mark.parametrize("side", range(3, 9))
def test_the_pattern_is_autoattacks(side):
    np.testing.assert_allclose(bumps(side), GOLDEN[f"bumps_{side}"], atol=1e-15)


@each_norm
def test_a_trace_is_autoattacks(norm):
    """From the recorded start and draws: the same images are tried, by their margins, and the same ones kept."""
    golden = {name: GOLDEN[f"{norm}_{name}"] for name in ("start", "draws", "sides", "margins", "kept", "best")}
    x, y = GOLDEN["x"], GOLDEN["y"]
    ball = threat.linf(0.1) if norm == "linf" else threat.l2(1.0)
    with jax.enable_x64(True):
        logits_fn = functools.partial(network, [jnp.asarray(GOLDEN["w1"]), jnp.asarray(GOLDEN["w2"])])
        moves, levels = MOVES[norm](ball.eps, 0.8, x.shape[1:]), halvings(golden["draws"].shape[1])

        @jax.jit
        def replay(start, draws):
            def step(best, t):
                level, draws = t
                draw = Draw(draws[:, :2].astype(int), draws[:, 2:4].astype(int), draws[:, 5:], draws[:, 4] > 0)
                tried = jax.vmap(moves.place, (0, None, 0, 0))(draw, level, x, best[0])
                candidate = ball.project(tried, x)
                new = accept(logits_fn, y, best, candidate)
                margin = losses.margin(logits_fn(candidate), y)
                return new, (margin, jnp.abs(new[0] - best[0]).max(axis=(1, 2, 3)) > 1e-9, new[1])

            first = start, losses.margin(logits_fn(start), y)
            return first[1], jax.lax.scan(step, first, (levels, draws.swapaxes(0, 1)))

        first, (best, (margins, kept, _)) = replay(golden["start"], golden["draws"])
    live = golden["sides"] > 0
    assert live.all(axis=1).any()
    assert 0.05 < golden["kept"].mean() < 0.5
    assert np.isin(moves.sides[:3], golden["sides"]).all()
    np.testing.assert_array_equal((moves.sides[levels] * live), golden["sides"])
    np.testing.assert_allclose(first, -golden["margins"][:, 0], atol=1e-12)
    np.testing.assert_allclose(np.where(live, margins.T, np.nan), -golden["margins"][:, 1:], atol=1e-9)
    np.testing.assert_array_equal(kept.T, golden["kept"])
    np.testing.assert_allclose(best[0], golden["best"], atol=1e-12)


# What is tried


@each_norm
@pytest.mark.parametrize("shape", [(5, 7, 3), (32, 32, 1)])
def test_starts_fill_the_ball(norm, shape):
    x = jnp.full((4, *shape), 0.5)
    ball, keys = BALLS[norm], jax.random.split(KEY, 4)
    start = jax.vmap(MOVES[norm](ball.eps, 0.8, shape).start)
    delta = np.asarray(jax.jit(lambda x: ball.project(start(keys, x), x) - x)(x))
    np.testing.assert_allclose(ball.norm(delta), ball.eps, rtol=1e-5)
    if norm == "linf":
        np.testing.assert_allclose(np.abs(delta), ball.eps, rtol=1e-5)
        assert (delta == delta[:, :1]).all() and not (delta == delta[:, :, :1]).all()  # stripes down the columns
    else:
        rest = max(n % max(min(shape[:2]) // 5, 1) for n in shape[:2])
        inner = delta[:, rest:-rest, rest:-rest] if rest else delta
        assert (np.abs(inner) > 0).mean() > 0.8
    assert len({d.tobytes() for d in delta}) == 4


@each_norm
def test_proposals_change_a_window_anywhere(norm):
    """Of a side of 3 on 5 x 7 pixels: every position, the last ones too; outside, linf leaves all as it is."""
    shape, n = (5, 7, 2), 400
    ball = threat.linf(0.1) if norm == "linf" else threat.l2(1.0)
    moves = MOVES[norm](ball.eps, 0.8, shape)
    level = list(moves.sides).index(3)
    x = jnp.full(shape, 0.5)
    best = jnp.asarray(RNG.uniform(0.45, 0.55, shape).astype(np.float32))
    tried = jax.jit(jax.vmap(lambda k: propose(moves, k, level, x, best)))(jax.random.split(KEY, n))
    delta = np.asarray(tried) - 0.5
    if norm == "linf":
        changed = np.abs(np.asarray(tried - best)).max(axis=-1) > 0
        assert (changed.sum(axis=(1, 2)) == 9).all()
        np.testing.assert_allclose(np.abs(delta[changed]), 0.1, rtol=1e-5)
        corners = {tuple(np.argwhere(c)[0]) for c in changed}
        assert corners == {(i, j) for i in range(3) for j in range(5)}
    else:
        np.testing.assert_allclose(np.sqrt((delta**2).sum(axis=(1, 2, 3))), 1, rtol=1e-5)
        emptied = np.abs(delta).max(axis=-1) == 0
        assert emptied.any(axis=0).all() and (emptied.sum(axis=(1, 2)) <= 9).all()
    assert len({d.tobytes() for d in delta}) > 50


# What the search promises


@pytest.mark.parametrize("norm, n", [("linf", 1), ("linf", 3), ("linf", 8), ("l2", 1), ("l2", 8)])
def test_results_are_clean_or_misclassified_and_inside(norm, n):
    logits_fn, x, y = model(n)
    ball, x_adv = BALLS[norm], attack(logits_fn, x, y, norm)
    changed = (x_adv != x).any(axis=(1, 2, 3))
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert ball.norm(x_adv - x).max() <= ball.eps * (1 + 1e-5)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    right = np.asarray(losses.accuracy(logits_fn(x_adv), y)) == 1
    assert not (right & changed).any()
    if n == 8:
        assert right.any() and changed.any()
        assert not changed[-1]  # it was misclassified already


@each_norm
def test_examples_do_not_depend_on_their_neighbours(norm):
    logits_fn, x, y = model(8)
    keys, whole = example_keys(KEY, 8), attack(logits_fn, x, y, norm)
    parts = [attack(logits_fn, x[i : i + 1], y[i : i + 1], norm, key=keys[i : i + 1]) for i in range(8)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    assert (attack(logits_fn, x, y, norm, key=jax.random.key(1)) != whole).any()


@each_norm
def test_compiles_once_for_all_weights(norm):
    logits_fn, x, y = model(8)
    before = attack(logits_fn, x, y, norm)
    traced = len(TRACES)
    other = jax.tree_util.Partial(network, [logits_fn.args[0][0], logits_fn.args[0][1][:, ::-1]])
    after = attack(other, x, 3 - y, norm)
    np.testing.assert_array_equal(after, before)  # the same classes by other names
    other = jax.tree_util.Partial(network, [-logits_fn.args[0][0], logits_fn.args[0][1]])
    after = attack(other, x, np.zeros_like(y), norm)
    assert len(TRACES) == traced
    assert (after != before).any()


@each_norm
def test_the_margin_never_falls_and_the_fooled_stay(norm):
    logits_fn, x, y = model(8)
    ball = BALLS[norm]
    moves = MOVES[norm](ball.eps, 0.8, x.shape[1:])
    keys = example_keys(KEY, 8)

    @jax.jit
    def run(x, y):
        def step(best, i):
            tried = jax.vmap(lambda k, x, b: propose(moves, k, 2, x, b))(fold_in(keys, i), x, best[0])
            best = accept(logits_fn, y, best, ball.project(tried, x))
            return best, best

        return jax.lax.scan(step, (x, losses.margin(logits_fn(x), y)), jnp.arange(60))[1]

    images, margins = map(np.asarray, run(x, y))
    assert (np.diff(margins, axis=0) >= 0).all() and (np.diff(margins, axis=0) > 0).any(axis=0).sum() > 4
    frozen = margins[:-1] > 0
    assert frozen.any() and not frozen.all()
    assert (images[1:] == images[:-1]).all(axis=(2, 3, 4))[frozen].all()
    expected = np.asarray(jax.vmap(lambda x: losses.margin(logits_fn(x), y))(images))
    np.testing.assert_allclose(margins, expected, atol=1e-5)


def linear(w, x):
    z = jnp.sum((x - 0.5) * w, axis=(1, 2, 3))
    return jnp.stack([z, -z], axis=1)


@each_norm
def test_a_linear_model_falls_where_the_ball_is_large(norm):
    w = RNG.normal(size=(5, 7, 3)).astype(np.float32)
    x = RNG.uniform(0.4, 0.6, (8, 5, 7, 3)).astype(np.float32)
    y = np.asarray(linear(w, x)).argmax(axis=1)
    ball = threat.linf(0.3) if norm == "linf" else threat.l2(3.0)
    x_adv = jax.jit(square(ball, queries=200))(jax.tree_util.Partial(linear, w), KEY, x, y)
    assert np.asarray(losses.accuracy(linear(w, x), y)).all()
    assert not np.asarray(losses.accuracy(linear(w, x_adv), y)).any()


@pytest.mark.parametrize("queries, used", [(25, 25), (500, 30)])
def test_queries_are_counted_and_end_with_the_last_example(queries, used):
    """A model that nothing fools until it has seen 30 images, and then nothing can hold; the first look is free."""
    seen = []

    def count(x):
        seen.append(np.array(x))
        return np.float32(len(seen) > 30)

    def logits_fn(x):
        z = jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), x)
        return jnp.stack([1 - 2 * jnp.full(len(x), z), jnp.zeros(len(x))], axis=1)

    x = jnp.full((3, 6, 6, 1), 0.5)
    x_adv = jax.jit(square(BALLS["linf"], queries=queries))(jax.tree_util.Partial(logits_fn), KEY, x, jnp.zeros(3, int))
    x_adv.block_until_ready()
    assert len(seen) == 1 + used
    # The start stays though it is no better than the clean image: from then on every pixel is at the ball's edge.
    np.testing.assert_allclose(np.abs(np.stack(seen)[1:] - 0.5), 0.05, rtol=1e-5)
    assert (x_adv != x).any() == (queries > used)


def test_a_model_that_breaks_is_fooled():
    """NaN logits are wrong, and the search leaves such an example alone."""
    logits_fn = lambda x: jnp.where(x[:, 0, 0] > 0.52, jnp.nan, 1.0) * jnp.array([1.0, -1.0])
    x = jnp.full((4, 6, 6, 1), 0.5)
    x_adv = jax.jit(square(BALLS["linf"], queries=50))(jax.tree_util.Partial(logits_fn), KEY, x, jnp.zeros(4, int))
    assert (x_adv[:, 0, 0] > 0.52).all() and jnp.isfinite(x_adv).all()


@pytest.mark.parametrize("options", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}])
def test_bad_options_are_told(options):
    with pytest.raises(L2LError, match="queries=0: give a whole number|p_init=.*: give a number above 0, up to 1"):
        square(BALLS["linf"], **options)


def test_the_radius_may_be_traced_and_other_balls_are_told():
    logits_fn, x, y = model(3)
    assert jax.eval_shape(lambda eps: square(threat.l2(eps))(logits_fn, KEY, x, y), 1.0).shape == x.shape
    with pytest.raises(L2LError, match="'l1': choose from linf, l2"):
        square(threat.l2(1.0)._replace(name="l1"))
