"""Adversarial weight perturbation, which any defense takes: the classifier's weights move against it, too.

defense = perturbed(defenses.create("rnn_adv", classifier, threat.linf(8 / 255)), gamma=0.005)
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from l2ljax.types import Array, Defense, L2LError, Tree
from l2ljax.values import NonNegative, checked

__all__ = ["perturbation", "perturbed"]


@checked
def perturbed(defense: Defense, *, gamma: NonNegative, axis_name: str | None = None) -> Defense:
    """Take the end's loss at theta + v, with v the steepest ascent of that loss. Wu et al. (2020), section 3.2.

        theta descends, phi ascends  E end(theta + v, x_T),    v = `perturbation`(theta, grad_theta E end(theta, x_T))

    where x_T is made once, at theta, and v is constant, so that the update is applied to theta. A learned attacker
    ascends its last loss at theta + v, too, but its losses along the path (and AIT's distance) at theta. BatchNorm's
    running statistics are those of the pass at theta + v, as in the released code, whose script for
    TRADES begins at the tenth epoch; here it is from the first step on. The end's passes are made twice.

    Args:
      defense: the defense; its objective has the keyword `shift`.
      gamma: the length of v over that of theta, layer by layer; 0.005 in the paper.
      axis_name: the pmapped axis, in training.

    Raises:
      L2LError: an objective without that keyword, or one that is perturbed already.
    """
    if "shift" in getattr(defense.objective, "keywords", {}):
        raise L2LError("the defense's weights are perturbed already: leave one of the two out, as --awp")
    if "shift" not in inspect.signature(defense.objective).parameters:
        raise L2LError("the defense's objective takes no `shift`: build it with saddle.unrolled, or leave out --awp")

    def shift(loss: Callable[[Tree], Array], theta: Tree) -> Tree:
        gradient = jax.grad(loss)(stop_gradient(theta))
        if axis_name:
            gradient = jax.lax.pmean(gradient, axis_name)
        v = stop_gradient(perturbation(theta, gradient, gamma))
        return jax.tree.map(jnp.add, theta, v)

    return defense._replace(objective=functools.partial(defense.objective, shift=shift))


def perturbation(theta: Tree, gradient: Tree, gamma: float) -> Tree:
    """Return v = gamma |w| g / |g|, with Euclidean norms of each array, for arrays with two axes or more, else 0.

    So kernels and matrices move; biases and BatchNorm's scales do not, as in the released code. Where g = 0, v = 0.
    """

    def of_one(w: Array, g: Array) -> Array:
        size = jnp.linalg.norm(g)
        return gamma * jnp.linalg.norm(w) * g / jnp.where(size > 0, size, 1) * (w.ndim > 1)

    return jax.tree.map(of_one, theta, gradient)
