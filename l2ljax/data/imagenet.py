"""Restricted ImageNet (Tsipras et al., 2019): nine super-classes of ImageNet, streamed from disk.

Memory holds only the list of files and labels. Every image is resized and cropped at the center, see `images.decode`:
the usual random resized crops of ImageNet training are left out, so that an image changes between epochs only by
mirroring. The test split is ImageNet's validation split. The super-classes are unequal in size (118 of the 203 classes
are dogs) and not balanced.
"""

import re
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from l2ljax.data.images import Images, decode
from l2ljax.data.readers import Split, damaged
from l2ljax.data.remote import find_prepared, prepared_in, tfds_root
from l2ljax.data.sources import RESTRICTED_IMAGENET, SOURCES
from l2ljax.types import L2LError

__all__ = ["SUPER_CLASS", "read", "read_folder", "read_prepared"]

SOURCE = SOURCES["restricted_imagenet"]
SUPER_CLASS = np.full(1000, -1, np.int32)
"""ImageNet's class, its rank among the sorted WordNet ids -> the super-class, or -1."""
for _label, _range in enumerate(RESTRICTED_IMAGENET.values()):
    SUPER_CLASS[_range] = _label
SUFFIXES = (".jpeg", ".jpg", ".png")
_LAYOUT = f"ImageNet's 1,000 class folders, like n01440764, or exactly the nine {', '.join(SOURCE.classes)}"


def read(folder: Path | None) -> tuple[Split, Split]:
    """Read the training and the test split, with images as `Images`; no data, or others, are an L2LError.

    `folder` holds train/ and val/, or data sets prepared by tensorflow-datasets; by default it is
    tensorflow-datasets' folder.
    """
    if prepared := find_prepared(SOURCE.tfds, folder or tfds_root()):
        return read_prepared(prepared)
    if folder:
        return read_folder(folder)
    raise L2LError(
        "restricted_imagenet is a part of ImageNet, which cannot be downloaded freely: name a folder of its images "
        f"with --data-dir (train/ and val/, each with {_LAYOUT}), or prepare {SOURCE.tfds} with tensorflow-datasets, "
        f"as array_record, in {tfds_root()}"
    )


def read_folder(folder: Path) -> tuple[Split, Split]:
    """Read folders of images in torchvision's ImageFolder layout: train/ and val/ (or test/ without val/).

    Each holds ImageNet's 1,000 class folders, which are the classes in sorted order, or exactly nine folders named
    after the super-classes. The images are shuffled in a fixed order, as they would otherwise be sorted by class.

    Raises:
      L2LError: missing folders, or a super-class without images.
    """
    train = folder / "train"
    test = next((path for path in (folder / "val", folder / "test") if path.is_dir()), None)
    if not train.is_dir() or test is None:
        missing = " and ".join([*([] if train.is_dir() else ["train/"]), *([] if test else ["val/ (or test/)"])])
        prepared = f"and {SOURCE.tfds}/, as prepared by tensorflow-datasets"
        raise L2LError(f"no restricted_imagenet in {folder}: it lacks {missing}, with {_LAYOUT}; {prepared}")
    return _read_folder_split(train), _read_folder_split(test)


def _read_folder_split(place: Path) -> Split:
    folders = sorted(path for path in place.iterdir() if path.is_dir())
    names = [path.name for path in folders]
    if sorted(names) == sorted(SOURCE.classes):
        classes = [SOURCE.classes.index(name) for name in names]
    elif len(names) == len(SUPER_CLASS) and all(re.fullmatch(r"n\d{8}", name) for name in names):
        classes = SUPER_CLASS.tolist()
    else:
        lacks = [name for name in SOURCE.classes if name not in names]
        which = f" (it lacks {', '.join(lacks)})" if 0 < len(lacks) < len(SOURCE.classes) else ""
        raise L2LError(f"{place} has {len(names)} class folders{which}: give it {_LAYOUT}")
    files, labels = [], []
    for path, label in zip(folders, classes, strict=True):
        inside = sorted(str(f) for f in path.iterdir() if f.suffix.lower() in SUFFIXES) if label >= 0 else []
        files += inside
        labels += [label] * len(inside)
    if empty := [name for label, name in enumerate(SOURCE.classes) if label not in labels]:
        suffixes, missing = ", ".join(SUFFIXES), ", ".join(empty)
        raise L2LError(f"{place} has no image ({suffixes}) of {missing}: get its class folders again")
    order = np.random.RandomState(0).permutation(len(files))  # a stream that NumPy guarantees
    images = Images(np.asarray(files, object)[order], lambda path: decode(path, path), SOURCE.image_shape)
    return Split(images, np.asarray(labels, np.int32)[order])


def read_prepared(folder: Path) -> tuple[Split, Split]:
    """Read what tensorflow-datasets prepared as array_record. Reading each record once for its label takes minutes."""
    with prepared_in(folder) as (tfds, builder):
        splits = []
        for name in ("train", "validation"):
            source = builder.as_data_source(split=name, decoders={"image": tfds.decode.SkipDecoding()})
            labels = SUPER_CLASS[[record["label"] for record in source]]
            kept = np.flatnonzero(labels >= 0)
            images = Images(kept, partial(_read_record, source, f"{name} of {folder}"), SOURCE.image_shape)
            splits.append(Split(images, labels[kept]))
    return splits[0], splits[1]


def _read_record(source: Any, split: str, position: int) -> np.ndarray:
    name = f"record {position} of {split}"
    try:
        data = source[position]["image"]
    except Exception as error:
        raise damaged(name, repr(error)) from error
    return decode(BytesIO(data), name)
