"""Data sets as arrays, in memory or on disk, and their batches.

    dataset = load("cifar10", val_size=1000)              # or load("cifar10", "~/data"), load("digits"), load("my.npz")
    dataset = from_arrays(train_images, train_labels)     # your own
    for step, batch in stream(dataset.train, key, batch_size=128, augment=dataset.augment):
        ...

| file | holds |
|---|---|
| readers.py | file formats: bytes -> arrays |
| sources.py | the table of data sets |
| local.py | a data set in a folder or an archive |
| remote.py | a data set prepared by tensorflow-datasets, or downloaded |
| images.py | an array of images that stay on disk |
| imagenet.py | Restricted ImageNet, in folders or prepared |
| arrays.py | a user's own arrays, in memory, in a file or from a function |
| functions.py | user functions by name |
| load.py | `load`, which tries these in turn, and the splits |
| pipeline.py | training and evaluation batches |
| mixing.py | Cutout, CutMix and label smoothing of training batches |
"""

from l2ljax.data.arrays import Dataset, from_arrays, pixels
from l2ljax.data.load import NAMES, load, source
from l2ljax.data.mixing import Mixing, mixed
from l2ljax.data.pipeline import (
    AUGMENTS,
    EvalBatch,
    batches,
    epoch_order,
    repeated,
    steps_per_epoch,
    stream,
    train_batch,
)  # fmt: skip
from l2ljax.data.readers import Split
from l2ljax.data.sources import SOURCES, nearest

__all__ = [
    "AUGMENTS", "NAMES", "SOURCES", "Dataset", "EvalBatch", "Mixing", "Split", "batches", "epoch_order", "from_arrays",
    "load", "mixed", "nearest", "pixels", "repeated", "source", "steps_per_epoch", "stream", "train_batch",
]  # fmt: skip
__dir__ = lambda: __all__
