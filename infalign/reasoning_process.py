"""The process of a parser of reasoning: ``python -m infalign.reasoning_process NAME DIRECTORY FD LIFELINE``.

Without a directory, it only checks the name.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infalign.child import answer_calls
from infalign.errors import InvalidValue
from infalign.reasoning import AnswerReader, check_name


def _prepare(name: str, directory: str) -> Callable[[Any], Any]:
    """Return what answers calls. Called with None, it says what would be accepted instead of the parser."""
    try:
        if not directory:
            check_name(name)
            return lambda _: ""
        reader = AnswerReader(name, Path(directory))
    except InvalidValue as error:
        requirement = error.requirement
        return lambda _: requirement
    return lambda arguments: reader.read(*arguments) if arguments else ""


if __name__ == "__main__":
    answer_calls(sys.argv[3:], lambda: _prepare(*sys.argv[1:3]))
