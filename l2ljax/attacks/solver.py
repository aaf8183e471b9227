"""Attacks in pieces: a host may stop in between and drop finished examples.

    (solver,) = solvers(attacks.create("pgd100+first", ball))
    carry = solver.init(logits_fn, keys, x, y)
    carry = solver.advance(logits_fn, keys, x, y, carry, 10)

An attack that stops at success has the attribute `solvers`. Any other is one solver that ends with `init`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from l2ljax.attacks.entrance import entered
from l2ljax.types import Array, Attack, Key, LogitsFn, Tree, example_keys, fold_in

__all__ = ["Carry", "Solver", "as_tree", "one_by_one", "solvers", "unjitted"]


class Carry(NamedTuple):
    """The state of a solver. Every array is [B, ...], one entry per example."""

    x: Array
    done: Array
    """bool [B]: whether further steps leave x unchanged."""
    state: Tree = ()


class Solver(NamedTuple):
    """The pieces of an attack."""

    init: Partial
    """(logits_fn, keys [B], x, y) -> Carry."""
    advance: Partial | None = None
    """(logits_fn, keys [B], x, y, carry, n) -> Carry after n more steps."""
    steps: int = 0
    """The number of steps after `init`."""


def solvers(attack: Attack) -> tuple[Solver, ...]:
    """Return an attack's solvers, which a host runs in turn, each on the examples not fooled so far.

    A wrapper made with `functools.wraps` has a copy of what it wraps: it is one solver.
    """
    own = None if hasattr(getattr(attack, "__wrapped__", None), "solvers") else getattr(attack, "solvers", None)
    return own or (Solver(Partial(_at_once, as_tree(attack))),)


def unjitted(attack: Attack) -> Attack:
    """Return the attack, or what is jitted: inside another program it gets the model as a function, not as a pytree."""
    return inspect.unwrap(attack, stop=lambda function: not isinstance(function, jax.stages.Wrapped))


def one_by_one(attack: Attack, members: Sequence[Attack]) -> Attack:
    """Give an attack the solvers of its members, if all have some; the i-th draws from keys folded with i."""
    if not all(hasattr(member, "solvers") for member in members):
        return attack
    numbered = [(np.int32(i), solver) for i, member in enumerate(members) for solver in solvers(member)]
    fold = lambda piece, i: piece and Partial(_folded, piece, i)
    attack.solvers = tuple(Solver(fold(s.init, i), fold(s.advance, i), s.steps) for i, s in numbered)  # type: ignore[attr-defined]
    return attack


def as_tree(function: Callable[..., Any]) -> Partial:
    """Return the function as a pytree that jit takes as an argument.

    Arrays are traced in a Partial, and in a function that is itself a pytree, like an NNX or an Equinox module: another
    one of the same structure does not compile again. A plain function is static.
    """
    if isinstance(function, Partial):
        return function
    if jax.tree_util.all_leaves([function]):
        return Partial(function)
    leaves, structure = jax.tree.flatten(function)
    static = tuple(None if isinstance(leaf, jax.Array | np.ndarray) else leaf for leaf in leaves)
    arrays = [leaf if fixed is None else None for leaf, fixed in zip(leaves, static, strict=True)]
    return Partial(_Structure(structure, static), arrays)


class _Structure(NamedTuple):
    """A function that is a pytree, without its arrays; equal if the structure is."""

    tree: Any
    static: tuple[Any, ...]
    """Its leaves that are not arrays, None in place of the arrays."""

    def __call__(self, arrays: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        leaves = [array if fixed is None else fixed for array, fixed in zip(arrays, self.static, strict=True)]
        return jax.tree.unflatten(self.tree, leaves)(*args, **kwargs)


def _at_once(attack: Attack, logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Carry:
    return Carry(entered(attack)(logits_fn, keys, x, y), jnp.ones(len(x), bool))


def _folded(piece: Partial, i: Array, logits_fn: LogitsFn, keys: Key, x: Array, *rest: Any, **n: int) -> Carry:
    return piece(logits_fn, fold_in(example_keys(keys, len(x)), i), x, *rest, **n)
