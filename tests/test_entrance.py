"""The entrance of all attacks: what they take, and which options their names have."""

import inspect
import itertools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import settings

from l2ljax import attacks, evaluate, threat
from l2ljax.attacks import ensemble, entrance, learned, names
from l2ljax.types import L2LError, example_keys
from l2ljax.values import Range

few = settings(max_examples=6, derandomize=True, deadline=None, database=None)
KEY, LINF = jax.random.key(0), threat.linf(0.1)
RNG = np.random.RandomState(0)
X, Y = RNG.uniform(size=(3, 4, 4, 2)).astype(np.float32), np.array([0, 4, 2])
WEIGHTS = RNG.normal(size=(32, 5)).astype(np.float32)


def linear(x):
    return x.reshape(len(x), -1) @ WEIGHTS[: x[0].size].astype(x.dtype)


def quickly(name, ball=LINF):
    """The attack of that name with the least number of steps, or the given one."""
    return attacks.create(name if attacks.FAMILIES.get(name, None) is None or name == "fgsm" else f"{name}2", ball)


SHORT = [*attacks.FAMILIES, "pgd2+first", "pgd2+best", "pgd2+targeted", "pgd2+restarts2"]
OTHERS = {
    "random_signs": attacks.random_signs(LINF),
    "fab": attacks.fab(LINF, steps=2),
    "targeted": attacks.targeted(attacks.fgsm(LINF), 1),
    "cascade": attacks.cascade([attacks.fgsm(LINF)]),
    "autoattack": attacks.autoattack(LINF),
}
EVERY = {**{name: quickly(name) for name in SHORT}, **OTHERS}


# Arguments


BAD = {
    "uint8": (dict(x=(255 * X).astype(np.uint8)), r"images are uint8: give floats in \[0, 1\]"),
    "a list": (dict(x=X.tolist()), "images are a list"),
    "too large": (dict(x=2 * X), r"scale them to \[0, 1\]"),
    "negative": (dict(x=-X), r"scale them to \[0, 1\]"),
    "NaN": (dict(x=np.nan * X), "without NaN"),
    "one image": (dict(x=X[:, 0, 0, 0]), r"shape \[3\]: give \[B, H, W, C\]"),
    "no images": (dict(x=X[:0], y=Y[:0]), "B of 1 or more"),
    "one-hot": (dict(y=np.eye(5)[Y]), "for one-hot ones y.argmax"),
    "float labels": (dict(y=Y.astype(np.float32)), "give integers"),
    "too few labels": (dict(y=Y[:2]), "3 images and 2 labels"),
    "a list of labels": (dict(y=[0, 1, 2]), "labels are a list"),
    "a text": (dict(key="0"), "the key is a str"),
    "a negative seed": (dict(key=-1), "the key is the seed -1"),
    "NumPy's negative seed": (dict(key=np.int32(-1)), "the key is the seed -1"),
    "NumPy's large seed": (dict(key=np.int64(2**40)), "the key is the seed 1099511627776"),
    "a large seed": (dict(key=2**32), "the key is the seed 4294967296"),
    "too few keys": (dict(key=jax.random.split(KEY, 2)), r"\[2\] keys for 3 examples"),
    "a table of keys": (dict(key=jax.random.split(KEY, (3, 2))), r"\[3, 2\] keys for 3 examples"),
}
BAD_MODELS = {
    "labels": (linear, dict(y=Y + 1), r"labels reach from 1 to 5, the model has the classes 0\.\.4"),
    "negative labels": (linear, dict(y=Y - 1), "labels reach from -1"),
    "tuple": (lambda x: (linear(x), x), {}, "the model returned a tuple"),
    "dict": (lambda x: {"logits": linear(x)}, {}, "the model returned a dict"),
    "shape": (lambda x: linear(x)[..., None], {}, r"returned float32 \[3, 5, 1\] for 3 images"),
    "sum": (lambda x: linear(x).sum(axis=0, keepdims=True), {}, r"returned float32 \[1, 5\] for 3 images"),
    "classes": (lambda x: linear(x).argmax(axis=1), {}, r"returned int32 \[3\]"),
    "one logit": (lambda x: linear(x)[:, :1], {}, "one logit per image"),
}


