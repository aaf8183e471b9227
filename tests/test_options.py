"""The options of methods: what a registered or built-in one takes is in the range of its annotation."""

import re
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l2ljax import defenses, models, threat
from l2ljax.models.attackers import ATTACKERS
from l2ljax.types import L2LError
from l2ljax.values import Range

BALL = threat.linf(0.2)
CLASSIFIER = models.create("digits_cnn")
RECORDS = {**defenses.METHODS, **defenses.ATTACKERS}
OPTIONS = [(method, option) for method, record in RECORDS.items() for option in record.options]
VALUES = st.one_of(
    st.integers(-3, 3), st.floats(-2, 2), st.sampled_from([10**20, -(10**20), 1e308, np.inf, -np.inf, np.nan]),
    st.booleans(), st.none(), st.text(max_size=3), st.sampled_from(["uniform", "none", "batch", "true", "t", "wide"]),
    st.just([1]), st.just((2, 3)),
)  # fmt: skip
numeric = lambda value: isinstance(value, int | float) and not isinstance(value, bool)


def allowed(kind, value):
    """Whether an annotation allows a value, from its parts."""
    members = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, type(int | None)) else (kind,)
    for member in members:
        base, *notes = typing.get_args(member) if typing.get_origin(member) is typing.Annotated else (member,)
        if typing.get_origin(base) is typing.Literal:
            fits = isinstance(value, str) and value in typing.get_args(base)
        elif base is float:
            fits = numeric(value)
        elif base is int:
            fits = isinstance(value, int) and not isinstance(value, bool)
        else:
            fits = type(value) is base
        for low, high, above in notes:
            fits = fits and np.isfinite(float(value)) and (low < value if above else low <= value) and value <= high
        if fits:
            return True
    return False


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(st.sampled_from(OPTIONS), VALUES)
@example(("trades", "beta"), -6)
@example(("stability", "sigma"), -1)
@example(("rnn_adv", "scale"), -1)
@example(("rnn_adv", "scale"), float("1e999"))
@example(("rnn_adv", "scale"), "abc")
@example(("rnn_adv", "scale"), None)
@example(("rnn_adv", "biases"), "maybe")
@example(("pgd_adv", "steps"), True)
@example(("pgd_adv", "steps"), 0)
@example(("pgd_adv", "steps"), -5)
@example(("pgd_adv", "steps"), 2.5)
@example(("pgd_adv", "steps"), 10**19)
@example(("pgd_adv", "step_size"), np.nan)
@example(("trades", "beta"), 1)
def test_an_option_is_taken_where_its_annotation_allows_it_and_refused_in_one_line_elsewhere(which, value):
    method, option = which
    others = {"latent": {"diversity": 0.0}, "diversity": {"latent": 8}}.get(option, {})  # neither goes alone
    if allowed(RECORDS[method].kinds[option], value):
        defenses.create(method, CLASSIFIER, BALL, **others, **{option: value})
        return
    with pytest.raises(L2LError, match="give ") as error:
        defenses.create(method, CLASSIFIER, BALL, **others, **{option: value})
    assert str(error.value).startswith(f"{option}=") and "\n" not in str(error.value)


@pytest.mark.parametrize("method, option", OPTIONS)
def test_every_option_has_a_range_or_choices(method, option):
    kind = RECORDS[method].kinds[option]
    assert allowed(kind, RECORDS[method].options[option])
    for member in typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,):
        ranged = any(isinstance(note, Range) for note in typing.get_args(member))
        assert ranged or member in (bool, type(None)) or typing.get_origin(member) is typing.Literal


def test_the_named_attackers_are_those_of_the_models():
    assert typing.get_args(RECORDS["grad_l2l"].kinds["attacker"]) == tuple(ATTACKERS)


@pytest.mark.parametrize("scalar", [np.float32, np.float64, jnp.float32, np.int64, jnp.int32, np.array])
def test_scalars_of_numpy_and_jax_are_numbers(scalar):
    defenses.create("trades", CLASSIFIER, BALL, beta=scalar(6), step_size=scalar(1))
    with pytest.raises(L2LError, match="beta=-6"):
        defenses.create("trades", CLASSIFIER, BALL, beta=scalar(-6))


def test_an_option_without_an_annotation_has_the_type_of_its_default(monkeypatch):
    monkeypatch.setattr("l2ljax.defenses.methods.METHODS", dict(defenses.METHODS))

    def mine(classifier, ball, *, steps=2, mix: "NotImported" = 0.5, loud=False, size=None, axis_name=None):  # noqa: F821
        return defenses.plain(classifier, ball)

    defenses.register("mine", mine)
    taken = {"steps": [3], "mix": [0.25, 1], "loud": [True], "size": [None, 0.5, "large"]}
    refused = {"steps": [2.5, "3", True, None], "mix": ["x", True], "loud": [1, "yes"], "size": [[1]]}
    for option, values in taken.items():
        for value in values:
            defenses.create("mine", CLASSIFIER, BALL, **{option: value})
    for option, values in refused.items():
        for value in values:
            with pytest.raises(L2LError, match=f"{option}="):
                defenses.create("mine", CLASSIFIER, BALL, **{option: value})


def test_help_describes_each_method_and_its_options():
    blocks = dict(block.split(maxsplit=1) for block in re.split(r"\n(?=  \w)", "\n" + defenses.table())[1:])
    assert list(blocks) == list(defenses.METHODS)
    seen = set[str]()
    for name, text in blocks.items():
        first, *rest = text.splitlines()
        assert len(first) > 20 and first not in seen
        seen.add(first)
        listed = dict(pair.split("=", 1) for pair in rest[0].strip().split(", ")) if rest else {}
        assert listed == {option: str(value) for option, value in defenses.options(name).items()}
