"""The papers' tables: nothing is left out, our scripts take the plan's commands, a list that is stopped or killed goes
on, shorter schedules say so, and claims are answered by the numbers."""

import concurrent.futures
import contextlib
import fcntl
import importlib
import json
import os
import textwrap
import threading
import time
from pathlib import Path

import pytest
import tyro

from l2ljax import attacks, threat
from l2ljax.gail.setup import Config as GailConfig
from l2ljax.models import shipped
from l2ljax.models.attackers import create
from l2ljax.run import adversary, judge
from l2ljax.run.config import Config, resolve
from l2ljax.run.trained import learned
from l2ljax.types import L2LError
from papers import (
    ablations,
    claims,
    compare,
    effort,
    evidence,
    jobs,
    listing,
    overview,
    page,
    plan,
    printed,
    records,
    tables,
    work,
)
from papers.evidence import Group, exceeds
from papers.jobs import Job, Part
from papers.targets import ARCHITECTURES, TABLES

ROOT = Path(__file__).parent.parent
PRINTED = {
    "L2L v1": ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "L2L v2": ([1, 2, 3, 4], [1, 2, 3, 4, 5]),
    "RNN-Adv": ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3]),
    "L2L-DA": ([1, 2, 3], [1, 2]),
}
"""Text -> numbers of its tables and of its figures, from the texts."""


# What the papers print -----------------------------------------------------------------------------------------------


def test_every_table_and_figure_of_the_papers_is_there():
    known = {place for table in TABLES.values() for place in table.printed if place != "ours"} | set(ARCHITECTURES)
    everything = {
        f"{text} {kind} {number}"
        for text, numbers in PRINTED.items()
        for kind, those in zip(("Table", "Figure"), numbers, strict=True)
        for number in those
    }
    assert known == everything


@pytest.mark.parametrize(
    ("table", "row", "column", "number"),
    [
        ("rnn_adv:table1", "AdvTrain+BLS", "PGD+BLS", 88.00),
        ("rnn_adv:table2", "L2LDA", "parameters", 500_944),
        ("rnn_adv:table3", "Plain", "CW100", 83.63),
        ("rnn_adv:table3", "RNN-Adv", "Min", 95.51),
        ("rnn_adv:table4", "TRADES", "CW100", 45.94),
        ("rnn_adv:table5", "RNN-TRADES", "L2LDA", 58.86),
        ("rnn_adv:table6", "RNN-Adv", "40 steps", 42.89),
        ("rnn_adv:table7", "RNN-TRADES", "PGD-Net", 67.09),
        ("rnn_adv:figure3", "RNN-Adv", "largest loss", 3.66),
        ("l2l:table2", "2-Step L2L", "PGM-100", 52.12),
        ("l2l:table2", "Naive L2L", "PGM-20", 0.01),
        ("l2l:table2-cifar100", "Grad L2L", "CW", 29.65),
        ("l2l:table3", "Grad L2L", "CIFAR-100", 623.1),
        ("l2l:table4-v2", "AIT+Grad L2L", "CW-100", 73.46),
        ("l2l:table4", "Naive L2L", "FGSM FGSM", 83.99),
        ("l2l:table5", "2-Step L2L", "PGM PGM10", 45.31),
        ("l2l:table6", "Plain Net", "Plain PGM10", 6.94),
        ("l2l:table8", "2-Step L2L", "Natural", 75.36),
        ("l2l:table8-cifar100", "Grad L2L", "FGSM", 26.58),
        ("l2l_da:table1a", "R-, D+", "Min", 90.45),
        ("l2l_da:table1b", "delta-, y-", "CW1000", 93.24),
        ("l2l_da:table2-mnist", "C&W100", "L2L-DA", 34.51),
        ("l2l_da:table2-cifar10", "PGD10", "Min", 0.32),
        ("l2l_da:table3", "C&W100", "PGD10 C", 89.30),
        ("l2l_da:figure2", "PGD classifier", "L2L-DA", 1.90),
    ],
)
def test_numbers_are_those_of_the_papers(table, row, column, number):
    assert TABLES[table].rows[row][column] == number


@pytest.mark.parametrize("table", ["rnn_adv:table3", "rnn_adv:table5", "l2l_da:table2-mnist", "l2l_da:table3"])
def test_printed_minima_are_the_minima_of_the_printed(table):
    for row, cells in TABLES[table].rows.items():
        if not cells:  # a row of ours beside the paper's
            continue
        assert cells["Min"] == min(number for column, number in cells.items() if column != "Natural"), row


# The plan ------------------------------------------------------------------------------------------------------------


def test_the_plan_is_of_rows_and_columns_that_there_are():
    beside = {"AutoAttack", "AutoAttack, fast", "own attacker", "pgd100", "margin100", "FGSM", "7 steps"}
    beside |= {"sweep", "perturbations"}
    made: dict[str, Job] = {}
    for part in plan.PARTS:
        assert part.row in TABLES[part.table].rows
        assert set(part.columns) <= {*TABLES[part.table].columns, *beside}, part.table
        for job in part.jobs:
            assert made.setdefault(job.made, job) == job, "two commands write the same file"


def test_our_scripts_take_the_plans_commands():
    rows = [(name, row) for name, table in TABLES.items() for row in table.rows]
    parts = [*plan.PARTS, *(part for row in rows for part in printed.printed(*row))]
    jobs = {job.made: job for part in parts for job in part.jobs}.values()
    flags = {"evaluate": judge.Flags, "attack": adversary.Flags, "gail": GailConfig}
    for job in jobs:
        name = Path(job.script).stem
        assert (ROOT / job.script).exists()
        if name in effort.TRAIN_IMAGES:
            config = tyro.cli(Config, args=list(job.flags))
            run = resolve(name, config.method, config)
            assert {name: getattr(run, name) for name in job.about} == job.about
            assert run.recipe == config.recipe and config.seed == job.about["seed"]
            assert str(run.workdir / "report.json") == job.made
            continue
        kind = flags.setdefault(name, importlib.import_module(name).Flags if name not in flags else None)
        found = tyro.cli(kind, args=list(job.flags))
        for attack in filter(None, (getattr(found, "attacks", None) or "").split(",")):
            known = learned(attack) or attack in attacks.ensemble.VERSIONS
            assert known or attacks.create(attack, threat.linf(0.3))


