"""A list of jobs that is stopped or killed goes on, and what was kept is neither lost nor of another command."""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import textwrap
import threading
import time
from pathlib import Path

import pytest

from l2ljax.models import shipped
from l2ljax.types import L2LError
from papers import compare, jobs, listing, page, plan, printed, records, work
from papers.jobs import Job, Part

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


def test_a_scripts_result_counts_if_it_is_of_the_planned_command(at):
    job = Job("fake.py", ("--table=rnn", "--out=a.json"), "a.json")
    part = Part("rnn_adv:open", "x", (job,))
    for command, kept in {"--table=rnn --out=b.json": True, "--table=rnn": True, "--table=slim": False}.items():
        (at / "a.json").write_text(json.dumps({"command": f"python fake.py {command}"}))
        assert records.is_kept(part) == kept, command