@pytest.mark.parametrize("name", EVERY)
def test_all_attacks_refuse_the_same_arguments(name):
    for change, message in BAD.values():
        arguments = {"key": KEY, "x": X, "y": Y, **change}
        with pytest.raises(L2LError, match=message):
            EVERY[name](linear, *arguments.values())
    if name in ("random_signs", "random"):  # the labels and the model do not matter, or to its end alone
        return
    for model, change, message in BAD_MODELS.values():
        with pytest.raises(L2LError, match=message):
            EVERY[name](model, *{"key": KEY, "x": X, "y": Y, **change}.values())


def test_all_attacks_take_images_of_any_dimensions_or_say_which():
    shapes = itertools.cycle([(3, 32), (3, 8, 4), (3, 2, 4, 2, 2)])
    for name in ("pgd", "random", "cw_l2", "apgd", "fab", "square", "random_signs"):
        attack = EVERY[name]
        shape = next(shapes)
        x = jnp.asarray(X.reshape(shape))
        if name == "square":  # and AutoAttack, which has it
            with pytest.raises(L2LError, match=r"square changes windows of \[B, H, W, C\]"):
                attack(linear, KEY, x, Y)
        else:
            assert jax.eval_shape(lambda x, attack=attack: attack(linear, KEY, x, Y), x).shape == shape
    with pytest.raises(L2LError, match="images have the shape"):
        evaluate.run_standard_evaluation(linear, X.reshape(3, 32), Y, ball=LINF, key=KEY)


def test_keys_of_all_forms_are_taken():
    x_adv = attacks.random_signs(LINF)(linear, KEY, X, Y)
    for key in (0, np.int64(0), jax.random.PRNGKey(0), example_keys(KEY, 3)):
        np.testing.assert_array_equal(attacks.random_signs(LINF)(linear, key, X, Y), x_adv)


def test_another_byte_order_is_taken():
    attack = attacks.pgd(LINF, step_size=0.05, steps=2)
    turned = X.astype(">f4"), Y.astype(">i8")
    np.testing.assert_array_equal(attack(linear, KEY, *turned), attack(linear, KEY, X, Y))
    assert (
        evaluate.evaluate(linear, turned, {}, key=KEY).clean_acc
        == evaluate.evaluate(linear, (X, Y), {}, key=KEY).clean_acc
    )


