"""Writes kept_images.npz: the first 32 test images, uint8, and labels of MNIST and CIFAR-10, which no test downloads.

Run by hand: `python tests/golden/make_kept_images.py MNIST_FOLDER CIFAR10_FOLDER`. Contents: {name}_images
[32, H, W, C] and {name}_labels [32] for the names mnist and cifar10.
"""

import sys
from pathlib import Path

import numpy as np

from l2ljax import data


def main():
    """Load both and write the file next to this one."""
    arrays = {}
    for name, folder in zip(("mnist", "cifar10"), sys.argv[1:], strict=True):
        test = data.load(name, folder).test
        arrays |= {f"{name}_images": test.images[:32], f"{name}_labels": test.labels[:32]}
    np.savez_compressed(Path(__file__).with_name("kept_images.npz"), **arrays)


if __name__ == "__main__":
    main()
