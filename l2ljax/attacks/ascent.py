"""The one loop: unroll an optimizer of the input on a loss, inside a ball, as one `lax.scan`.

    rule = optax.sign_sgd(2 / 255)
    loss_fn = lambda x: (losses.cross_entropy(logits_fn(x), y), ())
    x_adv = ascend(loss_fn, rule, threat.linf(8 / 255), key, x, steps=10).x

`init` and `advance` are its pieces; a host may stop between them (see `solver`).

`keep_best` and `stop_at_success` wrap a rule, for attacks that do not return the last iterate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from l2ljax import threat
from l2ljax.attacks.entrance import check_images, check_losses
from l2ljax.types import Array, Key, Tree, example_keys
from l2ljax.values import Count, checked

__all__ = [
    "Ascent", "Best", "LossFn", "Start", "advance", "ascend", "clean", "close", "finite", "gaussian", "init",
    "keep_best", "larger", "stop_at_success", "uniform",
]  # fmt: skip

LossFn = Callable[[Array], tuple[Array, Any]]
"""x [B, H, W, C] -> (losses [B], aux)."""
Start = Callable[[threat.Ball, Key, Array], Array]
"""(ball, key, x0) -> the first iterate, in the ball."""


class Ascent(NamedTuple):
    """The trace of T steps."""

    x: Array
    """x_T [B, H, W, C]."""
    path: Array
    """x_1..x_T [T, B, H, W, C]."""
    losses: Array
    """The losses [T, B] at x_0..x_{T-1}. The loss at x_T is left to the caller's next pass."""
    aux: Any
    """The auxiliary output of loss_fn at x_0..x_{T-1}, stacked [T, ...]."""
    state: Any
    """The rule's state after step T."""


@checked
def ascend(
    loss_fn: LossFn, rule: optax.GradientTransformation, ball: threat.Ball, key: Key, x: Array, *,
    steps: Count, start: Start | None = None, second_order: bool = False, unroll: int | bool = 1,
) -> Ascent:  # fmt: skip
    """Ascend loss_fn in the ball: x_{t+1} = project(x_t + rule(g_t)), g_t = grad loss_fn(x_t), for `steps` steps.

    Entries of g_t that are not finite are replaced, see `finite`.

    The rule, an optax optimizer, gets the gradient of *minus* the losses, per example, so that `optax.sign_sgd(a)` is
    PGD. A rule with extra arguments gets `x0, losses, aux, loss_fn, ball`.

    The result is differentiable in everything that the rule closes over. The gradient g_t is a constant feature (as in
    all the papers), and the losses are linear in x_t around its value,

        losses_t = L(c) + <grad L(c), x_t - c>,  c = stop_gradient(x_t):

    with the value and derivative of L(x_t). Differentiating them runs the rule and the projection backwards, but not
    the classifier. The variables that `loss_fn` closes over receive no gradient.

    Args:
      loss_fn: x -> (losses [B], aux).
      rule: the optimizer of the input.
      ball: the set that contains the iterates.
      key: one key, or one per example [B].
      x: clean images [B, H, W, C] in [0, 1], the ball's center. Iterates are float32 or wider.
      steps: T.
      start: the first iterate, `uniform` by default.
      second_order: also differentiate through g_t (T more passes through the classifier, and its memory).
      unroll: as in `lax.scan`.

    Raises:
      L2LError: images that are not floats [B, ...], losses that are not [B].
    """
    check_images(x)
    x = threat.widened(x)
    carry = init(rule, ball, key, x, start)
    return advance(loss_fn, rule, ball, x, carry, steps, second_order=second_order, unroll=unroll)


def init(
    rule: optax.GradientTransformation, ball: threat.Ball, key: Key, x: Array, start: Start | None = None
) -> tuple[Array, Tree]:
    """Return the carry (x_0, the rule's state) at which `advance` begins."""
    return (start or uniform)(ball, example_keys(key, len(x)), x), rule.init(x)