def test_efforts_count_multiplications():
    forward = 32 * 22**2 + 64 * 32 * 11**2 + 64 * 64 * 10**2 + 1024 * 10  # of digits_cnn, see test_cost.py
    plain = effort.training("digits", "digits_cnn", "plain", epochs=2, images=100)
    three, ten = (effort.training("digits", "digits_cnn", "rnn_adv", epochs=1, images=100, steps=n) for n in (3, 10))
    assert (three.passes, ten.passes) == (400, 1100)
    assert plain.multiplications == 2 * 100 * 3 * forward
    attacked = effort.judging("digits_cnn", ["pgd20", "pgd100"], images=5)
    assert (plain + attacked).multiplications == 2 * 100 * 3 * forward + 5 * 120 * 2 * forward
    learned = effort.training("cifar10", "digits_cnn", "naive_l2l", epochs=1, images=1, width=32)
    assert learned.multiplications == 3 * forward + 3 * effort.GENERATORS["naive_l2l"] / 4


# The list ------------------------------------------------------------------------------------------------------------


def test_the_list_shows_every_row_with_state_and_cost(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = listing.listed().splitlines()
    for name, table in TABLES.items():
        for row in table.rows:
            [line] = [line for line in lines if [c.strip() for c in line.split("|")][1:3] == [name, row]]
            assert "not run" in line or "not planned" in line
    [line] = [line for line in lines if "rnn_adv:table5" in line and " AdvTrain " in line]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[10] == "rnn_adv" and float(cells[11]) > 20  # hours of a GPU for WRN-34-10


def test_the_page_names_every_row_that_lacks_results_once(monkeypatch, tmp_path):
    """Kept rows leave the list, those with some parts kept move to the second column."""
    rows = {name: [*table.rows] for name, table in TABLES.items()}
    whole = next(part for part in plan.PARTS if len(_parts_of(part)) == 1)
    some = next(part for part in plan.PARTS if len(_parts_of(part)) > 1)
    monkeypatch.setattr(listing.records, "is_kept", lambda part: part in (whole, some))
    lines = [line.split("|") for line in listing.shortfall().splitlines() if "|" in line]
    lines = {name.strip(): cells for _, name, *cells in lines}
    for name, of_table in rows.items():
        named = [set(lines[name][i].strip().split("; ")) - {"-"} for i in (0, 1, 3)]
        kept = {whole.row} if whole.table == name else set()
        assert set.union(*named) == set(of_table) - kept and sum(map(len, named)) == len(of_table) - len(kept)
        assert named[1] == ({some.row} if some.table == name else set())


def _parts_of(part):
    return [other for other in plan.PARTS if (other.table, other.row) == (part.table, part.row)]


def test_every_trained_row_has_a_command_at_its_papers_recipe():
    """Nothing to add to the recipe but the row's method, and what the row is about."""
    about = {"--recipe", "--method", "--arch", "--attacker", "--options", "--steps", "--seed", "--attacks", "--workdir"}
    for name, table in TABLES.items():
        for row in table.rows:
            parts = printed.printed(name, row)
            drawn = name in printed.FIGURES
            model = table.unit == "%" and table.arch and ":figure" not in name and not name.startswith("ours:")
            assert bool(parts) == bool(drawn or model), (name, row)
            columns = {column for part in parts for column in part.columns}
            own = set() if row in ("Plain", "PGM Net", "Stability", "Kurakin") else {"own attacker"}
            assert not parts or drawn or columns == set(table.columns) - {"Min"} - ({"own attacker"} - own), (name, row)
            for part in parts:
                assert {flag.partition("=")[0] for flag in part.victim.flags} <= about


@pytest.mark.parametrize(
    ("table", "row", "settings"),
    [
        ("rnn_adv:table4", "Plain", {"epochs": 200}),
        ("rnn_adv:table4", "TRADES", {"epochs": 76, "milestones": (74,)}),
        ("rnn_adv:table5", "AdvTrain", {"epochs": 200, "arch": "wrn_34_10"}),
        ("l2l:table4", "Grad L2L", {"schedule": "alternating", "epochs": 100}),
        ("l2l:table4-v2", "AIT+Grad L2L", {"epochs": 200}),
    ],
)
def test_rows_have_their_papers_schedules(table, row, settings):
    paper = printed.setting(table, row)
    assert {name: getattr(paper, name) for name in settings} == settings


def test_our_shorter_recursions_are_not_taken_for_the_papers():
    assert printed.setting("l2l_da:table1a", "R+, D-").options.get("steps", 10) == 10
    training = {**printed.setting("l2l_da:table1a", "R+, D-").saved(), "options": {"steps": 5, "diversity": 0.0}}
    assert "steps 5 instead of 10" in compare.shortened(training, "l2l_da:table1a", "R+, D-")


def test_the_papers_own_setting_is_said_to_be_it():
    settings = printed.setting("rnn_adv:table3", "AdvTrain").saved()
    saved = {field: settings[field] for field in records.SETTINGS}
    assert compare.shortened(saved, "rnn_adv:table3", "AdvTrain") == "as in the paper"
    shorter = compare.shortened({**saved, "epochs": 6}, "rnn_adv:table3", "AdvTrain")
    assert shorter.startswith("6 of 100 epochs; milestones")
    elsewhere = compare.shortened({**saved, "lr": 0.5}, "rnn_adv:table6", "AdvTrain")
    assert elsewhere == "mnist instead of cifar10; small_cnn instead of vgg16; 0.3 instead of 8/255; 100 of 200 epochs"
    smooth = compare.shortened({**saved, "lr_schedule": "onecycle", "milestones": []}, "rnn_adv:table3", "AdvTrain")
    assert smooth == "lr schedule onecycle instead of steps"


def test_black_box_tables_have_slim_attackers_of_width_128():
    for table in ("l2l:table4", "l2l:table5", "l2l:table8"):
        options = printed.setting(table, "Grad L2L").options
        assert (options["attacker"], options.get("attacker_width")) == ("slim", None)
    assert create("slim").width == 128


def test_only_names_tables_or_rows():
    assert {part.table for part in listing.chosen("rnn_adv:table3,l2l:table2")} == {"rnn_adv:table3", "l2l:table2"}
    assert {part.row for part in listing.chosen("l2l_da:table1a/R-, D-")} == {"R-, D-"}
    with pytest.raises(L2LError, match="--only=rnn_adv:table33: no such table or row; choose from") as error:
        listing.chosen("rnn_adv:table33")
    assert "\n" not in str(error.value)


# Running -------------------------------------------------------------------------------------------------------------

FAKE = """
    import json, os, shlex, signal, sys, time
    from pathlib import Path

    how, made, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    made.parent.mkdir(parents=True, exist_ok=True)
    state = made.parent / "state"
    step = int(state.read_text()) if state.exists() else 0
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while step < steps:
        if asked and how != "deaf":
            state.write_text(str(step))
            sys.exit(130)
        time.sleep(0.02)
        step += 1
    with open(made.parent / "starts", "a") as file:
        file.write(f"{step} ")
    command = shlex.join(["python", *sys.argv])
    if made.name == "report.json":
        (made.parent / "config.json").write_text(json.dumps({"method": "plain", "dataset": "mnist", "arch": "small_cnn",
            "epochs": 6, "train_size": None, "data_dir": "/a/place", "seed": 0}))
        made.write_text(json.dumps({"command": command, "parameters": {"classifier": 1}, "versions": {}}))
    else:
        made.write_text(json.dumps({"command": command, "clean_acc": "99.00",
            "provenance": {"images": 100, "date": "today", "machine": "m", "attacks": {"pgd10@rnn": 0.25},
            "black_box": {}}}))
"""


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An empty project with a script that stands for all; a job that is stopped gets a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "GRACE", 1.0)
    monkeypatch.setattr(work, "POLL", 0.02)
    (tmp_path / "fake.py").write_text(textwrap.dedent(FAKE))
    return tmp_path


