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
    i: Array  # the next query, the same for all [B]


@checked
def square_on_budget(
    ball: Ball, *, queries: Count = 5000, trial: Count = 400, slack: Positive = 1.5, p_init: Fraction = 0.8
) -> Attack:
    """Search as `square` does, with its draws, but give an image up when it is unlikely to fall in time.

    After q = trial, 2 trial, 4 trial, ... queries (of an odd trial one less) with the margins m_q an image is given up
    unless

        m_q + slack (m_q - m_{q / 2}) log2(queries / q) >= 0:

    unless the margin would become positive if it rose, at each doubling of the queries, by `slack` times the last rise.

    Args:
      ball: linf or l2.
      queries: the largest number of images tried per example, with the start, without the clean image.
      trial: the queries before the first check.
      slack: more than 1 allows for a rise that gains speed.
      p_init: the share of pixels in the first windows.

    Raises:
      L2LError: another ball; (when called) images that are not [B, H, W, C].
    """
    check_square(ball)
    checks = np.isin(np.arange(queries + 1), max(trial // 2, 1) * 2 ** np.arange(queries.bit_length()))

    def query_of(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Callable[[Array, Best], Best]:
        return queries_of(logits_fn, ball, keys, x, y, queries=queries, p_init=p_init, rescale=False)

    def init(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Carry:
        best = query_of(logits_fn, keys, x, y)(jnp.array(0), nothing(x))
        return Carry(x, best[1] > 0, _State(best, nothing(x)[1], jnp.ones(len(x), int)))

    def advance(logits_fn: LogitsFn, keys: Key, x: Array, y: Array, carry: Carry, n: int) -> Carry:
        query, state, check = query_of(logits_fn, keys, x, y), carry.state, jnp.asarray(checks)

        def step(k: Array, found: tuple[Best, Array, Array]) -> tuple[Best, Array, Array]:
            best, before, done = found
            q = state.i[0] + k
            best = choose(done, best, query(q, best))
            reach = best[1] + slack * (best[1] - before) * jnp.log2(queries / q)  # infinite before the first check
            done = done | (best[1] > 0) | (check[q] & (reach < 0))
            return best, jnp.where(check[q], best[1], before), done

        best, before, done = jax.lax.fori_loop(0, n, step, (state.best, state.before, carry.done))
        return Carry(choose(best[1] > 0, best[0], x), done, _State(best, before, state.i + n))

    @entered
    def attack(logits_fn: LogitsFn, keys: Key, x: Array, y: Array) -> Array:
        return jax.lax.while_loop(
            lambda carry: (carry.state.i[0] <= queries) & ~carry.done.all(),
            lambda carry: advance(logits_fn, keys, x, y, carry, 1),
            init(logits_fn, keys, x, y),
        ).x

    attack.solvers = (Solver(Partial(init), Partial(advance), queries),)  # type: ignore[attr-defined]
    return attack
