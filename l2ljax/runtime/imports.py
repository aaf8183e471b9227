"""User modules that register methods and attacks: `--import=my.module` of the scripts.

arguments = load()                        # before the flags are read, so that --help lists the modules' names
flags = tyro.cli(Flags, args=arguments)
"""

import argparse
from collections.abc import Sequence

from l2ljax.data.functions import import_module
from l2ljax.runtime.monitor import one_line_errors
from l2ljax.types import L2LError

__all__ = ["HELP", "load"]

HELP = "--import=MODULE, or several separated by commas, imports your modules first, which register names."


def load(arguments: Sequence[str] | None = None) -> list[str]:
    """Import the modules named by --import, and return the other arguments.

    Args:
      arguments: the script's, by default the command line's.

    A module that cannot be imported, or that registers an invalid name, ends the script with one line.
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
