"""Figures of a judged model: their numbers by closed forms on linear models, and that the drawings show the numbers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from mpl_toolkits.mplot3d import Axes3D

from l2ljax import threat
from l2ljax.attacks import learned
from l2ljax.data import Split, from_arrays
from l2ljax.defenses import rnn_adv
from l2ljax.defenses.interpolation import interpolated
from l2ljax.evaluate import views
from l2ljax.report import figures
from l2ljax.run import illustrate
from l2ljax.types import L2LError
from tests.tiny import tiny_classifier

KEY = jax.random.key(3)
RNG = np.random.RandomState(0)
N, D = 13, 16
SPLIT = Split(RNG.randint(0, 256, (N, 4, 4, 1)).astype(np.uint8), RNG.randint(0, 2, N).astype(np.int32))
X, Y = SPLIT.images.reshape(N, D) / 255, SPLIT.labels
W = RNG.randn(2, D)
"""Of two linear classifiers with two classes: w of the logits (0, w x)."""
EPS = 0.1
BALL = threat.linf(EPS)


def linear(w, x):
    score = (x.reshape(len(x), -1) - 0.5) @ w
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


def model(w):
    return jax.tree_util.Partial(linear, jnp.asarray(w, jnp.float32))


def plan_of(*weights, names=(), ball=BALL, attackers=()):
    models = {f"model {i}": model(w) for i, w in enumerate(weights)}
    return views.Plan(list(names), models, dict(attackers), ball, ("zero", "one"))


def loss(x, w):
    """The cross-entropies [N] at images [N, D], by hand."""
    return np.logaddexp(0, -np.where(Y == 1, 1, -1) * ((x - 0.5) @ w))


def uphill(w):
    """The gradient's sign [N, D]."""
    return np.where(Y == 1, -1, 1)[:, None] * np.sign(w)


def still(steps=1, path=False):
    return lambda logits_fn, key, x, y: jnp.stack([x] * steps) if path else x


def test_pgds_curve_is_the_closed_form_and_begins_at_the_clean_loss():
    found = views.loss_curves(plan_of(*W, attackers={"still": still}), SPLIT, KEY, steps=10)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(KEY, 1)[0], jnp.arange(N))
    start = np.asarray(BALL.sample(keys, jnp.asarray(X.reshape(N, 4, 4, 1), jnp.float32))).reshape(N, D)
    for (name, curves), w in zip(found.items(), W, strict=True):
        pgd, resting = curves[views.PGD], curves["still"]
        low, high = np.maximum(X - EPS, 0), np.minimum(X + EPS, 1)
        by_hand = [X, *(np.clip(start + t * EPS / 4 * uphill(w), low, high) for t in range(1, 11))]
        np.testing.assert_allclose(pgd["largest"], [loss(x, w).mean() for x in by_hand], rtol=1e-5, err_msg=name)
        assert pgd["spread"] == [0.0] * 11
        np.testing.assert_allclose(resting["largest"], [loss(X, w).mean()] * 11, rtol=1e-5)


@pytest.mark.parametrize("make", [rnn_adv, functools.partial(interpolated, label_eps=0.5)])
def test_a_learned_attackers_path_is_where_fewer_steps_end(make):
    attacker = () if make is rnn_adv else (learned.recurrent(),)
    defense = make(tiny_classifier(), *attacker, BALL)
    x, y = jnp.asarray(SPLIT.images[:3], jnp.float32) / 255, jnp.asarray(Y[:3])
    params, _ = defense.init(KEY, x)
    attacks = [defense.attack(params, {}, steps=2, path=True), *(defense.attack(params, {}, steps=t) for t in (1, 2))]
    path, one, two = jax.jit(lambda: [attack(model(W[0]), KEY, x, y) for attack in attacks])()
    np.testing.assert_allclose(path, [one, two], atol=1e-6)
    assert abs(two - one).max() > 1e-3


