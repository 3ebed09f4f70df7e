"""The process of a function: ``python -m infalign.rewards.function_process MODULE:FUNCTION FD LIFELINE``."""

import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

from infalign.errors import one_line


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


def serve(connection: Connection, path: str) -> None:
    """Answer calls until the other end closes.

    The first message says whether the function could be imported. Each message is a pair: what went wrong, or an empty
    text, and the scores.

    Args:
        connection: Where calls come from.
        path: ``module:function``.
    """
    try:
        function = load_function(path)
    except BaseException as error:
        connection.send((f"{type(error).__name__}: {one_line(error)}", None))
        return
    connection.send(("", None))
    while True:
        try:
            prompts, responses = connection.recv()
        except (EOFError, OSError):
            return
        try:
            # float() takes numbers of any library, such as numpy's or torch's.
            connection.send(("", [float(score) for score in function(prompts, responses)]))
        except Exception as error:
            traceback.print_exc()
            connection.send((f"{type(error).__name__}: {one_line(error)}", None))


def _end_with(lifeline: int) -> None:
    """End this process when the other end of the lifeline closes, even if the function hangs."""
    os.read(lifeline, 1)
    os._exit(0)


if __name__ == "__main__":
    _, function_path, descriptor, lifeline_descriptor = sys.argv
    sys.stdout = sys.stderr  # what the function prints must not mix with the output of the command
    Thread(target=_end_with, args=(int(lifeline_descriptor),), daemon=True).start()
    serve(Connection(int(descriptor)), function_path)
