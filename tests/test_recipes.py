"""The recipes against the papers' settings, typed here from the papers and their released codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import data, defenses
from l2ljax.run import experiment, recipes, validation
from l2ljax.run.config import Config, methods, resolve
from l2ljax.run.recipes import RECIPES, default, find
from l2ljax.run.settings import LR_SCHEDULES
from l2ljax.run.setup import load, prepare
from l2ljax.runtime.workdir import read_json
from l2ljax.types import Batch, L2LError

SGD = {"optimizer": "sgd", "batch_size": 128}
ADAM = {"attacker_optimizer": "adam", "attacker_lr": 1e-3, "attacker_weight_decay": 2e-4}
L2L = {
    **SGD, "arch": "wrn_34_10", "eps": "0.031", "epochs": 100, "lr": 0.1, "weight_decay": 2e-4, "decay": 0.1,
    "milestones": (29, 59, 89), "selection": "test", "selection_attack": "pgd10@l2l", "val_size": 0,
}  # fmt: skip
RNN = {"steps": 10, "normalize": "none", "weights": "t", "biases": False, "start": "gaussian"}
BAYESIAN = {
    **SGD, "arch": "vgg16", "eps": "8/255", "epochs": 200, "lr": 0.01, "weight_decay": 5e-4, "decay": 0.1,
    "milestones": (80, 140, 180), "selection": "last",
}  # fmt: skip
TRADES = {**SGD, "epochs": 76, "lr": 0.1, "weight_decay": 2e-4, "milestones": (74,), "selection": "last"}
MNIST = {
    **SGD, "arch": "small_cnn", "eps": "0.3", "epochs": 100, "lr": 0.01, "weight_decay": 0.0, "decay": 0.1,
    "milestones": (54, 74, 89), "selection": "last",
}  # fmt: skip
AIT = {**SGD, "epochs": 200, "lr": 0.1, "weight_decay": 2e-4, "milestones": (59, 89), "decay": 0.1}
DA = {
    "optimizer": "sgd", "batch_size": 100, "lr": 0.01, "weight_decay": 1e-5, "decay": 0.1,
    "attacker_optimizer": "sgd", "attacker_lr": 0.01, "attacker_weight_decay": 1e-5, "selection": "test",
}  # fmt: skip

PRINTED = [
    # recipe, data set, method, settings, the method's options (those not listed are free)
    ("l2l", "cifar10", "grad_l2l", {**L2L, **ADAM, "schedule": "alternating"},
     {"attacker": "wide", "normalize": "batch"}),
    ("l2l", "cifar100", "two_step_l2l", {**L2L, **ADAM, "schedule": "alternating"}, {"attacker": "wide"}),
    ("l2l", "cifar10", "naive_l2l", {**L2L, **ADAM, "schedule": "alternating"}, {}),
    ("l2l_v2", "cifar10", "grad_only_l2l", {**L2L, **ADAM, "schedule": "alternating"}, {}),
    ("l2l", "cifar100", "pgd_adv", L2L, {"steps": 10, "step_size": 0.007, "start": "clean"}),
    ("l2l", "cifar10", "plain", {"epochs": 200, "weight_decay": 5e-4, "nesterov": True, "decay": 0.2,
                                 "milestones": (60, 120, 160)}, {}),
    ("l2l_v2", "cifar10", "ait", {**AIT, "arch": "wrn_34_10", "eps": "0.031", "selection": "last"}, {"label_eps": 0.5}),
    ("l2l_v2", "cifar10", "ait_l2l", {**AIT, **ADAM, "arch": "wrn_34_10", "eps": "0.031", "schedule": "joint"},
     {"label_eps": 0.5, "attacker": "wide", "normalize": "batch"}),
    ("ait", "cifar10", "ait", {**AIT, "arch": "wrn_28_10", "eps": "8/255", "selection": "last"}, {"label_eps": 0.5}),
    ("trades", "cifar10", "trades", {**TRADES, "arch": "wrn_34_10", "eps": "0.031"},
     {"beta": 6.0, "steps": 10, "step_size": 0.007}),
    ("trades", "mnist", "trades", MNIST, {"beta": 1.0, "steps": 40, "step_size": 0.01}),
    ("rnn_adv", "cifar10", "rnn_adv", {**BAYESIAN, "schedule": "joint"}, {**RNN, "scale": 255 / 8}),
    ("rnn_adv", "cifar10", "rnn_trades", {**TRADES, "arch": "vgg16", "eps": "8/255", "schedule": "joint"},
     {**RNN, "scale": 255 / 8, "beta": 6.0}),
    ("rnn_adv", "cifar10", "pgd_adv", BAYESIAN, {"steps": 10, "step_size": 0.007, "start": "clean"}),
    ("rnn_adv", "cifar10", "trades", {**TRADES, "arch": "vgg16", "eps": "8/255"},
     {"beta": 6.0, "steps": 10, "step_size": 0.007}),
    ("rnn_adv", "mnist", "rnn_adv", MNIST, {**RNN, "scale": 1 / 0.3}),
    ("rnn_adv", "mnist", "rnn_trades", MNIST, {**RNN, "scale": 1 / 0.3, "beta": 1.0}),
    ("rnn_adv", "mnist", "pgd_adv", MNIST, {"steps": 10, "step_size": 0.075}),
    ("rnn_adv", "mnist", "trades", MNIST, {"beta": 1.0, "steps": 10}),
    ("l2l_da", "mnist", "l2l_da", {**DA, "arch": "lenet5", "eps": "0.3", "clip_norm": 1.0, "clip_warmup": False,
                                   "schedule": "joint", "augment": "crop"},
     {"steps": 10, "step": 0.25, "diversity": 0.02, "latent": 8, "delta": True, "label": True, "normalize": "channel"}),
    ("l2l_da", "cifar10", "l2l_da", {**DA, "arch": "resnet20", "eps": "8/255", "pretrained": True, "warmup": 0.0},
     {"steps": 10, "step": 0.25, "diversity": 0.5}),
    ("l2l_da", "mnist", "l2l_star", {**DA, "arch": "lenet5"}, {"steps": 1, "step": 1.0, "normalize": "mean"}),
    ("l2l_da", "cifar10", "cw_adv", {**DA, "pretrained": True}, {"steps": 100}),
    ("l2l_da", "mnist", "pgd_adv", {**DA, "arch": "lenet5"}, {"steps": 10, "start": "uniform"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "dataset", "method", "settings", "options"), PRINTED, ids=["-".join(row[:3]) for row in PRINTED]
)
def test_a_recipe_is_as_printed(recipe, dataset, method, settings, options):
    ours = find(dataset, method, recipe)
    assert ours.recipe == recipe
    assert {name: getattr(ours, name) for name in settings} == settings
    complete = {**defenses.options(method), **ours.options}
    assert {name: complete[name] for name in options} == pytest.approx(options)
    assert set(ours.options) <= set(defenses.options(method))


def test_the_papers_steps():
    """L2L-DA counts steps: 100,000 on batches of 100 of 60,000 images, 1,000 of them plain; the rate falls halfway."""
    ours = find("mnist", "l2l_da", "l2l_da")
    assert ours.epochs * 600 == pytest.approx(100_000, abs=1e-6)
    assert round(ours.warmup * 600) == 1_000
    assert [round(m * 600) for m in ours.milestones] == [50_000]
    cifar = find("cifar10", "l2l_da")
    assert (cifar.epochs * 500, [round(m * 500) for m in cifar.milestones]) == (100_000, [50_000])


def test_the_default_is_the_papers_recipe_on_its_own_data():
    expected = {
        ("cifar10", "rnn_adv"): "rnn_adv", ("mnist", "rnn_trades"): "rnn_adv", ("cifar10", "trades"): "trades",
        ("cifar100", "grad_l2l"): "l2l", ("cifar10", "ait"): "ait", ("cifar10", "ait_l2l"): "l2l_v2",
        ("mnist", "l2l_da"): "l2l_da", ("cifar10", "cw_adv"): "l2l_da", ("cifar10", "pgd_adv"): "rnn_adv",
        ("cifar100", "pgd_adv"): "l2l", ("digits", "rnn_adv"): "ours", ("fashion_mnist", "grad_l2l"): "ours",
        ("cifar100", "rnn_adv"): "ours", ("mnist", "grad_l2l"): "ours",
    }  # fmt: skip
    assert {key: default(*key) for key in expected} == expected
    for dataset in data.NAMES:
        for method in {**defenses.METHODS, **defenses.ATTACKERS}:
            assert find(dataset, method, "ours").recipe == "ours"


def test_a_recipe_without_the_row_is_refused():
    with pytest.raises(L2LError, match=r"recipe trades has no rnn_adv on cifar10: it has trades; or --recipe=ours"):
        find("cifar10", "rnn_adv", "trades")
    with pytest.raises(L2LError, match=r"recipe l2l has no grad_l2l on digits: it has cifar10, cifar100, svhn; or"):
        find("digits", "grad_l2l", "l2l")
    with pytest.raises(L2LError, match=r"unknown recipe 'madry': choose from rnn_adv, l2l, "):
        find("cifar10", "rnn_adv", "madry")


def test_every_recipe_is_complete():
    for name, recipe in RECIPES.items():
        assert {method for _, method in recipe.table} >= set(recipe.methods)
        for (dataset, method), settings in recipe.table.items():
            assert set(settings.options) <= set(defenses.options(method)), (name, dataset, method)
            assert settings.selection in ("validation", "test", "last")
            assert (settings.val_size > 0) == (settings.selection == "validation")


def test_the_table_has_a_row_for_each_method():
    lines = recipes.table("cifar10").splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == list(defenses.METHODS)


# What a recipe does in a run -----------------------------------------------------------------------------------------

TINY = {"train_size": 60, "eval_size": 20, "batch_size": 20, "attacks": "fgsm"}


def test_a_recipe_alone_trains_its_own_method():
    assert methods(Config(recipe="l2l_da")) == ["l2l_da"] and methods(Config(recipe="l2l")) == ["grad_l2l"]
    assert methods(Config()) == ["rnn_adv"]


def test_the_best_parameters_are_chosen_where_the_recipe_says():
    for selection, val in {"test": "test", "validation": "val", "last": None}.items():
        given = {"val_size": 30} if val == "val" else {}
        settings = resolve("digits", "plain", Config(selection=selection, **given, **TINY))
        setup, state = prepare(settings)
        assert len(setup.dataset.val.labels) == {"test": len(setup.dataset.test.labels), "val": 30}.get(val, 0)
        assert bool(validation.validate(setup, state, [])) == (val is not None)
    assert resolve("digits", "plain", Config(val_size=0)).selection == "last"
    assert resolve("mnist", "l2l_da", Config(val_size=100)).selection == "validation"


def test_an_ingredient_of_the_recipe_is_left_out_by_0():
    assert find("digits", "rnn_adv").cutout == 2
    for flag, cutout in ((None, 2), (0, None), (3, 3)):
        assert resolve("digits", "rnn_adv", Config(cutout=flag)).cutout == cutout


@pytest.mark.parametrize(
    "dataset, method, flags",
    [
        ("digits", "plain", {"selection": "validation", "val_size": 0}),
        ("mnist", "l2l_da", {"selection": "validation"}),  # its recipe holds none out
        ("digits", "plain", {"selection": "last", "val_size": 30}),
        ("digits", "plain", {"selection": "test", "val_size": 30}),
    ],
)
def test_images_are_held_out_exactly_where_parameters_are_chosen_on_them(dataset, method, flags):
    with pytest.raises(L2LError, match=r"--selection=\w+ with --val-size=\d+: give (a )?--val-size") as error:
        resolve(dataset, method, Config(**flags))
    assert "\n" not in str(error.value)


def test_data_too_few_to_hold_any_out_keep_the_last_parameters():
    few = data.load({"train_images": np.zeros((9, 4, 4, 1), np.uint8), "train_labels": np.arange(9) % 3})
    settings = resolve(few, "plain", Config())
    assert (settings.val_size, settings.selection, settings.batch_size) == (0, "last", 7)
    assert recipes.fitted(find("mnist", "l2l_da"), few).selection == "test"


def test_epochs_may_end_within_one():
    setup, _ = prepare(resolve("digits", "plain", Config(epochs=2.5, val_size=0, **TINY)))
    assert setup.epoch_steps == 3 and setup.steps == 8
    for epochs in (1e308, 2**31 / 3):
        with pytest.raises(
            L2LError, match=r"--epochs=\S+: a run has 2147483647 steps at most: give 715827882 or fewer"
        ):
            prepare(resolve("digits", "plain", Config(epochs=epochs, val_size=0, **TINY)))


@pytest.mark.parametrize("clipped", [True, False])
def test_the_warm_up_is_clipped_only_where_the_recipe_says(clipped):
    """With plain SGD a clipped gradient of norm 1e-3 moves the weights by lr * 1e-3."""
    settings = resolve("digits", "plain", Config(val_size=0, lr=0.5, optimizer="sgd", warmup=1.0, **TINY))
    settings = settings._replace(clip_norm=1e-3, clip_warmup=clipped)
    setup, state = prepare(settings)
    before = jax.tree.map(jnp.copy, state.params.classifier)
    (warm_up, until), (_, last) = setup.phases
    assert (until, last) == (3, 3 * settings.epochs)
    state, _ = warm_up(state, Batch(setup.dataset.train.images[:20] / np.float32(255), setup.dataset.train.labels[:20]))
    moved = float(optax.tree.norm(jax.tree.map(jnp.subtract, state.params.classifier, before)))
    assert (moved <= 0.5e-3 * 1.01) == clipped


def test_the_first_classifier_is_saved_and_its_batches_are_no_larger_than_the_data(tmp_path):
    file = tmp_path / "mine.npz"
    np.savez(file, train_images=np.zeros((24, 32, 32, 3), np.uint8), train_labels=np.arange(24) % 2)
    given = {"recipe": "l2l_da", "no_checkpoint": True, "workdir": str(tmp_path / "run")}
    for more, images in (({}, 20), ({"train_size": 7, "batch_size": 7}, 7)):
        settings = resolve(str(file), "l2l_da", Config(**given, **more))
        plain = recipes.plain_before(settings)
        assert settings.pretrained and not plain.no_checkpoint and plain.batch_size == images


def test_the_first_classifier_is_trained_on_the_runs_own_images(tmp_path):
    """Images that later choose the best state have not trained the classifier with which the run began."""
    file = tmp_path / "mine.npz"
    images = np.random.RandomState(0).randint(256, size=(60, 32, 32, 3), dtype=np.uint8)
    np.savez(file, train_images=images, train_labels=np.arange(60) % 2)
    for more in ({"val_size": 11, "batch_size": 30}, {"val_size": 5, "train_size": 9, "batch_size": 9}, {}):
        run = resolve(str(file), "l2l_da", Config(recipe="l2l_da", workdir=str(tmp_path / "run"), **more))
        plain = recipes.plain_before(run)
        plain.check()
        own, first = load(run), load(plain)
        np.testing.assert_array_equal(first.train.images, own.train.images)
        assert len(own.train.images) == {11: 39, 5: 9}.get(run.val_size, 50) >= plain.batch_size


def test_decays_at_one_step_are_all_taken():
    given = resolve("mnist", "pgd_adv", Config(recipe="rnn_adv", epochs=0.02))  # 54, 74 and 89 of 100 epochs
    lr = LR_SCHEDULES["steps"](given, 50)  # of one step in all, at steps 1, 1 and 1
    assert (lr(0), lr(2)) == (given.lr, pytest.approx(given.lr * given.decay**3))


def test_one_replay_is_none():
    for method in ("pgd_adv", "free_adv"):
        assert resolve("digits", method, Config(replays=1)).replays is None
    assert resolve("digits", "free_adv", Config()).replays == 8


@pytest.mark.slow
def test_a_classifier_that_should_start_trained_is_trained_first(tmp_path):
    settings = resolve("digits", "fgsm_adv", Config(workdir=str(tmp_path / "run"), epochs=1, val_size=0, **TINY))
    settings = settings._replace(pretrained=True)
    with pytest.raises(L2LError, match="fgsm_adv of recipe ours starts from a trained classifier: give init_from="):
        prepare(settings)
    report = experiment.run(settings)
    as_cifar = recipes.plain_before(resolve("cifar10", "l2l_da", Config(epochs=2)))
    assert (as_cifar.epochs, as_cifar.lr, as_cifar.milestones) == (2, 0.1, (1.0, 1.5))
    plain = read_json(tmp_path / "run" / "classifier" / "config.json")
    assert (plain["method"], plain["epochs"], plain["train_size"]) == ("plain", 1, 60)  # stretched like the run
    assert read_json(tmp_path / "run" / "config.json")["init_from"] == str(tmp_path / "run" / "classifier")
    before = (tmp_path / "run" / "classifier" / "report.json").stat().st_mtime_ns
    assert experiment.run(settings)["clean_acc"] == report["clean_acc"]
    assert (tmp_path / "run" / "classifier" / "report.json").stat().st_mtime_ns == before
