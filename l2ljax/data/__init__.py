"""Data sets as uint8 arrays, in memory or on the disk, and batches of them.

    dataset = load("cifar10", val_size=1000)              # or load("cifar10", "~/data"), load("digits")
    for step, batch in stream(dataset.train, key, batch_size=128, augment=dataset.augment):
        ...

| file | holds |
|---|---|
| readers.py | file formats: bytes -> arrays |
| sources.py | the table of data sets |
| local.py | a data set in a folder or an archive |
| remote.py | a data set prepared by tensorflow-datasets, or downloaded |
| images.py | an array of images that stay on the disk |
| imagenet.py | Restricted ImageNet, in folders or prepared |
| load.py | `load`: the chain of these, and the splits |
| pipeline.py | training and evaluation batches |
"""

from l2ljax.data.load import NAMES, Dataset, load
from l2ljax.data.pipeline import (
    AUGMENTS,
    EvalBatch,
    batches,
    epoch_order,
    steps_per_epoch,
    stream,
    train_batch,
)
from l2ljax.data.readers import Split
from l2ljax.data.sources import SOURCES

__all__ = [
    "AUGMENTS",
    "NAMES",
    "SOURCES",
    "Dataset",
    "EvalBatch",
    "Split",
    "batches",
    "epoch_order",
    "load",
    "steps_per_epoch",
    "stream",
    "train_batch",
]
