"""Curves of training and grids of perturbations, by their pixels."""

import errno
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from l2ljax.report import figures
from l2ljax.types import L2LError


def step_rows(n, robust=True):
    rows = [
        {"step": i, "loss": 2 / i, "accuracy": 1 - 1 / i, "robust_accuracy": 0.5 - 0.5 / i} for i in range(1, n + 1)
    ]
    return rows if robust else [{k: row[k] for k in ("step", "loss", "accuracy")} for row in rows]


VALIDATIONS = [
    {"step": 50, "val_clean_acc": 0.9, "val_robust_acc": 0.4},
    {"step": 100, "val_clean_acc": 0.95, "val_robust_acc": 0.45},
]


def picture(path):
    """The pixels of a PNG [H, W, 3] of a size that reads well."""
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert all(200 <= side <= 2000 for side in image.size)
        return np.asarray(image.convert("RGB")).astype(int)


def colored(image, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(image - rgb).max(axis=-1) < 8).sum()


def curves(tmp_path, *args):
    figures.training_curves(tmp_path / "curves.png", *args)
    assert os.listdir(tmp_path) == ["curves.png"]
    return picture(tmp_path / "curves.png")


def test_training_curves_show_the_rows(tmp_path):
    full = curves(tmp_path, step_rows(100) + VALIDATIONS)
    assert full.shape[1] >= 1000
    assert (full == curves(tmp_path, step_rows(100) + VALIDATIONS)).all()
    assert colored(full, figures.LIGHT_BLUE) and colored(full, figures.BLUE)
    assert colored(full, figures.VERMILLION) > 500
    plain = curves(tmp_path, step_rows(100, robust=False))
    assert colored(plain, figures.VERMILLION) == 0
    lower = [{**row, "val_robust_acc": 0.1} for row in VALIDATIONS]
    assert (full != curves(tmp_path, step_rows(100) + lower)).any()
    louder = [{**row, "loss": row["loss"] ** 2} for row in step_rows(100)]
    other = curves(tmp_path, louder + VALIDATIONS)
    assert (full != other)[:, : full.shape[1] // 2].any()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_training_curves_of_few_rows(tmp_path, n):
    image = curves(tmp_path, step_rows(n))
    assert (colored(image, figures.VERMILLION) > 250) == (n > 0)  # a point in the plot, not the legend's alone


def test_a_diverged_step_leaves_the_others_drawn(tmp_path):
    rows = step_rows(100)
    rows[60]["loss"], rows[61]["loss"] = float("nan"), float("inf")
    without = [row for row in rows if row["step"] not in (61, 62)]
    right_half = curves(tmp_path, rows).shape[1] // 2
    left = slice(None, right_half)
    assert (curves(tmp_path, rows)[:, left] == curves(tmp_path, without)[:, left]).all()


def test_running_mean():
    assert figures.running_mean(np.arange(8.0)).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 5]
    assert figures.running_mean(np.arange(1000.0))[-1] == 999 - 9.5  # of twenty values


def grid(tmp_path, *args):
    figures.perturbation_grid(tmp_path / "grid.png", *args)
    assert os.listdir(tmp_path) == ["grid.png"]
    return picture(tmp_path / "grid.png")


def examples(n, channels=3):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(n, 8, 8, channels)).astype(np.float32)
    return x, np.clip(x + rng.uniform(-0.1, 0.1, x.shape).astype(np.float32), 0, 1), np.arange(n)


@pytest.mark.parametrize("channels", [1, 3])
def test_perturbation_grid_shows_images_and_errors(tmp_path, channels):
    x, x_adv, labels = examples(2, channels)
    right = grid(tmp_path, x, x_adv, labels, labels)
    assert colored(right, figures.RED) == 0
    wrong = grid(tmp_path, *map(jnp.asarray, (x, x_adv, labels, labels[::-1])))
    assert colored(wrong, figures.RED) > 100
    assert (right != grid(tmp_path, x, x_adv, labels, labels, ["cat", "dog"])).any()
    height = right.shape[0]
    other = right != grid(tmp_path, 1 - x, x_adv, labels, labels)
    assert other[height // 8 : height // 3].any() and other[height // 3 : 2 * height // 3].any()
    assert not other[-height // 4 :].any()  # the adversarial images are the same


@pytest.mark.parametrize("channels, drawn", [(2, 1), (4, 3)])
def test_of_other_channels_those_of_an_image_are_drawn(tmp_path, channels, drawn):
    """The scale of the perturbation is over all channels; here the first has the largest."""
    x, x_adv, labels = examples(2, channels)
    x[0, 0, 0, 0], x_adv[0, 0, 0, 0] = 0.0, 0.5
    whole = grid(tmp_path, x, x_adv, labels, labels)
    assert (whole == grid(tmp_path, x[..., :drawn], x_adv[..., :drawn], labels, labels)).all()


def test_a_class_without_a_name_is_its_number(tmp_path):
    """A network may have more logits than the data have classes."""
    x, x_adv, labels = examples(2)
    grid(tmp_path, x, x_adv, labels, [0, 1], ["$\\frac{a$", "$x_{y$"])  # no formulas
    shown = grid(tmp_path, x, x_adv, labels, [0, 7], ["cat", "dog"])
    assert (shown == grid(tmp_path, x, x_adv, labels, [0, 2], ["cat", "dog", "7"])).all()


def test_perturbation_grid_shows_eight_at_most(tmp_path):
    ten = grid(tmp_path, *examples(10), range(10))
    x, x_adv, labels = (a[:8] for a in examples(10))
    assert (ten == grid(tmp_path, x, x_adv, labels, labels)).all()
    assert 1000 <= ten.shape[1] <= 1800


def test_perturbations_are_scaled_to_full_range(tmp_path):
    x = np.full((1, 4, 4, 1), 0.5)
    sign = np.array([-1, -1, 1, 1]).reshape(1, 4, 1, 1)
    column = grid(tmp_path, x, x + 0.01 * sign, [0], [0])[100:-30, 200, 0]  # a line down through the images
    middle = slice(len(column) // 3 + 20, 2 * len(column) // 3 - 20)
    assert (column[middle] == 0).sum() > 40 and (column[middle] == 255).sum() > 40
    assert (column[: middle.start] == 127).sum() > 100
    still = grid(tmp_path, x, x, [0], [0])[100:-30, 200, 0]
    assert (still[middle] == 127).sum() > 100


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_figure_survives_a_full_disk(tmp_path, monkeypatch):
    before = curves(tmp_path, step_rows(3))
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(L2LError, match=r"curves\.png: No space left on device"):
        figures.training_curves(tmp_path / "curves.png", step_rows(9))
    assert os.listdir(tmp_path) == ["curves.png"]
    assert (picture(tmp_path / "curves.png") == before).all()


def test_matplotlib_is_imported_only_to_draw_and_never_pyplot(tmp_path):
    code = """
import sys
import numpy as np
from l2ljax.report import figures
assert "matplotlib" not in sys.modules
figures.training_curves("curves.png", [])
figures.perturbation_grid("grid.png", np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)), [0], [0])
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
