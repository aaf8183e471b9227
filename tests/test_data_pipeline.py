"""Batches: order, augmentation against a loop, evaluation."""

import itertools

import jax
import numpy as np
import pytest

from l2ljax.data import Split, batches, epoch_order, steps_per_epoch, stream, train_batch
from l2ljax.data.pipeline import crop_flip, draw
from l2ljax.types import L2LError, example_keys

KEY = jax.random.key(3)
N, B = 23, 5
RNG = np.random.RandomState(1)
IMAGES = RNG.randint(0, 256, (N, 7, 6, 2)).astype(np.uint8)
IMAGES[:, :, :, 0] = np.arange(N)[:, None, None]  # channel 0 says which image it is
TRAIN = Split(IMAGES, np.arange(N, dtype=np.int32))


def reference_crop_flip(image, offset, flip):
    """Pad, cut, mirror, pixel by pixel."""
    height, width, channels = image.shape
    padded = np.zeros((height + 8, width + 8, channels), image.dtype)
    padded[4:-4, 4:-4] = image
    out = np.zeros_like(image)
    for row in range(height):
        for col in range(width):
            out[row, width - 1 - col if flip else col] = padded[row + offset[0], col + offset[1]]
    return out


def order(step):
    return epoch_order(KEY, step // steps_per_epoch(N, B), N)


def batch(step, augment="none", key=KEY):
    return train_batch(TRAIN, order(step), key, step, batch_size=B, augment=augment)


def test_an_epoch_has_every_example_at_most_once_and_drops_the_remainder():
    seen = [np.asarray(batch(step).y) for step in range(8)]
    for epoch in (seen[:4], seen[4:]):
        assert len(set(np.concatenate(epoch))) == 20  # 4 batches of 5, of 23
    assert sorted(np.asarray(order(0))) == sorted(np.asarray(order(4))) == list(range(N))
    assert not np.array_equal(order(0), order(4))
    np.testing.assert_array_equal(order(0), order(3))
    assert not np.array_equal(order(0), epoch_order(jax.random.key(4), 0, N))


def test_batches_of_one_epoch_cover_a_set_that_they_divide():
    twenty = Split(IMAGES[:20], np.arange(20, dtype=np.int32))
    whole = epoch_order(KEY, 0, 20)
    seen = [train_batch(twenty, whole, KEY, step, batch_size=5).y for step in range(4)]
    assert sorted(np.concatenate(seen)) == list(range(20))


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_a_batch_depends_on_key_and_step_alone(augment):
    for step in (0, 6):
        first, again = batch(step, augment), batch(step, augment)
        np.testing.assert_array_equal(first.x, again.x)
        np.testing.assert_array_equal(first.y, again.y)
    assert not np.array_equal(batch(0, augment).x, batch(1, augment).x)


def test_batch_is_float32_in_the_unit_range_of_the_right_images():
    got = batch(2)
    assert got.x.dtype == np.float32 and got.y.dtype == np.int32
    np.testing.assert_array_equal(got.y, np.asarray(order(2))[10:15])
    np.testing.assert_array_equal(got.x, IMAGES[np.asarray(got.y)].astype(np.float32) / np.float32(255))
    assert IMAGES.max() == 255 and np.asarray(got.x).min() >= 0 and np.asarray(got.x).max() <= 1


def test_crop_at_every_offset_agrees_with_a_loop():
    cases = list(itertools.product(range(9), range(9), (False, True)))
    index = np.arange(len(cases)) % N
    offsets, flips = np.array([case[:2] for case in cases]), np.array([case[2] for case in cases])
    expected = [reference_crop_flip(IMAGES[i], o, f) for i, o, f in zip(index, offsets, flips, strict=True)]
    np.testing.assert_array_equal(jax.jit(crop_flip)(TRAIN.images, index, offsets, flips), np.stack(expected))


@pytest.mark.parametrize("augment", ["flip", "crop", "crop_flip"])
def test_augmented_batch_is_the_loop_at_each_examples_own_draws(augment):
    step = 6
    got = batch(step, augment)
    keys = example_keys(jax.random.fold_in(jax.random.fold_in(KEY, 1), step), B)
    offsets, flips = jax.jit(jax.vmap(draw))(keys)
    flips = np.asarray(flips) & (augment != "crop")
    if augment == "flip":
        offsets = np.full((B, 2), 4)
    assert augment == "crop" or 0 < flips.sum() < B
    images = IMAGES[np.asarray(got.y)]
    expected = [reference_crop_flip(*case) for case in zip(images, np.asarray(offsets), flips, strict=True)]
    np.testing.assert_array_equal(got.x, np.stack(expected).astype(np.float32) / np.float32(255))


def test_draws_are_uniform():
    offsets, flips = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 8100))
    counts = np.bincount(np.asarray(offsets[:, 0]) * 9 + np.asarray(offsets[:, 1]), minlength=81)
    assert len(counts) == 81 and counts.min() > 60 and counts.max() < 140  # 100 expected, deviation 10
    assert 0.47 < np.mean(flips) < 0.53
    assert abs(np.corrcoef(offsets[:, 1], flips)[0, 1]) < 0.05


