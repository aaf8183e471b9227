"""The command line of every script: its flags, `--help` with tables, and modules of the user's.

    flags = read(Flags, __doc__, lambda: {"Attacks": attacks.names.table()})
    launch(main, Flags, __doc__)                       # main(flags), with one-line errors

`--import=my.module` imports modules that register methods and attacks before the flags are read: their names are in
`--help` then.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from l2ljax.data.functions import import_module
from l2ljax.runtime.monitor import one_line_errors
from l2ljax.types import L2LError

__all__ = ["launch", "load", "quiet_pipe", "read"]

HELP = "--import=MODULE, or several separated by commas, first imports modules of yours, which register names."
T = TypeVar("T")


def launch(main: Callable[[T], Any], kind: type[T], about: str | None, **options: Any) -> None:
    """Run a script: read its flags, see `read`, and call `main` with them; an L2LError is one line and status 2."""
    with one_line_errors():
        main(read(kind, str(about), **options))


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
    with quiet_pipe():
        try:
            config = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(kind, args=others, description=f"{about}\n\n{HELP}", config=config, **given)
        except SystemExit as end:
            if end.code == 0:  # after --help
                for title, table in tables().items():
                    print(f"\n{title}:\n\n{table}")
            raise


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
    """Import the modules that --import names, and return the other arguments.

    Args:
      arguments: of the script, by default the command line's.

    A module that cannot be imported, or registers what it may not, ends the script with one line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", dest="modules", default="")
    chosen, others = parser.parse_known_args(arguments)
    with one_line_errors():
        for name in filter(None, chosen.modules.split(",")):
            try:
                import_module(name)
            except ImportError as error:
                raise L2LError(f"--import={name}: {error}: name an importable module") from error
    return others
