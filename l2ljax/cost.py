"""Counts of work without running it: passes through a classifier, from JAX's program.

    passes = cost.passes(attack, logits_fn, x, y)

A pass is one forward and one input gradient over the batch, as in a PGD step. The count is of multiplications in
convolutions and matrix products inside `logits_fn` (marked by a name scope), after dead code is removed, times the
length of the scans around them: a forward pass counts about a half, the attacker's own network nothing. Branches that
depend on data (a line search) count as the longest one. A `while` loop, whose length is not in the program, counts as
one round inside a model; an attack with one (Square, some C&W) has no number of passes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from jax.typing import ArrayLike

from l2ljax import losses
from l2ljax.models.convolution import stock_convolution
from l2ljax.types import Array, Attack, LogitsFn, Tree, example_keys

__all__ = ["mark", "multiplications", "passes"]

SCOPE = "counted_classifier"


def passes(attack: Attack, logits_fn: LogitsFn, x: ArrayLike, y: ArrayLike) -> float | None:
    """Return the attack's number of passes over the batch x [B, H, W, C], y [B]; None if the images decide it."""
    marked, x, y = mark(logits_fn), jnp.asarray(x), jnp.asarray(y)

    def one(x: Array) -> Array:
        return jax.grad(lambda x: losses.cross_entropy(marked(x), y).sum())(x)

    def attacked(x: Array) -> Array:
        return attack(marked, example_keys(jax.random.key(0), len(x)), x, y)

    # The program of a model that rounds its input has gradient 0: there a pass is twice a forward pass.
    whole = multiplications(one, x) or 2 * multiplications(marked, x)
    # A model without products: its forward passes. One that does not look at its input has none.
    forward = not whole
    whole = whole or multiplications(marked, x, forward=True)
    count = multiplications(attacked, x, forward=forward) / whole if whole else 0.0
    return count if math.isfinite(count) else None


def mark(logits_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its operations marked for `multiplications`."""

    def marked(*args: Any) -> Any:
        with jax.named_scope(SCOPE):
            return logits_fn(*args)

    return marked


def multiplications(function: Callable[..., Tree], *args: Any, forward: bool = False) -> float:
    """Count multiplications of convolutions and matrix products in marked functions, forward and backward.

    Convolutions count by their definition, however they are computed; a `while` loop around a marked function makes the
    count infinite. With `forward`, all other operations of forward passes count too, one for each number that they
    return.
    """
    with stock_convolution():
        closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return sum(_count(equation, False, forward) for equation in jaxpr.eqns)


def _count(equation: core.JaxprEqn, marked: bool, forward: bool) -> float:
    marked = marked or SCOPE in str(equation.source_info.name_stack)
    jaxprs = core.jaxprs_in_params(equation.params)
    inner = [sum(_count(inside, marked, forward) for inside in jaxpr.eqns) for jaxpr in jaxprs]
    if equation.primitive.name == "cond":
        return max(inner)
    if equation.primitive.name == "while" and not marked and any(inner):
        return math.inf
    if inner:
        return sum(inner) * equation.params.get("length", 1)
    if not marked or not equation.outvars:
        return 0.0
    out: Any = equation.outvars[0].aval
    operands: list[Any] = [variable.aval for variable in equation.invars]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out.size * math.prod(operands[0].shape[i] for i in contracted)
    if equation.primitive.name == "conv_general_dilated":
        return _convolution(operands[0].shape, operands[1].shape, out.shape, equation.params)
    # Conversions to the same type disappear under differentiation.
    counted = forward and equation.primitive.name != "convert_element_type"
    return float(out.size) if counted and "transpose" not in str(equation.source_info.name_stack) else 0.0


def _convolution(image: Sequence[int], kernel: Sequence[int], out: Sequence[int], params: Mapping[str, Any]) -> float:
    """Count pairs of an image's and a kernel's entry that meet; zeros of padding and dilation are not entries."""
    image_spec, kernel_spec, out_spec = params["dimension_numbers"]
    meetings = 1
    for axis in range(len(params["window_strides"])):
        spacing = params["lhs_dilation"][axis]
        places = np.arange(out[out_spec[2 + axis]])[:, None] * params["window_strides"][axis]
        taps = np.arange(kernel[kernel_spec[2 + axis]])[None] * params["rhs_dilation"][axis]
        at = places + taps - params["padding"][axis][0]
        last = (image[image_spec[2 + axis]] - 1) * spacing
        meetings *= int(((at >= 0) & (at <= last) & (at % spacing == 0)).sum())
    return out[out_spec[0]] * out[out_spec[1]] * kernel[kernel_spec[1]] * meetings