def fake(row="Plain", how="good", steps=1):
    about = {"method": "plain", "seed": 0}
    made = f"runs/{row}/report.json"
    train = Job("fake.py", (how, made, str(steps)), made, about=about)
    judged = f"runs/{row}/judged/robustbench.json"
    judging = Job("fake.py", ("good", judged, "1"), judged)
    return Part("rnn_adv:table3", row, (train, judging), {"Natural": "clean", "PGD-10": "pgd10@rnn"}, 0, train)


def minutes(seconds):
    """That leave so many seconds before jobs are stopped."""
    return (seconds + work.GRACE) / 60


def test_a_list_stops_in_time_goes_on_and_ends_with_the_row(at):
    part, said = fake(steps=100), []
    began = time.monotonic()
    assert not work.work([part], minutes=minutes(0.7), tell=said.append)
    assert time.monotonic() - began < 0.7 + work.GRACE + 0.5
    assert "stopped" in said[-1]
    step = int((at / "runs/Plain/state").read_text())
    assert 0 < step < 100
    assert not records.is_kept(part)
    assert listing.state([part]) == "partial"

    assert work.work([part], minutes=minutes(30), tell=said.append)
    assert (at / "runs/Plain/starts").read_text() == "100 "  # the run went on, and ended once
    record = json.loads(records.path_of(part).read_text())
    assert {name: cell["value"] for name, cell in record["values"].items()} == {"Natural": 0.99, "PGD-10": 0.25}
    assert record["values"]["PGD-10"]["images"] == 100
    assert record["training"]["epochs"] == 6
    assert "/a/place" not in json.dumps(record) and str(at) not in json.dumps(record)
    assert listing.state([part]) == "done"
    assert list(Path("runs").glob(".*.lock")) == []


def test_a_data_folder_may_have_a_space(at):
    part, folder = fake(), at / "my data"
    part = part._replace(jobs=(part.jobs[0]._replace(dataset="mnist"), part.jobs[1]))
    (folder / "mnist").mkdir(parents=True)
    assert work.work([part], minutes=minutes(30), data_dir=folder, tell=lambda line: None)
    assert not work.left(part)
    assert jobs.bare("python a.py '--data-dir=/my data/mnist' --lr=1 --out=b") == "python a.py --lr=1"


def test_a_judgement_of_another_command_is_made_again(at):
    part = fake()
    assert work.work([part], minutes=minutes(30), tell=lambda line: None) and not work.left(part)
    made = Path(part.jobs[-1].made)
    result = json.loads(made.read_text())
    command = result.pop("command")
    for where in (result, result["provenance"]):
        made.write_text(json.dumps(result))
        assert not work.left(part)  # names none, as a figure's data
        where["command"] = f"{command} --victim=runs/another"
        made.write_text(json.dumps(result))
        assert work.left(part) == [part.jobs[-1]]
        del where["command"]
    made.write_text('{"provenance": 3}')
    assert not work.left(part)
    with pytest.raises(L2LError, match=r"robustbench.json is damaged \(TypeError.*\): delete it, then run the same"):
        records.read(made)


def test_rows_at_the_papers_settings_have_files_of_their_own():
    planned = next(part for part in plan.PARTS if (part.table, part.row) == ("rnn_adv:table3", "RNN-Adv"))
    own = printed.printed("rnn_adv:table3", "RNN-Adv")[0]
    assert records.path_of(planned).name == "rnn-adv-table3-RNN-Adv-s0.json"
    assert records.path_of(own).name == "rnn-adv-table3-RNN-Adv-printed-s0.json"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"table": "t", "row": "r", "seed": 0, "values": 3}'])
