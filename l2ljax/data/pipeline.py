"""Batches: a training set kept on the device as uint8, shuffled and augmented there under jit.

    for step, batch in stream(train, key, batch_size=128, augment=dataset.augment):
        ...                                    # from any step: stream(..., start=step)
    for batch in batches(dataset.test, 500):   # evaluation, in order, on the host
        ...

`stream` is a loop around the pure functions `epoch_order` and `train_batch`. Images on disk are read a batch ahead, and
only that batch is on the device; the batches are the same bit by bit.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.data.arrays import pixels
from l2ljax.data.images import Images
from l2ljax.data.readers import Split
from l2ljax.types import Array, Batch, Key, L2LError, example_keys
from l2ljax.values import Count, checked

__all__ = [
    "AUGMENTS", "EvalBatch", "batches", "crop_flip", "draw", "epoch_order", "repeated", "steps_per_epoch", "stream",
    "train_batch",
]  # fmt: skip

PADDING = 4
AUGMENTS = ("none", "flip", "crop", "crop_flip")

# v / 255 of each byte. Under jit a division by a constant becomes a product, off by one unit in the last place: a
# lookup gives training and evaluation images the same values on every device.
_PIXELS = np.arange(256, dtype=np.float32) / np.float32(255)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of full batches in n examples; the remainder is dropped, other examples each epoch.

    Raises:
      L2LError: a batch size outside 1..n.
    """
    if not 1 <= batch_size <= n:
        raise L2LError(f"batch size {batch_size} must be in 1..{n}, the size of the training set")
    return n // batch_size


@partial(jax.jit, static_argnames="n")
def epoch_order(key: Key, epoch: int | Array, n: int) -> Array:
    """Return the permutation [n] of one epoch. For 50,000 examples it takes tens of milliseconds, once an epoch."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 0), epoch), n)


@partial(jax.jit, static_argnames=("batch_size", "augment", "part"))
def train_batch(
    train: Split, order: Array, key: Key, step: int | Array, *, batch_size: int, augment: str = "none",
    part: tuple[int, int] = (0, 1),
) -> Batch:  # fmt: skip
    """Return the training batch of one step, a pure function of its arguments.

    Args:
      train: images uint8 [N, H, W, C], or float32 in [0, 1], and labels int32 [N] on the device.
      order: `epoch_order(key, step // steps_per_epoch(N, batch_size), N)`. Step s takes its slice
        s % steps_per_epoch; the last N % batch_size examples are left out this epoch.
      key: the run's; augmentation draws from it by step and position in the batch.
      step: 0, 1, ... over all epochs.
      batch_size: B, of the whole batch.
      augment: "none"; "flip", a mirror image with probability 1/2; "crop", H x W at a random position of the image
        padded by 4 zero pixels; or "crop_flip", both.
      part: (i, n) for the i-th, 0..n-1, of n equal parts of the batch.

    Returns:
      x float32 [B / n, H, W, C] in [0, 1], y int32 [B / n].

    Raises:
      L2LError: a batch size outside 1..N or not divisible by n; an unknown augmentation.
    """
    images, labels = train
    position = step % steps_per_epoch(len(order), batch_size)
    first, size = _bounds(batch_size, part)
    index = jax.lax.dynamic_slice(order, (position * batch_size + first,), (size,))
    if augment == "none":
        x = images[index]
    elif augment in AUGMENTS:
        keys = example_keys(jax.random.fold_in(jax.random.fold_in(key, 1), step), batch_size)[first : first + size]
        offsets, flips = jax.vmap(draw)(keys)
        if augment == "flip":
            offsets = jnp.full_like(offsets, PADDING)
        x = crop_flip(images, index, offsets, flips & (augment != "crop"))
    else:
        raise L2LError(f"unknown augmentation {augment!r}: choose one of {', '.join(AUGMENTS)}")
    return Batch(x if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(_PIXELS)[x], labels[index])


def draw(key: Key) -> tuple[Array, Array]:
    """Return one example's offset and mirroring, the arguments of `crop_flip`."""
    offset_key, flip_key = jax.random.split(key)
    return jax.random.randint(offset_key, (2,), 0, 2 * PADDING + 1), jax.random.bernoulli(flip_key)


