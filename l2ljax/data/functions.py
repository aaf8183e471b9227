"""User functions by name: MODULE:FUNCTION, called without arguments."""

import importlib
import inspect
import sys
import traceback
from types import ModuleType
from typing import Any

from l2ljax.types import L2LError, one_line

__all__ = ["call", "import_module"]


def import_module(name: str) -> ModuleType:
    """Import a module, from the working directory too."""
    if sys.path[0] != "":
        sys.path.insert(0, "")
    return importlib.import_module(name)


def call(name: str, wanted: str) -> Any:
    """Return the result of the function MODULE:FUNCTION, which messages call `wanted`.

    No such function, or one that fails, needs arguments or returns None, is an L2LError.
    """
    module, _, function = name.partition(":")
    try:
        loaded = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever runs when the module is imported
        fix = "name an importable module and a function in it"
        raise L2LError(f"{name}: {one_line(error)}: {fix}") from error
    if not callable(loaded):
        raise L2LError(f"{name} is a {type(loaded).__name__}: name a function without arguments that returns {wanted}")
    try:
        inspect.signature(loaded).bind()
    except TypeError as error:
        raise L2LError(f"{name}: {error}: name a function without arguments that returns {wanted}") from error
    except ValueError:  # a function of C without a signature
        pass
    try:
        result = loaded()
    except L2LError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}, line {place.lineno}"
        raise L2LError(f"{name} fails in {where} ({one_line(error)}): let it return {wanted}") from error
    if result is None:
        raise L2LError(f"{name} returned None: let it return {wanted}")
    return result