def test_damaged_results_are_named(content, tmp_path):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(L2LError, match=r"mine.json .*: put back a sound copy, or delete it") as error:
        compare.read_records(tmp_path)
    assert "\n" not in str(error.value)
    if content.startswith("{"):
        with pytest.raises(L2LError, match="result mine is damaged, or none that `tables` knows"):
            page.markdown(tmp_path)


def test_a_list_needs_the_time_to_save(at):
    with pytest.raises(L2LError, match="--minutes=0.01: give more than 0.01"):
        work.work([fake()], minutes=0.01, tell=print)
    assert not Path("runs").exists()


def test_parts_of_a_row_share_its_file(at):
    part = fake()
    natural = part._replace(columns={"Natural": "clean"})
    assert work.work([natural, part], minutes=minutes(30), tell=lambda line: None)
    later = part._replace(columns={"PGD": "pgd10@rnn"})
    assert not records.is_kept(later) and listing.state([part, later]) == "partial"
    assert work.work([later], minutes=minutes(30), tell=lambda line: None)
    assert set(json.loads(records.path_of(part).read_text())["values"]) == {"Natural", "PGD-10", "PGD"}


def test_a_run_with_an_average_has_the_accuracies_with_and_without_it(tmp_path):
    attacked = lambda value: {"attacks": {"pgd10": {"robust_acc": value}}}
    report = {"eval_size": 50, "clean_acc": 0.75, **attacked(0.5), "raw": {"clean_acc": 0.25, **attacked(0.125)}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    values = {name: row["value"] for name, row in records.read(tmp_path / "report.json").items()}
    assert values == {"pgd10": 0.5, "raw clean": 0.25, "raw pgd10": 0.125}


def test_columns_of_another_model_neither_count_nor_stay(at):
    """A row trained by another command, as of fewer epochs, is run again and replaces the old one."""
    part = fake(steps=1)
    assert work.work([part._replace(columns={"Natural": "clean"})], minutes=minutes(30), tell=lambda line: None)
    longer = fake("Plain", steps=2)
    assert not records.is_kept(longer._replace(columns={"Natural": "clean"}))
    (at / "runs/Plain/report.json").unlink()
    assert work.work([longer._replace(columns={"PGD-10": "pgd10@rnn"})], minutes=minutes(30), tell=lambda line: None)
    record = json.loads(records.path_of(longer).read_text())
    assert set(record["values"]) == {"PGD-10"} and record["training"]["command"].endswith("report.json 2")


def test_what_is_kept_is_not_run_again_even_without_its_workdirs(at):
    assert work.work([fake()], minutes=minutes(30))
    for path in sorted((at / "runs").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert work.work([fake()], minutes=minutes(30))
    assert not (at / "runs/Plain").exists()


def test_a_model_that_comes_with_the_library_is_judged_and_not_trained_again(at, monkeypatch):
    part = fake(how="killed")
    command = part.victim.line
    monkeypatch.setattr(jobs, "_shipped", lambda: {command: "pretrained:mnist_pgd_adv"})
    assert jobs.judged(part.victim._replace(about={"arch": "small_cnn"}), ["fgsm"], 10).flags[0] == (
        "--victim=pretrained:mnist_pgd_adv"
    )
    assert work.work([part], minutes=minutes(30), tell=lambda line: None)
    record = json.loads(records.path_of(part).read_text())
    assert record["training"]["epochs"] == 12 and record["training"]["command"] == command  # as its card says
    assert not os.path.exists("runs/Plain/report.json")
    own = part._replace(jobs=part.jobs[:1], columns={"PGD-10": "pgd10"})  # the run's own report needs the run
    assert work.left(own) == [part.victim]


def test_what_a_card_has_is_kept_without_a_job(at):
    part = jobs.white("rnn_adv:table3", "AdvTrain", plan.mnist("AdvTrain", 0), jobs.AUTOATTACK, 1000)
    assert work.left(part) == [] and work.work([part], minutes=minutes(30), tell=lambda line: None)
    record, card = json.loads(records.path_of(part).read_text()), shipped.card("mnist_pgd_adv")["judged"]
    [cell] = record["values"].values()
    assert (cell["value"], cell["images"], cell["command"]) == (card["attacks"]["standard"], 1000, card["command"])
    for changes in ({"columns": {"PGD-10": "pgd10@rnn"}}, {"victim": plan.mnist("AdvTrain", 1)}):
        assert not records.of_card(part._replace(**changes))  # not judged for the card
    fewer = jobs.white("rnn_adv:table3", "AdvTrain", plan.mnist("AdvTrain", 0), jobs.AUTOATTACK, 200)
    assert not records.of_card(fewer)


def test_the_plan_knows_the_models_that_come_with_the_library():
    models = {plan.mnist("AdvTrain", 0).model, plan.mnist("AdvTrain", 1).model}
    assert models == {"pretrained:mnist_pgd_adv", "runs/mnist-small_cnn-pgd_adv-12epochs-s1"}


def test_a_killed_child_is_not_done_and_the_list_goes_on(at):
    said = []
    bad, good = fake("Plain", "killed"), fake("TRADES")
    assert not work.work([bad, good], minutes=minutes(30), tell=said.append)
    assert not records.is_kept(bad) and records.is_kept(good)
    assert any("exit status -9" in line and "runs/Plain.log" in line for line in said)


def test_a_child_that_does_not_stop_is_killed(at):
    began = time.monotonic()
    assert not work.work([fake(how="deaf", steps=10_000)], minutes=minutes(0.3), tell=lambda line: None)
    assert time.monotonic() - began < 0.3 + work.GRACE + 1


def test_a_job_that_another_process_is_at_is_left_to_it(at):
    said = []
    Path("runs").mkdir()
    with open("runs/.Plain.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        assert not work.work([fake()], minutes=minutes(30), tell=said.append)
    assert "process 4711 is at it" in said[-1]
    assert not os.path.exists("runs/Plain/report.json")


def test_a_job_that_another_process_has_just_done_is_not_done_again(at, monkeypatch):
    part = fake()
    assert work.work([part], minutes=minutes(30), tell=lambda line: None)
    assert work.run(part.jobs[0], {}, lambda: False) == "done"  # the list had seen it missing
    assert (at / "runs/Plain/starts").read_text() == "1 "
    with work.at_work_on(part.jobs[0]) as (lock, _), work.at_work_on(part.jobs[0]) as (second, _):
        assert lock is not None and second is None

    def late(file, how, lock=fcntl.flock):
        os.unlink("runs/.Plain.lock")  # by its owner, who ends now
        lock(file, how)

    monkeypatch.setattr(work.fcntl, "flock", late)
    with work.at_work_on(part.jobs[0]) as (lock, _):
        assert lock is None  # a third process may hold a new file of that name


def test_two_processes_that_add_to_a_row_at_once_lose_nothing(at, monkeypatch):
    part, writing = fake(), threading.Barrier(2)
    assert work.work([part._replace(columns={})], minutes=minutes(30), tell=lambda line: None)
    write = records.write_json

    def slow(path, content):
        with contextlib.suppress(threading.BrokenBarrierError):
            writing.wait(0.5)  # for the other to have read, if nothing keeps it from it
        write(path, content)

    monkeypatch.setattr(records, "write_json", slow)
    columns = {"Natural": "clean", "PGD-10": "pgd10@rnn"}
    parts = [part._replace(columns={name: known}) for name, known in columns.items()]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(records.keep, parts))
    assert all(map(records.is_kept, parts))


def test_a_finished_workdir_counts_whoever_made_it_but_not_of_another_run(at):
    part = fake(how="killed")
    Path("runs/Plain").mkdir(parents=True)
    made = Path("runs/Plain/report.json")
    planned = part.jobs[0].line
    made.write_text(json.dumps({"command": f"{planned} --data-dir=data"}))
    assert work.complete(part.jobs[0])
    made.write_text(json.dumps({"command": f"{planned} --lr=3"}))
    with pytest.raises(L2LError, match="of another run, python fake.py .* --lr=3: move its folder away"):
        work.work([part], minutes=minutes(30))


def test_a_scripts_result_of_another_command_is_made_again(at):
    job = Job("fake.py", ("good", "experiments/results/mine.json", "1"), "experiments/results/mine.json")
    part, path = Part("rnn_adv:open", "mine", (job,)), Path(job.made)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"command": "python fake.py other"}))
    assert not records.is_kept(part)
    assert work.work([part], minutes=minutes(30), tell=lambda line: None)
    assert records.is_kept(part) and (path.parent / "starts").read_text() == "1 "