def test_of_several_draws_the_largest_loss_and_the_deviation_count():
    def shift(logits_fn, key, x, y):  # every draw moves all pixels alike, by another distance
        return jnp.stack([x + t * draw(key)[:, None, None, None] for t in (1, 2)])

    draw = jax.vmap(lambda key: jax.random.uniform(key))
    found = views.losses_along(model(W[0]), SPLIT, shift, key=KEY, draws=3)
    moved = np.stack(
        [draw(jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(N))) for k in jax.random.split(KEY, 3)]
    )
    reached = np.array([[loss(X + t * d[:, None], W[0]) for d in moved] for t in range(3)])  # [T + 1, draws, N]
    np.testing.assert_allclose(found["largest"], reached.max(axis=1).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["spread"], reached.std(axis=1).mean(axis=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ball", [threat.linf(EPS), threat.l2(EPS)], ids=lambda ball: ball.name)
def test_the_landscape_of_a_linear_model_is_the_closed_form(ball):
    found = views.landscape(plan_of(*W, ball=ball), SPLIT, KEY, images=N, points=5)
    assert found["units"].tolist() == [-1, -0.5, 0, 0.5, 1]
    signs = [jax.random.rademacher(jax.random.fold_in(KEY, i), (4, 4, 1)) for i in range(N)]
    signs = np.stack([np.asarray(s, float).ravel() for s in signs])
    for (name, values), w in zip(found["loss"].items(), W, strict=True):
        u, v = uphill(w), signs
        if ball.name == "l2":
            u, v = u * abs(w) / np.linalg.norm(w), signs / 4  # of norm 1
        by_hand = [[loss(X + EPS * (a * u + b * v), w).mean() for b in found["units"]] for a in found["units"]]
        np.testing.assert_allclose(values, by_hand, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(values[2, 2], loss(X, w).mean(), rtol=1e-5)
        assert abs(values - np.transpose(values)).max() > 0.01  # so that rows and columns are told apart


def test_the_landscape_of_one_image_is_its_own():
    found = views.landscape(plan_of(W[0]), SPLIT, KEY, images=1, points=3)
    along = np.stack([X + a * EPS * uphill(W[0]) for a in (-1, 0, 1)])[:, 0]
    score = np.where(Y[0] == 1, 1, -1) * ((along - 0.5) @ W[0])
    np.testing.assert_allclose(found["loss"]["model 0"][:, 1], np.logaddexp(0, -score), rtol=1e-5)


@pytest.fixture(scope="module")
def swept():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "COUNTS", (1, 20))
        patch.setattr(views, "RADII", (0.0, 1.0, 4.0))
        return views.sweep(plan_of(*W), SPLIT, KEY)


def test_the_sweep_begins_at_the_clean_accuracy_and_ends_at_the_exact_one(swept):
    radius, steps, far = swept.values()
    for name, w in {"model 0": W[0], "model 1": W[1]}.items():
        clean = ((X - 0.5) @ w > 0) == Y
        worst = np.clip(X + EPS * uphill(w), 0, 1)
        robust = clean & (((worst - 0.5) @ w > 0) == Y)
        assert radius["accuracy"][name][0] == far["accuracy"][name][0] == clean.mean()
        assert steps["accuracy"][name][-1] == robust.mean() <= steps["accuracy"][name][0]  # 20 steps reach every corner
        assert far["accuracy"][name][-1] == 0
    np.testing.assert_allclose(radius["values"], EPS * np.array([0, 1, 4]))
    assert far["values"][-1] == 1


def test_the_difference_is_of_the_accuracies_with_its_paired_error(swept):
    for panel in swept.values():
        one, other = (np.array(accuracy) for accuracy in panel["accuracy"].values())
        np.testing.assert_allclose(panel["difference"], one - other, atol=1e-12)
    correct = [(((np.clip(X + EPS * uphill(w), 0, 1) - 0.5) @ w > 0) == Y).astype(float) for w in W]
    by_hand = (correct[0] - correct[1]).std() / np.sqrt(N)
    assert by_hand > 0
    np.testing.assert_allclose(list(swept.values())[1]["error"][-1], by_hand)


def test_alone_there_is_no_difference_and_l2_ends_at_the_farthest_image(monkeypatch):
    monkeypatch.setattr(views, "COUNTS", (1,))
    monkeypatch.setattr(views, "RADII", (2.0, 3.0))
    found = views.sweep(plan_of(W[0], ball=threat.l2(1.5)), SPLIT, KEY)
    radius, _, far = found.values()
    assert not any("difference" in panel for panel in found.values())
    assert far["values"][-1] == 4  # sqrt(D)
    assert radius["values"] == [3]  # 3 eps are farther


def test_perturbations_are_those_of_the_attacks():
    found = views.perturbations(plan_of(*W, attackers={"still": still}), SPLIT, KEY, images=2)
    x = X[:2].reshape(2, 4, 4, 1)
    np.testing.assert_allclose(found["x"], x, atol=1e-7)
    assert found["labels"] == Y[:2].tolist()
    for shown, w in zip(found["models"].values(), W, strict=True):
        assert list(shown) == ["fgsm", "pgd20", "still"]
        worst = np.clip(X + EPS * uphill(w), 0, 1)[:2]
        for name in ("fgsm", "pgd20"):  # on a linear model both end in the corner
            np.testing.assert_allclose(shown[name]["x_adv"], worst.reshape(x.shape), atol=1e-6)
            assert shown[name]["predictions"] == ((worst - 0.5) @ w > 0).astype(int).tolist()
        np.testing.assert_array_equal(shown["still"]["x_adv"], found["x"])


def test_amplified_perturbations_lie_around_mid_gray():
    x, x_adv = np.array([0.2, 0.2, 0.2, 0.2]), np.array([0.2, 0.25, 0.15, 0.9])
    np.testing.assert_allclose(figures.amplified(x, x_adv, 5), [0.5, 0.75, 0.25, 1.0])
    np.testing.assert_allclose(figures.amplified(x, x_adv, 30), [0.5, 1.0, 0.0, 1.0])


@pytest.fixture
def drawn(monkeypatch):
    """The last figure that was drawn, in the place of its file."""
    kept = []
    monkeypatch.setattr(figures, "save", lambda path, figure: kept.append(figure))
    return lambda: kept[-1]


def test_the_sweeps_drawing_shows_accuracies_and_differences(swept, drawn):
    figures.accuracy_against("unused", swept)
    axes = drawn().axes
    assert len(axes) == 6
    for above, below, panel in zip(axes[:3], axes[3:], swept.values(), strict=True):
        for line, accuracy in zip(above.lines, panel["accuracy"].values(), strict=True):
            np.testing.assert_allclose(line.get_xydata(), np.transpose([panel["values"], 100 * np.array(accuracy)]))
        one, other = (np.array(a) for a in panel["accuracy"].values())
        np.testing.assert_allclose(below.lines[-1].get_ydata(), 100 * (one - other), atol=1e-9)
    assert [axes[i].get_xscale() for i in range(3)] == ["linear", "log", "linear"]


def test_the_curves_drawing_has_a_point_per_step_and_names_draws_only_where_there_are_any(drawn):
    still, moving = ({"largest": [0.5, 1, 2], "spread": [s] * 3} for s in (0.0, 0.1))
    for spread in (False, True):
        figures.loss_along_attacks(
            "unused", {"a": {"PGD": still, "own": moving if spread else still}, "b": {"PGD": still, "own": still}}
        )
        left, right = drawn().axes
        assert ("draws" in left.get_ylabel()) == spread
        assert len(left.lines) == len(right.lines) == 2
        assert [text.get_text() for text in drawn().legends[0].get_texts()] == ["PGD", "own"]
        np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0, 0.5], [1, 1], [2, 2]])


