"""Attacks by name: each is the call that it is short for, options are told apart, mistakes name what there is."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, losses, threat
from l2ljax.attacks.names import parameters
from l2ljax.types import L2LError
from tests.test_attacks import KEY, LINF, LOGITS, X, Y


@pytest.mark.parametrize(
    "name, same",
    [
        ("pgd4+best", lambda ball: attacks.pgd(ball, step_size=0.625 * ball.eps, steps=4, keep="best")),
        ("fgsm+restarts2", lambda ball: attacks.restarts(attacks.fgsm(ball), 2)),
        ("bls3+first", lambda ball: attacks.line_search(ball, max_step=ball.eps, steps=3, keep="first")),
        ("cw5", lambda ball: attacks.l2l_da_cw(ball, steps=5)),
        ("l2l_cw3", lambda ball: attacks.l2l_cw(ball, steps=3)),
        ("cw_l25", lambda ball: attacks.cw_l2(steps=5)),
        ("apgd_t3", lambda ball: attacks.apgd_targeted(ball, steps=3)),
        (
            "margin4+targeted",
            lambda ball: attacks.multi_targeted(
                lambda loss: attacks.pgd(ball, step_size=0.625 * ball.eps, steps=4, loss=loss),
                loss=losses.margin,
            ),
        ),
    ],
)
def test_names_are_short_for_calls(name, same):
    got, expected = (jax.jit(make(LINF))(LOGITS, KEY, X, Y) for make in (functools.partial(attacks.create, name), same))
    chex.assert_trees_all_close(got, expected, atol=1e-6)


def test_a_targeted_margin_is_not_clipped_where_the_target_is_far():
    """The scale of the logits changes nothing, though by 1024 they differ by more than kappa = 50."""
    attack = attacks.create("margin5+targeted", LINF)
    one, large = (attack(logits_fn, KEY, X, Y) for logits_fn in (LOGITS, lambda x: 1024 * LOGITS(x)))
    assert jnp.abs(losses.margin(1024 * LOGITS(X), Y)).min() > 50
    np.testing.assert_array_equal(one, large)
    assert parameters("margin5+targeted", LINF)["loss"] == "margin(kappa=inf)"


@pytest.mark.parametrize("name", ["apgd10+best", "pgd10+worst", "square10+targeted", "pgd10+restarts0", "cw_l2+first"])
def test_options_that_an_attack_does_not_have_are_told(name):
    with pytest.raises(L2LError, match="has the options .*restartsN, not"):
        attacks.create(name, LINF)


def test_parameters_say_what_stands_behind_a_name():
    assert parameters("margin20+restarts3", threat.l2(0.5)) == {
        "attack": "pgd", "norm": "l2", "eps": 0.5, "loss": "margin(kappa=50.0)", "start": "uniform", "keep": "last",
        "unroll": 1, "steps": 20, "step_size": 0.0625, "targeted": False, "restarts": 3,
    }  # fmt: skip
    standard = parameters("standard", LINF)
    assert [standard[name]["attack"] for name in standard] == ["apgd", "apgd_targeted", "fab_targeted", "square"]
    assert standard["square"]["queries"] == 5000 and standard["apgd-t"]["target_classes"] == 9


def hill(c, height, x):
    """Logits whose margin is `height` at c, inside the ball, and falls off: iterates end within a step of the top."""
    distance = jnp.sum((x - c) ** 2, axis=(1, 2, 3))
    return jnp.stack([distance - height, jnp.zeros_like(distance)], axis=1)


STEPS = {
    "pgd10": (10, 0.25),
    "pgd20": (20, 0.125),
    "pgd100": (100, 0.1),
    "pgd20@l2l": (20, 0.003 / 0.031),
    "pgd100@l2l": (100, 0.003 / 0.031),
    "pgd10@rnn": (10, 0.25),
    "pgd100@rnn": (100, 0.25),
    "pgd10@l2l_da": (10, 0.25),
    "pgd100@l2l_da": (100, 1 / 12),
}


def climb(attack, ball, height=0.0):
    x = jnp.full((1, 6, 6, 1), 0.5)
    logits_fn = jax.tree_util.Partial(hill, x + 0.317 * ball.eps, height)  # the top is no whole number of steps away
    return attack(logits_fn, KEY, x, jnp.zeros(1, int))


@functools.cache
def climb_by(steps):
    """PGD of any step size."""
    ball = threat.linf(0.05)
    return jax.jit(lambda step: climb(attacks.pgd(ball, step_size=step * ball.eps, steps=steps), ball))


@pytest.mark.parametrize("name", STEPS)
def test_names_give_the_steps_of_the_papers(name):
    steps, step = STEPS[name]
    ball = threat.linf(0.05)
    x_adv = jax.jit(lambda: climb(attacks.create(name, ball), ball))()
    chex.assert_trees_all_close(x_adv, climb_by(steps)(step), atol=1e-6)
    assert np.abs(x_adv - climb_by(steps)(1.05 * step)).max() > 1e-4


@pytest.mark.parametrize("name, reach", [("pgd20@l2l_v2", 1e-4), ("pgd20@l2l", 0.05)])
def test_a_papers_start_is_behind_its_name(name, reach):
    """Without a gradient the start is returned: uniform in the ball, or in B(x, 1e-4) in L2L (2021)."""
    x = jnp.full((4, 6, 6, 1), 0.5)
    x_adv = attacks.create(name, threat.linf(0.05))(lambda x: jnp.zeros((len(x), 3)), KEY, x, jnp.zeros(4, int))
    assert 0.9 * reach < jnp.abs(x_adv - x).max() <= reach * 1.001


@pytest.mark.parametrize("name, step", [("margin20", 0.125), ("margin20@ait", 0.25), ("margin20@l2l", 0.003 / 0.031)])
def test_papers_margins(name, step):
    chosen = attacks.names.parameters(name, threat.linf(0.05))
    assert (chosen["step_size"], chosen["loss"]) == (pytest.approx(step * 0.05), "margin(kappa=50.0)")


@pytest.mark.parametrize(
    "name, message",
    [
        ("pgd5@ait", "pgd has no @ait: it has @l2l, @l2l_v2, @rnn, @l2l_da$"),
        ("margin5@rnn+best", "margin has no @rnn: it has @ait, @l2l$"),
        ("momentum@rnn", "momentum has no @rnn: it has no steps of a paper$"),
    ],
)
def test_a_paper_that_an_attack_lacks_is_told_those_that_it_has(name, message):
    with pytest.raises(L2LError, match=message):
        attacks.create(name, LINF)


@pytest.mark.parametrize("name, height", [("margin10", 49.0), ("margin10", 51.0), ("momentum30", 0.0)])
def test_names_of_other_families_give_pgds_step(name, height):
    ball = threat.linf(0.05)
    if name == "margin10":
        loss = functools.partial(losses.margin, kappa=50)  # so nothing pulls above a margin of 50
        expected = attacks.pgd(ball, step_size=0.25 * ball.eps, steps=10, loss=loss)
    else:
        expected = attacks.momentum(ball, step_size=0.1 * ball.eps, steps=30, decay=1.0)
    x_adv, same = jax.jit(lambda: [climb(a, ball, height) for a in (attacks.create(name, ball), expected)])()
    chex.assert_trees_all_close(x_adv, same, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "pgd0",
        "pgd-1",
        "PGD10",
        "apple10",
        "pgd10@",
        "pgd10 ",
    ],
)
def test_unknown_names_are_told_the_known_ones(name):
    with pytest.raises(L2LError, match=r"fgsm.*pgdN.*pgdN@l2l_da.*momentumN.*blsN.*randomN") as error:
        attacks.create(name, LINF)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name, fix", [("pgd", "a number"), ("pgd+best", "a number"), ("fgsm3", "no number")])
def test_a_name_says_whether_it_takes_a_number(name, fix):
    with pytest.raises(L2LError, match=rf"^'{re.escape(name)}': \w+ takes {fix}"):
        attacks.create(name, LINF)
