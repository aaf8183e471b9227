"""The interfaces between the parts of l2ljax: classifiers, attacks and defenses.

Everything is a NamedTuple of pure functions or of arrays. Nothing here computes, except for the functions on keys that
all parts share.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Array", "Attack", "Batch", "Classifier", "Defense", "Key", "L2LError", "LogitsFn", "Players", "Tree",
    "as_key", "example_keys", "fold_in", "is_key", "one_key", "one_line",
]  # fmt: skip
__dir__ = lambda: __all__

Array = jax.Array
Key = jax.Array  # a typed PRNG key (jax.random.key), or an array [B] of them, one per example
Tree = Any  # a pytree of arrays


class L2LError(ValueError):
    """Bad input, described in one line that names the fix. The scripts print it without a traceback."""


def one_line(error: BaseException, most: int = 200) -> str:
    """Return an error's type and the first line of its message, in `most` characters, for the message of another."""
    text = f"{type(error).__name__}: {str(error).strip()}".removesuffix(": ")
    return text.splitlines()[0][:most]


class Players(NamedTuple):
    """A pair, one for each player: parameters, batch statistics, optimizers, or their states."""

    classifier: Any
    attacker: Any


class Batch(NamedTuple):
    """Images [B, H, W, C], float in [0, 1], and integer labels [B] in 0..K-1; in training also distributions [B, K]."""

    x: Array
    y: Array


LogitsFn = Callable[[Array], Array]
"""Images [B, H, W, C] in [0, 1] -> logits [B, K]. Normalization lives inside the model."""


@runtime_checkable
class Attack(Protocol):
    """(logits_fn, key, x [B, H, W, C], y [B]) -> adversarial x, in the ball and in [0, 1]. Pure; jits.

    `key` is one key, or B of them, one per example (see `example_keys`), in any form of `as_key`.
    """

    def __call__(self, logits_fn: LogitsFn, key: Key, x: Array, y: Array, /) -> Array:
        """Attack one batch."""


class Classifier(NamedTuple):
    """A network as pure functions. `variables` is {"params": tree, "batch_stats": tree, possibly empty}."""

    init: Callable[[Key, Array], Tree]
    """(key, x [B, H, W, C]) -> variables."""
    logits: Callable[[Tree, Array], Array]
    """(variables, x) -> logits [B, K] in evaluation mode."""
    train: Callable[..., tuple[Array, Tree]]
    """(variables, x, key, axis_name=None) -> (logits, batch_stats) in training mode: batch statistics over all
    devices of `axis_name`, and dropout drawn per example from `key`."""
    features: Callable[[Tree, Array], Array]
    """(variables, x) -> penultimate features [B, D] in evaluation mode."""


class Defense(NamedTuple):
    """One saddle-point objective: the classifier descends it, the attacker ascends it."""

    init: Callable[[Key, Array], tuple[Tree, Tree]]
    """(key, x) -> (params, batch_stats) of the attacker; both empty if it has no parameters."""
    objective: Callable[..., tuple[Array, tuple[Players, dict[str, Array]]]]
    """(params: Players, stats: Players, key [B], batch, mode) -> (scalar, (stats: Players, metrics)).
    `mode` gives the moving players: "joint" (both), "classifier" or "attacker"; it sets the BatchNorm modes.
    A keyword `shift`, see `saddle.Shift`, moves the weights before the end; `weights.perturbed` needs it."""
    attack: Callable[..., Attack | None]
    """(params, batch_stats) of the attacker -> the trained attacker as an Attack, or None if it has no parameters.
    Keywords: `steps`, by default as in training; `path=True` for all iterates x_1..x_T [T, B, H, W, C] instead of the
    last."""
    mover: Any = None
    """The attacker's optax optimizer, if the method prescribes it."""


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is a typed PRNG key, or an array of them."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_key(key: Any) -> Key:
    """Return the typed PRNG key, or array of them, from any of JAX's forms.

    Args:
      key: from `jax.random.key`; from `jax.random.PRNGKey`, uint32 [..., 2], with the same draws; or an integer seed.

    Raises:
      L2LError: anything else.
    """
    if is_key(key):
        return key
    known = isinstance(key, np.generic | np.ndarray | jax.Array) and not isinstance(key, jax.core.Tracer)
    if known and not key.shape and jnp.issubdtype(key.dtype, jnp.integer):
        key = int(key)
    if type(key) is int and 0 <= key < 2**32:
        return jax.random.key(key)
    if not hasattr(key, "dtype"):
        kind = f"the seed {key}" if type(key) is int else f"a {type(key).__name__}"
        raise L2LError(f"the key is {kind}: give jax.random.key(0), or an integer seed from 0 to 2^32 - 1")
    if key.dtype == jnp.uint32 and key.shape[-1:] == (2,):
        return jax.random.wrap_key_data(jnp.asarray(key))
    if key.shape or not jnp.issubdtype(key.dtype, jnp.integer):
        raise L2LError(f"the key is {key.dtype} {list(key.shape)}: give jax.random.key(0), or an integer seed")
    return jax.random.key(key)


def one_key(key: Any) -> Key:
    """Return `as_key` of one key; an array of keys raises an L2LError."""
    key = as_key(key)
    if key.shape:
        raise L2LError(f"{list(key.shape)} keys: give one, like jax.random.key(0); each example's is derived from it")
    return key


def example_keys(key: Key, n: int) -> Key:
    """Return one key per example [n]: `fold_in(key, i)` for position i; keys [n] are returned unchanged.

    An example's draws then depend neither on its neighbours nor on the split of the batch. Keys may have any form of
    `as_key`, and so for attacks. Another number of keys raises an L2LError.
    """
    key = as_key(key)
    if key.shape not in ((), (n,)):
        raise L2LError(f"{list(key.shape)} keys for {n} examples: give one key, or one per example")
    if key.ndim == 1:
        return key
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))


def fold_in(keys: Key, data: Array | int) -> Key:
    """Apply `jax.random.fold_in` to one key or to each in an array of keys: a named stream of draws."""
    keys = as_key(keys)
    if keys.ndim == 0:
        return jax.random.fold_in(keys, data)
    return jax.vmap(lambda k: jax.random.fold_in(k, data))(keys)