@pytest.mark.parametrize("eps, factors", [(0.01, [5, 30]), (0.03125, [5, 16]), (0.0625, [8]), (0.25, [2])])
def test_the_perturbations_drawing_shows_clean_adversarial_and_amplified_images(drawn, eps, factors):
    x = RNG.uniform(0.3, 0.7, size=(2, 3, 3, 1))
    noise = RNG.uniform(-eps, eps, (2, 2, *x.shape))  # [model, attack, N, H, W, C]
    noise[0, 0, 0, 0] = eps
    x_adv = x + noise
    shown = {
        f"model {m}": {f"attack {a}": {"x_adv": x_adv[m, a].tolist(), "predictions": [0, 1]} for a in (0, 1)}
        for m in (0, 1)
    }
    names = ("zero", "one")
    figures.amplified_perturbations(
        "unused", {"class_names": names, "labels": [0, 0], "x": x.tolist(), "models": shown}
    )
    group = 1 + len(factors)
    grid = np.array(drawn().axes).reshape(4, 1 + 2 * group)
    assert [axes.get_title() for axes in grid[0, 2 : 1 + group]] == [f"{factor} times" for factor in factors]
    for row, (i, a) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        seen = [axes.images[0].get_array()[..., 0] if axes.images else None for axes in grid[row]]
        assert (seen[0] is None) == (a == 1)  # each clean image once
        if a == 0:
            np.testing.assert_allclose(seen[0], x[i, ..., 0])
        for m in (0, 1):
            delta = x_adv[m, a, i, ..., 0] - x[i, ..., 0]
            one, *others = seen[1 + group * m : 1 + group * (m + 1)]
            np.testing.assert_allclose(one, x_adv[m, a, i, ..., 0])
            for factor, amplified in zip(factors, others, strict=True):
                np.testing.assert_allclose(amplified, 0.5 + factor * delta, atol=1e-12)  # nothing is cut off
            title = grid[row][1 + group * m].title
            assert title.get_text() == f"→ {names[i]}"
            assert (title.get_color() == figures.RED) == (i == 1)  # the second image is misclassified


