"""Initial weights: one program, the same numbers as in any other, and a part of programs that call it."""

import chex
import jax
import jax.numpy as jnp
import pytest

from l2ljax import models
from l2ljax.attacks import learned
from l2ljax.models import attackers, initial

KEY, X = jax.random.key(3), jnp.zeros((1, 8, 8, 1))
PLAYERS = {
    "classifier": models.create("digits_cnn", num_classes=10).init,
    "recurrent": learned.recurrent().init,
    "convolutional": learned.convolutional(attackers.create("slim", width=4), inputs=["image", "gradient"]).init,
}
each_player = pytest.mark.parametrize("init", PLAYERS.values(), ids=PLAYERS)


@each_player
def test_a_players_weights_are_one_program(init):
    compiled = []
    listen = lambda event, seconds, **about: compiled.append(event) if "backend_compile" in event else None
    jax.block_until_ready((jax.random.key(4), jnp.zeros(())))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        init(KEY, X)
        assert len(compiled) <= 1  # none, if another test has compiled it
        init(jax.random.key(4), X)
        assert len(compiled) <= 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@each_player
def test_inside_of_a_program_they_are_a_part_of_it(init):
    expected = init(KEY, X)
    shapes = jax.tree.map(lambda leaf: leaf.shape, expected)
    assert jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(init, KEY, X)) == shapes
    close = lambda got: chex.assert_trees_all_close(got, expected, rtol=1e-5)
    close(jax.jit(init)(KEY, X))
    close(jax.jit(lambda: init(KEY, X))())  # of constants
    close(jax.tree.map(lambda leaf: leaf[0], jax.vmap(init, (0, None))(jnp.stack([KEY]), X)))
    close(jax.tree.map(lambda leaf: leaf[0], jax.vmap(lambda i: init(KEY, X))(jnp.arange(1))))


def test_options_of_the_compiler_change_no_number():
    """Against all optimizations, which the suite leaves out elsewhere, and which round differently."""
    init = lambda key: jax.random.normal(key, (3, 3, 16, 16)) * 0.1
    all_of_them = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    optimized = jax.jit(init, compiler_options=all_of_them)(KEY)
    chex.assert_trees_all_close(initial.compiled(init)(KEY), optimized, rtol=1e-5)