def test_networks_that_are_not_ready_say_what_they_lack():
    class Net(nnx.Module):
        def __init__(self):
            self.norm, self.linear = nnx.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.Linear(32, 5, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(self.norm(x).reshape(len(x), -1))

    attack, net = attacks.fgsm(LINF), Net()
    for model, message in ((net, "Net is in training mode: call model.eval"), (linen.Dense(5), "Dense has no weights")):
        with pytest.raises(L2LError, match=message):
            attack(model, KEY, X, Y)
        with pytest.raises(L2LError, match=message):
            evaluate.evaluate(model, (X, Y), {}, key=KEY)
    net.eval()
    assert attack(net, KEY, X, Y).shape == X.shape


def test_attacks_of_no_attacks_and_targets_that_are_no_classes_are_refused():
    for name in ("best_of", "cascade"):
        for none in ([], iter(())):
            with pytest.raises(L2LError, match=f"{name} has no attacks: give one or more"):
                getattr(attacks, name)(none)
    for target in ("3", 3.0, True, [1, 2], np.ones(3)):
        with pytest.raises(L2LError, match="target=.*: give a class, an integer"):
            attacks.targeted(EVERY["fgsm"], target)


@pytest.mark.parametrize("ball", [0.1, "linf", threat.linf], ids=["number", "text", "function"])
def test_a_ball_that_is_none_is_refused(ball):
    for use in (
        lambda: attacks.create("pgd2", ball),
        lambda: attacks.parameters("pgd2", ball),
        lambda: attacks.pgd(ball, step_size=0.1, steps=2),
        lambda: attacks.random_signs(ball),
        lambda: attacks.autoattack(ball),
        lambda: evaluate.run_standard_evaluation(linear, X, Y, ball=ball, key=KEY),
        lambda: evaluate.run_in_turn(linear, X, Y, {}, ball=ball, key=KEY),
        lambda: evaluate.evaluate(linear, (X, Y), {}, ball=ball, key=KEY),
    ):
        with pytest.raises(L2LError, match=r"^ball=.*: give threat\.linf\(8/255\)"):
            use()


def test_a_users_attack_that_draws_from_one_key_is_named():
    def mine(logits_fn, key, x, y):
        return LINF.project(x + jax.random.normal(key, x.shape), x)

    for attack in (
        lambda: attacks.restarts(mine, 2)(linear, KEY, X, Y),
        lambda: attacks.best_of([mine])(linear, 0, X, Y),
    ):
        with pytest.raises(L2LError, match="draws from one key but gets a key per example"):
            attack()
    with pytest.raises(L2LError, match="draws from one key but gets a key per example"):
        evaluate.evaluate(linear, (X, Y), {"mine": mine}, key=KEY)
    with pytest.raises(L2LError, match=r"the attack returned \[3, 4\] for images \[3, 4, 4, 2\]"):
        evaluate.evaluate(linear, (X, Y), {"mine": lambda f, key, x, y: x[:, :, 0, 0]}, key=KEY)


# Options


def options(make):
    """The keywords of a function that have a range, as (name, range)."""
    for name, parameter in inspect.signature(make, eval_str=True).parameters.items():
        for note in get_args(parameter.annotation)[1:]:
            if isinstance(note, Range):
                yield name, note


MAKERS = [
    attacks.pgd, attacks.momentum, attacks.line_search, attacks.backtracking, attacks.random_noise, attacks.l2l_da_cw,
    attacks.l2l_cw, attacks.cw_l2, attacks.apgd, attacks.apgd_targeted, attacks.fab, attacks.fab_targeted,
    attacks.minimal_perturbation, attacks.square, attacks.restarts, attacks.multi_targeted, learned.recurrent,
    learned.convolutional, attacks.ascend, attacks.gradient_attack,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_options_have_ranges(make):
    required = {
        name: LINF if name == "ball" else EVERY["fgsm"] if name in ("attack", "make", "loss_fn", "rule") else 1
        for name, p in inspect.signature(make).parameters.items()
        if p.default is inspect.Parameter.empty
    }
    ranges = list(options(make))
    assert ranges
    for name, allowed in ranges:
        for value in (-1, math.nan, math.inf, "abc", None, [1], allowed.low - 1, *([allowed.low] * allowed.above)):
            with pytest.raises(L2LError, match=f"^{name}="):
                make(**{**required, name: value})


def test_numbers_of_jax_and_numpy_pass_wherever_floats_do():
    eps, step = jnp.float32(0.1), jnp.float32(0.05)
    for number in (lambda a: a, np.asarray):
        ball = threat.linf(number(eps))
        assert type(ball.eps) is float and hash(ball)
        attacks.pgd(ball, step_size=number(step), steps=np.int64(2))(linear, KEY, X, Y)
        assert ensemble.stages(ball, "standard", num_classes=10) is ensemble.stages(ball, "standard", num_classes=10)


@pytest.mark.parametrize(
    "name",
    [
        "pgd2+best+best", "pgd2+best+first", "pgd2+restarts2+restarts3", "pgd2+targeted+targeted", "pgd" + 20 * "9",
        "pgd10000000", "pgd2+restarts" + 20 * "9", "pgd٣", "pgd\uff12", "pgd2+restarts\uff12", "pgd2@ľ2l", "pgd02",
        "pgd2+", "",
    ],
)  # fmt: skip
def test_names_are_plain_ascii_with_each_option_once(name):
    with pytest.raises(L2LError):
        attacks.create(name, LINF)


@pytest.mark.parametrize("name", ["naïve", "mine(", "my attack", "2fast", "", "pgd9"])
def test_registered_names_are_plain_words(name):
    with pytest.raises(L2LError, match="name"):
        names.register(name, attacks.fgsm)


def test_the_arguments_of_an_attack_are_typed():
    model, keys, x, y = entrance.enter(linear, 0, X.astype(np.float16), Y)
    assert x.dtype == jnp.float32 and keys.shape == (3,) and y.shape == (3,)
    assert model(x).dtype == jnp.float16
