"""A user's own names: what is registered is used, checked and reported as what is built in; bad names are refused."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from l2ljax import attacks, defenses, losses, models
from l2ljax.attacks import names
from l2ljax.run import adversary, experiment, recipes
from l2ljax.run.config import Config, resolve
from l2ljax.runtime import flags
from l2ljax.types import L2LError
from tests.test_attacks import KEY, LINF, LOGITS, X, Y

pytestmark = pytest.mark.usefixtures("tables")
ROOT = Path(__file__).parent.parent


def corners(ball, *, steps=4, size=2.0, keep="last", loss=losses.cross_entropy):
    """Long steps."""
    return attacks.pgd(ball, step_size=size * ball.eps, steps=steps, keep=keep, loss=loss)


def tiny_rnn(classifier, ball, *, steps=2, hidden=3, loss=losses.cross_entropy, axis_name=None):
    return defenses.rnn_adv(classifier, ball, steps=steps, hidden=hidden, axis_name=axis_name)


def check_same(name, attack):
    got, expected = (jax.jit(each)(LOGITS, KEY, X, Y) for each in (attacks.create(name, LINF), attack))
    chex.assert_trees_all_close(got, expected, atol=1e-6)


def test_a_registered_attack_has_numbers_and_the_options_of_its_keywords():
    attacks.register("corners", corners)
    check_same("corners", corners(LINF))
    check_same("corners2+best+restarts3", attacks.restarts(corners(LINF, steps=2, keep="best"), 3))
    check_same("corners2+targeted", attacks.multi_targeted(lambda loss: corners(LINF, steps=2, loss=loss)))
    assert attacks.parameters("corners9+best", LINF) == {
        "attack": "corners", "norm": "linf", "eps": LINF.eps, "steps": 9, "size": 2.0, "keep": "best",
        "loss": "cross_entropy", "targeted": False, "restarts": 1,
    }  # fmt: skip
    assert names.listing()["cornersN"] == "Long steps; N = 4 by default"
    with pytest.raises(L2LError, match=r"choose from fgsm, .*, cornersN \(N a number"):
        attacks.create("corner", LINF)


def test_a_number_counts_what_the_record_says():
    attacks.register("draws", attacks.random_noise, parameters=lambda ball, n: {"samples": n}, n=7)
    check_same("draws", attacks.random_noise(LINF, samples=7))
    attacks.register("signs", attacks.random_signs)
    check_same("signs", attacks.random_signs(LINF))
    with pytest.raises(L2LError, match="'signs3': signs takes no number"):
        attacks.create("signs3", LINF)
    with pytest.raises(L2LError, match="signs has the options restartsN, not best"):
        attacks.create("signs+best", LINF)
    attacks.register("square_n", lambda ball, *, steps: attacks.square(ball, queries=steps))
    with pytest.raises(L2LError, match="'square_n': square_n takes a number"):  # it has no number of its own
        attacks.create("square_n", LINF)
    attacks.create("square_n20", LINF)


def test_a_registered_method_is_created_checked_and_gets_the_recipe_of_pgd_adv():
    defenses.register("tiny_rnn", tiny_rnn, learns=True)
    clf = models.create("digits_cnn")
    params, _ = defenses.create("tiny_rnn", clf, LINF, hidden=5).init(KEY, jnp.asarray(X))
    assert params["U"].size == 5
    assert defenses.options("tiny_rnn") == {"steps": 2, "hidden": 3}  # what a command line can set
    with pytest.raises(L2LError, match="no option 'loss': it has steps, hidden"):
        defenses.create("tiny_rnn", clf, LINF, loss=losses.margin)
    for dataset in ("digits", "cifar10"):
        spec = resolve(dataset, "tiny_rnn", Config(method="tiny_rnn", options="hidden=4", steps=1, attacks="own"))
        recipe = recipes.find(dataset, "pgd_adv", "ours")
        same = set(recipe._fields) - {"options", "dataset", "method", "attacks", "workdir"}
        assert {name: getattr(spec, name) for name in same} == {name: getattr(recipe, name) for name in same}
        assert spec.saved()["options"] == {"hidden": 4, "steps": 1}
        assert "tiny_rnn " in recipes.table(dataset)
    with pytest.raises(L2LError, match="--options=beta=1: tiny_rnn takes steps=2, hidden=3"):
        resolve("digits", "tiny_rnn", Config(method="tiny_rnn", options="beta=1"))


def test_what_a_registered_method_learned_attacks_as_own(tmp_path):
    defenses.register("tiny_rnn", tiny_rnn, learns=True)
    attacks.register("corners", corners)
    flags = {"epochs": 1, "train_size": 200, "val_size": 0, "eval_size": 20, "attacks": "corners2,own,own3"}
    config = Config(method="tiny_rnn", workdir=str(tmp_path / "run"), **flags)
    report = experiment.run(resolve("digits", "tiny_rnn", config))
    assert report["method"] == "tiny_rnn" and report["parameters"]["attacker"] > 0
    assert {name: row["passes"] for name, row in report["attacks"].items()} == {"corners2": 2, "own": 2, "own3": 3}
    with pytest.raises(L2LError, match="pgd_adv learns nothing: choose from .*tiny_rnn"):
        adversary.run(adversary.Flags(victim=str(tmp_path / "run"), attacker="pgd_adv"))


def register_with(kind, name, make=None, **settings):
    usual = {"attack": corners, "method": tiny_rnn}[kind]
    register = {"attack": attacks.register, "method": defenses.register}[kind]
    return functools.partial(register, name, make or usual, **settings)


@pytest.mark.parametrize(
    "register, message",
    [
        (register_with("attack", "pgd"), "attack 'pgd': the name pgd is taken: choose another"),
        (register_with("attack", "pgd2"), "the name pgd is taken"),  # which is also a PGD of two steps
        (register_with("attack", "cw_l"), "the name cw_l2 is taken"),
        (register_with("attack", "own"), "the name own is taken"),
        (register_with("attack", "standard"), "the name standard is taken"),
        (register_with("attack", "a+b"), "letters, digits and underscores"),
        (register_with("attack", "mine", lambda ball, *, size: corners(ball)), "give size a default, or set it"),
        (register_with("method", "trades"), "method 'trades': the name trades is taken: choose another"),
        (register_with("method", "gap"), "the name gap is taken"),
        (register_with("method", "all"), "the name all is taken"),
        (register_with("method", "a,b"), "letters, digits and underscores"),
        (register_with("method", "mine", lambda clf, ball, *, b, axis_name=None: None), "give b a default"),
        (register_with("method", "mine", lambda clf, ball, *, beta=1.0: None), "give it a keyword axis_name=None"),
    ],
    ids=lambda value: value.args[0] if isinstance(value, functools.partial) else "",
)
def test_names_that_cannot_be_are_told(register, message):
    before = dict(attacks.FAMILIES), dict(defenses.METHODS)
    with pytest.raises(L2LError, match=message) as error:
        register()
    assert "\n" not in str(error.value)
    assert before == (attacks.FAMILIES, defenses.METHODS)


def test_the_same_record_may_be_registered_again():
    for _ in range(2):
        attacks.register("corners", corners, help="long steps")
        defenses.register("tiny_rnn", tiny_rnn, learns=True)
    for again in (
        functools.partial(attacks.register, "corners", corners, n=5),
        functools.partial(attacks.register, "corners", attacks.random_signs),
        functools.partial(defenses.register, "tiny_rnn", tiny_rnn),
    ):
        with pytest.raises(L2LError, match="is taken"):
            again()


def test_the_examples_names_are_loaded_by_the_scripts(tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "experiments" / "examples")])
    env = {**os.environ, "PYTHONPATH": paths}

    def script(name, *flags):
        command = [sys.executable, str(ROOT / "experiments" / name), *flags]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)

    names = ["--method=smoothed", "--options=size=0.25", "--attacks=nesterov,nesterov20+restarts5"]
    short = ["--epochs=1", "--train-size=200", "--val-size=0", "--eval-size=20", "--workdir=run"]
    done = script("digits.py", "--import=new_attack,new_defense", *names, *short)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["attacks"]) == {"nesterov", "nesterov20+restarts5"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"] == {"size": 0.25}

    flags = ["--victim=run", "--attacks=nesterov3", "--eval-size=20", "--no-masking"]
    done = script("evaluate.py", "--import", "new_attack", *flags)
    assert done.returncode == 0, done.stderr
    judged = json.loads((tmp_path / "run" / "evaluation" / "robustbench.json").read_text())["provenance"]
    assert judged["parameters"]["nesterov3"]["steps"] == 3


def test_import_takes_modules_and_leaves_the_other_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names_a.py").write_text("from l2ljax import attacks\nattacks.register('a', attacks.random_signs)")
    (tmp_path / "names_b.py").write_text("from l2ljax import attacks\nattacks.register('fgsm', attacks.random_signs)")
    assert flags.load(["--seed=1", "--import=names_a", "--import=math", "--attacks", "a"]) == [
        "--seed=1",
        "--attacks",
        "a",
    ]
    check_same("a", attacks.random_signs(LINF))
    for modules, message in {
        "names_a,nowhere": "error: --import=nowhere: ModuleNotFoundError: No module named 'nowhere': name an "
        "importable module\n",
        "names_b": "error: attack 'fgsm': the name fgsm is taken: choose another\n",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            flags.load([f"--import={modules}"])
        assert capsys.readouterr().err == message


def test_help_lists_what_is_registered():
    attacks.register("corners", corners)
    assert re.search(r"^  cornersN +Long steps; N = 4 by default$", names.table(), re.MULTILINE)
