"""A user's own arrays are a data set like any other: in memory, in a file, from a function; trained on and judged."""

import json
import os
import random
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import data, threat
from l2ljax.data.arrays import as_dataset
from l2ljax.evaluate import evaluate, masking
from l2ljax.run import experiment, judge, recipes
from l2ljax.run.config import Config, resolve
from l2ljax.run.trained import load_classifier
from l2ljax.types import L2LError

RNG = np.random.RandomState(0)
IMAGES, LABELS = RNG.randint(0, 256, (31, 6, 5, 2)).astype(np.uint8), np.arange(31) % 4
TEST_IMAGES, TEST_LABELS = IMAGES[::-1][:9], LABELS[::-1][:9].astype(np.uint8)
WHOLE = {"train_images": IMAGES, "train_labels": LABELS, "test_images": TEST_IMAGES, "test_labels": TEST_LABELS}


def saved(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def module(folder, monkeypatch, **functions):
    """Write the module `mine` with functions of these bodies, and np and WHOLE in it; return the name of the first."""
    np.savez(folder / "whole.npz", **WHOLE)
    text = "".join(f"def {name}:\n    {body}\n" for name, body in functions.items())
    (folder / "mine.py").write_text(f"import numpy as np\nWHOLE = dict(np.load({str(folder / 'whole.npz')!r}))\n{text}")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def check_same(one, other):
    assert one.name != other.name
    for a, b in zip(one[1:], other[1:], strict=True):
        np.testing.assert_equal(a, b)


# Where arrays come from


def test_a_file_a_function_and_arrays_are_one_data_set(tmp_path, monkeypatch):
    expected = data.from_arrays(*WHOLE.values())
    assert (expected.num_classes, expected.class_names, expected.image_shape) == (4, ("0", "1", "2", "3"), (6, 5, 2))
    np.testing.assert_array_equal(expected.train.images, IMAGES)
    np.testing.assert_array_equal(expected.test.labels, TEST_LABELS)
    assert {split.labels.dtype for split in expected[1:4]} == {np.dtype(np.int32)} and len(expected.val.labels) == 0
    module(tmp_path, monkeypatch, **{
        "four()": "return tuple(WHOLE.values())",
        "named()": "return WHOLE",
        "dataset()": "from l2ljax.data import from_arrays; return from_arrays(**WHOLE)",
    })  # fmt: skip
    for name in (saved(tmp_path / "mine.npz", **WHOLE), "mine:four", "mine:named", "mine:dataset"):
        found = data.load(name)
        assert found.name == name
        check_same(found, expected)
    for own in (tuple(WHOLE.values()), WHOLE, expected._replace(name="other")):
        check_same(data.load(own)._replace(name="own"), expected)


def test_a_pair_is_to_evaluate_on(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, **{"pair()": "return WHOLE['test_images'], WHOLE['test_labels']"})
    name = saved(tmp_path / "mine.npz", images=TEST_IMAGES, labels=TEST_LABELS)
    for pair in (name, "mine:pair", (TEST_IMAGES, TEST_LABELS)):
        found = data.load(pair)
        np.testing.assert_array_equal(found.test.images, TEST_IMAGES)
        assert len(found.train.labels) == 0 and found.train.images.shape == (0, 6, 5, 2)
        with pytest.raises(L2LError, match="no training images: name training arrays train_images and"):
            data.load(pair, val_size=1)
    with pytest.raises(L2LError, match="mine.npz has no training images"):
        resolve(name, "plain", Config())


def test_one_image_is_enough_to_evaluate_on():
    assert data.load((TEST_IMAGES[:1], TEST_LABELS[:1] * 0 + 3)).num_classes == 4


def test_floats_of_a_users_data_set_are_stored_in_single_precision():
    own = data.from_arrays(*WHOLE.values())
    for dtype in (np.float16, np.float64):
        splits = (split._replace(images=(split.images / 255).astype(dtype)) for split in own[1:4])
        found = data.load(data.Dataset("own", *splits, *own[4:]))
        assert {split.images.dtype.name for split in found[1:4]} == {"float32"}


def test_a_users_data_set_may_hold_lists():
    own = data.from_arrays(*WHOLE.values())
    train = data.Split(own.train.images.tolist(), own.train.labels.tolist())
    with pytest.raises(L2LError, match=r"arrays: images are int64: give uint8, or floats in \[0, 1\]"):
        data.load(own._replace(train=train))
    found = data.load(own._replace(train=train._replace(images=(own.train.images / 255).tolist())))
    np.testing.assert_allclose(found.train.images, own.train.images / np.float32(255), rtol=1e-6)


def test_a_file_that_changes_is_read_again(tmp_path):
    name = saved(tmp_path / "mine.npz", **WHOLE)
    assert data.load(name).num_classes == 4
    saved(tmp_path / "mine.npz", **{**WHOLE, "class_names": np.array(["a", "b", "c", "d", "none"])})
    os.utime(name, ns=(0, 5))
    assert data.load(name).class_names == ("a", "b", "c", "d", "none")


def test_without_a_test_set_a_sixth_is_held_out():
    one, again = (data.from_arrays(IMAGES, LABELS) for _ in range(2))
    check_same(one, again._replace(name="again"))
    assert len(one.test.labels) == 6 and len(one.train.labels) == 25
    rows = [image.tobytes() for split in (one.train, one.test) for image in split.images]
    assert sorted(rows) == sorted(image.tobytes() for image in IMAGES)
    assert rows[-6:] != [image.tobytes() for image in IMAGES[-6:]]  # not the last: a file may be sorted
    labels = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    assert all(labels[image.tobytes()] == label for image, label in zip(*one.test, strict=True))


def test_validation_is_taken_out_and_one_of_the_users_own_stays():
    found = data.load(data.from_arrays(*WHOLE.values()), val_size=5, seed=1)
    assert [len(split.labels) for split in found[1:4]] == [26, 5, 9]
    assert found.sizes == "26 images to train on, 5 to validate and 9 to test on"
    again = data.load(found, val_size=7)
    np.testing.assert_array_equal(again.val.images, found.val.images)
    assert len(again.train.labels) == 26


BAD = [
    ((IMAGES.astype(int), LABELS), r"arrays, to train on: images are int64: give uint8, or floats in \[0, 1\]"),
    ((IMAGES[..., 0], LABELS), r"shape \[31, 6, 5\]: give \[N, H, W, C\], grey ones with C = 1"),
    ((IMAGES.transpose(0, 3, 1, 2)[:, :1], LABELS), r"channels first: give images.transpose\(0, 2, 3, 1\)"),
    ((IMAGES[:0], LABELS[:0]), r"shape \[0, 6, 5, 2\]: give one or more"),
    ((IMAGES.astype(float), LABELS), r"reach from 0 to 255: scale them to \[0, 1\]"),
    ((IMAGES * np.nan, LABELS), "hold NaN"),
    ((IMAGES, np.eye(4)[LABELS]), r"labels have the shape \[31, 4\]: .*y.argmax\(axis=1\)"),
    ((IMAGES, LABELS.astype(float)), "labels are float64: give integers"),
    ((IMAGES, LABELS[:-1]), "31 images and 30 labels: give one label per image"),
    ((IMAGES, LABELS - 1), "labels reach from -1 to 2"),
    ((IMAGES, LABELS + 1), "no label is 0: number the classes from 0 without gaps, or give class_names"),
    ((IMAGES, 0 * LABELS), "no label is 1"),
    ((IMAGES, LABELS, TEST_IMAGES), "give test images and test labels, or neither"),
    ((IMAGES, LABELS, TEST_IMAGES[:, 1:], TEST_LABELS), r"images \[6, 5, 2\] to train on and \[5, 5, 2\] to test on"),
    ((IMAGES, LABELS, TEST_IMAGES, TEST_LABELS + 4), "no label is 4"),
    (
        (IMAGES, np.where(LABELS == 3, 2**32 + 3, LABELS)),
        r"labels reach from 0 to 4294967299: the classes are 0\.\.1048575",
    ),
    ((IMAGES, [[0, 1], [2]]), "to train on: no arrays of images and labels .*: give NumPy arrays"),
]


def test_images_of_three_rows_and_four_channels_have_them_last():
    assert data.from_arrays(np.zeros((12, 3, 3, 4), np.uint8), np.arange(12) % 2).image_shape == (3, 3, 4)


def test_another_byte_order_is_taken():
    dataset = data.from_arrays(IMAGES, LABELS)
    turned = dataset._replace(train=dataset.train._replace(labels=dataset.train.labels.astype(">i4")))
    found = data.load(turned).train
    assert found.labels.dtype.isnative and (found.labels == dataset.train.labels).all()


@pytest.mark.parametrize("arrays, message", BAD, ids=[message[:30] for _, message in BAD])
def test_arrays_that_cannot_be_are_refused_in_one_line(arrays, message):
    with pytest.raises(L2LError, match=message) as error:
        data.from_arrays(*arrays)
    assert "\n" not in str(error.value)


def test_class_names_say_how_many_classes_there_are():
    assert data.from_arrays(IMAGES, LABELS + 1, class_names=list("abcde")).num_classes == 5
    with pytest.raises(L2LError, match=r"labels reach from 0 to 3: the classes are 0\.\.2"):
        data.from_arrays(IMAGES, LABELS, class_names=["a", "b", "c"])


def test_sources_that_cannot_be_are_refused_in_one_line(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, **{
        "path(name)": "return WHOLE",
        "nothing()": "pass",
        "three()": "return 1, 2, 3",
        "number()": "return 5",
        "fails()": "return 1 / 0",
    })  # fmt: skip
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    for name, message in {
        "mine:path": "missing a required argument: 'name': name a function without arguments that returns",
        "mine:nothing": r"mine:nothing returned None: let it return \(images, labels\), or train_images",
        "mine:three": r"mine:three gives 3 values: give \(images, labels\), or the four arrays train_images",
        "mine:number": "mine:number gives a int",
        "mine:absent": "no attribute 'absent': name an importable module and a function in it",
        "mine:WHOLE": "mine:WHOLE is a dict: name a function without arguments",
        "no_such:thing": "No module named 'no_such'",
        "imagenet": r"unknown data set 'imagenet': choose one of digits, .*, a .npz file or MODULE:FUNCTION",
        str(tmp_path / "none.npz"): "none.npz cannot be read .*: name a file that numpy.savez wrote",
        str(tmp_path / "broken.npz"): "broken.npz cannot be read",
        saved(tmp_path / "x.npz", x=IMAGES, y=LABELS): "holds x, y: name them images and labels, or all of train_",
        saved(tmp_path / "objects.npz", images=np.array([None]), labels=LABELS): "cannot be read",
    }.items():
        with pytest.raises(L2LError, match=message) as error:
            data.load(name)
        assert "\n" not in str(error.value)
    (tmp_path / "typo.py").write_text("def images(:\n")
    np.save(tmp_path / "array.npy", IMAGES)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name, message in {
        "typo:images": r"typo:images: SyntaxError: invalid syntax \(typo.py, line 1\): name an importable module",
        ":": "Empty module name: name an importable module",
        "mine:fails": r"mine:fails fails in .*mine.py, line \d+ \(ZeroDivisionError: division by zero\): let it return",
        str(tmp_path / "array.npz"): "array.npz cannot be read .*: name a file that numpy.savez wrote",
        saved(
            tmp_path / "one.npz", **WHOLE, class_names="abcd"
        ): "one.npz: class_names is .*abcd.*: give a list of one",
        saved(tmp_path / "cut.npz", **WHOLE, class_names=["a", "b"]): "labels reach from 0 to 3: the classes are 0..1",
    }.items():
        with pytest.raises(L2LError, match=message) as error:
            data.load(name)
        assert "\n" not in str(error.value)
    with pytest.raises(L2LError, match="has no data folder: leave it out"):
        data.load("mine:path", tmp_path)
    with pytest.raises(L2LError, match="gives a NoneType"):
        as_dataset(None)


def test_a_damaged_file_is_refused_or_holds_the_same(tmp_path):
    """Of 300 files with one bit flipped or the end cut off."""
    file = tmp_path / "mine.npz"
    np.savez_compressed(file, **WHOLE)
    expected, content, draw = data.load(WHOLE), file.read_bytes(), random.Random(0)
    for i in range(300):
        broken = bytearray(content)
        broken[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(broken if i % 3 else content[: draw.randrange(len(content))])
        os.utime(file, ns=(0, i))
        try:
            check_same(data.load(str(file)), expected)
        except L2LError as error:
            assert "\n" not in str(error)


# Pixels


def test_floats_are_the_same_pixels_in_training_and_evaluation():
    bytes_, floats = data.from_arrays(IMAGES, LABELS), data.from_arrays(np.float32(IMAGES) / np.float32(255), LABELS)
    for augment in ("none", "crop_flip"):
        one, other = (
            next(data.stream(d.train, jax.random.key(0), batch_size=8, augment=augment)) for d in (bytes_, floats)
        )
        np.testing.assert_array_equal(one[1].x, other[1].x)
    one, other = (next(data.batches(d.test, 4)) for d in (bytes_, floats))
    np.testing.assert_array_equal(one.x, other.x)
    assert one.x.dtype == other.x.dtype == np.float32 and one.x.max() <= 1


def test_pairs_of_bytes_and_of_floats_are_evaluated_alike():
    weights = jnp.asarray(RNG.randn(60, 4), jnp.float32)
    model = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    pairs = (IMAGES, LABELS), (IMAGES / 255, LABELS), (jnp.asarray(IMAGES), jnp.asarray(LABELS))
    found = [evaluate(model, pair, {"none": lambda f, k, x, y: x}, key=jax.random.key(0)) for pair in pairs]
    predicted = ((IMAGES / 255).reshape(31, -1) @ np.asarray(weights)).argmax(1)
    for each in found:
        np.testing.assert_array_equal(each.attacks["none"].correct, predicted == LABELS)
    for pair in (pairs[0], pairs[1]):
        assert masking.path_faults(model, pair, threat.linf(0.1), key=0, steps=1)[0] == 0
    with pytest.raises(L2LError, match="scale them"):
        evaluate(model, (2 * (IMAGES / 255), LABELS), {}, key=jax.random.key(0))


# Defaults, training and judging


@pytest.mark.parametrize(
    "shape, known",
    {
        (8, 8, 1): "digits",
        (28, 28, 1): "mnist",
        (32, 32, 1): "mnist",
        (28, 28, 3): "cifar10",
        (32, 32, 3): "cifar10",
        (64, 64, 3): "cifar10",
        (224, 224, 3): "restricted_imagenet",
        (96, 96, 3): "restricted_imagenet",
    }.items(),
)
def test_the_nearest_known_set_lends_its_recipe_and_augmentation(shape, known, monkeypatch):
    assert data.nearest(shape) == known
    users = data.from_arrays(np.zeros((60, *shape), np.uint8), np.arange(60) % 3)
    assert users.augment == data.SOURCES[known].augment
    assert data.from_arrays(*users.train, augment="crop").augment == "crop"
    monkeypatch.setattr(sys.modules["l2ljax.data.load"], "read", lambda name: users)
    recipe, theirs = recipes.find(f"{known}{shape}.npz", "trades"), recipes.find(known, "trades", "ours")
    assert recipe == theirs._replace(source=f"{theirs.source}: as {known}")
    assert recipes.fitted(recipe, users) == recipe._replace(val_size=5, batch_size=45)


def test_a_run_on_a_users_file_is_trained_and_judged(tmp_path, monkeypatch):
    digits = data.load("digits")
    keep = [split.labels < 3 for split in (digits.train, digits.test)]
    train, test = digits.train.take(keep[0]), digits.test.take(keep[1])
    saved(
        tmp_path / "threes.npz",
        train_images=train.images / 255, train_labels=train.labels, test_images=test.images, test_labels=test.labels,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    config = Config(dataset="threes.npz", method="pgd_adv", epochs=4, eval_size=60, attacks="fgsm", steps=2)
    spec = resolve("digits", "pgd_adv", config)
    assert str(spec.workdir) == "runs/threes_pgd_adv_digits_cnn_s0"
    assert (spec.val_size, spec.source) == (len(train.labels) // 10, "ours")  # the script's recipe
    assert resolve("threes.npz", "pgd_adv", config).source == "ours: as digits"
    report = experiment.run(spec)
    assert report["dataset"] == "threes.npz" and report["clean_acc"] > 0.9
    assert (spec.workdir / "figures" / "perturbations.png").exists()

    judged = {"attacks": "pgd5", "masking": False, "eval_size": 60}
    own = judge.run(judge.Flags(victim=str(spec.workdir), **judged))
    assert own["dataset"] == "threes.npz" and float(own["clean_acc"]) == pytest.approx(100 * report["clean_acc"], 1e-3)
    pair = saved(tmp_path / "pair.npz", images=test.images[:60] / 255, labels=test.labels[:60])
    (tmp_path / "threes.npz").unlink()  # the classifier needs it no more
    assert load_classifier(str(spec.workdir))(jnp.zeros((1, 8, 8, 1))).shape == (1, 3)
    on_pair = judge.run(judge.Flags(victim=str(spec.workdir), dataset=pair, figures="perturbations", **judged))
    assert on_pair["provenance"]["attacks"] == own["provenance"]["attacks"]
    assert json.loads((spec.workdir / "evaluation" / "robustbench.json").read_text())["dataset"] == pair


def test_victims_that_cannot_be_are_refused_in_one_line(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, **{
        "logits(x)": "return x.reshape(len(x), -1)",
        "path(name, size=3)": "return lambda x: x",
        "nothing()": "pass",
        "array()": "return np.zeros(3)",
        "grey()": "return lambda x: x.reshape(len(x), 28 * 28)",
        "silent()": "\n    def fails(x):\n        raise AssertionError\n    return fails",
    })  # fmt: skip
    for victim, message in {
        "mine:logits": "missing a required argument: 'x': name a function without arguments that returns a function",
        "mine:path": "missing a required argument: 'name'",
        "mine:nothing": "returned None: let it return a function of images that returns their logits",
        "mine:array": "returned a ndarray: let it return a function of images",
        "mine:grey": r"mine:grey fails on images \[2, 8, 8, 1\], as digits has them \(TypeError: .*name the --dataset",
        "mine:silent": r"fails on images \[2, 8, 8, 1\], as digits has them \(AssertionError\)",
    }.items():
        with pytest.raises(L2LError, match=message) as error:
            judge.run(judge.Flags(victim=victim, dataset="digits", eps="0.1", out=tmp_path))
        assert "\n" not in str(error.value)
