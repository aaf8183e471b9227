"""The public face: each module's names in __all__, attacks as functions, and types that a user's checker sees."""

import ast
import builtins
import contextlib
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import l2ljax
from l2ljax import attacks, defenses

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT / "l2ljax", *(ROOT / "experiments" / name for name in ("bench", "papers", "travel"))]
MODULES = {".".join(p.relative_to(top.parent).with_suffix("").parts): p for top in PACKAGES for p in top.rglob("*.py")}
SOURCES = sorted(path for folder in ("l2ljax", "experiments") for path in (ROOT / folder).rglob("*.py"))
STUMBLES = re.compile(r"\A(What|Of|So|How) |\btold\b|where not given|so many")
READERS = {"attack", "logits_fn", "main", "other", "torch"}  # what an example leaves to its reader
TREES = {name.removesuffix(".__init__"): ast.parse(path.read_text()) for name, path in sorted(MODULES.items())}


def public(tree):
    """(functions and classes that a module defines, all names that it binds, its __all__ or None)."""
    defined, bound, listed = set(), set(), None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            bound |= names
            listed = set(ast.literal_eval(node.value)) if names == {"__all__"} else listed
    return defined, bound | defined, listed


@pytest.mark.parametrize("module", TREES)
def test_all_lists_what_a_module_makes_public(module):
    defined, bound, listed = public(TREES[module])
    assert defined <= (listed or set()) <= bound
    assert listed or not bound  # a package of modules alone has no names of its own


def test_what_others_import_is_public():
    for importer, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in TREES:
                names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in TREES}
                assert names <= (public(TREES[node.module])[2] or set()), f"{importer} imports {names}"


@pytest.mark.parametrize("name", ["", *(n for n in l2ljax.__all__ if inspect.ismodule(getattr(l2ljax, n)))])
def test_dir_shows_public_names_alone(name):
    module = getattr(l2ljax, name) if name else l2ljax
    assert dir(module) == sorted(module.__all__)
    assert set(module.__all__) <= vars(module).keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_plain_english(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert not STUMBLES.search(node.value.value), f"{path}:{node.lineno}"


def examples(docstring):
    """The parts of a docstring, between empty lines, that are code."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        with contextlib.suppress(SyntaxError):
            yield ast.parse(textwrap.dedent(part))


def resolve(name, module):
    """What a dotted name in a module's example stands for: a name of the module, or a module beside or below it."""
    first, *rest = name.split(".")
    if hasattr(module, first) or hasattr(builtins, first):
        return functools.reduce(getattr, rest, getattr(module, first, getattr(builtins, first, None)))
    for package in (module.__name__.rpartition(".")[0] + ".", "l2ljax.", ""):
        with contextlib.suppress(ModuleNotFoundError):
            return functools.reduce(getattr, rest, importlib.import_module(package + first))
    raise NameError(name)


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if ast.get_docstring(tree)])
def test_examples_in_docstrings_call_what_exists(name):
    for code in examples(ast.get_docstring(TREES[name])):
        nodes = list(ast.walk(code))
        own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            users = called.split(".")[0] in own | READERS or called[0].isupper()  # or a class of the reader's
            if users or not re.fullmatch(r"[\w.]+", called):
                continue
            function = resolve(called, pytest.importorskip(name))
            if called.split(".")[0] not in ("jax", "optax"):
                inspect.signature(function).bind(*call.args, **{word.arg: word.value for word in call.keywords})


def test_what_names_stand_for_is_exported():
    for package, records in ((attacks, attacks.FAMILIES), (defenses, defenses.METHODS | defenses.ATTACKERS)):
        for record in records.values():
            function = getattr(record.make, "func", record.make)
            assert getattr(package, function.__name__) is function


SNIPPET = """
import jax
import jax.numpy as jnp
from l2ljax import attacks, data, defenses, fit, models, threat

ball = threat.linf(8 / 255)
clf = models.create("resnet20", num_classes=10)
dataset = data.load("digits")
batch = next(data.batches(dataset.test, 128))
x, y = jnp.asarray(batch.x), jnp.asarray(batch.y)
variables = clf.init(jax.random.key(0), x)
attack = attacks.pgd(ball, step_size=0.01, steps=10)

reveal_type(ball)  # l2ljax.threat.Ball
reveal_type(clf)  # l2ljax.types.Classifier
reveal_type(clf.logits(variables, x))  # jax._src.basearray.Array
reveal_type(dataset)  # l2ljax.data.arrays.Dataset
reveal_type(attack)  # l2ljax.types.Attack
reveal_type(attacks.apgd(ball))  # l2ljax.types.Attack
reveal_type(attacks.fab(ball))  # l2ljax.types.Attack
reveal_type(attacks.square(ball))  # l2ljax.types.Attack
reveal_type(attacks.create("pgd20", ball))  # l2ljax.types.Attack
reveal_type(attacks.targeted(attack, 3))  # l2ljax.types.Attack
reveal_type(attacks.best_of([attack, attacks.autoattack(ball)]))  # l2ljax.types.Attack
reveal_type(attack(jax.tree_util.Partial(clf.logits, variables), jax.random.key(1), x, y))  # jax._src.basearray.Array
reveal_type(defenses.create("rnn_adv", clf, ball, steps=10))  # l2ljax.types.Defense
reveal_type(defenses.trades(clf, ball, beta=6.0))  # l2ljax.types.Defense
reveal_type(fit(clf, dataset, ball=ball))  # l2ljax.run.fit.Result
"""


def test_a_users_type_checker_sees_the_main_types(tmp_path):
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(snippet)]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    seen = re.findall(r'snippet\.py:(\d+): note: Revealed type is "(?:tuple.*fallback=)?(.*?)\]?"', done.stdout)
    lines = enumerate(SNIPPET.splitlines(), start=1)
    assert dict(seen) == {str(i): line.partition("  # ")[2] for i, line in lines if "reveal" in line}, done.stdout
    assert done.returncode == 0, done.stdout
    assert (ROOT / "l2ljax" / "py.typed").exists()
