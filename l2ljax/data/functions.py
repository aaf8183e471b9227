"""User functions by name: MODULE:FUNCTION, called without arguments."""

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

from l2ljax.types import L2LError

__all__ = ["call", "import_module"]


def import_module(name: str) -> ModuleType:
    """Import a module, from the working directory too."""
    if sys.path[0] != "":
        sys.path.insert(0, "")
    return importlib.import_module(name)


def call(name: str, wanted: str) -> Any:
    """Return the result of the function MODULE:FUNCTION.

    Args:
      name: MODULE:FUNCTION.
      wanted: the expected result, for messages.

    Raises:
      L2LError: no such function, or it needs arguments, or it returns None.
    """
    module, _, function = name.partition(":")
    try:
        loaded = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: no name
        raise L2LError(f"{name}: {error}: name an importable module and a function in it") from error
    if not callable(loaded):
        raise L2LError(f"{name} is a {type(loaded).__name__}: name a function without arguments that returns {wanted}")
    try:
        inspect.signature(loaded).bind()
    except (TypeError, ValueError) as error:  # ValueError: built in, with arguments unknown
        raise L2LError(f"{name}: {error}: name a function without arguments that returns {wanted}") from error
    if (result := loaded()) is None:
        raise L2LError(f"{name} returned None: let it return {wanted}")
    return result