def test_places_of_data_are_looked_at_before_anything_runs(at):
    (at / "data" / "mnist").mkdir(parents=True)
    jobs = [job for part in plan.PARTS if part.table == "rnn_adv:table3" for job in part.jobs]
    dirs = work.data_dirs(at / "data", jobs)
    assert jobs[0].command(dirs)[-1] == f"--data-dir={at / 'data' / 'mnist'}"
    cifar = [job for part in plan.PARTS if part.table == "l2l:table2" for job in part.jobs]
    with pytest.raises(L2LError, match="has no cifar10: put or link that data set there"):
        work.data_dirs(at / "data", cifar)


# Telling -------------------------------------------------------------------------------------------------------------

FULL = {
    "method": "pgd_adv", "dataset": "mnist", "arch": "small_cnn", "epochs": 100, "train_size": None, "optimizer": "sgd",
    "lr": 0.01, "batch_size": 128, "options": {"steps": 10, "step_size": 0.075},
    "command": "python experiments/mnist.py",
}  # fmt: skip


def record(table="rnn_adv:table3", row="AdvTrain", seed=0, images=1000, training=FULL, **values):
    cells = {name.replace("_", "-"): {"value": v, "images": images, "command": "judge"} for name, v in values.items()}
    return {"table": table, "row": row, "seed": seed, "values": cells, "training": dict(training)}


def test_a_shorter_schedule_says_so_and_only_that_one_does():
    table, row = TABLES["rnn_adv:table3"], ("rnn_adv:table3", "AdvTrain")
    assert compare.shortened(FULL, *row) == "as in the paper"
    short = {**FULL, "epochs": 6, "train_size": 20_000, "optimizer": "adam", "lr": 0.001}
    said = compare.shortened(short, *row)
    for words in (
        "6 of 100 epochs",
        "20,000 of 60,000 training images",
        "optimizer adam instead of sgd",
        "lr 0.001 instead of 0.01",
    ):
        assert words in said
    generator = {**FULL, "method": "l2l_da", "options": {"attacker_width": 16}}
    assert "attacker width 16 instead of 64" in compare.shortened(generator, "rnn_adv:table3", "L2LDA")
    assert (
        compare.shortened({**FULL, "options": {**FULL["options"], "clean_weight": 0.3}}, *row)
        == "clean weight 0.3 instead of 0"
    )
    assert "resnet20 instead of wrn_34_10" in compare.shortened({**FULL, "arch": "resnet20"}, "l2l:table2", "PGM Net")
    here = {**FULL, "dataset": "cifar10"}
    said_of_l2l = compare.shortened(here, "l2l:table2", "Grad L2L")
    assert "schedule joint instead of alternating" in said_of_l2l
    learns = {**here, "method": "grad_l2l", "attacker_lr": 0.5}
    assert "attacker lr 0.5 instead of" in compare.shortened(learns, "l2l:table2", "Grad L2L")
    assert "attacker" not in compare.shortened({**learns, "method": "pgd_adv"}, "l2l:table2", "PGM Net")
    alternating = compare.shortened({**here, "schedule": "alternating", "eps": "8/255"}, "l2l:table2", "Grad L2L")
    assert "schedule" not in alternating.replace("lr schedule", "") and "8/255 instead of 0.031" in alternating
    assert "59,000 of 60,000 training images" in compare.shortened({**FULL, "val_size": 1000}, *row)
    assert "the last state instead of the best on the test images" in said_of_l2l and "plain steps" not in said_of_l2l
    begun = {**FULL, "method": "l2l_da", "arch": "lenet5", "warmup": 0.5, "batch_size": 50}
    assert "600 plain steps first instead of 1,000" in compare.shortened(begun, "l2l_da:table2-mnist", "L2L-DA")
    text = compare.section("rnn_adv:table3", table, [record(training=short, PGD_10=0.9)])
    assert "as in the paper" not in text and "6 of 100 epochs" in text


