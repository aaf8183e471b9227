"""Initial weights by one program, which runs once and so should compile quickly."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["compiled"]

P = ParamSpec("P")
T = TypeVar("T")
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""The compiler's options: one normal draw for each kernel is long code, whose optimization is most of the time."""


def compiled(init: Callable[P, T]) -> Callable[P, T]:
    """Return a function of arrays as one program with few optimizations, or inside another program as part of that."""
    program, part = jax.jit(init, compiler_options=QUICK), jax.jit(init)

    @functools.wraps(init)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        leaves = [*jax.tree.leaves((args, kwargs)), jnp.zeros(())]  # the last is traced in whatever program is traced
        return (part if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) else program)(*args, **kwargs)

    return call
