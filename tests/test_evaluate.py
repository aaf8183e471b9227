"""Evaluation counts right, does not depend on the batch size, and refuses what it cannot judge."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, losses, threat
from l2ljax.data import Split
from l2ljax.evaluate import check_logits, evaluate, loop, losses_of_draws, run_in_turn
from l2ljax.evaluate.masking import masking_checks
from l2ljax.evaluate.standard import run_standard_evaluation
from l2ljax.types import L2LError

BALL = threat.linf(0.1)
RNG = np.random.RandomState(0)
SPLIT = Split(RNG.randint(0, 256, (37, 4, 4, 1)).astype(np.uint8), RNG.randint(0, 3, 37).astype(np.int32))
WEIGHTS = jnp.asarray(RNG.randn(16, 3), jnp.float32)


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights


LOGITS_FN = jax.tree_util.Partial(linear, WEIGHTS)


def test_accuracies_are_counts_over_the_split():
    x = SPLIT.images.reshape(37, -1) / 255
    predicted = (x @ np.asarray(WEIGHTS)).argmax(1)
    clean = predicted == SPLIT.labels
    found = evaluate(LOGITS_FN, SPLIT, {"none": lambda f, k, x, y: x}, key=jax.random.key(0), batch_size=10)
    assert found.clean_acc == clean.mean() == found.attacks["none"].robust_acc == found.worst_case_acc
    np.testing.assert_array_equal(found.attacks["none"].correct, clean)
    assert found.classes_predicted == len(set(predicted.tolist()))


def test_the_worst_case_is_per_example_and_fooled_before_counts_as_fooled():
    even = lambda f, k, x, y: jnp.where((jnp.arange(len(x)) % 2 == 0)[:, None, None, None], 1 - x, x)
    odd = lambda f, k, x, y: jnp.where((jnp.arange(len(x)) % 2 == 1)[:, None, None, None], 1 - x, x)
    found = evaluate(LOGITS_FN, SPLIT, {"even": even, "odd": odd}, key=jax.random.key(0), batch_size=37)
    both = found.attacks["even"].correct & found.attacks["odd"].correct
    assert found.worst_case_acc == both.mean() < min(row.robust_acc for row in found.attacks.values())
    assert max(row.robust_acc for row in found.attacks.values()) <= found.clean_acc


def test_an_evaluation_of_a_half_precise_model_goes_on(tmp_path):
    """NumPy's files hold no bfloat16."""
    half = lambda x: linear(WEIGHTS, x).astype(jnp.bfloat16)
    x, how = SPLIT.images / np.float32(255), {"key": jax.random.key(0), "state_path": tmp_path / "state.npz"}
    first = run_in_turn(half, x, SPLIT.labels, {"pgd3": attacks.create("pgd3", BALL)}, **how)
    again = run_in_turn(half, x, SPLIT.labels, {"pgd3": attacks.create("pgd3", BALL)}, **how)
    np.testing.assert_array_equal(first.x_adv, again.x_adv)


@pytest.mark.parametrize("judge", ["evaluate", "in turn"])
def test_attacks_without_a_name_or_that_are_none_are_refused(judge):
    x = SPLIT.images / np.float32(255)
    judges = {
        "evaluate": lambda given: evaluate(LOGITS_FN, (x, SPLIT.labels), given, key=jax.random.key(0)),
        "in turn": lambda given: run_in_turn(LOGITS_FN, x, SPLIT.labels, given, key=jax.random.key(0)),
    }
    for given, message in (
        (attacks.fgsm(BALL), r"the attacks are a function.*: give {'pgd20': attacks\.create\('pgd20', ball\)}"),
        ([attacks.fgsm(BALL)], "the attacks are a list: give {'pgd20'"),
        ({"a": "fgsm"}, "the attack a=fgsm: give an attack, like attacks"),
    ):
        with pytest.raises(L2LError, match=message):
            judges[judge](given)
    with pytest.raises(L2LError, match="logits_fn=a dict: give a function"):
        evaluate({"w": WEIGHTS}, SPLIT, {}, key=jax.random.key(0))


def test_neither_the_batch_size_nor_padding_changes_a_result():
    table = {name: attacks.create(name, BALL) for name in ("fgsm", "pgd5", "random3")}
    results = [evaluate(LOGITS_FN, SPLIT, table, key=jax.random.key(1), batch_size=b) for b in (37, 8, 100, 1)]
    for other in results[1:]:
        for name in table:
            np.testing.assert_array_equal(other.attacks[name].correct, results[0].attacks[name].correct)
    assert results[0].attacks["pgd5"].robust_acc < results[0].clean_acc


