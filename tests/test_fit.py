"""`fit`, from a program: what it trains, in memory and in a workdir, and what it refuses; the examples run."""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import linen, nnx

import l2ljax
from l2ljax import checkpoint, data, defenses, evaluate, models, threat
from l2ljax.data import arrays
from l2ljax.run import experiment
from l2ljax.run.command import main
from l2ljax.run.config import Config, resolve
from l2ljax.run.fit import REPLACED
from l2ljax.train import AXIS
from l2ljax.types import L2LError, Players

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "experiments" / "examples").glob("*.py"))
BALL = threat.linf(0.1)
SHORT = {"method": "rnn_adv", "ball": threat.linf(0.2), "epochs": 2, "train_size": 300, "steps": 2}
RNG = np.random.RandomState(0)
IMAGES, LABELS = RNG.uniform(size=(90, 4, 4, 1)).astype(np.float32), np.arange(90) % 3


class Net(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.norm, self.linear = nnx.BatchNorm(1, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.norm(x).reshape(len(x), -1))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x.reshape(len(x), -1))


def trades(beta):
    return defenses.create("trades", models.as_classifier(Linen()), BALL, axis_name=AXIS, beta=beta, steps=1)


def steps_of(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    leaves = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    assert leaves
    for a, b in leaves:
        np.testing.assert_array_equal(a, b)


def test_memory_workdir_and_script_train_to_the_same_bits(tmp_path):
    memory = l2ljax.fit("digits_cnn", "digits", **SHORT)
    kept = l2ljax.fit("digits_cnn", "digits", **SHORT, workdir=tmp_path / "fit", attacks="own", eval_size=20)
    flags = {"epochs": 2, "train_size": 300, "steps": 2, "attacks": "own", "eval_size": 20}
    report = experiment.run(resolve("digits", "rnn_adv", Config(**flags, workdir=str(tmp_path / "script"))))
    assert memory.report is None and set(kept.report["attacks"]) == set(report["attacks"]) == {"own"}
    rows = [json.loads(line) for line in (tmp_path / "script" / "metrics.jsonl").read_text().splitlines()]
    timeless = lambda history: [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    assert timeless(memory.history) == timeless(kept.history) == timeless(rows) and len(rows) == 6
    logits_fn, attack = l2ljax.load(tmp_path / "script")
    x, y, key = data.pixels(memory.dataset.test.images[:20]), memory.dataset.test.labels[:20], jax.random.key(0)
    for result in (memory, kept):
        same(result.variables, logits_fn.args[0])
        np.testing.assert_array_equal(result.attack(logits_fn, key, x, y), attack(logits_fn, key, x, y))
    assert memory.best.score == np.float32(max(row.get("val_robust_acc", -1) for row in rows))
    again = l2ljax.fit("digits_cnn", "digits", **SHORT, workdir=tmp_path / "fit", attacks="own", eval_size=20)
    assert again.history == kept.history and again.report["train_seconds"] == kept.report["train_seconds"] > 0


def test_a_network_of_ones_own_is_trained_and_judged_in_five_lines():
    model = Net()
    result = l2ljax.fit(model, (IMAGES, LABELS), method="rnn_adv", ball=BALL, epochs=3, batch_size=30)
    test = result.dataset.test
    judged = evaluate.run_standard_evaluation(
        result.logits_fn, data.pixels(test.images), test.labels, ball=BALL, only=["apgd-ce"], key=0
    )
    assert len(test.labels) == 15 and 0 <= judged.robust_acc <= judged.clean_acc
    assert [row["step"] for row in result.history] == list(range(1, 7))
    assert result.settings.arch == "Net" and result.settings.val_size == 7
    assert not np.allclose(result.variables["params"]["linear"]["kernel"], model.linear.kernel[...])
    assert not np.allclose(result.variables["batch_stats"]["norm"]["mean"], 0)


def test_results_are_saved_and_loaded_with_their_attacker(tmp_path):
    classifier = models.from_linen(Linen())
    flags = {"ball": BALL, "epochs": 1, "batch_size": 30, "val_size": 0}
    result = l2ljax.fit(classifier, (IMAGES, LABELS), **flags)
    l2ljax.save(result, tmp_path / "a")
    logits_fn, attack = l2ljax.load(tmp_path / "a", classifier)
    x_adv = attack(logits_fn, jax.random.key(0), IMAGES[:5], LABELS[:5])
    np.testing.assert_array_equal(x_adv, result.attack(result.logits_fn, jax.random.key(0), IMAGES[:5], LABELS[:5]))
    with pytest.raises(L2LError, match=r"holds a Classifier, a network of yours: give it, as in load\("):
        l2ljax.load_classifier(tmp_path / "a")
    plain = l2ljax.fit(Linen(), (IMAGES, LABELS), method="plain", **flags)
    l2ljax.save(plain, tmp_path / "b")
    assert plain.attack is None and l2ljax.load(tmp_path / "b", classifier)[1] is None
    with pytest.raises(L2LError, match="holds a run: choose another folder"):
        l2ljax.save(plain, tmp_path / "a")


def test_a_result_that_was_not_saved_is_saved_the_second_time(tmp_path, monkeypatch):
    result = l2ljax.fit(Linen(), (IMAGES, LABELS), method="plain", ball=BALL, epochs=1, batch_size=30)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", lambda *_: (_ for _ in ()).throw(L2LError("the disk is full")))
        with pytest.raises(L2LError, match="the disk is full"):
            l2ljax.save(result, tmp_path / "a")
    l2ljax.save(result, tmp_path / "a")
    same(l2ljax.load_classifier(tmp_path / "a", Linen()).args[0], result.variables)
    assert steps_of(tmp_path / "a") == [1, 2]


def test_a_network_with_more_logits_than_classes_is_trained_by_every_attacker(tmp_path):
    class Wide(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(5)(x.reshape(len(x), -1))

    images = IMAGES.repeat(2, axis=1).repeat(2, axis=2)
    flags = {"ball": BALL, "epochs": 1, "batch_size": 30, "attacker_width": 4, "steps": 1, "val_size": 0}
    result = l2ljax.fit(Wide(), (images, LABELS), method="l2l_da", workdir=tmp_path / "a", **flags)
    assert result.settings.options["num_classes"] == 5 and result.dataset.num_classes == 3
    logits_fn, attack = l2ljax.load(tmp_path / "a", Wide())
    attacked = attack(logits_fn, jax.random.key(0), images[:4], LABELS[:4])
    np.testing.assert_array_equal(attacked, result.attack(logits_fn, jax.random.key(0), images[:4], LABELS[:4]))


def test_parts_are_replaced():
    frozen = Players(optax.set_to_zero(), optax.sgd(0.1))
    classifier = models.from_linen(Linen())
    start = l2ljax.fit(classifier, (IMAGES, LABELS), ball=BALL, epochs=1, batch_size=30, optimizers=frozen)
    longer = l2ljax.fit(classifier, (IMAGES, LABELS), ball=BALL, epochs=3, batch_size=30, optimizers=frozen)
    same(start.variables, longer.variables)
    plain = defenses.create("plain", classifier, BALL, axis_name=AXIS)
    result = l2ljax.fit(classifier, (IMAGES, LABELS), ball=BALL, epochs=1, batch_size=30, defense=plain)
    assert result.attack is None and not jax.tree.leaves(result.state.params.attacker)


def test_a_defense_of_the_users_is_not_loaded_under_the_methods_name(tmp_path):
    classifier = models.from_linen(Linen())
    defense = defenses.create("rnn_adv", classifier, BALL, axis_name=AXIS, hidden=3)
    flags = {"ball": BALL, "epochs": 1, "batch_size": 30, "val_size": 0, "workdir": tmp_path, "attacks": "own"}
    result = l2ljax.fit(classifier, (IMAGES, LABELS), method="rnn_adv", defense=defense, **flags)
    assert result.report["method"] == "Defense" and set(result.report["attacks"]) == {"own"}
    same(l2ljax.load_classifier(tmp_path, classifier).args[0], result.variables)
    for load in (l2ljax.load_attacker, lambda workdir: l2ljax.load(workdir, classifier)):
        with pytest.raises(L2LError, match="holds a Defense, a defense of yours"):
            load(tmp_path)


def test_numbers_of_numpy_are_numbers():
    numbers = {"epochs": np.int64(1), "batch_size": jax.numpy.int32(30), "options": {"hidden": np.int32(3)}}
    result = l2ljax.fit(Linen(), (IMAGES, LABELS), ball=BALL, val_size=0, attacker_lr=np.float32(0.5), **numbers)
    settings = json.loads(json.dumps(result.settings.saved()))
    assert (settings["epochs"], settings["batch_size"], settings["attacker_lr"]) == (1, 30, 0.5)
    assert settings["options"]["hidden"] == 3
    radii = 0.25, np.float32(0.25), jax.numpy.float32(0.25), "0.25"
    given = {"method": "plain", "epochs": 1, "batch_size": 30, "val_size": 0}
    found = [l2ljax.fit(Linen(), (IMAGES, LABELS), eps=eps, **given).settings.eps for eps in radii]
    assert found == ["0.25"] * 4


def test_arrays_are_checked_once(monkeypatch):
    checked, check = [], arrays.check_examples
    monkeypatch.setattr(
        arrays,
        "check_examples",
        lambda images, *args, **how: checked.append(len(images)) or check(images, *args, **how),
    )
    dataset = data.load({"train_images": IMAGES, "train_labels": LABELS})
    before = len(checked)
    l2ljax.fit(Linen(), dataset, method="plain", ball=BALL, epochs=1, batch_size=30, val_size=0)
    assert len(checked) == before + 3  # train, val and test


def test_older_workdirs_load_and_go_on_or_are_refused(tmp_path):
    flags = {**SHORT, "workdir": tmp_path, "attacks": "fgsm", "eval_size": 20, "epochs": 1}
    first = l2ljax.fit("digits_cnn", "digits", **flags)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    older = {**saved, "attacks": "fgsm", "seeds": 1, "attacker": None, "steps": 2, "heartbeat_timeout": 60}
    file.write_text(json.dumps({k: v for k, v in older.items() if k not in ("image_shape", "num_classes")}))
    same(first.variables, l2ljax.load(tmp_path)[0].args[0])
    assert l2ljax.fit("digits_cnn", "digits", **flags).report["train_seconds"] == first.report["train_seconds"]
    file.write_text(json.dumps({k: v for k, v in saved.items() if k != "options"}))
    with pytest.raises(L2LError, match="has no options: give the workdir of a run"):
        l2ljax.load_attacker(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"epoch": 3}, "fit has no setting 'epoch': choose from .*epochs"),
        ({"coordinator": "a:1"}, "fit has no setting 'coordinator'"),
        ({"classifier": 3}, "int is no classifier: make it one with models.from_functions"),
        ({"classifier": Linen}, r"Linen is a class: give a network, like Linen\(...\)"),
        ({"lr": optax.constant_schedule(0.1)}, r"lr is an object of optax: give optimizers=\(optax.sgd"),
        ({"optimizer": optax.adam(0.1)}, "optimizer is an object of optax"),
        ({"eps": 0.1}, "fit got a ball of yours and eps: give one of them"),
        ({"dtype": "bfloat16"}, "fit got a classifier of yours and dtype"),
        ({"data_dir": "data"}, "fit got a dataset of yours and data_dir"),
        (
            {"defense": defenses.create("plain", models.from_linen(Linen()), BALL), "steps": 2},
            "a defense of yours and steps",
        ),
        ({"optimizers": Players(optax.sgd(0.1), optax.sgd(0.1)), "lr": 0.1}, "optimizers of yours and lr"),
        ({"ball": 0.1}, "ball=0.1: give one like threat.linf"),
        ({"epochs": 0}, "epochs=0: give a number above 0"),
        ({"batch_size": 1.5}, "batch_size=1.5: give a whole number"),
        ({"steps": "3"}, "steps=3: give a whole number"),
        ({"attacker_lr": [0.1]}, r"attacker_lr=\[0.1\]: give a number"),
        ({"seed": -1}, "seed=-1: give a whole number from 0"),
        ({"options": {"hidden": np.float32(2.5)}}, "options=hidden=2.5: give a whole number"),
        ({"options": [("steps", 2)]}, r"options=\[\('steps', 2\)\]: give a dictionary"),
        ({"options": None}, "options=None: give a dictionary"),
        ({"workdir": ""}, "workdir='': give a folder, or None"),
        ({"ball": None, "eps": [0.1]}, r"eps=\[0.1\] is no radius"),
        ({"ball": None, "eps": True}, "eps=True is no radius"),
        ({"ball": None, "eps": 8}, r"eps=8.0 is larger than the pixel range"),
        ({"method": "mine"}, "unknown method 'mine'"),
        ({"defense": "trades"}, "defense is a str: give one like defenses.create"),
        ({"optimizers": optax.sgd(0.1)}, r"optimizers are no pair of optax's: give \(optax.sgd"),
        ({"optimizers": (optax.sgd, optax.adam)}, "optimizers are no pair"),
        ({"devices": 0}, "^devices=0: give a whole number from 1"),
        ({"options": {"beta": 2}}, "options=beta=2: rnn_adv takes"),
        ({"dataset": (IMAGES, LABELS[:5])}, "90 images and 5 labels"),
        ({"dataset": (IMAGES, np.arange(90) % 4)}, "returns 3 logits, but arrays has 4 classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_in_one_line(arguments, message):
    given = {"classifier": Linen(), "dataset": (IMAGES, LABELS), "ball": BALL, "epochs": 1, **arguments}
    with pytest.raises(L2LError, match=message) as error:
        l2ljax.fit(given.pop("classifier"), given.pop("dataset"), **given)
    assert "\n" not in str(error.value)


LATE = """
import sys, jax, numpy as np, l2ljax
if {late}: jax.devices()
x = np.linspace(0, 1, 24 * 16, dtype=np.float32).reshape(24, 4, 4, 1)
clf = l2ljax.models.from_functions(
    lambda key, x: {{"params": jax.numpy.zeros((16, 2))}}, lambda v, x: x.reshape(len(x), -1) @ v["params"])
for _ in range(2):
    l2ljax.fit(clf, (x, np.arange(24) % 2), method="plain", ball=l2ljax.threat.linf(0.1), epochs=1, batch_size=8)
print(jax.local_device_count())
"""


@pytest.mark.parametrize("late", [False, True])
def test_too_late_for_a_device_per_core_is_said_once(late):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LATE.format(late=late)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    several = l2ljax.devices.cores() > 1
    assert done.stderr.count("put `l2ljax.devices.one_per_core()` first") == (late and several)
    assert "\r" not in done.stderr and "it/s" not in done.stderr
    assert (int(done.stdout) > 1) == (several and not late)


SMALL = {
    "train_your_network": {"epochs": 1, "test_size": 40, "only": ("apgd-ce",)},
    "new_defense": {"epochs": 1, "train_size": 300},
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_and_are_short(path, monkeypatch, tables):
    text = path.read_text()
    assert len(text.splitlines()) <= 60 and '__name__ == "__main__"' in text
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    found = importlib.import_module(path.stem).main(**SMALL.get(path.stem, {}))
    if path.stem in SMALL:
        clean, robust = found.values() if isinstance(found, dict) else found
        assert 0 <= robust <= clean
    else:
        assert all(loss > found["clean"] for name, loss in found.items() if name != "clean")


def command(*arguments, shell=""):
    line = f"{sys.executable} -m l2ljax {' '.join(arguments)} {shell}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, timeout=100)


def test_the_command_shows_its_recipes_as_a_table_and_ends_quietly():
    shown = command("train", "cifar10", "--help")
    assert shown.returncode == 0, shown.stderr
    rows = [line for line in shown.stdout.splitlines() if line.startswith("| ")]
    assert len({len(line) for line in rows}) == 1 and len(rows) == 2 + len(defenses.METHODS)
    assert re.search(r"^\| rnn_adv \| +pgd_adv \| +vgg16 \| +8/255 \|", shown.stdout, re.MULTILINE)
    cut = command("train", "cifar10", "--help", shell="| head -n 1")
    assert cut.stderr == "" and cut.stdout.count("\n") == 1 and cut.returncode == 0
    for other in (("train", "--help"), ("--help",)):
        cut = command(*other, shell="| true")
        assert cut.stderr == "" and cut.returncode == 0


def test_the_command_helps_or_refuses_in_one_line(monkeypatch, capsys):
    def told(*arguments):
        monkeypatch.setattr(sys, "argv", ["l2ljax", *arguments])
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    for arguments in (("train", "--help"), ("--help",)):
        status, out, err = told(*arguments)
        assert "digits" in out and (status, err) == (0, "")
    for arguments in ((), ("train",), ("trains", "digits")):
        status, out, err = told(*arguments)
        assert status == 2 and err.count("\n") == 1 and "l2ljax train DATASET" in err


def test_the_wheel_names_the_command():
    assert 'l2ljax = "l2ljax.run.command:main"' in (ROOT / "pyproject.toml").read_text()


FLAGS = {"method": "plain", "ball": threat.linf(0.1), "epochs": 1, "batch_size": 10, "val_size": 0}


def test_a_network_of_the_users_is_loaded_as_fit_took_it(tmp_path):
    result = l2ljax.fit(Net(), (IMAGES, LABELS), **FLAGS)
    l2ljax.save(result, tmp_path / "kept")
    with pytest.raises(L2LError, match="--victim=MODULE:FUNCTION"):
        l2ljax.load(tmp_path / "kept")
    logits_fn, attack = l2ljax.load(tmp_path / "kept", Net())
    np.testing.assert_array_equal(logits_fn(IMAGES), result.logits_fn(IMAGES))
    assert attack is None
    another = type("Net", (Net,), {"__call__": lambda self, x: -Net.__call__(self, x)})()  # of the same weights
    with pytest.raises(L2LError, match="holds a run of another network: give the same"):
        l2ljax.load(tmp_path / "kept", another)


@pytest.mark.parametrize("kept", ["checkpoints", "metrics.jsonl"])
def test_without_checkpoints_a_run_that_is_there_is_refused_and_untouched(tmp_path, kept):
    given = {**FLAGS, "workdir": tmp_path, "attacks": ""}
    l2ljax.fit(Linen(), (IMAGES, LABELS), **given, no_checkpoint=kept != "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json*")}
    assert len(before) == 3 and steps_of(tmp_path) == list(range(1, 8))
    if kept == "checkpoints":
        (tmp_path / "metrics.jsonl").write_text("")
        before = {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(L2LError, match="no_checkpoint: .* holds a run: leave it out, or choose another folder"):
        l2ljax.fit(Linen(), (IMAGES, LABELS), **given, no_checkpoint=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_workdir_does_not_go_on_with_other_data_or_another_network(tmp_path):
    l2ljax.fit(Net(), (IMAGES, LABELS), workdir=tmp_path / "run", **FLAGS)
    with pytest.raises(L2LError, match="holds a run with data="):
        l2ljax.fit(Net(), (1 - IMAGES, LABELS), workdir=tmp_path / "run", **FLAGS)
    another = type("Net", (Net,), {"__call__": lambda self, x: -Net.__call__(self, x)})()
    with pytest.raises(L2LError, match="holds a run of another network: give the same"):
        l2ljax.fit(another, (IMAGES, LABELS), workdir=tmp_path / "run", **FLAGS)
    with pytest.raises(L2LError, match="holds a run with a network that starts at other weights: give the same"):
        l2ljax.fit(Net(seed=1), (IMAGES, LABELS), workdir=tmp_path / "run", **FLAGS)


@pytest.mark.parametrize(
    "part, makes",
    [
        ("optimizers", [lambda rate=rate: (optax.sgd(rate), optax.adam(1e-3)) for rate in (0.1, 0.2)]),
        ("ball", [lambda: BALL, lambda: BALL._replace(project=lambda x, x0: BALL.project(x, x0).at[:2].set(x0[:2]))]),
        ("defense", [functools.partial(trades, beta) for beta in (1.0, 50.0)]),
    ],
)
def test_a_workdir_does_not_go_on_with_another_part(part, makes, tmp_path):
    flags = {k: v for k, v in {**FLAGS, "attacks": ""}.items() if k not in (part, *REPLACED[part])}
    first, other = (
        lambda make=make: l2ljax.fit(Linen(), (IMAGES, LABELS), workdir=tmp_path / "run", **flags, **{part: make()})
        for make in makes
    )
    same(first().state.params, first().state.params)
    with pytest.raises(L2LError, match=f"holds a run with (an)?other {part}: give the same, or choose another workdir"):
        other()


def test_ones_own_optimizers_leave_the_one_that_a_method_prescribes(capsys, tmp_path):
    """Another one would take free_adv's perturbations out of the ball."""
    flags = {"epochs": 1, "val_size": 0, "attacks": "", "workdir": tmp_path / "run"}
    movers = Players(optax.set_to_zero(), optax.sgd(100.0))
    result = l2ljax.fit("digits_cnn", "digits", method="free_adv", optimizers=movers, **flags)
    delta = result.state.params.attacker["delta"]
    assert delta.shape == (100, 8, 8, 1) and float(np.abs(delta).max()) == pytest.approx(0.2)
    assert "(ours), Cutout 2, 8 steps a batch:" in capsys.readouterr().out  # not the recipe's adam


def test_results_are_shown_without_their_arrays():
    result = l2ljax.fit(Net(), (IMAGES, LABELS), **FLAGS)
    assert len(repr(result)) < 500 and "Net on " in repr(result) and "'loss': " in repr(result)


def test_cutout_of_whole_images_is_refused():
    size = min(IMAGES.shape[1:3])
    with pytest.raises(L2LError, match=f"^cutout={size} covers images of .*: give less than {size}"):
        l2ljax.fit(Net(), (IMAGES, LABELS), cutout=size, **FLAGS)
