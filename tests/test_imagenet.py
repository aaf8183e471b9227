"""Restricted ImageNet on small folders made here: labels, pixels, errors, and its batches against those in memory."""

import io
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from l2ljax.data import NAMES, SOURCES, Split, batches, load, stream
from l2ljax.data.imagenet import SUPER_CLASS
from l2ljax.data.images import Images, decode
from l2ljax.defenses import METHODS
from l2ljax.run import recipes
from l2ljax.types import L2LError
from tests.test_data_sources import write_prepared

NAME = "restricted_imagenet"
CLASSES = SOURCES[NAME].classes
KEY = jax.random.key(5)
# ImageNet's class -> super-class: each range's ends, and their neighbours outside.
ENDS = {
    151: "dog", 268: "dog", 281: "cat", 285: "cat", 30: "frog", 32: "frog", 33: "turtle", 37: "turtle",
    80: "bird", 100: "bird", 365: "primate", 382: "primate", 389: "fish", 397: "fish", 118: "crab", 121: "crab",
    300: "insect", 319: "insect",
}  # fmt: skip
OUTSIDE = (0, 29, 38, 79, 101, 117, 122, 150, 269, 280, 286, 299, 320, 364, 383, 388, 398, 999)


def color(label, i):
    """A color that tells the class and the image, which JPEG and resizing leave as it is but for a few levels."""
    return (20 + 25 * label, 10 + 40 * i, 128)


def save(path, label, i, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color(label, i)).save(path)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """Two training images and a test image of each super-class."""
    folder = tmp_path_factory.mktemp("nine")
    for label, name in enumerate(CLASSES):
        save(folder / "train" / name / "a.png", label, 0)
        save(folder / "train" / name / "b.JPEG", label, 1, (30, 50))
        save(folder / "val" / name / "c.jpg", label, 2)
        (folder / "train" / name / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def thousand(tmp_path):
    """The 1,000 class folders, with images in those at the ends of the ranges and outside."""
    for split in ("train", "test"):
        for i in range(1000):
            (tmp_path / split / f"n{1_440_000 + 17 * i:08d}").mkdir(parents=True)
        for i in (*ENDS, *OUTSIDE):
            label = CLASSES.index(ENDS[i]) if i in ENDS else 9
            save(tmp_path / split / f"n{1_440_000 + 17 * i:08d}" / "x.JPEG", label, 3)
    return tmp_path


def check_colors(split, tolerance=3):
    pixels = np.asarray(split.images)
    assert pixels.shape == (len(split.labels), 224, 224, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[..., 0] - (20.0 + 25 * split.labels[:, None, None])).max() <= tolerance


def test_super_classes():
    assert CLASSES == ("dog", "cat", "frog", "turtle", "bird", "primate", "fish", "crab", "insect")
    sizes = (118, 5, 3, 5, 21, 18, 9, 4, 20)  # of Tsipras et al.'s ranges
    assert tuple(np.bincount(SUPER_CLASS + 1)) == (1000 - sum(sizes), *sizes)
    assert {i: CLASSES[SUPER_CLASS[i]] for i in ENDS} == ENDS
    assert (SUPER_CLASS[list(OUTSIDE)] == -1).all()


def test_nine_folders(nine):
    dataset = load(NAME, nine)
    assert dataset.num_classes == 9 and dataset.class_names == CLASSES and dataset.augment == "flip"
    assert dataset.train.images.shape == (18, 224, 224, 3) and dataset.train.images.dtype == np.uint8
    assert isinstance(dataset.train.images, Images) and dataset.train.labels.dtype == np.int32
    check_colors(dataset.train)
    check_colors(dataset.test)
    assert sorted(dataset.test.labels) == list(range(9))
    assert [CLASSES[label] for label in dataset.test.labels] != sorted(CLASSES)  # shuffled,
    np.testing.assert_array_equal(load(NAME, str(nine)).test.labels, dataset.test.labels)  # always in the same way


def test_thousand_folders(thousand):
    dataset = load(NAME, thousand)
    for split in (dataset.train, dataset.test):
        assert sorted(split.labels) == sorted(CLASSES.index(name) for name in ENDS.values())
        check_colors(split)


def test_val_is_taken_out_and_sizes_hold(nine):
    dataset = load(NAME, nine, val_size=4, train_size=10)
    assert len(dataset.train.labels) == len(dataset.train.images) == 10 and len(dataset.val.images) == 4
    check_colors(dataset.train)
    check_colors(dataset.val)
    seen = {tuple(image[112, 112]) for split in (dataset.train, dataset.val) for image in np.asarray(split.images)}
    assert len(seen) == 14


def test_images_are_an_array_that_is_read_late(nine):
    items, read = np.arange(10), []

    def image(i):
        read.append(i)
        return np.full((2, 3, 1), i, np.uint8)

    images = Images(items, image, (2, 3, 1))
    some = images[2:8][np.array([5, 0, 1])][np.array([True, False, True])]
    assert not read and len(some) == 2 and some.shape == (2, 2, 3, 1)
    np.testing.assert_array_equal(np.asarray(some)[:, 0, 0, 0], [7, 3])
    assert sorted(read) == [3, 7]
    assert [one.max() for one in images] == list(range(10))
    assert np.asarray(images[:0]).shape == (0, 2, 3, 1)
    floats = jnp.asarray(images[:2], jnp.float32)
    assert floats.dtype == jnp.float32 and floats.shape == (2, 2, 3, 1) and floats.max() == 1
    assert np.asarray(images[:2], np.float64).dtype == np.float64


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (100, 90), (224, 1000)])
def test_decoding_resizes_the_shorter_side_and_cuts_the_middle(size):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    png = io.BytesIO()
    Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(png, "PNG")
    pixels = decode(png, "ramp.png").astype(float)
    short = min(size)
    for channel, n in enumerate(size):  # the middle 224 / 256 of the shorter side, as many pixels of the longer one
        half = 224 / 256 * short / n / 2
        ramp = 255 * (0.5 + half * np.linspace(-1, 1, 224))
        got = pixels[:, :, channel].mean(axis=channel)
        np.testing.assert_allclose(got, ramp, atol=2.5)


