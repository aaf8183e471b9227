"""Flags: what their annotations allow is taken, anything else is one line, in every script."""

import contextlib
import dataclasses
import importlib
import itertools
import random
import types
import typing
from pathlib import Path

import pytest

from l2ljax import data, threat, train
from l2ljax.defenses.methods import ATTACKERS as FIXED
from l2ljax.defenses.methods import METHODS
from l2ljax.gail.setup import Config as Gail
from l2ljax.models.attackers import ATTACKERS
from l2ljax.run import adversary, judge, seeds, settings, trained
from l2ljax.run.config import Config, methods, resolve
from l2ljax.runtime import flags
from l2ljax.runtime.monitor import one_line_errors
from l2ljax.types import L2LError
from l2ljax.values import Count, Range

SCRIPTS = ("ablation", "autoattack", "cycle", "gail_speed", "goals", "reproduce", "scaling", "strength", "throughput")
KINDS = {
    "training": Config,
    "evaluate": judge.Flags,
    "attack": adversary.Flags,
    "gail": Gail,
    **{name: importlib.import_module(name).Flags for name in SCRIPTS},
    "gpu": importlib.import_module("bench.gpu").Flags,
}
NO_NUMBER = [
    "",
    "abc",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e999999999",
    "9" * 400,
    "\u0663",
    "\uff13",
    "1_0",
    "[1",
    "(" * 9,
]
NO_NUMBER += ["0x10", "1,2", "1 2", "true", "2**99", "8/255"]


def members(hint):
    """The types of a flag: those of a union, without None, and those of a tuple's elements."""
    for member in typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,):
        if typing.get_origin(member) is tuple:
            yield from members(typing.get_args(member)[0])
        elif member is not type(None):
            yield member


def texts(hint):
    """(a text, whether it is one of the values that the flag may have), both by hand."""
    member = next(members(hint))
    if typing.get_origin(member) is typing.Literal:
        yield from ((str(choice), True) for choice in typing.get_args(member))
        yield from ((text, False) for text in ("foo", "0", "LINF", f"{typing.get_args(member)[0]} "))
    elif member is bool:
        yield from (("maybe", False), ("true", False), ("", False))
    elif typing.get_origin(member) is typing.Annotated:
        kind, allowed = typing.get_args(member)
        yield from ((text, False) for text in NO_NUMBER)
        low, high = allowed.low, min(allowed.high, 2**31 - 1)
        inside = [high] if allowed.above else [low, high]
        outside = [low - 1, *([low] if allowed.above else []), *([high + 1] if allowed.high == high else [])]
        yield from (
            (repr(kind(value)), good) for values, good in ((inside, True), (outside, False)) for value in values
        )
        yield from (("1.5", False), ("1e0", False), ("1.0", False)) if kind is int else ()


def required(kind):
    fields = dataclasses.fields(kind)
    return [f"--{f.name}=x" for f in fields if f.default is f.default_factory is dataclasses.MISSING]


def cases():
    """(script, flag, text, whether it is allowed) of all flags with ranges or choices in all scripts."""
    for script, kind in KINDS.items():
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            yield from ((script, f"--{name.replace('_', '-')}", text, good) for text, good in texts(hint))


ALL = list(cases())
SAMPLE = random.Random(0).sample(ALL, 60)


