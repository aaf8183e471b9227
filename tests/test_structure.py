"""The layout that the README promises: floors, quick imports, and a CI that runs the README's command."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from l2ljax import defenses
from l2ljax.attacks.names import listing
from l2ljax.report.markdown import summary
from l2ljax.run import trained
from papers import ablations

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LIBRARY = list((ROOT / "l2ljax").rglob("*.py"))
FLOORS = [
    {"types"},
    {"values"},
    {"threat", "losses", "files", "devices"},
    {"data", "models"},
    {"attacks"},
    {"defenses"},
    {"train", "checkpoint", "cost"},
    {"evaluate"},
    {"runtime"},
    {"report"},
    {"gail"},
    {"run"},
]
HEAVY = ("tensorflow_datasets", "orbax", "matplotlib", "sklearn", "gymnasium", "pooch", "tyro", "PIL", "scipy.stats")


def imported(path):
    """The dotted names of all that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from [f"{node.module}.{alias.name}" for alias in node.names]


def of_the_library(path):
    """The dotted names below l2ljax that a file imports."""
    return [name.partition(".")[2] for name in imported(path) if name.split(".")[0] == "l2ljax"]


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name.split(".")[0] in names)


def test_files_import_lower_floors_or_their_own_package():
    for path in LIBRARY:
        own = path.relative_to(ROOT / "l2ljax").parts[0].removesuffix(".py")
        for name in of_the_library(path) if own not in ("__init__", "__main__") else []:
            assert name.split(".")[0] == own or floor(name) < floor(own), f"{path} imports {name}"


def test_the_library_does_not_import_the_laboratory():
    laboratory = {path.stem for path in (ROOT / "experiments").iterdir() if path.suffix in ("", ".py")}
    assert {"bench", "papers", "digits"} <= laboratory
    for path in LIBRARY:
        assert not {name.split(".")[0] for name in imported(path)} & {"experiments", "tests", *laboratory}, path


def test_no_import_is_circular():
    files = {path.relative_to(ROOT / "l2ljax").with_suffix("").parts: path for path in LIBRARY}
    seen: dict[tuple, int] = {}

    def named(name):
        parts = tuple(name.split("."))
        return next((parts[:n] for n in range(len(parts), 0, -1) if parts[:n] in files), None)

    def visit(file):
        assert seen.get(file) != 1, f"{'.'.join(file)} imports itself by way of others"
        if file not in seen:
            seen[file] = 1
            for other in {named(name) for name in of_the_library(files[file])} - {None}:
                visit(other)
            seen[file] = 2

    for file in files:
        visit(file)
    assert len(seen) == len(files)


def test_readme_table_names_every_file_on_its_floor():
    for number, names in enumerate(FLOORS):
        row = re.search(rf"^\| {number} \|(.*?)\|", README, re.MULTILINE)[1]
        listed = {n.strip("`/ ").removesuffix(".py") for n in row.split(",")}
        assert listed == names


def readme_table(flag):
    """The names in the first column of the table about that flag -> the second column."""
    table = re.search(rf"^\| `{flag}` \|.*?\n\n", README, re.DOTALL | re.MULTILINE)[0]
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", table, re.MULTILINE)
    return {", ".join(re.findall("`(.*?)`", names)): about for names, about in rows if f"`{flag}`" != names}


def test_the_readmes_tables_are_those_of_the_records():
    sentence = re.search(r"^Attacks by name, .*?\.\s", README, re.DOTALL | re.MULTILINE)[0]
    assert re.findall("`(.*?)`", sentence)[1:] == ", ".join(listing()).split(", ")  # the first one is --help
    methods = ", ".join(readme_table("--method")).split(", ")
    assert sorted(methods) == sorted([*defenses.METHODS, *defenses.ATTACKERS])


def test_the_readmes_models_are_those_of_the_cards():
    assert f"\n\n{trained.table()}\n\n" in README


def test_the_readmes_results_are_the_kept_ones():
    """Mean and deviation over seeds, in percent."""

    def cell(value):
        return f"{100 * value['mean']:.1f} ± {100 * value['deviation']:.1f}"

    kept = json.loads((ROOT / "experiments" / "results" / "digits_methods.json").read_text())["rows"]
    rows = {method: summary(runs) for method, runs in kept.items()}
    names = ("clean", "pgd100", "worst case")
    shown = [*defenses.METHODS, "rnn_adv, phi frozen at its start"]
    expected = [
        f"| {method} | {ablations.passes(method):g} | {' | '.join(cell(row[name]) for name in names)} |"
        for method, row in rows.items()
        if method in shown
    ]
    assert "\n".join(expected) in README


def test_the_readmes_ingredients_are_the_kept_ones():
    kept = json.loads((ROOT / "experiments" / "results" / "digits_ingredients.json").read_text())["rows"]
    mean = {row: {name: 100 * value["mean"] for name, value in summary(runs).items()} for row, runs in kept.items()}

    def gain(attack, after, before):
        return mean[after][attack] - mean[before][attack]

    cycle, cutout = (
        gain("worst case", "onecycle", "constant rate"),
        gain("worst case", "onecycle, Cutout 2", "onecycle"),
    )
    alone = [gain(attack, "onecycle, smoothing 0.1", "onecycle") for attack in ("pgd100", "apgd_t20")]
    both = "onecycle, smoothing 0.1, Cutout 2"
    beside = [gain(attack, both, "onecycle, Cutout 2") for attack in ("pgd100", "apgd_t20")]
    assert abs(gain("worst case", "onecycle, EMA 0.99", "onecycle")) < 0.5
    assert (
        f"gains {cycle:.0f} points by a one-cycle rate to 3e-3 in place of a constant 1e-3, and from there "
        f"{cutout:.0f} more by Cutout, none by moving averages. Label smoothing adds {alone[0]:.1f} points under "
        f"PGD-100 but {alone[1]:.1f} under targeted APGD; beside Cutout it adds {beside[0]:.1f} and takes "
        f"{-beside[1]:.1f}"
    ) in " ".join(README.split())


def test_importing_the_library_is_light():
    code = f"import sys, l2ljax; l2ljax.fit, l2ljax.data.load; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_ci_runs_the_readmes_test_command():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert ["pytest" in command for command in commands] == [False, True]
    assert "eval \"$(grep -m1 'pytest' README.md)\"" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.name)
def test_scripts_are_presets_and_a_call(path):
    assert len(path.read_text().splitlines()) <= 90


def test_the_readmes_example_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) < 0.3