def test_plain_training_batches_equal_evaluation_batches_bit_by_bit():
    ramp = Split(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), np.zeros(1, np.int32))
    train = train_batch(ramp, epoch_order(KEY, 0, 1), KEY, 0, batch_size=1)
    (evaluation,) = batches(ramp, 1)
    np.testing.assert_array_equal(train.x, evaluation.x)
    np.testing.assert_array_equal(evaluation.x.ravel(), np.arange(256, dtype=np.float32) / np.float32(255))


def test_stream_is_the_same_from_wherever_it_starts():
    whole = list(itertools.islice(stream(TRAIN, KEY, batch_size=B, augment="crop_flip"), 10))
    assert [step for step, _ in whole] == list(range(10))
    for step, got in whole:
        np.testing.assert_array_equal(got.x, batch(step, "crop_flip").x)
    for start in (3, 4, 9):
        step, got = next(stream(TRAIN, KEY, batch_size=B, augment="crop_flip", start=start))
        assert step == start
        np.testing.assert_array_equal(got.x, whole[start][1].x)


@pytest.mark.parametrize("size", [0, -1, N + 1])
def test_impossible_batch_sizes_are_refused(size):
    with pytest.raises(L2LError, match=f"batch size {size} must be in 1..{N}"):
        train_batch(TRAIN, order(0), KEY, 0, batch_size=size)
    with pytest.raises(L2LError, match=f"batch size {size}"):
        next(stream(TRAIN, KEY, batch_size=size))


def test_other_bad_arguments_are_refused():
    with pytest.raises(L2LError, match=r"'mirror': choose one of none, flip, crop, crop_flip"):
        batch(0, "mirror")
    with pytest.raises(L2LError, match="batch_size=0: give a whole number"):
        batches(TRAIN, 0)  # at the call, not at the first batch


def test_evaluation_batches_cover_the_split_in_order():
    got = list(batches(TRAIN, 10))
    assert [b.start for b in got] == [0, 10, 20] and [b.valid for b in got] == [10, 10, 3]
    assert all(b.x.shape == (10, 7, 6, 2) and b.x.dtype == np.float32 and b.y.dtype == np.int32 for b in got)
    np.testing.assert_array_equal(np.concatenate([b.y[: b.valid] for b in got]), np.arange(N))
    np.testing.assert_array_equal(got[2].y, [20, 21, 22, 20, 20, 20, 20, 20, 20, 20])
    np.testing.assert_array_equal(got[2].x[3], got[2].x[0])
    assert list(batches(Split(IMAGES[:0], TRAIN.labels[:0]), 4)) == []
