"""The command line of every script: its flags, `--help` with tables, and modules of the user's.

    flags = read(Flags, __doc__, lambda: {"Attacks": attacks.names.table()})
    launch(main, Flags, __doc__)                       # main(flags), with one-line errors

The annotations of the dataclass say what a flag may be, see `values`: a value that is none of these is one line, and so
is a flag that is given twice. `--import=my.module` imports modules that register methods and attacks before the flags
are read: their names are in `--help` then.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from l2ljax import values
from l2ljax.data.functions import import_module
from l2ljax.runtime.monitor import one_line_errors
from l2ljax.types import L2LError, one_line

__all__ = ["checked", "launch", "load", "quiet_pipe", "read"]

HELP = "--import=MODULE, or several separated by commas, first imports modules of yours, which register names."
T = TypeVar("T")


def launch(main: Callable[[T], Any], kind: type[T], about: str | None, **options: Any) -> None:
    """Run a script: read its flags, see `read`, and call `main` with them; an L2LError is one line and status 2."""
    flags = read(kind, str(about), **options)
    with one_line_errors():
        main(flags)


def read(
    kind: type[T],
    about: str,
    tables: Callable[[], Mapping[str, str]] = dict,
    arguments: Sequence[str] | None = None,
    *,
    default: T | None = None,
) -> T:
    """Return a script's flags.

    Args:
      kind: their dataclass.
      about: the script, for `--help`.
      tables: heading -> text that `--help` prints below the flags, line by line as it is.
      arguments: of the script, by default the command line's.
      default: values in place of those of the class.

    Wrong flags, and `--help`, end the process.
    """
    import tyro

    others = load(arguments)
    given: dict[str, Any] = {} if default is None else {"default": default}
    with one_line_errors(), quiet_pipe():
        _look_over(kind, others)
        try:
            config, registry = (tyro.conf.FlagCreatePairsOff,), _texts()
            about, before = f"{about}\n\n{HELP}", len(sys.argv) - len(sys.argv[1:] if arguments is None else arguments)
            program = " ".join([_program(), *sys.argv[1:before]])  # l2ljax train digits
            flags = tyro.cli(
                kind, prog=program, description=about, args=others, config=config, registry=registry, **given
            )
            return _each(flags, _parsed)
        except SystemExit as end:
            if end.code == 0:  # after --help
                for title, table in tables().items():
                    print(f"\n{title}:\n\n{table}")
            raise


def checked(flags: T) -> T:
    """Return the flags with Python's own numbers and the user's home for ~; a value of no flag is an L2LError."""
    return _each(flags, values.check)


def _program() -> str:
    return sys.argv[0] if sys.argv[0].endswith(".py") else Path(sys.argv[0]).name


def _parsed(kind: Any, value: Any, name: str) -> Any:
    return (values.parse if isinstance(value, str) else values.check)(kind, value, name)


def _each(flags: T, function: Callable[[Any, Any, str], Any]) -> T:
    """Return the flags with function(annotation, value, name) in place of each value, or of each of a tuple."""
    new: dict[str, Any] = {}
    defaults = {field.name: field.default for field in dataclasses.fields(flags)}  # type: ignore[arg-type]
    for name, kind in typing.get_type_hints(type(flags), include_extras=True).items():
        value, named = getattr(flags, name), f"--{name.replace('_', '-')}"
        if value is not None and defaults[name] is None:
            kind = _unwrapped(kind)  # None is a flag that is not given, and no text means it
        if isinstance(value, str | Path) and Path in (kind, *typing.get_args(kind)):
            new[name] = Path(os.path.expanduser(value))
        elif isinstance(value, tuple):
            if not value:
                raise L2LError(f"{named}: give one or more")
            whole = next((k for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is tuple), None)
            if whole is None:
                raise L2LError(f"{named}={value}: give {values.describe(kind)}")
            new[name] = tuple(function(typing.get_args(whole)[0], each, named) for each in value)
        else:
            new[name] = function(kind, value, named)
    return dataclasses.replace(flags, **new)  # type: ignore[type-var]


def _look_over(kind: Any, arguments: Sequence[str]) -> None:
    """Refuse what no annotation can: a flag twice, a switch with a value, an empty name of a file or run."""
    hints, seen = typing.get_type_hints(kind), set[str]()
    for argument in arguments:
        given, equals, text = argument.partition("=")
        name = given.removeprefix("--").replace("-", "_")
        name = name if name in hints else name.removeprefix("no_")
        if name not in hints or not given.startswith("--"):
            continue
        if name in seen:
            raise L2LError(f"{given} is given twice: give it once")
        seen.add(name)
        if equals and hints[name] is bool:
            raise L2LError(f"{argument}: give {given} alone, it takes no value")
        if equals and not text and {Path, type(None)} & {hints[name], *typing.get_args(hints[name])}:
            raise L2LError(f"{argument}: give a value, or leave it out")


def _unwrapped(annotation: Any) -> Any:
    """Return an annotation without None."""
    members = [member for member in values.members(annotation) if member is not type(None)]
    return members[0] if len(members) == 1 else annotation


def _texts() -> Any:
    """Return the rule that leaves numbers and choices as they are written, for `values.parse`."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        member = values.kind_of(_unwrapped(info.type))
        choice = typing.get_origin(member) is typing.Literal
        if not choice and member not in (int, float, str):
            return None
        word = f"{{{','.join(map(str, typing.get_args(member)))}}}" if choice else member.__name__.upper()
        shown = lambda value: ["unset" if value is None else str(value)]
        return PrimitiveConstructorSpec(1, word, lambda texts: texts[0], lambda value: True, shown)

    return registry


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """Print within the context; end the process quietly where whoever reads has read enough, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def load(arguments: Sequence[str] | None = None) -> list[str]:
    """Import the modules that --import names, and return the other arguments (by default of the command line's).

    A module that cannot be imported, or registers what it may not, ends the script with one line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    chosen, others = parser.parse_known_args(arguments)
    with one_line_errors():
        for name in filter(None, ",".join(chosen.modules).split(",")):
            try:
                import_module(name)
            except L2LError:
                raise
            except Exception as error:  # whatever runs when the module is imported
                raise L2LError(f"--import={name}: {one_line(error)}: name an importable module") from error
    return others
