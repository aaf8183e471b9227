"""A user's own arrays as a data set, with the same checks as any other.

    dataset = from_arrays(train_images, train_labels, test_images, test_labels)
    dataset = data.load("mine.npz")               # numpy.savez("mine.npz", train_images=..., train_labels=..., ...)
    dataset = data.load("my.module:function")     # a function without arguments that returns such arrays

Images are [N, H, W, C], uint8 or floats in [0, 1]; labels are integers [N] in 0..K-1. A file or a mapping holds
train_images, train_labels and optionally test_images, test_labels and class_names; or images and labels, for evaluation
only. A function may also return a `Dataset`, a tuple of those four arrays, or a pair (images, labels) for evaluation.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from l2ljax.data.functions import call
from l2ljax.data.readers import Split
from l2ljax.data.sources import SOURCES, nearest
from l2ljax.types import L2LError, one_line

__all__ = [
    "MOST_CLASSES", "Dataset", "as_dataset", "check_examples", "check_trainable", "from_arrays", "native", "pixels",
    "read",
]  # fmt: skip

MOST_CLASSES = 2**20
TO_EVALUATE = ("images", "labels")
TO_TRAIN = ("train_images", "train_labels", "test_images", "test_labels")


class Dataset(NamedTuple):
    """Three splits: NumPy arrays on the host, or images on disk."""

    name: str
    train: Split
    """Empty in a set for evaluation only."""
    val: Split
    """Taken out of the official training set; empty by default."""
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    augment: str
    """The usual augmentation of training batches, an argument of `train_batch`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        return tuple(self.test.images.shape[1:])

    @property
    def sizes(self) -> str:
        """The numbers of images, for people."""
        train, val, test = (f"{len(split.labels):,}" for split in (self.train, self.val, self.test))
        return f"{train} images to train on, {val} to validate and {test} to test on"


def from_arrays(
    train_images: Any, train_labels: Any, test_images: Any = None, test_labels: Any = None, *,
    class_names: Sequence[str] = (), augment: str | None = None, name: str = "arrays",
) -> Dataset:  # fmt: skip
    """Make a data set from arrays.

    Args:
      train_images: [N, H, W, C], uint8 or floats in [0, 1].
      train_labels: integers [N] in 0..K-1; without class names, each occurs at least once.
      test_images: like the training images; by default a fixed sixth of those.
      test_labels: their labels.
      class_names: K names; by default the numbers.
      augment: an argument of `train_batch`; by default that of the known set nearest in image size (see `nearest`),
        which mirrors images of about CIFAR's size and larger.
      name: the set's name in reports.

    Raises:
      L2LError: arrays of other shapes, types or ranges.
    """
    where, class_names = f"{name}, to train on: ", _texts(class_names, name)
    train = _split(train_images, train_labels, where)
    if (test_images is None) != (test_labels is None):
        raise L2LError(f"{name}: give test images and test labels, or neither")
    test = train if test_images is None else _split(test_images, test_labels, f"{name}, to test on: ")
    if (shape := train.images.shape[1:]) != (other := test.images.shape[1:]):
        raise L2LError(f"{name}: images {list(shape)} to train on and {list(other)} to test on: bring them to one size")
    if not class_names:
        classes = max(train.labels.max(), test.labels.max()) + 1
        absent = np.setdiff1d(np.arange(classes), train.labels)
        if len(absent) or classes < 2:
            missing = absent[0] if len(absent) else 1
            raise L2LError(f"{where}no label is {missing}: number the classes from 0 without gaps, or give class_names")
    if test_images is None:
        train, test = _hold_out(train)
    return _dataset(name, train, test, class_names, augment)


def as_dataset(content: Any, name: str = "") -> Dataset:
    """Return the data set in a mapping, tuple or `Dataset` (see the module); raise an L2LError for anything else."""
    name = name or getattr(content, "name", "arrays")
    if isinstance(content, Dataset):
        splits = []
        for split in (content.train, content.val, content.test):
            images = split.images if hasattr(split.images, "dtype") else np.asarray(split.images)
            splits.append(Split(native(images), native(np.asarray(split.labels))))
            check_examples(*splits[-1], content.num_classes, where=f"{name}: ")
        train, val, test = (split._replace(images=_stored(split.images)) for split in splits)
        return content._replace(name=name, train=train, val=val, test=test)
    if isinstance(content, tuple | list) and len(content) in (2, 4):
        content = dict(zip(TO_EVALUATE if len(content) == 2 else TO_TRAIN, content, strict=True))
    if not isinstance(content, Mapping):
        kind = f"{len(content)} values" if isinstance(content, tuple | list) else f"a {type(content).__name__}"
        raise L2LError(f"{name} gives {kind}: give (images, labels), or the four arrays {', '.join(TO_TRAIN)}")
    given, class_names = set(content) - {"class_names"}, _texts(content.get("class_names", ()), name)
    if given == set(TO_EVALUATE):
        test = _split(content["images"], content["labels"], f"{name}: ")
        return _dataset(name, Split(test.images[:0], test.labels[:0]), test, class_names, None)
    if given in (set(TO_TRAIN), set(TO_TRAIN[:2])):
        return from_arrays(**{array: content[array] for array in given}, class_names=class_names, name=name)
    listed = ", ".join(sorted(map(str, given))) or "nothing"
    raise L2LError(f"{name} holds {listed}: name them {' and '.join(TO_EVALUATE)}, or all of {', '.join(TO_TRAIN)}")


