"""The entrance of all attacks: check the images, labels, keys and the model's output, and compute in float32 or wider.

@entered
def attack(logits_fn, key, x, y): ...

NaN pixels are never handed on by a combinator: such an example counts as not attacked. An image with NaN logits counts
as misclassified while tracing; on the host, `evaluate` raises an error for either.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from l2ljax.data.arrays import native
from l2ljax.threat import rounded, spread, widened
from l2ljax.types import Array, Attack, Key, L2LError, example_keys

__all__ = [
    "check_floats", "check_images", "check_losses", "check_model", "check_output", "enter", "entered", "reach", "sound",
]  # fmt: skip


def entered(attack: Attack) -> Attack:
    """Give an attack checked arguments, see `enter`, and return its images in the type of the clean ones.

    Raises:
      L2LError: (when called) invalid arguments; images of another shape; one draw for all of the per-example keys.
    """

    @functools.wraps(attack)
    def checked(logits_fn: Callable[..., Array], key: Key, x: Array, y: Array) -> Array:
        x = native(x)
        model, keys, wide, y = enter(logits_fn, key, x, y)
        try:
            x_adv = attack(model, keys, wide, y)
        except (TypeError, ValueError) as error:
            if "single key" not in str(error):
                raise
            raise L2LError(
                "the attack draws from one key but gets a key per example [B]: draw with jax.vmap over "
                "types.example_keys(key, len(x))"
            ) from error
        if jnp.shape(x_adv) != x.shape:
            raise L2LError(f"the attack returned {list(jnp.shape(x_adv))} for images {list(x.shape)}: return x's shape")
        return rounded(x_adv, x)

    return checked


def enter(logits_fn: Callable[..., Array], key: Key, x: Any, y: Any) -> tuple[Callable[..., Array], Key, Array, Array]:
    """Return the arguments for an attack to compute with: the model with its output checked, keys [B], x and y.

    x is float32 or wider; the model gets images of the given type, rounded as the result is (see `threat.rounded`).
    Values are checked where they can be seen: not while tracing.

    Raises:
      L2LError: images that are not floats [B, ...] in [0, 1], labels that are not integers [B] of the model's classes,
        a number of keys other than 1 and B, or (when the model is called) one that is no function, or an output other
        than floats [B, K], K >= 2.
    """
    check_images(x)
    check_model(logits_fn)
    if not hasattr(y, "dtype"):
        raise L2LError(f"labels are a {type(y).__name__}: give an array of integers [B]")
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        raise L2LError(f"labels are {y.dtype} {list(y.shape)}: give integers [B], for one-hot ones y.argmax(axis=1)")
    if len(y) != len(x):
        raise L2LError(f"{len(x)} images and {len(y)} labels: give one label per image")
    low, high = reach(x)
    if not (low >= 0 and high <= 1):
        raise L2LError(f"images reach from {low:.3g} to {high:.3g}: scale them to [0, 1], without NaN")
    given, labels = jnp.asarray(native(x)), reach(y)

    def model(x: Array, *keys: Key) -> Array:
        if not callable(logits_fn):  # not before: attacks that do not ask a model need none
            raise L2LError(f"the model is a {type(logits_fn).__name__}: give a function from images to logits")
        return check_output(logits_fn(rounded(x, given), *keys), len(x), labels)

    return model, example_keys(key, len(x)), widened(given), jnp.asarray(native(y))


def check_model(logits_fn: Any) -> None:
    """Refuse an nnx network in training mode, and a linen module, which is no function of images."""
    if isinstance(logits_fn, linen.Module) and logits_fn.scope is None:
        fix = "give jax.tree_util.Partial(models.from_linen(net).logits, variables)"
        raise L2LError(f"{type(logits_fn).__name__} has no weights: {fix}")
    if isinstance(logits_fn, nnx.Module):
        for _, module in nnx.iter_modules(logits_fn):
            if any(getattr(module, mode, None) is False for mode in ("deterministic", "use_running_average")):
                raise L2LError(f"{type(logits_fn).__name__} is in training mode: call model.eval() first")


def check_images(x: Any) -> None:
    """Check that images are floats [B, ...], B >= 1, while tracing too; raise an L2LError otherwise."""
    check_floats(x)
    if x.ndim < 2 or not len(x):
        raise L2LError(f"images have the shape {list(x.shape)}: give [B, H, W, C], B of 1 or more")


def check_floats(x: Any) -> None:
    """Check that images are an array of floats; raise an L2LError otherwise."""
    if not isinstance(getattr(x, "dtype", None), np.dtype):  # a list, or a PyTorch tensor
        raise L2LError(f"images are a {type(x).__name__}: give an array of floats in [0, 1], NumPy's or JAX's")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise L2LError(f"images are {x.dtype}: give floats in [0, 1], like images.astype('float32') / 255")


def check_output(output: Any, count: int, labels: tuple[float, float] = (0, 0)) -> Array:
    """Return a model's output for `count` images if it is logits [count, K], K >= 2, with classes for the labels.

    Args:
      output: what the model returned.
      count: the number of images.
      labels: the least and the largest.

    Raises:
      L2LError: anything else.
    """
    if not hasattr(output, "dtype"):
        raise L2LError(f"the model returned a {type(output).__name__}: logits are one array [B, K]")
    if output.ndim != 2 or len(output) != count or not jnp.issubdtype(output.dtype, jnp.floating):
        kind = f"{output.dtype} {list(output.shape)}"
        raise L2LError(f"the model returned {kind} for {count} images: logits are floats [B, K]")
    classes = output.shape[1]
    if classes < 2:
        raise L2LError("the model returned one logit per image: logits are [B, K], K >= 2, like [0, z] for two classes")
    if labels[0] < 0 or labels[1] >= classes:
        raise L2LError(
            f"labels reach from {labels[0]} to {labels[1]}, the model has the classes 0..{classes - 1}: "
            "give the labels that it was trained with"
        )
    return output


def check_losses(values: Array, count: int) -> Array:
    """Return a loss's values for `count` images if there is one for each, which a mean would credit with all."""
    if values.shape != (count,):
        raise L2LError(f"the loss returns {list(values.shape)}: return one value for each of the {count} images")
    return values


def sound(candidate: Array, x: Array) -> Array:
    """Return per example the candidate [B, ...], or x if it holds NaN."""
    return jnp.where(spread(jnp.isnan(candidate).any(axis=range(1, x.ndim)), x), x, candidate)


def reach(values: Any) -> tuple[float, float]:
    """Return the least and the largest value; (0, 0) while tracing."""
    if isinstance(values, jax.core.Tracer):
        return 0, 0
    values = np.asarray(values)
    return values.min(), values.max()