def test_rows_are_counted_with_and_without_all_that_is_planned(monkeypatch):
    row = ("rnn_adv:table3", "AdvTrain")  # of several parts
    some, *_ = (part for part in plan.PARTS if (part.table, part.row) == row)
    whole = plan.rnn_figure3("AdvTrain")
    for kept, counts in ((lambda part: part in (some, whole), (2, 1)), (lambda part: False, (0, 0))):
        monkeypatch.setattr(records, "is_kept", kept)
        text = compare.elsewhere([record()])
        assert f"rows {counts[0]} have results of the runs that are planned for them, {counts[1]} of these" in text
    assert "1 more have results of earlier runs" in text


def test_a_cell_is_ours_the_papers_and_the_difference():
    table = TABLES["rnn_adv:table3"]
    seeds = [record(PGD_10=0.9, Natural=0.5), record(seed=1, PGD_10=0.92, Natural=0.99)]
    assert compare.cell("PGD-10", table, "AdvTrain", seeds) == "91.00 [90.00, 92.00] / 94.89 (-3.89)"
    assert compare.cell("PGD-100", table, "AdvTrain", seeds) == "- / 94.28"
    seeds[0]["values"]["pgd100"] = {"value": 0.1, "images": 10, "command": "judge"}
    assert compare.cell("pgd100", table, "AdvTrain", seeds) == "10.00 (1 seed)"
    text = compare.section("rnn_adv:table3", table, seeds)
    assert "PGD-10 (1,000)" in text


def test_seeds_of_other_budgets_have_a_line_of_their_own():
    table = TABLES["rnn_adv:table3"]
    seeds = [record(PGD_10=0.8), record(seed=1, training={**FULL, "epochs": 12}, PGD_10=0.9)]
    lines = [line for line in compare.section("rnn_adv:table3", table, seeds).splitlines() if "AdvTrain" in line]
    assert [("80.00 /" in line, "90.00 /" in line) for line in lines] == [(True, False), (False, True)]


def test_a_scale_that_is_the_papers_as_shown_is_not_a_difference():
    run = plan.mnist(plan.AS_PRINTED, 0).about | {"eps": "0.3", "norm": "linf", "options": {"scale": 3.3333}}
    assert "scale" not in compare.shortened(run, "rnn_adv:table3", plan.AS_PRINTED)


def test_a_scripts_result_counts_if_it_is_of_the_planned_command(at):
    job = Job("fake.py", ("--table=rnn", "--out=a.json"), "a.json")
    part = Part("rnn_adv:open", "x", (job,))
    for command, kept in {"--table=rnn --out=b.json": True, "--table=rnn": True, "--table=slim": False}.items():
        (at / "a.json").write_text(json.dumps({"command": f"python fake.py {command}"}))
        assert records.is_kept(part) == kept, command


def test_what_the_paper_did_without_is_said():
    run = plan.mnist("AdvTrain", 0).about | {"eps": "0.3", "norm": "linf", "ema": 0.999, "awp": None}
    said = compare.shortened(run, "rnn_adv:table3", "AdvTrain")
    assert "ema 0.999 instead of none" in said and "awp" not in said


def test_no_difference_stands_between_different_data_sets():
    table = TABLES["rnn_adv:table3"]
    seeds = [record(training={**FULL, "dataset": "digits"}, PGD_10=0.9)]
    assert compare.cell("PGD-10", table, "AdvTrain", seeds) == "90.00 / 94.89, another data set"


# Claims --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "less", "images", "answer"),
    [
        ([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], 10_000, "yes"),
        ([0.50, 0.51, 0.52], [0.60, 0.61, 0.62], 10_000, "no"),
        ([0.505, 0.515, 0.525], [0.50, 0.51, 0.52], 10_000, "no, within noise"),  # hidden by the spread of three seeds
        ([0.50, 0.51, 0.50], [0.55, 0.55, 0.56], 100, "open"),  # beyond the seeds' range, but not the images' error
        ([0.505, 0.515], [0.50, 0.51], 10_000, "open"),
        ([0.60], [0.50], 10_000, "yes"),
        ([0.60], [0.50], 100, "open"),  # ten points of 100 images are two standard errors of nothing
        ([0.60, 0.60, 0.60], [0.55, 0.55, 0.55], 100, "open"),  # too few images, not the seeds
        ([], [0.5], 100, "open"),
    ],
)
def test_a_difference_is_held_against_seeds_and_images(more, less, images, answer):
    groups = (Group("a", more, images), Group("b", less, images))
    assert exceeds("claim", "where", *groups).answer == answer


def test_what_is_open_names_the_budget_that_would_settle_it(monkeypatch):
    monkeypatch.setattr(evidence, "hours", lambda table, row, runs: 2.0 * runs if table == "slow" else 0.0)

    def by(more, less, rows=(("", ""), ("", "")), planned=(None, None)):
        groups = [
            Group(name, v, 100, *about) for name, v, *about in zip("ab", (more, less), rows, planned, strict=True)
        ]
        return exceeds("claim", "where", *groups).settled_by

    assert by([], [0.5], rows=(("slow", "a"), ("slow", "b"))) == "5 runs, 10.0 h"
    assert by([0.60], [0.55], rows=(("slow", "a"), ("slow", "a"))) == "2 runs, 4.0 h"  # two columns of the same runs
    assert by([0.60], [0.55], planned=(0, 1)) == "5 runs"  # one is of a run that is planned otherwise now
    assert by([0.60], [0.55, 0.55]) == "3 runs"
    assert by([0.60], [0.10]) == by([0.60] * 3, [0.60] * 3) == ""  # answered, by no where there is no difference
    # Two standard errors of a difference at 1/2, 2 sqrt(1/2 / n), reach two points at n = 5,000.
    assert by([0.51] * 3, [0.49] * 3) == "4,998 images"