def advance(
    loss_fn: LossFn, rule: optax.GradientTransformation, ball: threat.Ball, x: Array, carry: tuple[Array, Tree], n: int,
    *, second_order: bool = False, unroll: int | bool = 1,
) -> Ascent:  # fmt: skip
    """Take n steps of `ascend` from `carry`, (x_t, the rule's state). Several calls take the same steps as one."""
    constant = (lambda a: a) if second_order else stop_gradient
    rule = optax.with_extra_args_support(rule)

    def step(carry: tuple[Array, Tree], _: None) -> tuple[tuple[Array, Tree], tuple[Array, Array, Any]]:
        x_t, state = carry
        center = constant(x_t)
        value, vjp, aux = jax.vjp(loss_fn, center, has_aux=True)
        (gradient,) = vjp(jnp.ones_like(check_losses(value, len(x))))
        value, gradient, aux = constant((value, finite(gradient), aux))
        if not second_order:
            along = jnp.sum(gradient * (x_t - center), axis=range(1, x.ndim))
            value = value + along.astype(value.dtype)
        extra = {"x0": x, "losses": value, "aux": aux, "loss_fn": loss_fn, "ball": ball}
        updates, state = rule.update(-gradient, state, x_t, **extra)
        x_next = ball.project(x_t + updates, x)
        return (x_next, state), (x_next, value, aux)

    (x_last, state), (path, values, aux) = jax.lax.scan(step, carry, length=n, unroll=unroll)
    return Ascent(x_last, path, values, aux, state)


def finite(gradient: Array) -> Array:
    """Return a gradient [B, ...] with NaN as 0, and +-inf as twice the example's largest finite entry (1 if that is 0).

    Models have such entries at sqrt(0), or where a saturated loss times an infinite derivative is NaN.
    """
    known = jnp.where(jnp.isfinite(gradient), gradient, 0)
    largest = jnp.abs(known).max(axis=range(1, gradient.ndim), keepdims=True)
    beyond = jnp.where(largest > 0, 2 * jnp.minimum(largest, jnp.finfo(gradient.dtype).max / 2), 1)
    return jnp.where(jnp.isinf(gradient), jnp.sign(gradient) * beyond, known)


class Best(NamedTuple):
    """The state of `keep_best`."""

    x: Array
    """The iterate of largest loss before the current one [B, H, W, C]."""
    loss: Array
    """Its loss [B]."""
    inner: Any
    """The inner rule's state."""


def keep_best(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Move as `rule` does, and remember per example the iterate x_0..x_{T-1} of largest loss."""
    rule = optax.with_extra_args_support(rule)

    def init(x: Array) -> Best:
        return Best(x, jnp.full(len(x), -jnp.inf, jnp.promote_types(x.dtype, jnp.float32)), rule.init(x))

    def update(grads: Array, best: Best, x: Array, *, losses: Array, **extra: Any) -> tuple[Array, Best]:
        updates, inner = rule.update(grads, best.inner, x, losses=losses, **extra)
        return updates, Best(*larger((best.x, best.loss), (x, losses.astype(best.loss.dtype))), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def stop_at_success(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Move as `rule` does until an example is misclassified, and no further.

    `aux` must be whether x_t is misclassified, bool [B]. The state is per example: a number that `rule` shares among
    examples, like Adam's step count, is repeated [B], so that examples can be dropped.
    """
    rule = optax.with_extra_args_support(rule)

    def init(x: Array) -> Tree:
        return jax.tree.map(lambda a: a if jnp.ndim(a) else jnp.broadcast_to(a, (len(x),)), rule.init(x))

    def update(grads: Array, state: Tree, x: Array, *, aux: Array, **extra: Any) -> tuple[Array, Tree]:
        like = jax.eval_shape(rule.init, x)
        state = jax.tree.map(lambda a, one: a if one.ndim else a[0], state, like)
        updates, state = rule.update(grads, state, x, aux=aux, **extra)
        state = jax.tree.map(lambda a: a if a.ndim else jnp.broadcast_to(a, (len(x),)), state)
        return jnp.where(threat.spread(aux, x), 0, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def larger(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return per example the (image [B, H, W, C], loss [B]) of larger loss; the first if they are equal."""
    return threat.choose(other[1] > one[1], other, one)


def uniform(ball: threat.Ball, key: Key, x0: Array) -> Array:
    """Start at a uniform draw from the ball, clipped to [0, 1] as MadryLab does (L2L and TRADES do not clip)."""
    return ball.sample(key, x0)


def clean(ball: threat.Ball, key: Key, x0: Array) -> Array:
    """Start at the image itself."""
    return x0


def close(ball: threat.Ball, key: Key, x0: Array) -> Array:
    """Start at a uniform draw from the l-infinity ball of radius 1e-4, clipped to [0, 1]: L2L (2021), section 4.1."""
    return ball.project(threat.linf(1e-4).sample(key, x0), x0)


def gaussian(ball: threat.Ball, key: Key, x0: Array) -> Array:
    """Start at x0 + 0.001 N(0, I), projected; TRADES and RNN-Adv do not clip it to [0, 1]."""
    keys = example_keys(key, len(x0))
    noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:], x0.dtype))(keys)
    return ball.project(x0 + 0.001 * noise, x0)
