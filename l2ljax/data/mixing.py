"""Cutout, CutMix and label smoothing of a training batch, keyed and jitted.

mixing = Mixing(cutout=16, cutmix=0.5, label_smoothing=0.1)
batch = mix(batch, example_keys(key, len(batch.x)), mixing, classes=10)  # labels become distributions [B, K]
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2ljax.types import Array, Batch, Key, example_keys

__all__ = ["Mixing", "mix", "mixed"]


class Mixing(NamedTuple):
    """The strengths; 0 is none."""

    cutout: int = 0
    """Side of the square set to 0, in pixels; 16 for CIFAR-10 in DeVries & Taylor (2017)."""
    cutmix: float = 0.0
    """Probability of a box from another image of the batch; 0.5 for CIFAR-10 in Yun et al. (2019)."""
    label_smoothing: float = 0.0
    """a of (1 - a) onehot(y) + a / K. Szegedy et al. (2016), section 7."""


@partial(jax.jit, static_argnames=("mixing", "classes"))
def mix(batch: Batch, keys: Key, mixing: Mixing, *, classes: int) -> Batch:
    """Return the batch with squares cut out, then boxes pasted, then labels smoothed.

    Cutout's square has its center at a uniform pixel, so that it may reach over the border. CutMix pastes, per image, a
    box whose center is uniform and whose area is a share 1 - u of the image's, u uniform in [0, 1]; the label's share
    is that of the pixels. The box comes from the image at the mirrored position of the batch (of this process's part),
    which shuffling makes a random one; the paper draws one box for the whole batch.

    Args:
      batch: x [B, H, W, C] and integer labels [B].
      keys: [B].
      mixing: the strengths.
      classes: K.

    Returns:
      x [B, H, W, C] and, where CutMix or smoothing is on, labels [B, K] that sum to 1.
    """
    x, y = batch
    cut_keys, mix_keys = (jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in range(2))
    box = partial(_box, x.shape[1:3])
    if mixing.cutout:
        boxes = jax.vmap(lambda key: box(key, jnp.full(2, mixing.cutout)))(cut_keys)
        x = jnp.where(boxes[..., None], 0, x)
    if not (mixing.cutmix or mixing.label_smoothing):
        return Batch(x, y)
    labels = jax.nn.one_hot(y, classes)
    if mixing.cutmix:

        def draw(key: Key) -> Array:
            on, share, place = jax.random.split(key, 3)
            side = jnp.sqrt(1 - jax.random.uniform(share)) * jax.random.bernoulli(on, mixing.cutmix)
            return box(place, jnp.round(side * jnp.array(x.shape[1:3])).astype(int))

        boxes = jax.vmap(draw)(mix_keys)
        x = jnp.where(boxes[..., None], x[::-1], x)
        share = boxes.mean(axis=(1, 2))[:, None]
        labels = (1 - share) * labels + share * labels[::-1]
    return Batch(x, optax.smooth_labels(labels, mixing.label_smoothing))


def mixed(
    batches: Iterable[tuple[int, Batch]], key: Key, mixing: Mixing, classes: int, part: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, Batch]]:
    """Mix the batches of `pipeline.stream`, or their `part`; draws depend on the key, the step and the position."""
    i, n = part
    for step, batch in batches:
        size = len(batch.y)
        keys = example_keys(jax.random.fold_in(jax.random.fold_in(key, 2), step), n * size)[i * size : (i + 1) * size]
        yield step, mix(batch, keys, mixing, classes=classes)


def _box(size: Sequence[int], key: Key, sides: Array) -> Array:
    """Return a mask [H, W] of a box of these sides around a uniform pixel, as far as it lies in the image."""
    first = jax.random.randint(key, (2,), 0, jnp.array(size)) - sides // 2
    rows, columns = (
        (jnp.arange(n) >= begin) & (jnp.arange(n) < begin + side)
        for n, begin, side in zip(size, first, sides, strict=True)
    )
    return rows[:, None] & columns[None]