def cut_off(figure):
    """Whether anything lies outside of a figure, in part."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    tight = figure.get_tightbbox(canvas.get_renderer())
    names = [name.get_window_extent() for name in figure.findobj(Annotation)]  # which have no part in the layout
    corners = [tight.min * figure.dpi, tight.max * figure.dpi, *(edge for box in names for edge in (box.min, box.max))]
    return min(map(np.min, corners)) < -1 or (np.max(corners, axis=0) > figure.bbox.max + 1).any()


@pytest.mark.parametrize("models", [1, 2])
def test_no_text_is_cut_off(drawn, models):
    long = ["attack_l2l_da_runs_cifar10_rnn_adv_wrn_34_10_s0", "a/b/restricted_imagenet_two_step_grad_only_l2l_s12"]
    curve, victims = {"largest": [0.5, 1, 2], "spread": [0] * 3}, long[:models]
    figures.loss_along_attacks(
        "unused", {who: {name: curve for name in ("PGD", *(f"attacker of {name}" for name in long))} for who in victims}
    )
    assert not cut_off(drawn())
    pair = {"difference": [0.1, 0.2], "error": [0.1, 0.1]} if models == 2 else {}
    panel = {"x": "eps", "scale": "linear", "values": [0, 1], "accuracy": {who: [0.5, 0.2] for who in victims}, **pair}
    figures.accuracy_against("unused", {"PGD, 10 steps of eps / 10, up to the largest eps": panel, "b": panel})
    assert not cut_off(drawn())
    units, surface = [-1.0, 0.0, 1.0], np.arange(9.0).reshape(3, 3)
    axes = ["sign of the gradient (eps)", "random signs (eps)"]
    figures.loss_landscape("unused", {"units": units, "axes": axes, "loss": {who: surface for who in victims}})
    assert not cut_off(drawn()) and drawn().axes[0].get_zlabel() == "cross-entropy (nats)"
    x = np.full((1, 4, 4, 1), 0.5)
    attacks = {name: {"x_adv": x + 0.01, "predictions": [1]} for name in long}
    names = ("black-footed_ferret", "crossword_puzzle")
    figures.amplified_perturbations(
        "unused", {"class_names": names, "labels": [0], "x": x, "models": {who: attacks for who in victims}}
    )
    assert not cut_off(drawn())
    figures.training_curves("unused", [{"step": 1, "loss": 1.0}], "two_step_grad_only_l2l: wrn_34_10 on cifar100")
    assert drawn().get_suptitle() and not cut_off(drawn())
    figures.perturbation_grid("unused", x, x + 0.01, [0], [1], names, "pgd20")
    assert drawn().axes[2].get_ylabel() == "pgd20" and not cut_off(drawn())


def test_the_landscapes_drawing_shows_both_models_on_one_scale(drawn, monkeypatch):
    surfaces, plot = [], Axes3D.plot_surface
    monkeypatch.setattr(Axes3D, "plot_surface", lambda self, *a, **how: [surfaces.append(a), plot(self, *a, **how)][1])
    units = [-1.0, 0.0, 1.0]
    low, high = np.arange(9.0).reshape(3, 3), 10 + np.arange(9.0).reshape(3, 3)
    figures.loss_landscape("unused", {"units": units, "axes": ["u", "v"], "loss": {"a": low, "b": high}})
    left, right, bar = drawn().axes
    assert left.get_xlabel() == "u" and left.get_ylabel() == "v" and "nats" in bar.get_ylabel()
    assert left.get_zlim() == right.get_zlim() == (0, 18)
    assert [axes.collections[0].get_clim() for axes in (left, right)] == [(0, 18)] * 2
    np.testing.assert_allclose(left.collections[0].get_array(), [2, 3, 5, 6])  # each face's mean of four corners
    u, v, values = np.broadcast_arrays(*surfaces[0])
    assert (u[2, 0], v[2, 0], values[2, 0]) == (1, -1, 6)


def test_each_figures_json_draws_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "COUNTS", (1,))
    monkeypatch.setattr(views, "RADII", (0.0, 1.0))
    plan = plan_of(W[0], names=illustrate.FIGURES)
    one = SPLIT.take(slice(1))
    paths = illustrate.draw(plan, one, tmp_path / "folder", key=KEY)
    assert [path.name for path in paths] == [f"{name}.png" for name in illustrate.FIGURES]
    for path in paths:
        before = path.read_bytes()
        path.unlink()
        assert illustrate.redraw(path.with_suffix(".json")) == path
        assert path.read_bytes() == before
        content = json.loads(path.with_suffix(".json").read_text())
        if path.stem == "perturbations":
            np.testing.assert_allclose(np.ravel(content["data"]["x"]), X[0], atol=1e-5)
        other = json.dumps(content).replace("model 0", "another model")  # which every drawing names
        path.with_suffix(".json").write_text(other)
        assert illustrate.redraw(path.with_suffix(".json")).read_bytes() != before


def test_what_is_no_figure_is_not_drawn(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(L2LError, match="holds no figure"):
        illustrate.redraw(tmp_path / "other.json")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Workdirs of runs, whose players are stand-ins."""
    for folder, dataset, eps in (
        ("a", "digits", "0.1"),
        ("b", "digits", "1/10"),
        ("c", "mnist", "0.1"),
        ("d", "digits", "0.2"),
    ):
        (tmp_path / folder / "run").mkdir(parents=True)
        saved = {"dataset": dataset, "norm": "linf", "eps": eps}
        (tmp_path / folder / "run" / "config.json").write_text(json.dumps(saved))
    monkeypatch.setattr(illustrate, "load_classifier", lambda workdir: f"classifier of {workdir}")
    monkeypatch.setattr(illustrate, "load_attacker", lambda workdir, steps=None: (workdir, steps))
    return {folder: str(tmp_path / folder / "run") for folder in "abcd"}


