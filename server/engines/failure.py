"""Says why an engine did not start, in one line.

An engine's process cannot raise its error in the server. It notes the error in a file, which the server reads.
"""

import logging
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from infalign.errors import EngineFailed, one_line, truncate

FOLDER, NOTE = "INFALIGN_FAILURES", "INFALIGN_FAILURE"
"""Environment variables: the folder of notes, and the note that a process writes."""
LIMIT = 400
"""Characters of vLLM's message that an error repeats."""
LOGGERS = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")
"""Loggers of vLLM that report that a process did not start."""
FAILED = "failed to start"
"""Part of these reports."""


@cache
def _folder() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="infalign-")


def prepare_notes() -> None:
    """Make the folder for the notes of this server's engines. Child processes inherit where it is."""
    os.environ[FOLDER] = _folder().name


def note_failures(engine: str) -> None:
    """Let this process, and those that it starts, note why they did not start.

    Args:
        engine: The id of the engine, ``VllmConfig.instance_id``.
    """
    if folder := os.environ.get(FOLDER):
        os.environ[NOTE] = str(Path(folder) / engine)


def watch_reports() -> None:
    """Note the error of each report that a process did not start."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_note)


def _note(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    path = os.environ.get(NOTE)
    if error is not None and path and FAILED in str(record.msg) and not Path(path).exists():
        Path(path).write_text(explain(error), encoding="utf-8")  # the first error is the cause of the others
    return True


def explain(error: BaseException) -> str:
    """Put what vLLM refuses on one line.

    Args:
        error: An error of vLLM.
    """
    if not isinstance(error, ValidationError):
        return truncate(one_line(error, None), LIMIT)
    messages = [": ".join([*map(str, one["loc"]), one["msg"]]) for one in error.errors()]
    return truncate(" ".join("; ".join(messages).replace("Value error, ", "").split()), LIMIT)


def start_failure(role: str, error: BaseException, engine: str = "") -> EngineFailed:
    """Create the error for an engine that did not start.

    Args:
        role: What the engine is for.
        error: The error in the server.
        engine: The id of the engine, if it has one yet.
    """
    note = Path(_folder().name) / engine if engine else None
    if note is None or not note.is_file():
        return EngineFailed(f"{role}: {explain(error)}")
    cause = note.read_text(encoding="utf-8")
    note.unlink()  # it may be started again
    return EngineFailed(f"{role}: {cause}")
