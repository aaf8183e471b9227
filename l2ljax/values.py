"""Numbers and choices with their ranges, as annotations that flags, `--options` and Python calls are checked by.

check(Count, 3, "steps")                      # 3; for 0 an L2LError: "steps=0: give a whole number from 1 to ..."
parse(Positive | None, "0.5", "--step-size")  # the same of a text
attack = checked(attack)                      # checks its arguments by their annotations
"""

import functools
import inspect
import math
import numbers
import re
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin

import jax
import numpy as np

from l2ljax.types import Attack, L2LError

__all__ = [
    "EXAMPLES", "LARGEST", "Count", "Natural", "NonNegative", "Positive", "Range", "Seed", "Share", "check", "checked",
    "describe", "kind_of", "members", "parse", "parse_list", "plain",
]  # fmt: skip
__dir__ = lambda: __all__

P = ParamSpec("P")
T = TypeVar("T")


class Range(NamedTuple):
    """The numbers from `low` to `high`; without `low` itself if `above`. Infinity and NaN are in no range."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: Any) -> bool:
        """Return whether the number lies in the range."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        """Return the range in words, to follow "a number"."""
        low, high = f"{self.low:.10g}", f"{self.high:.10g}"
        if math.isinf(self.low):
            return ""
        if math.isinf(self.high):
            return f" above {low}" if self.above else f" of {low} or more"
        return f" above {low}, up to {high}" if self.above else f" from {low} to {high}"


KINDS: dict[Any, Any] = {
    int: numbers.Integral, float: numbers.Real, bool: bool, str: str, types.NoneType: types.NoneType,
    Callable: Callable,
}  # fmt: skip
EXAMPLES: dict[Any, str] = {Attack: "an attack, like attacks.create('pgd20', ball)"}
"""Classes of the library that are checked too, each with a text that makes one."""
LARGEST = 2**31 - 1
"""The largest integer that reaches a device."""
Count = Annotated[int, Range(1, LARGEST)]
Natural = Annotated[int, Range(0, LARGEST)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def check(annotation: Any, value: Any, name: str) -> Any:
    """Return the value, a number as `plain` returns it, if it has the annotated type and lies in its range.

    The annotation may be int, float, bool, str, a `Literal`, one of those with a `Range`, a class of `EXAMPLES`, a
    `Callable`, of which no more is checked than that it is one, or a union of them with None. Any other one, and a
    traced value, is not checked. An int is a float, a bool is no number, and no number is infinite or NaN.

    Raises:
      L2LError: any other value; the message begins with `name`.
    """
    choices = members(annotation)
    known = all(get_origin(m) is Literal or kind_of(m) in {**KINDS, **EXAMPLES} for m in choices)
    if isinstance(value, jax.core.Tracer) or not known:
        return value
    value = plain(value)
    if not any(_fits(member, value) for member in choices):
        shown = str(value).replace("\n", " ")
        shown = shown if len(shown) <= 80 or isinstance(value, str) else f"a {type(value).__name__}"
        raise L2LError(f"{name}={shown}: give {describe(annotation)}")
    return value


def plain(value: Any) -> Any:
    """Return a NumPy or JAX scalar, or a fraction, as Python's int or float; anything else as it is.

    A number beyond the floats, which no annotation allows, becomes infinity.
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, bool | float):
        return value
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    return value if isinstance(value, int) else number


def parse(annotation: Any, text: str, name: str) -> Any:
    """Return the value that a text means under an annotation, checked as by `check`. Digits are 0 to 9 alone."""
    for member in members(annotation):
        kind = kind_of(member)
        if kind is types.NoneType and text.lower() == "none":
            return None
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind is int and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            return check(annotation, int(text), name)
        if kind is float and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", text):
            if not float(text) and re.match(r"[+-]?[0.]*[1-9]", text):
                raise L2LError(f"{name}={text} is too small for a number that is not 0: give 0 or a larger one")
            return check(annotation, float(text), name)
        if get_origin(member) is Literal and text in (choices := {str(choice): choice for choice in get_args(member)}):
            return choices[text]
        if kind is str:
            return check(annotation, text, name)
    raise L2LError(f"{name}={text}: give {describe(annotation)}")


def parse_list(annotation: Any, text: str, name: str) -> list[Any]:
    """Return the values, at least one, of a text that separates them by commas; each is read by `parse`."""
    if not all(parts := [part.strip() for part in text.split(",")]):
        raise L2LError(f"{name}={text}: give {describe(annotation)}, or several separated by commas")
    return [parse(annotation, part, name) for part in parts]


def describe(annotation: Any) -> str:
    """Return the values that an annotation allows, in words: "a whole number from 0 to 5, or none"."""
    named: dict[Any, str] = {
        int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "none",
        Callable: "a function",
    }  # fmt: skip
    words = []
    for member in members(annotation):
        if get_origin(member) is Literal:
            words.append(" or ".join(map(str, get_args(member))))
        else:
            kind = kind_of(member)
            words.append(named.get(kind, EXAMPLES.get(kind, "a value of its type")) + str(_range(member) or ""))
    return ", or ".join(words)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function check its arguments by their annotations, see `check`."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                bound.arguments[name] = check(parameter.annotation, value, name)
        return function(*bound.args, **bound.kwargs)

    return wrapped


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def kind_of(member: Any) -> Any:
    """Return int for int and for Annotated[int, ...], and Callable for Callable[...]."""
    if get_origin(member) is Callable:
        return Callable
    return get_args(member)[0] if get_origin(member) is Annotated else member


def _range(member: Any) -> Range | None:
    return next((note for note in get_args(member)[1:] if isinstance(note, Range)), None)


def _fits(member: Any, value: Any) -> bool:
    kind, allowed = kind_of(member), _range(member)
    if get_origin(member) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(member))
    fits = isinstance(value, KINDS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))
    return fits and (kind not in (int, float) or value in (allowed or Range()))