DIGITS = from_arrays(np.zeros((12, 8, 8, 1)), np.arange(12) % 10, name="digits")


def test_a_plan_names_models_and_attackers_apart(runs):
    def plan(**named):
        return illustrate.make_plan("all", runs["a"], "victim", BALL, DIGITS, **named)

    alone = plan()
    assert (alone.figures, alone.models, alone.attackers) == (list(illustrate.FIGURES), {"run": "victim"}, {})
    found = plan(baseline=runs["b"], attackers=["fgsm", "own", f"trained:{runs['b']}"])
    assert found.models == {runs["a"]: "victim", runs["b"]: f"classifier of {runs['b']}"}  # both are called run
    own, trained = found.attackers.values()
    assert own() == (runs["a"], None) and trained(steps=4) == (runs["b"], 4)
    assert all(runs[k] in name for k, name in zip("ab", found.attackers, strict=True))
    for wrong in ({"baseline": runs["c"]}, {"attackers": [f"trained:{runs['c']}"]}):
        with pytest.raises(L2LError, match="a run on mnist, not digits"):
            plan(**wrong)
    assert len(plan(baseline=runs["d"]).models) == 2  # whatever a baseline was trained for
    with pytest.raises(L2LError, match="attacks in linf, eps 0.2, not linf, 0.1: give one of the same threat"):
        plan(attackers=[f"trained:{runs['d']}"])
    nothing = illustrate.make_plan("", runs["a"], "victim", BALL, DIGITS, attackers=[f"trained:{runs['d']}"])
    assert nothing.figures == [] and nothing.attackers == {}
    with pytest.raises(L2LError, match=r"--figures=swep: choose from all, sweep"):
        illustrate.make_plan("sweep,swep", runs["a"], "victim", BALL, DIGITS)