def test_other_weights_do_not_compile_again():
    traced = []

    def counting(weights, x):
        traced.append(x.shape)
        return linear(weights, x)

    table = {"pgd2": attacks.create("pgd2", BALL)}
    evaluate(jax.tree_util.Partial(counting, WEIGHTS), SPLIT, table, key=jax.random.key(0), batch_size=37)
    compiled_with = traced.count((37, 4, 4, 1))
    traced.clear()
    evaluate(jax.tree_util.Partial(counting, 2 * WEIGHTS), SPLIT, table, key=jax.random.key(0), batch_size=37)
    assert 0 < len(traced) < compiled_with  # counting passes traces, compiling does not


def test_compiling_is_not_timed(monkeypatch):
    compiled = loop._compiled

    def slowly(*args):
        time.sleep(0.5)
        return compiled(*args)

    monkeypatch.setattr(loop, "_compiled", slowly)
    table = {"pgd12+first": attacks.create("pgd12+first", BALL)}
    x = np.float32(SPLIT.images) / 255
    evaluated = evaluate(LOGITS_FN, SPLIT, table, key=jax.random.key(0)).attacks
    in_turn = run_in_turn(LOGITS_FN, x, SPLIT.labels, table, key=jax.random.key(0), batch_size=37)
    assert 0 < evaluated["pgd12+first"].seconds < 0.5 and 0 < in_turn.seconds["pgd12+first"] < 0.5


def test_attacks_that_leave_the_range_or_return_nan_are_refused():
    for wrong in (lambda f, k, x, y: x + 2, lambda f, k, x, y: x * jnp.nan):
        with pytest.raises(L2LError, match=r"left \[0, 1\] or returned NaN in the batch from example 0 on"):
            evaluate(LOGITS_FN, SPLIT, {"wrong": wrong}, key=jax.random.key(0))


def test_models_and_splits_that_cannot_be_judged_are_refused():
    def judge(logits_fn, split=SPLIT):
        return evaluate(logits_fn, split, {}, key=jax.random.key(0))

    with pytest.raises(L2LError, match="no examples"):
        judge(LOGITS_FN, SPLIT.take(slice(0)))
    with pytest.raises(L2LError, match="probabilities: give its logits"):
        judge(lambda x: jax.nn.softmax(linear(WEIGHTS, x)))
    with pytest.raises(L2LError, match="NaN logits"):
        judge(lambda x: jnp.nan * linear(WEIGHTS, x))
    with pytest.raises(L2LError, match=r"labels reach from 0 to 2, the model has the classes 0..1"):
        judge(lambda x: linear(WEIGHTS[:, :2], x))
    with pytest.raises(L2LError, match="logits are"):
        judge(lambda x: linear(WEIGHTS, x)[..., None])


HOST = {
    "evaluate": lambda x, y, key: evaluate(LOGITS_FN, (x, y), {}, key=key),
    "run_in_turn": lambda x, y, key: run_in_turn(LOGITS_FN, x, y, {}, key=key),
    "losses_of_draws": lambda x, y, key: losses_of_draws(LOGITS_FN, (x, y), attacks.fgsm(BALL), key=key, draws=1),
    "masking_checks": lambda x, y, key: masking_checks(LOGITS_FN, (x, y), BALL, key=key),
}


@pytest.mark.parametrize("name", HOST)
def test_all_evaluations_refuse_the_same_arguments(name):
    x = np.float32(SPLIT.images) / 255
    good = {"x": x, "y": SPLIT.labels, "key": jax.random.key(0)}
    for bad, message in (
        ({"x": x.tolist()}, "images are a list: give an array"),
        ({"x": x - 1}, "scale them"),
        ({"x": x[:0], "y": SPLIT.labels[:0]}, "there are no examples"),
        ({"y": SPLIT.labels[:2]}, "37 images and 2 labels"),
        ({"y": [[1], [1, 2]]}, "labels are a list of several lengths: give integers"),
        ({"key": jax.random.split(good["key"], 3)}, r"\[3\] keys: give one"),
        ({"key": np.int64(-1)}, "the key is the seed -1"),
    ):
        with pytest.raises(L2LError, match=message):
            HOST[name](**{**good, **bad})


