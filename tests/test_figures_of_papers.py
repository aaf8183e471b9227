"""The examples that redraw a paper's figure: what they compute, by closed forms."""

import numpy as np
from PIL import Image

import cycle
from l2ljax.report import figures
from papers.figures import paths_in_the_plane


def test_gradient_steps_circle_the_equilibrium_and_drift_outwards():
    step, t = 0.05, np.arange(201)
    x, y = cycle.play(cycle.plain, 0.0, step=step, steps=200).T
    np.testing.assert_allclose(np.hypot(x, y), (1 + step**2) ** (t / 2), rtol=1e-4)
    np.testing.assert_allclose(np.unwrap(np.arctan2(y, x)), t * np.arctan(step), rtol=1e-4, atol=1e-4)


def test_a_learned_attacker_brings_both_players_to_the_equilibrium():
    path = cycle.play(cycle.learned, 0.0, step=0.05, steps=400)
    x, phi = 1.0, 0.0
    for place in path:  # the recursion of the script's first lines, in plain Python
        np.testing.assert_allclose(place, [x, phi * x], rtol=1e-4, atol=1e-6)
        x, phi = x * (1 - 0.05 * phi), phi + 0.05 * x**2
    assert np.hypot(*path[-1]) < 0.01


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


def test_the_figures_have_a_panel_each(tmp_path):
    paths_in_the_plane(tmp_path / "one.png", {"a": np.ones((3, 2))})
    paths_in_the_plane(tmp_path / "two.png", {"a": np.ones((3, 2)), "b": np.zeros((3, 2))})
    one, two = (pixels(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.shape[1] > 1.8 * one.shape[1]
    curve = {"largest": np.linspace(0, 2, 11), "spread": np.full(11, 0.3)}
    figures.loss_along_attacks(tmp_path / "flat.png", {"a": {"PGD": {**curve, "spread": np.zeros(11)}}})
    figures.loss_along_attacks(tmp_path / "band.png", {"a": {"PGD": curve}})
    flat, band = (pixels(tmp_path / name) for name in ("flat.png", "band.png"))
    assert (flat.sum(2) < 740).sum() + 5000 < (band.sum(2) < 740).sum()  # the band covers white paper