def fails(capsys, kind, *arguments):
    """The one line on stderr, where reading these flags ends the process."""
    with pytest.raises(SystemExit) as end:
        flags.read(kind, "", arguments=[*arguments, *required(kind)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def try_one(capsys, script, flag, text, good):
    kind = KINDS[script]
    width = 3 if flag == "--image-shape" or flag == "--smoke-shape" else 1
    given = [flag, *[text] * width] if width > 1 else [f"{flag}={text}"]
    if good:
        read = flags.read(kind, "", arguments=[*given, *required(kind)])
        value = getattr(read, flag[2:].replace("-", "_"))
        value = value[0] if isinstance(value, tuple) else value
        assert str(value) == text
    elif width == 1 or not text.startswith("-"):
        assert flag in fails(capsys, kind, *given)


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_sample_of_values(case, capsys):
    try_one(capsys, *case)


@pytest.mark.slow
@pytest.mark.parametrize("script", KINDS)
def test_all_values_of_all_flags(script, capsys):
    for case in ALL:
        if case[0] == script:
            try_one(capsys, *case)


@pytest.mark.parametrize("script", KINDS)
def test_every_number_has_a_range(script):
    for name, hint in typing.get_type_hints(KINDS[script], include_extras=True).items():
        for member in members(hint):
            ranged = any(isinstance(note, Range) for note in typing.get_args(member)[1:])
            assert ranged or member not in (int, float), f"{script}: {name}: {hint}"


def test_choices_are_those_of_the_tables():
    for choices, table in (
        (settings.Norm, threat.BALLS),
        (settings.Optimizer, settings.OPTIMIZERS),
        (settings.LrSchedule, settings.LR_SCHEDULES),
        (settings.Schedule, train.SCHEDULES),
        (settings.Augment, data.AUGMENTS),
        (next(members(typing.get_type_hints(Config)["attacker"])), ATTACKERS),
    ):
        assert typing.get_args(choices) == tuple(table)


def test_flags_given_twice_are_refused(capsys):
    for twice in (["--seed=1", "--seed=1"], ["--seed=1", "--seed", "2"], ["--eval-size=3", "--eval_size=4"]):
        assert "is given twice" in fails(capsys, Config, *twice)
    assert "is given twice" in fails(capsys, Config, "--no-checkpoint", "--no-checkpoint")
    assert flags.read(Config, "", arguments=["--no-checkpoint", "--checkpoint-every=3"]).checkpoint_every == 3


def test_names_of_files_are_not_empty(capsys):
    for kind, flag in ((Config, "--workdir="), (judge.Flags, "--out="), (Gail, "--out="), (Gail, "--workdir=")):
        assert "give a value, or leave it out" in fails(capsys, kind, flag)
    assert flags.read(Config, "", arguments=["--attacks="]).attacks == ""


def test_a_tilde_is_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    read = flags.read(Gail, "", arguments=["--workdir=~/run", "--expert=~/expert.npz", "--out=~/kept.json"])
    assert (read.workdir, read.expert) == (Path("/home/me/run"), Path("/home/me/expert.npz"))
    assert read.out == flags.checked(Gail(out="~/kept.json")).out == Path("/home/me/kept.json")
    assert flags.read(judge.Flags, "", arguments=["--victim=run", "--out=~/judged"]).out == Path("/home/me/judged")


@dataclasses.dataclass(frozen=True)
class Some:
    """Flags."""

    sizes: tuple[Count, ...] = (1, 2)
    shape: tuple[Count, Count] | None = None
    choice: typing.Literal["a", "b"] | None = None
    share: typing.Annotated[float, Range(0, 1)] | None = 0.5


def test_values_arrive_as_their_types(capsys):
    read = flags.read(Some, "", arguments=["--sizes", "3", "4", "--shape", "5", "6", "--choice=b", "--share=.25"])
    assert read == Some((3, 4), (5, 6), "b", 0.25)
    assert flags.read(Some, "", arguments=["--share=None"]) == Some(share=None)
    assert "--choice=None: give a or b" in fails(capsys, Some, "--choice", "None")  # unset is no value of its own
    assert flags.read(Some, "", arguments=[], default=Some(choice="b")) == Some(choice="b")
    assert "--sizes=x" in fails(capsys, Some, "--sizes", "3", "x")
    for wrong in ({"sizes": (1, 0)}, {"choice": "c"}, {"share": float("nan")}, {"share": True}, {"sizes": ("1",)}):
        with pytest.raises(L2LError, match=f"--{next(iter(wrong))}="):
            flags.checked(dataclasses.replace(Some(), **wrong))


RECORDS = {**METHODS, **FIXED}
OPTIONS = [(method, name) for method, record in RECORDS.items() for name in record.options if name != "num_classes"]


@pytest.mark.parametrize("method, name", OPTIONS[::9], ids=str)
def test_options_are_read_by_their_annotations(method, name):
    hint = RECORDS[method].kinds[name]
    for text, good in itertools.chain(texts(hint), [("nan", False), ("[1", False), ("((((", False)]):
        if not text or "," in text or (next(members(hint)) is bool and text == "true"):
            continue
        config = Config(method=method, eps="0.1", init_from="run", options=f"{name}={text}")
        if good:
            assert str(resolve("digits", method, config).options[name]) == text
        else:
            with pytest.raises(L2LError, match=rf"--options={name}=.*: give "):
                resolve("digits", method, config)


@pytest.mark.parametrize(
    "config, message",
    [
        (Config(options="steps=3,steps=3"), "--options=steps=3,steps=3: give each option once"),
        (Config(options="steps=3", steps=2), "--steps=2: --options has steps=3 too: give one of them"),
        (Config(method="ait", options="num_classes=5"), "--options=num_classes=5: ait takes"),
        (Config(seed=2**32), "--seed=4294967296: give a whole number from 0"),
        (Config(batch_size=1.5), "--batch-size=1.5: give a whole number"),
        (Config(batch_size="3"), "--batch-size=3: give a whole number"),
        (Config(lr=[0.1]), r"--lr=\[0.1\]: give a number"),
        (Config(warmup=True), "--warmup=True: give a number"),
        (Config(eps="1e999999999"), "eps="),
        (Config(eps="\u0661/255"), "eps="),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(L2LError, match=message):
        resolve("digits", config.method or "rnn_adv", config)


NAMES = [
    "",
    ":",
    ",",
    "=",
    "a=",
    "..",
    "/",
    "\x00",
    "a\nb",
    "9" * 400,
    "own0",
    "trained:",
    "trained5:/nope",
    "nofile.npz",
]
NAMES += ["pgd" + 20 * "9", "all,all", "plain,foo", "scale=1,,scale=2", "weights=", "builtins:dict", "[1", "~nouser/x"]


def test_a_stop_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "stopped: run the same command again to resume\n"


@pytest.mark.parametrize("text", NAMES, ids=lambda text: ascii(text)[:20])
def test_names_that_cannot_be_end_in_one_line(text, capsys, tmp_path, monkeypatch):
    def plan(field):
        config = Config(**{field: text})
        return [seeds.plan("digits", method, config) for method in methods(config)]

    monkeypatch.chdir(tmp_path)
    for field in ("dataset", "recipe", "method", "arch", "eps", "options", "attacks", "workdir"):
        with contextlib.suppress(SystemExit), one_line_errors():
            plan(field)
        assert capsys.readouterr().err.count("\n") <= 1
    for refused in (
        lambda: judge.run(judge.Flags(victim=text)),
        lambda: judge.run(judge.Flags(victim=text, dataset="digits", eps="0.1")),
        lambda: adversary.run(adversary.Flags(victim=text)),
        lambda: trained.load(text),
    ):
        with pytest.raises(SystemExit), one_line_errors():
            refused()
        assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