@pytest.mark.parametrize("data", [(1, 2, 3), (SPLIT.images,), {"images": SPLIT.images}, "digits"], ids=type)
def test_data_that_are_no_pair_are_refused(data):
    key = jax.random.key(0)
    for use in (
        lambda: evaluate(LOGITS_FN, data, {}, key=key),
        lambda: losses_of_draws(LOGITS_FN, data, attacks.fgsm(BALL), key=key, draws=1),
        lambda: masking_checks(LOGITS_FN, data, BALL, key=key),
    ):
        with pytest.raises(L2LError, match=r"the examples are .*: give \(images, labels\)"):
            use()
    for only in (None, 3):
        with pytest.raises(L2LError, match=f"only={only}: give names of attacks"):
            run_standard_evaluation(LOGITS_FN, SPLIT.images, SPLIT.labels, ball=BALL, key=key, only=only)


X, Y = np.zeros((2, 4, 4, 1), np.float32), np.array([0, 2])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_probabilities_of_any_precision_are_no_logits(dtype, classes):
    y = np.arange(8)
    logits = jnp.asarray(np.random.RandomState(0).normal(0, 3, (8, classes)), dtype)
    with pytest.raises(L2LError, match="the model returns probabilities"):
        check_logits(jax.nn.softmax(logits), y)
    for sound in (logits, jnp.abs(logits), jax.nn.softmax(logits) * 1.02):
        check_logits(sound, y)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (np.zeros((2, 4, 4, 1), np.uint8), Y, r"images are uint8: give floats in \[0, 1\]"),
        (X, np.eye(3)[Y], "one-hot ones y.argmax"),
        (X, Y.astype(np.float32), "give integers"),
        (X, Y[:1], "2 images and 1 labels"),
    ],
)
def test_attacks_tell_wrong_types_and_shapes_under_jit(x, y, message):
    for name in ("pgd2", "margin2"):
        with pytest.raises(L2LError, match=message):
            jax.jit(attacks.create(name, BALL))(LOGITS_FN, jax.random.key(0), x, y)


def test_losses_of_draws_are_those_of_other_keys_at_the_same_examples():
    noise = attacks.random_signs(BALL)
    found = losses_of_draws(LOGITS_FN, SPLIT, noise, key=jax.random.key(2), draws=3, batch_size=10)
    assert found.shape == (3, 1, 37)
    np.testing.assert_allclose(
        found, losses_of_draws(LOGITS_FN, SPLIT, noise, key=jax.random.key(2), draws=3), rtol=1e-5
    )
    assert (found.std(axis=0) > 1e-4).all()
    x, key = jnp.float32(SPLIT.images) / 255, jax.random.split(jax.random.key(2), 3)[1]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(37))
    x_adv = noise(LOGITS_FN, keys, x, SPLIT.labels)
    assert set(np.unique(np.round(np.abs(x_adv - x), 4)[(x > 0.1) & (x < 0.9)])) == {np.float32(0.1)}
    np.testing.assert_allclose(found[1, 0], losses.cross_entropy(LOGITS_FN(x_adv), SPLIT.labels), rtol=1e-4)


def test_keys_of_all_forms_are_the_same_keys():
    table = {"noise": attacks.random_signs(BALL)}
    expected = evaluate(LOGITS_FN, SPLIT, table, key=jax.random.key(3)).attacks["noise"].correct
    x = np.float32(SPLIT.images) / 255
    in_turn = run_in_turn(LOGITS_FN, x, SPLIT.labels, table, key=jax.random.key(3))
    draws = losses_of_draws(LOGITS_FN, SPLIT, table["noise"], key=jax.random.key(3), draws=2)
    for key in (jax.random.PRNGKey(3), 3):
        np.testing.assert_array_equal(evaluate(LOGITS_FN, SPLIT, table, key=key).attacks["noise"].correct, expected)
        again = run_in_turn(LOGITS_FN, x, SPLIT.labels, table, key=key)
        np.testing.assert_array_equal(again.x_adv, in_turn.x_adv)
        drawn = losses_of_draws(LOGITS_FN, SPLIT, table["noise"], key=key, draws=2)
        np.testing.assert_array_equal(drawn, draws)
    with pytest.raises(L2LError, match="the key is a str: give jax.random.key"):
        evaluate(LOGITS_FN, SPLIT, {}, key="3")
