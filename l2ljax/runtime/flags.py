"""The command line of every script: its flags, `--help` with tables, and modules of the user's.

    flags = read(Flags, __doc__, lambda: {"Attacks": attacks.names.table()})

`--import=my.module` imports modules that register methods and attacks before the flags are read: their names are in
`--help` then.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from l2ljax.data.functions import import_module
from l2ljax.runtime.monitor import one_line_errors
from l2ljax.types import L2LError

__all__ = ["HELP", "load", "read"]

HELP = "--import=MODULE, or several separated by commas, first imports modules of yours, which register names."
T = TypeVar("T")


def read(
    kind: type[T],
    about: str,
    tables: Callable[[], Mapping[str, str]] = dict,
    arguments: Sequence[str] | None = None,
) -> T:
    """Return a script's flags.

    Args:
      kind: their dataclass.
      about: the script, for `--help`.
      tables: heading -> text that `--help` prints below the flags, line by line as it is.
      arguments: of the script, by default the command line's.

    Wrong flags, and `--help`, end the process.
    """
    import tyro

    others = load(arguments)
    try:
        try:
            return tyro.cli(kind, args=others, description=f"{about}\n\n{HELP}", config=(tyro.conf.FlagCreatePairsOff,))
        except SystemExit as end:
            if end.code == 0:  # after --help
                for title, table in tables().items():
                    print(f"\n{title}:\n\n{table}")
            sys.stdout.flush()
            raise
    except BrokenPipeError:  # whoever reads has read enough, as `head` does
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
