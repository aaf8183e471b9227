"""The papers' tables and the plan: nothing is left out, our scripts take its commands, the list has every row."""

import functools
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tyro

from l2ljax import attacks, cost, threat
from l2ljax.gail.setup import Config as GailConfig
from l2ljax.models.attackers import create
from l2ljax.run import adversary, judge
from l2ljax.run.config import Config, resolve
from l2ljax.run.trained import learned
from l2ljax.types import L2LError
from papers import compare, effort, listing, plan, printed, records
from papers.jobs import Job
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
    convolutions = 32 * 9 * (26**2 + 32 * 24**2) + 64 * 9 * (32 * 10**2 + 64 * 8**2)
    forward = convolutions + 1024 * 200 + 200 * 200 + 200 * 10  # of small_cnn
    plain = effort.training("mnist", "small_cnn", "plain", epochs=2, images=100)
    three, ten = (effort.training("mnist", "small_cnn", "rnn_adv", epochs=1, images=100, steps=n) for n in (3, 10))
    assert (three.passes, ten.passes) == (400, 1100)
    assert plain.multiplications == 2 * 100 * 3 * forward
    attacked = effort.judging("small_cnn", ["pgd20", "pgd100"], images=5)
    assert (plain + attacked).multiplications == 2 * 100 * 3 * forward + 5 * 120 * 2 * forward
    learned = effort.training("cifar10", "small_cnn", "naive_l2l", epochs=1, images=1, width=32)
    assert learned.multiplications == 3 * forward + 3 * effort.GENERATORS["naive_l2l"] / 4
    assert effort.multiplications("lenet5") == effort.LEAST  # its own are 0.4 million


def test_efforts_are_those_of_the_attackers_that_are_trained():
    """Against the multiplications of their networks, to a tenth."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 6), jnp.float32)
    counted = {}
    for name in effort.ATTACKERS:
        network = create(name)
        call = functools.partial(network.apply, train=False, channels=3)
        variables = jax.eval_shape(functools.partial(network.init, train=False, channels=3), jax.random.key(0), images)
        counted[name] = cost.multiplications(cost.mark(call), variables, images)
        assert counted[name] / counted["wide"] == pytest.approx(effort.ATTACKERS[name][1], rel=0.1)
    assert effort.GENERATORS["grad_l2l"] == pytest.approx(counted["wide"], rel=0.1)
    slim = plan.cifar("Grad L2L").effort.attackers  # of width 16, an eighth of its own
    assert slim == pytest.approx(10 * 50_000 * 3 * counted["slim"] / 8**2, rel=0.1)


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
    """Kept rows leave the list, those with some parts kept move to the second column, with what they lack."""
    rows = {name: [*table.rows] for name, table in TABLES.items()}
    whole = next(part for part in plan.PARTS if len(listing.parts_of(part.table, part.row)) == 1)
    some = next(part for part in plan.PARTS if len(listing.parts_of(part.table, part.row)) > 1)
    monkeypatch.setattr(listing.records, "is_kept", lambda part: part in (whole, some))
    lines = [line.split("|") for line in listing.shortfall().splitlines() if "|" in line]
    lines = {name.strip(): cells for _, name, *cells in lines}
    for name, of_table in rows.items():
        cells = [re.sub(r" \([^()]*\)", "", lines[name][i]) for i in (0, 1, 3)]
        named = [{row for row in cell.strip().split("; ") if row != "-" and " of " not in row} for cell in cells]
        kept = {whole.row} if whole.table == name else set()
        assert set.union(*named) == set(of_table) - kept and sum(map(len, named)) == len(of_table) - len(kept)
        assert named[1] == ({some.row} if some.table == name else set())
    beside = [part for part in listing.parts_of(some.table, some.row) if part != some]
    others = ", ".join(column for part in beside for column in part.columns)
    assert f"{some.row} ({others} of seed {some.seed})" in lines[some.table][1]
    assert "CW of Naive L2L" in lines["l2l:table8"][3] and "Min of" not in str(lines)


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
            cells = set(table.rows[row]) or set(table.columns) - {"own attacker"}  # a row of ours has all but that
            assert not parts or drawn or columns == cells - {"Min"}, (name, row)
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
