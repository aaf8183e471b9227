"""Attacks made of attacks: the best of several, restarts, which iterate is returned, targets."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, losses, threat
from l2ljax.attacks import steepest_ascent
from l2ljax.types import L2LError, example_keys, fold_in
from tests.victim import KEY, L2, LINF, LOGITS, X, Y

RNG = np.random.RandomState(0)


def shift(direction):
    """An attack that cares for its key only: a step of a random length along a direction."""

    def attack(logits_fn, key, x, y):
        lengths = jax.vmap(jax.random.uniform)(example_keys(key, len(x)))
        return x + lengths.reshape(-1, 1, 1, 1) * direction

    return attack


@pytest.mark.parametrize("combinator", ["best_of", "restarts", "random_noise"])
def test_the_largest_margin_is_taken(combinator):
    along = [RNG.normal(size=(8, 8, 1)).astype(np.float32) for _ in range(3)]
    members, made = {
        "best_of": ([shift(d) for d in along], attacks.best_of([shift(d) for d in along])),
        "restarts": ([shift(along[0])] * 3, attacks.restarts(shift(along[0]), 3)),
        "random_noise": ([lambda f, key, x, y: L2.sample(key, x)] * 3, attacks.random_noise(L2, samples=3)),
    }[combinator]

    @jax.jit
    def run():
        keys = example_keys(KEY, len(X))
        each = [member(LOGITS, fold_in(keys, i), jnp.asarray(X), Y) for i, member in enumerate(members)]
        each = jnp.stack(each if combinator == "random_noise" else [jnp.asarray(X), *each])
        return made(LOGITS, KEY, jnp.asarray(X), Y), each, jax.vmap(lambda x: losses.margin(LOGITS(x), Y))(each)

    x_adv, each, reached = jax.tree.map(np.asarray, run())
    best = reached.argmax(axis=0)
    assert len(set(best)) > 1
    chex.assert_trees_all_close(x_adv, each[best, np.arange(len(X))], atol=1e-6)


def test_a_member_that_breaks_the_model_hides_no_success_of_the_next():
    def brittle(x):
        return jnp.where(x[:, 0, 0] > 0.9, jnp.nan, jnp.where(x[:, 0, 0] > 0.5, 1.0, -1.0)) * jnp.array([1.0, -1.0])

    x, y = jnp.zeros((1, 6, 6, 1)), jnp.array([1])
    breaks, succeeds = (lambda *_, value=value: jnp.full_like(x, value) for value in (1.0, 0.6))
    for members in ([breaks, succeeds], [succeeds, breaks], [breaks]):
        x_adv = attacks.best_of(members)(brittle, KEY, x, y)
        assert losses.accuracy(brittle(x_adv), y) == 0, members


# Which iterate is returned


def ridge(x):
    """Logits of which class 1 wins near the gray 0.52 alone: steps of 0.03 leave that again."""
    margin = 0.012 - jnp.abs(x.mean(axis=(1, 2, 3)) - 0.52)
    return jnp.stack([jnp.zeros(len(x)), margin], axis=1)


def climb_the_ridge(keep, loss=losses.cross_entropy):
    """x_0..x_8 of PGD on `ridge` from images of several grays, and what PGD with `keep` returns."""
    x, y, ball = jnp.linspace(0.42, 0.62, 9).reshape(9, 1, 1, 1), jnp.zeros(9, int), threat.linf(0.2)
    rule = steepest_ascent(ball, 0.03)
    path = attacks.ascend(lambda x: (loss(ridge(x), y), ()), rule, ball, KEY, x, steps=8, start=attacks.clean).path
    pgd = attacks.pgd(ball, step_size=0.03, steps=8, start=attacks.clean, loss=loss, keep=keep)
    return np.stack([x, *path]), np.asarray(pgd(ridge, KEY, x, y)), y


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin], ids=["cross_entropy", "margin"])
def test_the_best_iterate_is_that_of_largest_loss(loss):
    path, best, y = climb_the_ridge("best", loss)
    at = np.stack([np.asarray(loss(ridge(x), y)) for x in path]).argmax(axis=0)
    assert len(set(at)) > 2 and not (at == 8).all()  # neither always the same nor always the last
    np.testing.assert_allclose(best, path[at, np.arange(9)], atol=1e-6)


def test_the_first_success_is_kept():
    path, first, y = climb_the_ridge("first")
    wrong = np.stack([np.asarray(ridge(x)).argmax(axis=1) != y for x in path])
    at = np.where(wrong.any(axis=0), wrong.argmax(axis=0), 8)
    assert (wrong.any(axis=0) & ~wrong[-1]).any() and len(set(at)) > 2  # the last iterate has lost some
    np.testing.assert_allclose(first, path[at, np.arange(9)], atol=1e-6)


def test_keep_takes_three_values():
    with pytest.raises(L2LError, match="keep=worst: give last or best or first"):
        attacks.pgd(LINF, step_size=0.1, steps=2, keep="worst")(LOGITS, KEY, X, Y)


def test_targeted_runs_go_to_the_likeliest_classes_and_the_strongest_counts():
    make = functools.partial(attacks.pgd, LINF, step_size=0.03, steps=4)
    x_adv = attacks.multi_targeted(lambda loss: make(loss=loss), target_classes=3)(LOGITS, KEY, X, Y)
    order = np.argsort(-np.where(np.eye(5, dtype=bool)[Y], np.inf, LOGITS(X)), axis=1)[:, 1:4]
    keys = example_keys(KEY, len(X))
    runs = np.stack([
        make(loss=lambda logits, _, t=t: -losses.cross_entropy(logits, t))(LOGITS, fold_in(keys, i), X, Y)
        for i, t in enumerate(order.T)
    ])  # fmt: skip
    strongest = np.stack([losses.margin(LOGITS(run), Y) for run in runs]).argmax(axis=0)
    chex.assert_trees_all_close(x_adv, runs[strongest, np.arange(len(X))], atol=1e-6)
    assert len(set(strongest)) > 1
    towards = np.asarray(losses.cross_entropy(LOGITS(runs[0]), order[:, 0]))
    assert (towards < losses.cross_entropy(LOGITS(X), order[:, 0])).all()  # its own class got likelier


def test_what_is_no_attack_and_no_function_is_refused():
    for make, message in (
        (lambda: attacks.best_of([attacks.fgsm(LINF), "fgsm"]), "an attack of best_of=fgsm: give an attack, like"),
        (lambda: attacks.cascade(["fgsm"]), "an attack of cascade=fgsm"),
        (lambda: attacks.restarts("fgsm", 2), "attack=fgsm: give an attack"),
        (lambda: attacks.targeted("fgsm"), "attack=fgsm: give an attack"),
        (lambda: attacks.pgd(LINF, step_size=0.1, steps=2, start="uniform"), "start=uniform: give a function"),
        (lambda: attacks.pgd(LINF, step_size=0.1, steps=2, loss="ce"), "loss=ce: give a function"),
        (lambda: attacks.apgd(LINF, loss=3), "loss=3: give a text, or a function"),
        (lambda: attacks.fgsm(LINF)({"w": X}, KEY, X, Y), "the model is a dict: give a function from images to logits"),
        (lambda: threat.create("linfty", 0.1), "norm=linfty: give linf or l2 or l1"),
    ):
        with pytest.raises(L2LError, match=message):
            make()


# Targeted


# Of 30 pairs of image and class, how many are reached at least (without an aim each image reaches one class): one step
# and few queries reach less, and C&W's steps add up to 0.1.
REACH = {
    "fgsm": 15, "pgd20": 25, "margin20": 25, "momentum20": 25, "bls10": 25, "pgd20+first": 25, "pgd20+best": 25,
    "pgd5+restarts3": 25, "cw100": 20, "apgd20": 25, "fab20": 25, "square200": 15,
}  # fmt: skip


@pytest.mark.parametrize("name", REACH)
def test_targeted_attacks_reach_the_class(name):
    ball = threat.linf(0.3)
    run = jax.jit(lambda target: attacks.targeted(attacks.create(name, ball), target)(LOGITS, KEY, X, Y))
    reached = 0
    for target in range(5):
        x_adv = run(target)
        assert float(ball.norm(x_adv - X).max()) <= 0.3 + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
        there = np.asarray(LOGITS(x_adv)).argmax(axis=1) == target
        assert there[target == Y].all() or name == "fgsm"
        reached += there.sum()
        if name in ("apgd20", "fab20", "square200"):  # which return the image itself where they fail
            still = (np.asarray(x_adv) == X).all(axis=(1, 2, 3))
            assert (there | still).all()
    assert reached >= REACH[name]


def test_a_targeted_step_is_the_closed_form_on_a_linear_model():
    w = RNG.randn(64, 5).astype(np.float32)
    logits_fn = lambda x: x.reshape(len(x), -1) @ w
    x_adv = attacks.targeted(attacks.fgsm(LINF), 2)(logits_fn, KEY, X, Y)
    others = np.where(np.arange(5) == 2, -np.inf, X.reshape(6, -1) @ w).argmax(axis=1)
    uphill = np.sign(w[:, [2]] - w[:, others]).T.reshape(X.shape)
    np.testing.assert_allclose(x_adv, (X + 0.1 * uphill).clip(0, 1), atol=1e-6)


def test_targets_are_an_argument_or_the_labels_and_may_differ_by_example():
    targets = np.array([0, 1, 2, 3, 4, 0])
    pgd = attacks.create("pgd5", LINF)
    expected = [attacks.targeted(pgd, int(t))(LOGITS, KEY, X, Y)[i] for i, t in enumerate(targets)]
    np.testing.assert_allclose(attacks.targeted(pgd, targets)(LOGITS, KEY, X, Y), np.stack(expected), atol=1e-6)
    np.testing.assert_allclose(attacks.targeted(pgd)(LOGITS, KEY, X, targets), np.stack(expected), atol=1e-6)
    with pytest.raises(L2LError, match=r"target=5: the model has the classes 0\.\.4"):
        attacks.targeted(pgd, 5)(LOGITS, KEY, X, Y)
