"""Attacks in pieces: a host may stop in between and drop the examples that are done.

    (solver,) = solvers(attacks.create("pgd100+first", ball))
    carry = solver.init(logits_fn, keys, x, y)
    carry = solver.advance(logits_fn, keys, x, y, carry, 10)

An attack that stops at success has them in its attribute `solvers`. Any other is one solver that ends with `init`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from l2ljax.types import Array, Attack, Key, LogitsFn, Tree, example_keys, fold_in

__all__ = ["Carry", "Solver", "as_tree", "one_by_one", "solvers"]


class Carry(NamedTuple):
    """Where a solver is. All its arrays are [B, ...]: of each example its own."""

    x: Array
    done: Array
    """bool [B]: whether further steps leave x as it is."""
    state: Tree = ()


class Solver(NamedTuple):
    """The pieces of an attack."""

    init: Partial
    """(logits_fn, keys [B], x, y) -> Carry."""
    advance: Partial | None = None
    """(logits_fn, keys [B], x, y, carry, n) -> Carry after n more steps."""
    steps: int = 0
    """How many there are after `init`."""


def solvers(attack: Attack) -> tuple[Solver, ...]:
    """Return the solvers of an attack: a host runs them in turn, each on the examples not fooled before."""
    return getattr(attack, "solvers", None) or (Solver(Partial(_at_once, as_tree(attack))),)


def one_by_one(attack: Attack, members: Sequence[Attack]) -> Attack:
    """Give an attack the solvers of its members, if all have some; the i-th draws from the keys folded with i."""
    if not all(hasattr(member, "solvers") for member in members):
        return attack
    numbered = [(np.int32(i), solver) for i, member in enumerate(members) for solver in solvers(member)]
    attack.solvers = tuple(s._replace(init=Partial(_folded, s.init, i)) for i, s in numbered)  # type: ignore[attr-defined]
    return attack


def as_tree(function: Callable[..., Any]) -> Partial:
    """Return the function as a pytree that jit takes as an argument: a Partial over arrays keeps them traced."""
    return function if isinstance(function, Partial) else Partial(function)


def _at_once(attack: Attack, logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Carry:
    return Carry(attack(logits_fn, keys, x, y), jnp.ones(len(x), bool))


def _folded(init: Partial, i: Array, logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Carry:
    return init(logits_fn, fold_in(example_keys(keys, len(x)), i), x, y)