def answer(found, claim, results, at=0):
    return claim(found, results)[at].answer


CASES = {
    # claim -> (table, row, column, values that say yes, values that say no), all at 10,000 images and three seeds
    claims.rnn_beats_adv_train: [
        ("rnn_adv:table3", "RNN-Adv", "PGD-100", 0.96, 0.90), ("rnn_adv:table3", "AdvTrain", "PGD-100", 0.90, 0.96),
    ],
    claims.two_steps_beat_one: [
        ("l2l:table2", "2-Step L2L", "PGM-20", 0.5, 0.4), ("l2l:table2", "Grad L2L", "PGM-20", 0.4, 0.5),
    ],
    claims.naive_fails: [
        ("l2l:table2", "Naive L2L", "PGM-20", 0.0, 0.3), ("l2l:table2", "PGM Net", "PGM-20", 0.47, 0.47),
    ],
    claims.interpolation_falls: [
        ("l2l:table4-v2", "AIT", "pgd100", 0.75, 0.5),
        ("l2l:table4-v2", "AIT", "AutoAttack, fast", 0.36, 0.48),
        ("l2l:table2", "PGM Net", "pgd100", 0.50, 0.50),
        ("l2l:table2", "PGM Net", "AutoAttack, fast", 0.45, 0.45),
    ],
    claims.learned_attacker_wins: [
        ("ours:attackers", "RNN on AdvTrain", "PGD", 0.9, 0.9),
        ("ours:attackers", "RNN on AdvTrain", "trained", 0.8, 0.95),
    ],
    claims.learned_attacker_pays: [
        ("ours:equal-passes", "N-FGSM", "AutoAttack, fast", 0.37, 0.37),
        ("ours:equal-passes", "RNN-Adv, T = 2", "AutoAttack, fast", 0.40, 0.34),
    ],
    claims.diversity_helps: [
        ("l2l_da:table1a", "R-, D+", "PGD100", 0.9, 0.8), ("l2l_da:table1a", "R-, D-", "PGD100", 0.8, 0.9),
    ],
}  # fmt: skip


@pytest.mark.parametrize("claim", CASES, ids=lambda claim: claim.__name__)
def test_each_claim_is_answered_by_planted_rows(claim, tmp_path):
    def planted(which):
        rows = {}
        for table, row, column, *values in CASES[claim]:
            for seed in range(3):
                cells = rows.setdefault((table, row, seed), record(table, row, seed))["values"]
                cells[column] = {"value": values[which], "images": 10_000, "command": "judge"}
        return list(rows.values())

    assert answer(planted(0), claim, tmp_path) == "yes"
    assert answer(planted(1), claim, tmp_path) == "no"
    assert answer([], claim, tmp_path) == "open"
    assert answer(planted(0)[:-3], claim, tmp_path) == "open"  # one of the rows is missing
    if claim is not claims.learned_attacker_pays:  # at equal passes epochs differ
        rows = list(dict.fromkeys((row["table"], row["row"]) for row in planted(0)))
        for row in (longer := planted(0)):
            row["training"]["epochs"] += 10 * rows.index((row["table"], row["row"]))
        assert (answer(longer, claim, tmp_path) == "open") == (len(rows) > 1)  # no two rows are of one budget


def test_claims_ask_digits_for_settings_of_the_ablation(tmp_path, monkeypatch):
    asked = set()
    monkeypatch.setattr(claims, "digits", lambda results, table, row: asked.add((table, row)) or Group(row, [], None))
    claims.answers([], tmp_path)
    assert asked and all(row in ablations.TABLES[table] for table, row in asked)


def test_gail_is_answered_from_its_own_results(tmp_path):
    def plant(learned, adam, at=1):
        for file, arm, values in (("_dense", "l2l_dense_lr1e-6", learned), ("", "adam", adam)):
            content = json.dumps({"arms": {arm: {"lowest_late": values, "final_return": [500.0] * 3}}})
            (tmp_path / f"gail_figure6_CartPole-v1{file}.json").write_text(content)
        return answer([], claims.gail_is_steadied, tmp_path, at)

    assert answer([], claims.gail_is_steadied, tmp_path, 1) == "open"
    assert plant([490.0] * 3, [200.0, 210.0, 205.0], at=0) == "yes"  # it drops at all
    assert plant([490.0] * 3, [490.0, 488.0, 470.0], at=0) == "no"
    assert plant([490.0, 495.0, 480.0], [200.0, 210.0, 205.0]) == "yes"
    assert plant([490.0, 495.0, 480.0], [489.0, 494.0, 485.0]) == "no, within noise"
    assert plant([200.0, 210.0, 205.0], [490.0, 495.0, 480.0]) == "no"
    arms = {"l2l_dense_lr1e-6": {"diverged": "after 426 iterations: lower its rate"}}
    (tmp_path / "gail_figure6_CartPole-v1_dense.json").write_text(json.dumps({"arms": arms}))
    found = claims.gail_is_steadied([], tmp_path)[1]
    assert (found.answer, found.shown) == ("no", "after 426 iterations")


def test_the_worst_is_taken_over_attacks_that_both_rows_have():
    rows = [record(row="RNN-Adv", PGD_10=0.9, PGD_100=0.8), record(row="AdvTrain", PGD_10=0.85)]
    assert [g.values for g in claims.worst(rows, "rnn_adv:table3", "RNN-Adv", "AdvTrain")] == [[0.9], [0.85]]


def test_a_tenth_of_an_accuracy_has_a_tenth_of_its_error():
    full, none = Group("a tenth", [0.02], 200, scale=0.1), Group("naive", [0.0], 200)
    assert exceeds("claim", "where", full, none).shown.endswith("noise 1.15")  # 2 |(sqrt(.2 * .8 / n) / 10, 1 / n)|


