"""APGD against golden traces of AutoAttack in float64 (tests/golden/make_apgd.py), and what its attacks promise."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, losses, threat
from l2ljax.attacks import adaptive_ascent, auto_pgd
from l2ljax.types import L2LError, example_keys

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "apgd.npz"))
STEPS = 40
KEY = jax.random.key(0)
TRACES = []


def network(weights, x):
    TRACES.append(x.shape)
    return jnp.tanh((x - 0.5).reshape(len(x), -1) @ weights["w1"]) @ weights["w2"]


# Against the released code


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_the_trace_equals_the_released_codes(norm, loss):
    golden = {name.split("/")[-1]: a for name, a in GOLDEN.items() if name.startswith(f"{norm}/{loss}/")}
    with jax.enable_x64(True):
        logits_fn = functools.partial(network, GOLDEN)
        per_example = {"targeted": lambda z, y: losses.dlr_targeted(z, y, GOLDEN["target"])} | auto_pgd.LOSSES
        gradient_fn = auto_pgd.gradients(per_example[loss], logits_fn, GOLDEN["y"], KEY)
        ball = threat.BALLS[norm](float(GOLDEN[f"{norm}/eps"]))
        climb = jax.jit(
            lambda x, start: adaptive_ascent.ascend_adaptively(gradient_fn, ball, x, start, steps=STEPS, trace=True)
        )(GOLDEN["x"], GOLDEN[f"{norm}/start"])
    np.testing.assert_allclose(climb.trace.x, golden["x"], rtol=0, atol=4e-8)  # which is stored as float32
    np.testing.assert_allclose(climb.trace.step_sizes[:-1], golden["step_sizes"], rtol=1e-12)
    np.testing.assert_allclose(climb.trace.best_losses, golden["best_losses"], rtol=1e-8)
    np.testing.assert_allclose(np.asarray(climb.trace.losses).max(axis=0), golden["best_losses"][-1], rtol=1e-8)
    np.testing.assert_allclose(climb.best, golden["best"], rtol=0, atol=1e-10)
    np.testing.assert_array_equal(climb.fooled, golden["fooled"])
    np.testing.assert_allclose(climb.adversarial, golden["adversarial"], rtol=0, atol=1e-10)


def test_step_sizes_equal_the_released_codes_for_all_kinds_of_losses():
    """Random walks as losses, wherever the images are: some stand still over a window in which most steps rise."""
    script = jnp.asarray(GOLDEN["losses"], jnp.float32)
    x = jnp.zeros((script.shape[1], 2, 2, 1))
    gradient_fn = lambda x, t: (jnp.zeros_like(x), script[t], jnp.zeros(len(x), bool))
    climb = adaptive_ascent.ascend_adaptively(gradient_fn, threat.linf(0.5), x, x, steps=STEPS, trace=True)
    np.testing.assert_array_equal(climb.trace.step_sizes[:-1], GOLDEN["step_sizes"])
    np.testing.assert_array_equal(climb.best_loss, GOLDEN["losses"].max(axis=0))


@pytest.mark.parametrize("norm, loss", [("linf", "ce"), ("l2", "dlr"), ("linf", "targeted"), ("l2", "targeted")])
def test_the_attack_equals_the_released_codes(norm, loss):
    """With all runs starting at the same offset; the last example is misclassified from the beginning."""
    offset = GOLDEN[f"{norm}/offset"]
    start = lambda ball, key, x0: jnp.clip(x0 + offset, 0, 1)
    make = auto_pgd.apgd_targeted if loss == "targeted" else functools.partial(auto_pgd.apgd, loss=loss)
    with jax.enable_x64(True):
        attack = make(threat.BALLS[norm](float(GOLDEN[f"{norm}/eps"])), steps=STEPS, start=start)
        x_adv = jax.jit(attack)(jax.tree_util.Partial(network, GOLDEN), KEY, GOLDEN["x"], GOLDEN["labels"])
    expected = GOLDEN[f"{norm}/{loss}/perturbed"]
    np.testing.assert_allclose(x_adv, expected, rtol=0, atol=1e-10)
    assert (expected[1] != GOLDEN["x"][1]).any() and (expected[3] == GOLDEN["x"][3]).all()


@pytest.mark.parametrize(
    "steps, windows",
    [
        (100, [22, 19, 16, 13, 10, 7, 6, 6]),
        (37, [8, 7, 6, 5, 4, 3, 2, 2]),
        (10, [2, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_checkpoints_are_the_released_codes(steps, windows):
    times = np.cumsum(windows)
    assert adaptive_ascent.checkpoints(steps) == list(zip(times, windows, strict=True))
    assert times[-1] <= steps < times[-1] + windows[-1]
    if steps == 100:
        assert list(times) == [22, 41, 57, 70, 80, 87, 93, 99]  # the fractions of the paper's section 3.1


# The losses

RNG = np.random.RandomState(0)
Z, LABELS, TARGETS = RNG.normal(0, 3, (12, 6)), RNG.randint(0, 6, 12), RNG.randint(0, 6, 12)


def test_dlr_equals_numpy():
    sorted_z = -np.sort(-Z, axis=1)
    true, wanted = Z[np.arange(12), LABELS], Z[np.arange(12), TARGETS]
    other = np.array([np.delete(z, y).max() for z, y in zip(Z, LABELS, strict=True)])
    with jax.enable_x64(True):
        got, targeted = losses.dlr(Z, LABELS), losses.dlr_targeted(Z, LABELS, TARGETS)
    np.testing.assert_allclose(got, (other - true) / (sorted_z[:, 0] - sorted_z[:, 2]), rtol=1e-9)
    expected = (wanted - true) / (sorted_z[:, 0] - (sorted_z[:, 2] + sorted_z[:, 3]) / 2)
    np.testing.assert_allclose(targeted, expected, rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(got) > 0, Z.argmax(axis=1) != LABELS)


def test_dlr_sees_no_scale_and_no_shift():
    for loss in (losses.dlr, lambda z, y: losses.dlr_targeted(z, y, TARGETS)):
        chex.assert_trees_all_close(loss(1e3 * Z + 50, LABELS), loss(Z, LABELS), rtol=1e-3)
        values, gradient = jax.jit(jax.value_and_grad(lambda z, f=loss: f(z, LABELS).sum()))(jnp.zeros((12, 6)))
        assert values == 0 and jnp.isfinite(gradient).all()  # equal logits divide by 1e-12, not by 0


def test_too_few_classes_are_told_what_to_do():
    with pytest.raises(L2LError, match="dlr needs 3 classes and the model has 2: ascend the cross-entropy"):
        losses.dlr(Z[:, :2], LABELS % 2)
    with pytest.raises(L2LError, match="dlr_targeted needs 4 classes and the model has 3: use dlr"):
        losses.dlr_targeted(Z[:, :3], LABELS % 3, TARGETS % 3)
    for make, fix in ((functools.partial(auto_pgd.apgd, loss="dlr"), "needs 3"), (auto_pgd.apgd_targeted, "needs 4")):
        with pytest.raises(L2LError, match=fix):
            make(LINF, steps=1)(lambda x: x.reshape(len(x), -1)[:, :2], KEY, jnp.asarray(X), Y % 2)
    with pytest.raises(L2LError, match="unknown loss 'cw': choose from ce, dlr"):
        auto_pgd.apgd(LINF, loss="cw")


# What the attacks promise

WEIGHTS = {
    "w1": RNG.normal(0, 0.5, (64, 16)).astype(np.float32),
    "w2": RNG.normal(0, 1.0, (16, 5)).astype(np.float32),
}
X = RNG.uniform(-0.2, 1.2, (6, 8, 8, 1)).clip(0, 1).astype(np.float32)  # with black and white pixels
Y = np.asarray(network(WEIGHTS, X).argmax(axis=1))
LOGITS = jax.tree_util.Partial(network, WEIGHTS)
LINF, L2 = threat.linf(0.04), threat.l2(0.25)  # in which some examples hold out
MAKE = {
    "ce": lambda ball: auto_pgd.apgd(ball, steps=10),
    "dlr": lambda ball: auto_pgd.apgd(ball, steps=10, loss="dlr", restarts=2),
    "targeted": lambda ball: auto_pgd.apgd_targeted(ball, steps=10),
}
CASES = [("ce", LINF), ("dlr", L2), ("targeted", L2)]
each_attack = pytest.mark.parametrize("case", range(len(CASES)))


@functools.cache
def compiled(case):
    name, ball = CASES[case]
    return jax.jit(MAKE[name](ball))


def attack(case, logits_fn=LOGITS, key=KEY, x=X, y=Y):
    return np.asarray(compiled(case)(logits_fn, key, x, y))


@each_attack
def test_what_is_returned_is_the_clean_image_or_adversarial(case):
    ball = CASES[case][1]
    y = np.where(np.arange(6) == 5, (Y + 1) % 5, Y)  # the last one is wrong already
    x_adv = attack(case, y=y)
    assert ball.norm(x_adv - X).max() <= ball.eps * (1 + 1e-5)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    moved = (x_adv != X).any(axis=(1, 2, 3))
    assert moved[:5].any() and not moved[:5].all() and not moved[5]
    np.testing.assert_array_equal(losses.accuracy(LOGITS(x_adv), y), ~moved & (np.arange(6) < 5))


@each_attack
def test_compiling_changes_nothing(case):
    name, ball = CASES[case]
    chex.assert_trees_all_close(attack(case), MAKE[name](ball)(LOGITS, KEY, jnp.asarray(X), Y), atol=1e-5)


@each_attack
@pytest.mark.usefixtures("float64")  # in single precision the last bit decides whether a step is halved
def test_other_weights_do_not_recompile_and_the_key_decides(case):
    weights = jax.tree.map(np.float64, WEIGHTS)
    run = lambda w2, **others: attack(
        case, jax.tree_util.Partial(network, weights | {"w2": w2}), **{"x": X.astype(float), **others}
    )
    w2, turned = weights["w2"], weights["w2"][:, ::-1]
    before = run(w2)
    traced = len(TRACES)
    assert np.abs(run(turned, y=4 - Y) - before).max() < 1e-5
    assert np.abs(run(turned) - before).max() > 1e-3
    np.testing.assert_array_equal(run(w2), before)
    if CASES[case][1] is L2:  # linf ends in a corner, wherever it starts
        assert np.abs(run(w2, key=jax.random.key(1)) - before).max() > 1e-3
    assert len(TRACES) == traced


@each_attack
def test_examples_do_not_depend_on_their_neighbours(case):
    keys = example_keys(KEY, len(X))
    parts = [attack(case, key=keys[i : i + 2], x=X[i : i + 2], y=Y[i : i + 2]) for i in range(0, len(X), 2)]
    chex.assert_trees_all_close(np.concatenate(parts), attack(case), atol=1e-5)


@pytest.mark.parametrize("ball", [LINF, L2], ids=["linf", "l2"])
def test_the_start_is_on_the_surface(ball):
    x = jnp.full((500, 2, 2, 1), 0.5)
    moved = jax.jit(lambda x: auto_pgd.surface(ball, KEY, x) - x)(x)
    np.testing.assert_allclose(ball.norm(moved), ball.eps, rtol=1e-5)
    size = np.abs(np.asarray(moved) / ball.eps).mean()
    # linf: one of four at the edge, the others uniform; l2: the mean |coordinate| of the sphere in four dimensions
    np.testing.assert_allclose(size, (1 + 3 * 0.5) / 4 if ball is LINF else 8 / (6 * np.pi), rtol=0.05)


@pytest.mark.parametrize("ball", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.usefixtures("float64")
def test_the_best_point_is_no_worse_than_pgds(ball):
    """From the same starts, in 100 steps; PGD's step is its usual one.

    In linf both end in the same corner. In l2 APGD may stay at another maximum: an image's loss is 0.4 % lower here.
    """
    x, logits_fn = X.astype(float), jax.tree_util.Partial(network, jax.tree.map(np.float64, WEIGHTS))

    @jax.jit
    def both():
        start = auto_pgd.surface(ball, KEY, jnp.asarray(x))
        gradient_fn = auto_pgd.gradients(losses.cross_entropy, logits_fn, Y, KEY)
        climb = adaptive_ascent.ascend_adaptively(gradient_fn, ball, jnp.asarray(x), start, steps=100)
        pgd = attacks.pgd(ball, step_size=ball.eps / 10, steps=100, start=lambda *_: start)
        reached = [losses.cross_entropy(logits_fn(x), Y) for x in (climb.best, pgd(logits_fn, KEY, jnp.asarray(x), Y))]
        return climb.best_loss, *reached, losses.cross_entropy(logits_fn(start), Y)

    best_loss, at_best, at_pgds, at_start = map(np.asarray, both())
    np.testing.assert_allclose(best_loss, at_best, rtol=1e-5)
    assert (best_loss >= at_pgds * (1 - (1e-9 if ball is LINF else 0.01))).all()
    assert (best_loss > 1.2 * at_start).all()


def test_runs_end_with_the_first_success_and_draw_their_own_starts():
    """A model that is fooled by the start alone: more runs fool more, and change nothing of what fell before."""
    x = jnp.full((40, 2, 2, 1), 0.5)
    logits_fn = lambda x: jax.lax.stop_gradient(jnp.stack([x[:, 0, 0, 0] - 0.53, 0 * x[:, 0, 0, 0]], axis=1))
    run = lambda n: auto_pgd.apgd(LINF, steps=1, restarts=n)(logits_fn, KEY, x, jnp.ones(40, int))
    one, five = map(np.asarray, jax.jit(lambda: (run(1), run(5)))())
    fell = (one != 0.5).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(one[fell], five[fell])
    assert 0.05 < fell.mean() < 0.4 < (five != 0.5).any(axis=(1, 2, 3)).mean() < 0.95


def test_targets_one_by_one_are_the_targets_together():
    one = jax.jit(lambda rank: auto_pgd.apgd_targeted(L2, steps=10, target_classes=1, first=rank)(LOGITS, KEY, X, Y))
    parts = [np.asarray(one(rank)) for rank in range(4)]
    fell = np.array([(part != X).any(axis=(1, 2, 3)) for part in parts])
    expected = [parts[fell[:, i].argmax()][i] if fell[:, i].any() else X[i] for i in range(6)]
    chex.assert_trees_all_close(np.stack(expected), attack(CASES.index(("targeted", L2))), atol=1e-5)
    assert len(set(map(tuple, fell.T))) > 2 and not fell.any(axis=0).all()


def test_gradients_of_a_stochastic_model_are_means_of_its_draws():
    """Logits (x + n) c in a noise n per example: the gradient of the margin is the mean of c, no draw like another."""

    def stochastic(x, keys):
        c = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
        return jnp.stack([(c * x).sum((1, 2, 3)), jnp.zeros(len(x))], axis=1)

    x, y = jnp.asarray(X[:3]), jnp.ones(3, int)

    @jax.jit
    def run():
        of = lambda eot: auto_pgd.gradients(losses.margin, stochastic, y, example_keys(KEY, 3), eot)
        x_adv = auto_pgd.apgd(LINF, steps=3, loss=losses.margin, eot=2)(stochastic, KEY, x, y)
        return of(400)(x, 0)[0], *jax.vmap(lambda t: of(2)(x, t)[0])(jnp.arange(2)), x_adv

    many, two, other_two, x_adv = map(np.asarray, run())
    assert 0.8 / 20 < many.std() < 1.2 / 20
    assert 0.8 < (two - other_two).std() < 1.2  # of two independent means of two
    assert np.abs(many[0] - many[1]).max() > 1e-3
    assert LINF.norm(x_adv - x).max() <= LINF.eps * (1 + 1e-5)


def test_the_nearest_targets_of_a_stochastic_model_are_those_of_one_draw():
    """A model that ignores its keys is attacked as without them."""
    ignoring = lambda x, keys: LOGITS(x)
    make = lambda eot: auto_pgd.apgd_targeted(L2, steps=3, target_classes=2, order="nearest", eot=eot)
    one, two = jax.jit(lambda: (make(1)(LOGITS, KEY, X, Y), make(2)(ignoring, KEY, X, Y)))()
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert (one != X).any()


def test_a_model_that_breaks_gives_no_broken_images():
    brittle = lambda x: jnp.sqrt(0.51 - x[:, 0, 0]) * jnp.array([-1.0, 1.0])  # NaN above, and so is its gradient
    x = jnp.full((2, 2, 2, 1), 0.5)
    attack = auto_pgd.apgd(LINF, steps=20, loss=losses.margin)
    x_adv = np.asarray(jax.jit(lambda: attack(brittle, KEY, x, jnp.ones(2, int)))())
    assert np.isfinite(x_adv).all() and (x_adv[:, 0, 0, 0] > 0.5099).all()
