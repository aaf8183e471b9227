"""experiments/gail.py from end to end, small: arms, controls, report, resuming, what goes wrong, the numbers."""

import contextlib
import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2ljax.files import locked
from l2ljax.gail import experiment, experts, report, setup
from l2ljax.gail.experts import Trajectories
from l2ljax.gail.imitate import Demonstrations
from l2ljax.gail.setup import Config
from l2ljax.runtime import monitor
from l2ljax.runtime.workdir import Workdir
from l2ljax.train import Interrupted
from l2ljax.types import L2LError


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A config of seconds: an expert of noise, 2 seeds, 4 iterations of 400 steps in chunks of 2."""
    monkeypatch.setattr(experiment, "CHUNK", 2)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(2, size=30).astype(np.int32)
    expert = Trajectories(*noise, lengths=np.array([10, 20]), returns=np.array([200.0, 200.0]))
    path = tmp_path / "expert.npz"
    task = setup.prepare(Config(env="CartPole-v0"))
    experts.save(path, expert, task.environment.spec)
    settings = {"hidden": "4", "disc_hidden": "4", "seeds": 2, "iterations": 4, "pairs": 400, "trajectories": 2}
    settings |= {"env": "CartPole-v0", "controls": "none", "episodes": 2, "expert": str(path)}

    def config(workdir, **changes):
        return Config(**{**settings, "workdir": str(tmp_path / workdir), **changes})

    return config


def rows_of(workdir, arm):
    return Workdir(workdir / arm, {"arm": arm}, seeds=2).rows()


@pytest.mark.slow
def test_all_arms_and_controls_are_reported(small, tmp_path, capsys):
    config = small("run", controls="frozen,cloning", updater="l2l_coordinate", seed=3, out=str(tmp_path / "kept.json"))
    result = experiment.run(config)
    assert list(result["arms"]) == ["l2l_coordinate", "frozen", "cloning"]
    for arm in result["arms"].values():
        assert len(arm["final_return"]) == 2 and all(8 <= r <= 200 for r in arm["final_return"])
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == result
    assert json.loads((tmp_path / "kept.json").read_text()) == result and (tmp_path / "kept.png").exists()
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| l2l_coordinate |" in text and "reward sign +1" in text and (tmp_path / "run" / "curves.png").exists()
    assert re.search(r"\| frozen +\|", capsys.readouterr().out)
    rows = rows_of(tmp_path / "run", "frozen")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and len(rows[0]["return"]) == 2
    assert all(row["max_abs"] == rows[0]["max_abs"] for row in rows)  # it is frozen
    moved = [row["max_abs"] for row in rows_of(tmp_path / "run", "l2l_coordinate")]
    assert len({tuple(m) for m in moved}) == 4


def test_a_run_that_was_stopped_goes_on_exactly(small, tmp_path, monkeypatch):
    whole = experiment.run(small("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(monitor, "stopping_on_signals", lambda: contextlib.nullcontext(lambda: True))
        with pytest.raises(Interrupted, match="2"):
            experiment.run(small("stopped"))
    resumed = experiment.run(small("stopped"))
    rows = [rows_of(tmp_path / name, "adam") for name in ("whole", "stopped")]
    seconds = [[row.pop("seconds")[0] for row in of] for of in rows]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    assert whole["arms"]["adam"]["final_return"] == resumed["arms"]["adam"]["final_return"]
    again = experiment.run(small("stopped"))  # finished: only reported
    assert again["arms"]["adam"]["final_return"] == whole["arms"]["adam"]["final_return"]
    for result, (_, one, _, two) in zip((whole, resumed, again), (seconds[0], seconds[1], seconds[1]), strict=True):
        speed = result["arms"]["adam"]["iterations_per_second"]
        assert one > 0 and speed == pytest.approx(2 / two)  # two seeds; the first chunk of two compiles
    with pytest.raises(L2LError, match="another --workdir"):
        experiment.run(small("stopped", iterations=6))
    with locked(tmp_path / "stopped"), pytest.raises(L2LError, match="stopped is in use by process"):
        experiment.run(small("stopped"))


def test_seeds_one_after_another_are_those_of_one_program(small, tmp_path):
    whole, apart = experiment.run(small("whole")), experiment.run(small("apart", together=1))
    for name in ("final_return", "last_return", "lowest_late"):
        np.testing.assert_allclose(apart["arms"]["adam"][name], whole["arms"]["adam"][name], rtol=0.05)
    assert len(set(whole["arms"]["adam"]["final_return"])) == 2  # the seeds differ, so their order counts
    assert {path.name for path in (tmp_path / "apart").iterdir()} >= {"adam_s0", "adam_s1"}


def test_rows_that_are_gone_or_none_are_told(small, tmp_path):
    whole = experiment.run(small("run"))
    file = tmp_path / "run" / "adam" / "metrics.jsonl"
    with file.open("a") as more:
        more.write('{"step": 2, "return": [1.0]}\n{"step": 4, "return": ["x", 1.0]}\n')
    again = experiment.run(small("run"))
    assert again["arms"]["adam"]["last_return"] == whole["arms"]["adam"]["last_return"]
    others = file.read_text().splitlines(keepends=True)[1:]
    file.write_text("".join(others))  # the first of them stands for it
    shorter = experiment.run(small("run"))["arms"]["adam"]
    assert shorter["final_return"] == whole["arms"]["adam"]["final_return"]
    returns = np.array([json.loads(row)["return"] for row in others[:3]])
    assert shorter["last_return"] == pytest.approx(np.vstack([returns[:1], returns]).mean(axis=0))
    with pytest.raises(L2LError, match="--checkpoint-every=0: .*run/adam holds a run: leave it out"):
        experiment.run(small("run", checkpoint_every=0))
    file.unlink()
    with pytest.raises(L2LError, match="run/adam lacks the rows of its run: delete that folder to train adam again"):
        experiment.run(small("run"))


def test_an_expert_that_is_none_leaves_no_run(small, tmp_path):
    for bad, message in ({"expert": __file__}, "cannot read expert"), ({"trajectories": 3}, "the expert has 2"):
        with pytest.raises(L2LError, match=message):
            experiment.run(small("run", **bad))
        assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_keeps_to_its_demonstrations(small, tmp_path):
    config = small("run", iterations=2)
    experiment.run(config)
    small("other")  # writes the same expert
    experiment.run(config)
    spec = setup.prepare(config).environment.spec
    expert = experts.load(tmp_path / "expert.npz", spec)
    experts.save(tmp_path / "expert.npz", expert._replace(observations=2 * expert.observations), spec)
    with pytest.raises(L2LError, match="holds a run that began with other demonstrations: choose another --workdir"):
        experiment.run(config)


def test_an_arm_that_diverges_is_told_beside_the_others(small, tmp_path):
    with pytest.raises(
        L2LError, match="lr1e30 diverged: with seed 0, between iterations 1 and 2 .* lower the updater's"
    ):
        experiment.run(small("run", lr="0.01,1e30", checkpoint_every=0))
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "diverged" in found["arms"]["adam_lr1e30"] and found["arms"]["adam_lr0.01"]["final_return"]
    assert re.search(r"\| adam_lr1e30 \| +diverged \|", (tmp_path / "run" / "report.md").read_text())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"env": "Cart"}, "choose one of CartPole-v0"),
        ({"env": "gym:Acrobot-v1"}, "needs --sign"),
        ({"updater": "adam,sgd"}, "--updater=adam,sgd: 'sgd' is unknown or twice: choose of adam, ascent"),
        ({"updater": "adam,adam"}, "'adam' is unknown or twice"),
        ({"controls": "frozen,icy"}, "'icy' is unknown or twice: choose of frozen, wrong_sign"),
        ({"lr": "0.1,0.1"}, "each learning rate once"),
        ({"lr": "0.1,,1"}, "--lr=: give a number above 0"),
        ({"lr": "-1"}, "--lr=-1.0: give a number above 0"),
        ({"seed": -1}, "--seed=-1: give a whole number from 0 to 4294967295"),
        ({"seed": 2**32 - 1, "seeds": 2}, "the last seed=4294967296"),
        ({"hidden": "0"}, "--hidden=0: give a whole number from 1"),
        ({"disc_hidden": "8,"}, "--disc-hidden=8,: give a whole number from 1 to 4096, or several"),
        ({"checkpoint_every": -1}, "--checkpoint-every=-1"),
        ({"start": "zero"}, "--start=zero: give identity or ascent"),
        ({"out": "/proc/x.json"}, "--out=/proc/x.json: .*: name a file in a writable folder"),
        ({"out": "/tmp"}, "--out=/tmp: is a folder: name a file"),
        ({"pairs": 100}, "give 200 or more"),
        ({"seeds": 0}, "--seeds=0"),
        ({"sign": 2}, "--sign=2"),
        ({"lr": "fast"}, "--lr=fast"),
        ({"hidden": "64-32"}, "--hidden=64-32: give a whole number"),
        ({"trajectories": 3}, "the expert has 2"),
    ],
)
def test_bad_flags_are_told_in_one_line_before_any_work(small, changes, message, monkeypatch):
    monkeypatch.setattr(experiment, "_train", None)
    if "trajectories" not in changes:
        monkeypatch.setattr(experiment, "find_expert", None)
    with pytest.raises(L2LError, match=message) as error:
        experiment.run(small("run", **changes))
    assert "\n" not in str(error.value)


TEXTS = ("env", "updater", "lr", "controls", "hidden", "disc_hidden")
WORDS = [
    "adam",
    "ascent",
    "none",
    "frozen",
    ",",
    "64",
    "0",
    "-1",
    "1e999",
    "0.5",
    "gym:",
    "CartPole-v1",
    "os:path",
    ":",
    "\u0663",
]


@settings(derandomize=True, deadline=None, database=None, max_examples=120)
@given(
    st.sampled_from(TEXTS), st.one_of(st.text(max_size=6), st.lists(st.sampled_from(WORDS), max_size=4).map("".join))
)
def test_any_text_is_a_task_or_one_line(flag, text):
    try:
        task = setup.prepare(Config(**{flag: text}))
    except L2LError as error:
        assert "\n" not in str(error)
    else:
        assert task.columns == 10 and task.updaters


def test_an_expert_is_trained_once_and_must_be_good(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experts, "VALUE_STEPS", 1)
    path = tmp_path / "new.npz"
    with pytest.raises(L2LError, match="the expert on CartPole-v0 returns .* less than 195"):
        experiment.run(small("run", expert=str(path), expert_iterations=1))
    assert not path.exists() and "training an expert" in capsys.readouterr().out


def test_one_seed_of_many_can_be_run_alone():
    many, one = setup.prepare(Config(seeds=3)).keys, setup.prepare(Config(seeds=1, seed=2)).keys
    np.testing.assert_array_equal(jax.random.key_data(many)[2], jax.random.key_data(one)[0])


def test_the_numbers_of_an_arm_are_those_of_its_curves():
    returns = np.full((2, 100), 10.0)
    returns[0, 30:] = 96  # 95 % of 100 is reached at iteration 31
    returns[0, 50:60] = 0  # the worst 20 iterations hold all ten
    flat = np.ones((2, 100))
    arm = report.summarize({"return": returns, "accuracy": flat, "kl": flat, "max_abs": flat}, np.array([96, 10]), 100)
    assert arm["reached"] == [31, None] and arm["last_return"] == pytest.approx([96, 10])
    assert arm["lowest_after"] == [pytest.approx(48), None] and arm["lowest_late"] == pytest.approx([48, 10])
    assert report.goal(-100) == -105
    frozen = {"final_return": [20.0, 20.0]}
    about = {"arms": {"adam": arm, "frozen": frozen}, "expert_return": 100.0}
    line = report.table(about).splitlines()[2]
    cells = "adam | 2 | 53.0 ± 60.8 | 10.0 | 53.0 ± 60.8 | 1 of 2 | 31 | 48.0 | 10.0 | 1 | 41.2 %"
    assert [cell.strip() for cell in line.strip("| ").split("|")] == cells.split(" | ")


def test_the_curves_are_running_means_and_say_what_they_show(monkeypatch):
    kept = []
    monkeypatch.setattr(report.figures, "png", kept.append)
    returns = np.random.default_rng(0).normal(size=(3, 50))
    report.draw({"adam": returns, "frozen": returns + 1}, {"expert": 9.0}, "CartPole-v1")
    (axes,) = kept[0].axes
    adam, frozen, expert = axes.lines
    for line, shift in ((adam, 0), (frozen, 1)):
        y = line.get_ydata()
        np.testing.assert_allclose([y[0], y[30]], [returns[:, 0].mean() + shift, returns[:, 11:31].mean() + shift])
    assert adam.get_color() != frozen.get_color() and adam.get_linestyle() != frozen.get_linestyle()
    assert set(expert.get_ydata()) == {9}
    (legend,) = kept[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["adam", "frozen", "expert"]
    assert "3 seeds" in legend.get_title().get_text() and axes.get_title() == "GAIL on CartPole-v1"
    assert axes.get_ylabel() == "return, mean of the last 20 iterations"


def test_plain_ascent_stands_beside_the_learned_updaters():
    """theta + lr g, at every step."""
    config = Config(updater="ascent", lr="0.5", controls="none")
    data = Demonstrations(np.zeros((3, 4)), np.zeros(3, int), None)
    (arm,) = setup.arms(setup.prepare(config), data).values()
    params, g = {"w": np.float32([1, -2, 0.1])}, np.float32([0.3, -0.1, 2])
    state = arm.updater.init(jax.random.key(0), params)
    for _ in range(2):
        moved, state, _ = arm.updater.step(state, params, lambda p: p["w"] @ g)
        np.testing.assert_allclose(moved["w"], params["w"] + 0.5 * g, rtol=1e-5)
        params = moved


@pytest.mark.slow
def test_any_of_gymnasiums_environments_runs_the_same_way(small):
    config = small("gym", env="gym:CartPole-v0", sign=1, iterations=2, seeds=1, pairs=400, controls="frozen")
    result = experiment.run(config)
    assert result["environment"] == "CartPole-v0" and result["pairs"] == 400
    assert all(8 <= arm["final_return"][0] <= 200 for arm in result["arms"].values())
