"""The process of a function: ``python -m infalign.rewards.function_process MODULE:FUNCTION FD LIFELINE``."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from infalign.child import answer_calls


def load_function(path: str) -> Callable[..., Any]:
    """Import a function.

    Args:
        path: ``module:function``. The module may be in the current folder.

    Raises:
        AttributeError: The module has no such function.
        Exception: Whatever importing the module raises.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module, _, attribute = path.partition(":")
    function = getattr(import_module(module), attribute)
    if not callable(function):
        raise AttributeError(f"{path} is not a function")
    return function  # type: ignore[no-any-return]


def _prepare(path: str) -> Callable[[Any], list[float]]:
    function = load_function(path)
    # float() takes numbers of any library, such as numpy's or torch's.
    return lambda arguments: [float(score) for score in function(*arguments)]


if __name__ == "__main__":
    answer_calls(sys.argv[2:], lambda: _prepare(sys.argv[1]))