def crop_flip(images: Array, index: Array, offsets: Array, flips: Array) -> Array:
    """Return the examples `index` [B] of `images` [N, H, W, C], padded by 4 zero pixels, cropped, then mirrored.

    The function looks pixels up in place, which was faster on a CPU than padding and slicing copies.

    Args:
      images: [N, H, W, C].
      index: int [B].
      offsets: int [B, 2] in 0..8, down and right; 4 is the image itself.
      flips: bool [B].
    """
    height, width = images.shape[1:3]
    row, column = jnp.arange(height), jnp.arange(width)
    rows = row + offsets[:, :1] - PADDING
    columns = jnp.where(flips[:, None], column[::-1], column) + offsets[:, 1:] - PADDING
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    pixels = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return jnp.where(inside[..., None], pixels, 0)


def stream(
    train: Split, key: Key, *, batch_size: int, augment: str = "none", start: int = 0, part: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) forever from step `start`; the batches do not depend on `start`.

    Args and errors are those of `train_batch`; `train` may be on the host, and its images on disk.
    """
    orders = _orders(len(train.labels), key, batch_size, start)
    on_disk = isinstance(train.images, Images)
    train = train if on_disk else jax.device_put(train)
    given = ((step, train, order) for step, order in orders)
    for step, source, order in _read_ahead(train, orders, batch_size, part) if on_disk else given:
        yield step, train_batch(source, order, key, step, batch_size=batch_size, augment=augment, part=part)


def repeated(batches: Iterator[tuple[int, Batch]], times: int, start: int = 0) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) from step `start` on, with batch step // times; `batches` begin at that of `start`."""
    for index, batch in batches:
        for step in range(max(index * times, start), (index + 1) * times):
            yield step, batch


def _bounds(batch_size: int, part: tuple[int, int]) -> tuple[int, int]:
    """Return (the part's position in the batch, its size)."""
    i, n = part
    if batch_size % n:
        raise L2LError(f"a batch of {batch_size} does not split into {n} equal parts: give a multiple of {n}")
    return i * (batch_size // n), batch_size // n


def _orders(n: int, key: Key, batch_size: int, start: int) -> Iterator[tuple[int, Array]]:
    """Yield (step, its epoch's order [n]) forever from step `start`."""
    steps = steps_per_epoch(n, batch_size)
    for step in itertools.count(start):
        if step == start or step % steps == 0:
            order = epoch_order(key, step // steps, n)
        yield step, order


def _read_ahead(
    train: Split, orders: Iterator[tuple[int, Array]], batch_size: int, part: tuple[int, int]
) -> Iterator[tuple[int, Split, Array]]:
    """Yield (step, the part's examples on the host, an order); the next ones are read meanwhile.

    `train_batch` takes them as a training set of one batch, whose order [B] maps the part's place to its examples
    0..B/n-1: draws depend on the step and the position alone.
    """
    steps = steps_per_epoch(len(train.labels), batch_size)
    first, size = _bounds(batch_size, part)
    within = jnp.arange(batch_size) - first

    def read(step: int, order: Array) -> tuple[int, Split, Array]:
        index = np.asarray(order)[step % steps * batch_size + first :][:size]
        return step, Split(np.asarray(train.images[index]), train.labels[index]), within

    with ThreadPoolExecutor(1) as reader:
        coming = (reader.submit(read, *item) for item in orders)
        for batch, _ in itertools.pairwise(coming):  # a pair keeps two batches in flight
            yield batch.result()


class EvalBatch(NamedTuple):
    """A batch of an evaluation split, always full: copies of its first example fill the last one."""

    x: np.ndarray
    """float32 [B, H, W, C] in [0, 1]."""
    y: np.ndarray
    """int32 [B]."""
    valid: int
    """The number of its first examples that are not copies, 1..B."""
    start: int
    """The position in the split of the first example."""


@checked
def batches(split: Split, batch_size: Count) -> Iterator[EvalBatch]:
    """Return an iterator over a split in order, in batches of one shape, on the host."""
    return (_eval_batch(split, start, batch_size) for start in range(0, len(split.labels), batch_size))


def _eval_batch(split: Split, start: int, batch_size: int) -> EvalBatch:
    valid = min(batch_size, len(split.labels) - start)
    index = np.full(batch_size, start)
    index[:valid] += np.arange(valid)
    return EvalBatch(pixels(split.images[index]), split.labels[index], valid, start)