def test_runs_of_another_plan_do_not_count_towards_the_seeds_that_are_wanted():
    planned = {**FULL, "command": plan.mnist("AdvTrain", 0).line}
    for training, count in ((planned, 1), (FULL, 0)):
        [group] = claims.column([record(training=training, PGD_100=0.9)], "rnn_adv:table3", "PGD-100", "AdvTrain")
        assert (group.values, group.planned) == ([0.9], count)
    beside = record(row="RNN-Adv", training={**FULL, "epochs": 3}, PGD_100=0.8)
    found = claims.column(
        [record(training=planned, PGD_100=0.9), beside], "rnn_adv:table3", "PGD-100", "AdvTrain", "RNN-Adv"
    )
    assert [(group.values, group.planned) for group in found] == [([], 1), ([], 0)]  # not alike, but run


def test_the_noise_is_of_the_images_of_the_lowest_attack():
    rows = [record(row=row, images=1000, PGD_100=0.5) for row in ("RNN-Adv", "AdvTrain")]
    for row in rows:
        row["values"]["AutoAttack"] = {"value": 0.6, "images": 200, "command": "judge"}
    assert [group.images for group in claims.worst(rows, "rnn_adv:table3", "RNN-Adv", "AdvTrain")] == [1000, 1000]


def test_digits_are_read_where_they_are_kept():
    for table, row in (("methods", "pgd_adv"), ("methods", "naive_l2l")):
        group = claims.digits(ROOT / "experiments" / "results", table, row)
        assert len(group.values) == 3 and group.images == 397


def test_costs_stand_beside_the_papers_in_both_forms(tmp_path):
    def cells(text):
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]

    rows = {"plain": ([1.0, 2.0], 10), "grad_l2l": ([2.0, 6.0], 20), "grad_l2l:alternating": ([5.0, 10.0], 34)}
    speed = [
        {"method": method, "program": "l2ljax", "seconds": seconds, "flops": flops, "batch_size": 8}
        for method, (seconds, flops) in rows.items()
    ]
    speed.append({**speed[1], "program": "torch", "seconds": [9.0, 9.0]})
    about = {"machine": "a machine", "devices": 1, "date": "today"}
    (tmp_path / "costs_wrn_34_10.json").write_text(json.dumps({**about, "speed": speed}))
    text = compare.costs(tmp_path)
    assert "a machine, 1 device(s), today: a step of plain on 8 images takes 1.5 s." in text
    said = cells(text)
    assert ["grad_l2l", "2", "2.00", "2.50 (2.00-3.00)", "5.80"] in said  # 617.5 s / 106.5 s
    assert ["grad_l2l, alternating", "4", "3.40", "5.00 (5.00-5.00)", "5.80"] in said
    assert ["two_step_l2l", "3", "-", "-", "7.56"] in said
    assert ["rnn_trades", "-", "-", "1.65"] in said  # 443.52 s / 268.5 s; not measured


def test_the_overview_has_means_over_seeds_at_the_passes_of_the_methods(tmp_path):
    def run(method, *accuracies):
        about = {"method": method, "dataset": "digits", "arch": "digits_cnn", "eps": "0.2", "epochs": 60}
        about |= {"eval_size": 96}
        return [about | {"attacks": {"pgd100": {"robust_acc": accuracy}}} for accuracy in accuracies]

    rows = {"plain": run("plain", 0.0), "pgd_adv": run("pgd_adv", 0.5, 0.7), "rnn_adv": run("rnn_adv", 0.8)}
    rows["n_fgsm"] = run("n_fgsm", 0.4)
    rows["rnn_adv, phi frozen at its start"] = run("rnn_adv", 0.1)
    (tmp_path / "digits_methods.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "papers").mkdir()
    for seed, accuracy in enumerate((0.3, 0.5)):
        training = {"method": "pgd_adv", "dataset": "cifar10", "arch": "resnet20", "eps": "8/255", "epochs": 10}
        training |= {"train_size": 25_000, "options": {"steps": 2}}
        record = {"table": "t", "row": "r with AWP", "seed": seed, "training": training}
        (tmp_path / "papers" / f"{seed}.json").write_text(
            json.dumps({**record, "values": {"pgd100": {"value": accuracy, "images": 1000}}})
        )
    found = overview.points(tmp_path)
    digits, _, cifar, _ = overview.PANELS
    assert [(p.panel, p.label, p.passes, round(p.accuracy, 6)) for p in found] == [
        (digits, "pgd_adv", 660, 0.6), (digits, "rnn_adv", 660, 0.8), (digits, "n_fgsm", 120, 0.4),
        (cifar, "pgd_adv with AWP", 15, 0.4),
    ]  # fmt: skip
    assert [round(p.error, 4) for p in found] == [0.1414, 0.0408, 0.05, 0.1414]  # of two seeds, of 96 images, ...
    rows = {f"{name}, eps {eps}": run(m, a) for eps, a in (("0.1", 0.5), ("0.2", 0.25)) for name, m in
            {"N-FGSM": "n_fgsm", "RNN-Adv, 3 steps": "rnn_adv"}.items()}  # fmt: skip
    rows = {
        name: [one | {"clean_acc": 1, "worst_case_acc": 0, "eval_size": 9} for one in runs]
        for name, runs in rows.items()
    }
    table = tables.tell({"rows": rows}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (table[2], *table[4:])]
    assert cells == [
        ["attack in training", "passes a step", "eps 0.1", "eps 0.2"], ["N-FGSM", "2", "50.00 ± 0.00", "25.00 ± 0.00"],
        ["RNN-Adv, 3 steps", "4", "50.00 ± 0.00", "25.00 ± 0.00"],
    ]  # fmt: skip
    overview.draw(tmp_path / "passes.png", found)
    assert (tmp_path / "passes.png").read_bytes().startswith(b"\x89PNG")
