"""What is attacked and judged: trees of weights, nnx models and functions, compiled once for each structure."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from l2ljax import attacks, data, evaluate, losses, threat

BALL = threat.linf(0.1)
KEY = jax.random.key(5)
X = jax.random.uniform(jax.random.key(0), (8, 6, 6, 1))
Y = np.arange(8)


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
    """A network that is a tree of its weights, as Equinox has them."""

    weights: jax.Array

    def __call__(self, x):
        return linear(self.weights, x)


class Noisy(nnx.Module):
    """`linear` in evaluation mode, with statistics and random streams to carry."""

    def __init__(self, weights):
        self.bn, self.drop = nnx.BatchNorm(10, epsilon=0.0, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.weights = nnx.Param(weights)

    def __call__(self, x):
        return self.drop(self.bn(linear(self.weights[...], x)))


def evaluated(weights):
    model = Noisy(weights)
    model.eval()
    return model


FORMS = {"partial": lambda weights: jax.tree_util.Partial(linear, weights), "nnx": evaluated, "tree": Tree}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_attacks_take_models_whose_weights_do_not_recompile(form):
    attack = attacks.pgd(BALL, step_size=0.05, steps=3)
    jitted = jax.jit(attack)
    for scale in (1.0, -1.0):
        weights = scale * jax.random.normal(KEY, (36, 10))
        function = functools.partial(linear, weights)
        expected = attack(function, KEY, X, Y)
        rise = losses.cross_entropy(function(expected), Y) - losses.cross_entropy(function(X), Y)
        assert rise.mean() > 0.1
        for run in (attack, jitted):
            chex.assert_trees_all_close(run(form(weights), KEY, X, Y), expected, rtol=0, atol=1e-6)
    assert jitted._cache_size() == 1


def test_attacks_take_functions_as_static_arguments():
    attack = attacks.pgd(BALL, step_size=0.05, steps=3)
    function = functools.partial(linear, jax.random.normal(KEY, (36, 10)))
    static = jax.jit(attack, static_argnums=0)(function, KEY, X, Y)
    chex.assert_trees_all_close(static, attack(function, KEY, X, Y), rtol=0, atol=1e-6)


def test_an_nnx_model_is_evaluated():
    weights, split = jax.random.normal(KEY, (36, 10)), data.Split((255 * np.asarray(X)).astype(np.uint8), np.arange(8))
    named = {"pgd": attacks.pgd(BALL, step_size=0.05, steps=3)}
    function, model = (
        evaluate.evaluate(f, split, named, key=KEY, batch_size=8)
        for f in (functools.partial(linear, weights), evaluated(weights))
    )
    assert function.clean_acc == model.clean_acc
    np.testing.assert_array_equal(function.attacks["pgd"].correct, model.attacks["pgd"].correct)


@pytest.mark.parametrize("form", [evaluated, Tree], ids=["nnx", "tree"])
def test_a_second_model_of_the_same_structure_does_not_compile_again(form):
    split = data.Split((255 * np.asarray(X)).astype(np.uint8), np.arange(8))
    named = {"pgd": attacks.pgd(BALL, step_size=0.05, steps=3)}
    results, compiled = [], evaluate.loop._compiled.cache_info
    for scale in (1.0, -1.0):
        model, before = form(scale * jax.random.normal(KEY, (36, 10))), compiled()
        results.append(evaluate.evaluate(model, split, named, key=KEY, batch_size=8))
        evaluate.run_in_turn(model, X, np.arange(8), named, key=KEY, batch_size=8)
    assert compiled().misses == before.misses and compiled().hits > before.hits
    for scale, found in zip((1.0, -1.0), results, strict=True):
        logits = scale * linear(jax.random.normal(KEY, (36, 10)), split.images / 255)
        assert found.clean_acc == (logits.argmax(axis=1) == np.arange(8)).mean()