def read(name: str) -> Dataset:
    """Return the data set of a .npz file or of MODULE:FUNCTION; raises as `as_dataset`."""
    if not name.endswith(".npz"):
        return as_dataset(call(name, f"(images, labels), or {', '.join(TO_TRAIN)}"), name)
    try:
        with Path(os.path.expanduser(name)).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            content = {array: file[array] for array in file.files}
    except Exception as error:  # NumPy's, zipfile's and zlib's for a file that is no or a damaged one
        raise L2LError(f"{name} cannot be read ({one_line(error)}): name a file that numpy.savez wrote") from error
    return as_dataset(content, name)


def native(array: Any) -> Any:
    """Return a NumPy array in this machine's byte order, which JAX needs; anything else as it is."""
    if not isinstance(array, np.ndarray) or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def pixels(images: Any) -> np.ndarray:
    """Return images, uint8 or floats in [0, 1], as floats in [0, 1], float32 or wider; reads images on disk."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.promote_types(images.dtype, np.float32), copy=False)


def check_examples(images: Any, labels: Any, num_classes: int | None = None, *, where: str = "") -> None:
    """Check images [N, H, W, C], uint8 or floats in [0, 1], and labels, integers [N] in 0..num_classes - 1.

    By default there may be up to `MOST_CLASSES`. Any other type, shape or range is an L2LError, prefixed by `where`.
    """
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise L2LError(f"{where}images are {images.dtype}: give uint8, or floats in [0, 1]")
    if len(images.shape) != 4:
        raise L2LError(f"{where}images have the shape {list(images.shape)}: give [N, H, W, C], grey ones with C = 1")
    if images.dtype != np.uint8 and len(images):
        low, high = images.min(), images.max()
        if np.isnan(low) or np.isnan(high):
            raise L2LError(f"{where}images hold NaN: clean the data first")
        if low < 0 or high > 1:
            reach = f"from {low:.3g} to {high:.3g}"
            raise L2LError(f"{where}images reach {reach}: scale them to [0, 1] and put normalization in the model")
    if labels.ndim != 1:
        shape = list(labels.shape)
        raise L2LError(f"{where}labels have the shape {shape}: give integers [N], for one-hot ones y.argmax(axis=1)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise L2LError(f"{where}labels are {labels.dtype}: give integers")
    if len(labels) != len(images):
        raise L2LError(f"{where}{len(images)} images and {len(labels)} labels: give one label per image")
    last = (num_classes or MOST_CLASSES) - 1
    if len(labels) and not 0 <= labels.min() <= labels.max() <= last:
        raise L2LError(f"{where}labels reach from {labels.min()} to {labels.max()}: the classes are 0..{last}")


def check_trainable(dataset: Dataset) -> None:
    """Check that a data set has training images; raise an L2LError otherwise."""
    if not len(dataset.train.labels):
        wanted = f"name training arrays {' and '.join(TO_TRAIN[:2])}, or give from_arrays(images, labels)"
        raise L2LError(f"{dataset.name} has no training images: {wanted}")


def _texts(class_names: Any, name: str) -> tuple[str, ...]:
    if isinstance(class_names, str) or np.ndim(class_names) != 1:
        raise L2LError(f"{name}: class_names is {class_names!r}: give a list of one name for each class")
    return tuple(map(str, class_names))


def _split(images: Any, labels: Any, where: str) -> Split:
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except (TypeError, ValueError) as error:  # lists of several lengths, an array on another device
        raise L2LError(f"{where}no arrays of images and labels ({one_line(error)}): give NumPy arrays") from error
    check_examples(images, labels, where=where)
    if not images.size:
        raise L2LError(f"{where}images have the shape {list(images.shape)}: give one or more")
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        fix = "give images.transpose(0, 2, 3, 1), or a data.Dataset if they are that high"
        raise L2LError(f"{where}images are {list(images.shape)}, channels first: {fix}")
    return Split(_stored(images), labels.astype(np.int32))


def _stored(images: Any) -> Any:
    return images if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def _hold_out(split: Split) -> tuple[Split, Split]:
    """Hold out a sixth for the test, as in MNIST and CIFAR-10: always the same."""
    order, sixth = np.random.RandomState(0).permutation(len(split.labels)), -(-len(split.labels) // 6)
    train, test = np.sort(order[sixth:]), np.sort(order[:sixth])
    return split.take(train), split.take(test)


def _dataset(name: str, train: Split, test: Split, class_names: Sequence[str], augment: str | None) -> Dataset:
    labels = np.concatenate([train.labels, test.labels])
    names = tuple(class_names) or tuple(map(str, range(labels.max() + 1)))
    for split in (train, test):
        check_examples(*split, len(names), where=f"{name}: ")
    none = Split(train.images[:0], train.labels[:0])
    chosen = augment or SOURCES[nearest(test.images.shape[1:])].augment
    return Dataset(name, train, none, test, len(names), names, chosen)
