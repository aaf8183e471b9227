"""Values: a table of annotations with what fits and what does not, as values and as text."""

import math
from fractions import Fraction
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax.types import L2LError
from l2ljax.values import Count, Natural, NonNegative, Positive, Range, Seed, Share, check, checked, parse

FITTING = [
    (Count, [1, 2**31 - 1, np.int64(3)], [0, -1, 2.5, True, "3", None, math.inf, 2**31]),
    (Natural, [0, 5], [-1, 0.0, 10**400, Fraction(3)]),
    (int, [3], [10**400, 3.0]),
    (float, [3, Fraction(1, 4), np.longdouble(0.5)], [math.inf, -math.inf, math.nan, 10**5000, Fraction(10**400)]),
    (Seed, [0, 2**32 - 1], [-1, 2**32]),
    (Positive, [1e-9, 1, np.float32(0.5), jnp.float32(0.5)], [0, 0.0, -1, math.inf, math.nan, True, "1"]),
    (NonNegative, [0, 0.0, 3], [-1e-9, math.nan, 10**400]),
    (Share, [0, 1, 0.5], [1.0001, -0.1]),
    (Annotated[float, Range(0, 1, above=True)], [1, 0.1], [0]),
    (Count | None, [None, 1], [0, "none"]),
    (bool, [True, False], [0, 1, "true"]),
    (Literal["best", "last"], ["best"], ["first", 1, None, np.array([["best", "last"]] * 2)]),
    (Literal[1, -1], [1, np.int8(-1)], [True, 1.0]),
    (str, ["x"], [1, None]),
]
TEXTS = [
    (Count, {"1": 1, "007": 7}, ["0", "1.0", "1_0", "\u0663", "\uff13", "1e3", "", " 1", "abc", "9" * 20, "9" * 5000]),
    (
        Positive,
        {"0.5": 0.5, ".5": 0.5, "1e-3": 1e-3, "2": 2.0},
        ["0", "nan", "inf", "1e999", "1e99999", "-1", "1_0", "[1"],
    ),
    (float, {"0e-400": 0.0, "-2": -2.0}, ["1e999", "-1e999", "1e-400"]),
    (Positive | None, {"none": None, "None": None, "1": 1.0}, ["nil", "0"]),
    (bool, {"true": True, "False": False}, ["maybe", "1", ""]),
    (Literal["best", "last"], {"best": "best"}, ["first", "BEST"]),
    (Literal[1, -1] | None, {"1": 1, "-1": -1, "None": None}, ["0", "+1", "1.0"]),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), FITTING)
def test_check(annotation, good, bad):
    for value in good:
        taken = check(annotation, value, "it")
        assert taken == value and not isinstance(taken, np.generic | jax.Array | Fraction)
    for value in bad:
        with pytest.raises(L2LError, match=r"^it=.*: give [^\n]*$"):
            check(annotation, value, "it")


@pytest.mark.parametrize(("annotation", "good", "bad"), TEXTS)
def test_parse(annotation, good, bad):
    for text, value in good.items():
        assert parse(annotation, text, "--it") == value
        assert type(parse(annotation, text, "--it")) is type(value)
    for text in bad:
        with pytest.raises(L2LError, match=r"^--it=.*: give "):
            parse(annotation, text, "--it")


def test_a_message_names_the_range():
    for annotation, words in (
        (Count, "a whole number from 1 to 2147483647"),
        (Positive | None, "a number above 0, or none"),
        (NonNegative, "a number of 0 or more"),
        (Literal["best", "last"], "best or last"),
    ):
        with pytest.raises(L2LError, match=rf"it=-1: give {words}$"):
            check(annotation, -1, "it")


@checked
def scaled(x: jax.Array, *, steps: Count = 2, size: Positive | None = None, key=None) -> jax.Array:
    """Multiply."""
    return x * steps * (1 if size is None else size)


def test_checked():
    assert scaled(jnp.ones(()), steps=3, size=jnp.float32(2)) == 6
    assert jax.jit(lambda size: scaled(jnp.ones(()), size=size))(-1.0) == -2  # traced values pass
    assert scaled.__doc__ == "Multiply."
    for bad in ({"steps": 0}, {"steps": True}, {"size": 0}, {"size": "1"}):
        with pytest.raises(L2LError, match=next(iter(bad))):
            scaled(jnp.ones(()), **bad)
    with pytest.raises(TypeError, match="unknown"):
        scaled(jnp.ones(()), unknown=1)