@pytest.mark.parametrize(("mode", "form"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG")])
def test_every_color_mode_becomes_rgb(mode, form):
    file = io.BytesIO()
    Image.new("RGB", (30, 30), (102, 102, 102)).convert(mode).save(file, form)  # a color of the common palette
    np.testing.assert_allclose(decode(file, "grey"), 102, atol=3)


@pytest.mark.parametrize("augment", ["none", "flip", "crop_flip"])
def test_streamed_batches_equal_those_in_memory_bit_by_bit(nine, augment):
    train = load(NAME, nine).train
    rng = np.random.RandomState(0)
    noise = rng.randint(0, 256, (18, 12, 10, 3)).astype(np.uint8)  # small, and no two pixels alike
    train = Split(Images(np.arange(18), lambda i: noise[i], (12, 10, 3)), train.labels)
    held = Split(np.asarray(train.images), train.labels)
    for start in (0, 7):  # four steps an epoch: 7 is in the second
        disk, memory = (stream(s, KEY, batch_size=4, augment=augment, start=start) for s in (train, held))
        for (step, got), (expected_step, expected) in itertools.islice(zip(disk, memory, strict=True), 6):
            assert step == expected_step
            np.testing.assert_array_equal(got.x, expected.x)
            np.testing.assert_array_equal(got.y, expected.y)
    with pytest.raises(L2LError, match=r"batch size 19 must be in 1\.\.18"):
        next(stream(train, KEY, batch_size=19))


def test_streamed_files_equal_those_in_memory(nine):
    dataset = load(NAME, nine)
    held = Split(np.asarray(dataset.train.images), dataset.train.labels)
    whole = list(itertools.islice(stream(held, KEY, batch_size=5, augment="flip"), 6))
    streamed = itertools.islice(stream(dataset.train, KEY, batch_size=5, augment="flip", start=2), 4)
    for (step, got), (expected_step, expected) in zip(streamed, whole[2:], strict=True):
        assert step == expected_step and got.x.dtype == np.float32
        np.testing.assert_array_equal(got.x, expected.x)
        np.testing.assert_array_equal(got.y, expected.y)
    test = Split(np.asarray(dataset.test.images), dataset.test.labels)
    for got, expected in zip(batches(dataset.test, 4), batches(test, 4), strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_next_batch_is_read_while_the_caller_computes():
    read = []

    def image(i):
        read.append(i)
        return np.zeros((2, 2, 1), np.uint8)

    train = Split(Images(np.arange(100), image, (2, 2, 1)), np.zeros(100, np.int32))
    steps = stream(train, KEY, batch_size=10)
    next(steps)
    deadline = time.monotonic() + 10
    while len(read) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(read) == 20  # one batch ahead, and no more
    steps.close()


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"<html>", lambda c: b""])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_image_is_one_error_that_names_it(tmp_path, suffix, damage):
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.RandomState(0).randint(0, 256, (60, 60, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(damage(path.read_bytes()))
    images = Images(np.array([str(path)] * 3, object), lambda p: decode(p, p), (224, 224, 3))
    train = Split(images, np.zeros(3, np.int32))
    for use in (lambda: np.asarray(images), lambda: next(stream(train, KEY, batch_size=2))):
        with pytest.raises(L2LError, match=rf"broken\.{suffix} is damaged \(.*get it again") as error:
            use()
        assert "\n" not in str(error.value)


def test_missing_folders_are_told(tmp_path):
    def message():
        with pytest.raises(L2LError) as error:
            load(NAME, tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "it lacks train/ and val/ (or test/), with ImageNet's 1,000 class folders" in message()
    for label, name in enumerate(CLASSES[:-1]):
        save(tmp_path / "train" / name / "x.png", label, 0)
    assert "it lacks val/ (or test/)," in message()
    (tmp_path / "val").mkdir()
    assert "train has 8 class folders (it lacks insect): give it ImageNet's 1,000" in message()
    (tmp_path / "train" / "insect").mkdir()
    assert "train has no image (.jpeg, .jpg, .png) of insect" in message()
    save(tmp_path / "train" / "insect" / "x.png", 8, 0)
    assert "val has 0 class folders: give it" in message()
    for i in range(1000):  # as many, but in the order of their English names
        (tmp_path / "val" / f"name{i}").mkdir()
    assert "val has 1000 class folders: give it ImageNet's 1,000 class folders, like n01440764" in message()
    with pytest.raises(L2LError, match="nowhere does not exist: name one that does$"):
        load(NAME, tmp_path / "nowhere")


def test_without_a_folder_the_ways_on_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(L2LError, match=r"cannot be downloaded freely.*--data-dir.*prepare imagenet2012") as error:
        load(NAME)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_reads_what_tensorflow_datasets_prepared(tmp_path, monkeypatch):
    def record(i):
        file = io.BytesIO()
        Image.new("RGB", (30, 40), color(CLASSES.index(ENDS[i]) if i in ENDS else 9, 0)).save(file, "JPEG")
        return {"file_name": f"{i}.JPEG".encode(), "image": file.getvalue(), "label": i}

    folder = tmp_path / "imagenet2012" / "5.1.0"
    splits = {"train": [record(i) for i in (*OUTSIDE, *ENDS)], "validation": [record(i) for i in ENDS]}
    image = {"shape": {"dimensions": ["-1", "-1", "3"]}, "encodingFormat": "jpeg"}
    write_prepared(folder, splits, text="file_name", image=image, classes=1000)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for dataset in (load(NAME), load(NAME, tmp_path)):
        for split in (dataset.train, dataset.test):
            assert isinstance(split.images, Images)
            assert list(split.labels) == [CLASSES.index(name) for name in ENDS.values()]
            check_colors(split)
    splits["validation"][1]["image"] = b"<html>"
    write_prepared(tmp_path / "imagenet2012" / "5.1.1", splits, text="file_name", image=image, classes=1000)
    with pytest.raises(L2LError, match=r"record 1 of validation of .*5\.1\.1 is damaged"):
        np.asarray(load(NAME).test.images)
    (tmp_path / "imagenet2012" / "5.1.1" / "features.json").write_text("{")
    with pytest.raises(L2LError, match=r"prepared data set in .*5\.1\.1 cannot be read"):
        load(NAME)


def test_recipes():
    for method in METHODS:
        recipe = recipes.find(NAME, method)
        assert (recipe.arch, recipe.eps, recipe.lr_schedule) == ("resnet18_imagenet", "0.005", "onecycle")
        assert dict(recipe.options).get("step_size", 0) < 0.005
    assert NAME in NAMES
