"""Square on a budget per image: the search ends where it makes too little headway to succeed.

    attack = attacks.square_on_budget(threat.linf(8 / 255))
    x_adv = jax.jit(attack)(logits_fn, key, x, y)

AutoAttack spends Square's 5,000 queries, half of its passes, on every image that stands.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from l2ljax.attacks.entrance import entered
from l2ljax.attacks.gradient import Fraction
from l2ljax.attacks.solver import Carry, Solver
from l2ljax.attacks.square_search import Best, check_square, nothing, queries_of
from l2ljax.threat import Ball, choose
from l2ljax.types import Array, Attack, Key, LogitsFn
from l2ljax.values import Count, Positive, checked

__all__ = ["square_on_budget"]


class _State(NamedTuple):
    best: Best
    before: Array  # the margin at the last check [B]
    rise: Array  # of the margin, up to that check from the one before [B]
    i: Array  # the next query, the same for all [B]


@checked
def square_on_budget(
    ball: Ball, *, queries: Count = 5000, trial: Count = 600, slack: Positive = 0.75, p_init: Fraction = 0.8
) -> Attack:
    """Search as `square` does, with its draws, but give an image up when it is unlikely to fall in time.

    After q = trial, 2 trial, 4 trial, ... queries with the margins m_q an image is given up unless

        m_q + slack max(m_q - m_{q / 2}, m_{q / 2} - m_{q / 4}) log2(queries / q) >= 0:

    unless the margin would become positive if it rose, at each doubling of the queries, by `slack` times the larger of
    the last two rises.

    Args:
      ball: linf or l2.
      queries: the largest number of images tried per example, with the start, without the clean image.
      trial: the queries before the first check, a multiple of 4 (others are rounded down, to at least 4).
      slack: of the rise still to come; lower values give up sooner.
      p_init: the share of pixels in the first windows.

    Raises:
      L2LError: another ball; (when called) images that are not [B, H, W, C].
    """
    check_square(ball)
    checks = np.isin(np.arange(queries + 1), max(trial // 4, 1) * 2 ** np.arange(queries.bit_length()))

    def query_of(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Callable[[Array, Best], Best]:
        return queries_of(logits_fn, ball, keys, x, y, queries=queries, p_init=p_init, rescale=False)

    def init(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Carry:
        best = query_of(logits_fn, keys, x, y)(jnp.array(0), nothing(x))
        lowest = nothing(x)[1]
        return Carry(x, best[1] > 0, _State(best, lowest, -lowest, jnp.ones(len(x), int)))

    def advance(logits_fn: LogitsFn, keys: Key, x: Array, y: Array, carry: Carry, n: int) -> Carry:
        query, check = query_of(logits_fn, keys, x, y), jnp.asarray(checks)

        def step(k: Array, found: tuple[_State, Array]) -> tuple[_State, Array]:
            (best, before, last, i), done = found
            q = i[0]
            best = choose(done, best, query(q, best))
            rise = best[1] - before  # infinite up to the first check, as the lowest margin is
            reach = best[1] + slack * jnp.maximum(rise, last) * jnp.log2(queries / q)
            done = done | (best[1] > 0) | (check[q] & (reach < 0))
            before, last = jnp.where(check[q], best[1], before), jnp.where(check[q], rise, last)
            return _State(best, before, last, i + 1), done

        state, done = jax.lax.fori_loop(0, n, step, (carry.state, carry.done))
        return Carry(choose(state.best[1] > 0, state.best[0], x), done, state)

    @entered
    def attack(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        return jax.lax.while_loop(
            lambda carry: (carry.state.i[0] <= queries) & ~carry.done.all(),
            lambda carry: advance(logits_fn, keys, x, y, carry, 1),
            init(logits_fn, keys, x, y),
        ).x

    attack.solvers = (Solver(Partial(init), Partial(advance), queries),)  # type: ignore[attr-defined]
    return attack
