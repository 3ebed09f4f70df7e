"""Checks that a JSON schema can be compiled to a grammar. Each schema is checked once, in a process of its own."""

import asyncio
import hashlib
import json
import logging
import os
import re
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Timer

from server.concurrency import Shared
from server.engines.base import EnginesDown, Refused

log = logging.getLogger("infalign.server")
COMPILE_SECONDS = 5.0
"""The longest time that compiling one schema may take."""
START_SECONDS = 120.0
"""The longest time that the process may take to start."""
CACHE_SIZE = 1024
"""How many schemas are remembered as accepted."""
REASON_CHARACTERS = 120
"""How much of the compiler's message an error repeats."""
SOURCE_PREFIX = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""Time and source line before the compiler's message."""


class GrammarCheck:
    """Compiles JSON schemas for a tokenizer, one at a time, in a separate process.

    The process starts with the first schema, which takes a few seconds. It is killed and started again if a schema
    takes too long. Callers that check the same schema at the same time share the work.

    Args:
        model: Directory of the model with the tokenizer.
        seconds: The longest time that compiling one schema may take.
    """

    def __init__(self, model: Path, seconds: float = COMPILE_SECONDS) -> None:
        self._model, self._seconds = model, seconds
        self._cache: OrderedDict[str, None] = OrderedDict()
        self._work: Shared[None] = Shared()
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._process: Popen[str] | None = None

    async def check(self, schema: dict[str, object]) -> None:
        """Compile a schema, unless it has been compiled before.

        Args:
            schema: The JSON schema.

        Raises:
            Refused: The schema cannot be compiled, or not in time.
            EnginesDown: The process does not start.
        """
        text = json.dumps(schema)
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._cache:
            await self._work.get(key, lambda: self._compile(text))
            self._cache[key] = None
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)

    def close(self) -> None:
        """Kill the process. The next schema starts another one."""
        if self._process is not None:
            self._process.kill()

    async def _compile(self, text: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._compile_in_process, text)

    def _compile_in_process(self, text: str) -> None:
        process = self._start_process()
        answer = _ask(process, json.dumps(text), self._seconds)
        if not answer:
            raise Refused(f"a schema that can be prepared within {self._seconds:g} s")
        if failure := json.loads(answer):
            raise Refused(f"a schema that can be made a grammar ({_reason(failure)})")

    def _start_process(self) -> "Popen[str]":
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "server.engines.grammar_worker", str(self._model), str(os.getpid())]
            process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
            self._process = process
            if not _ask(process, "", START_SECONDS):
                log.error("the process that checks schemas did not start")
                raise EnginesDown("the process that checks schemas did not start")
        return self._process


def _ask(process: "Popen[str]", line: str, seconds: float) -> str:
    """Send a line to the process and return its answer: empty if the process ends or is killed after ``seconds``."""
    timer = Timer(seconds, process.kill)
    timer.start()
    try:
        if line and process.stdin:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        answer = process.stdout.readline() if process.stdout else ""
    except OSError:
        answer = ""
    finally:
        timer.cancel()
    if not answer:
        process.kill()
        process.wait()
    return answer


def _reason(failure: str) -> str:
    """The compiler's message without the place in its source."""
    text = SOURCE_PREFIX.sub("", " ".join(failure.split())).rpartition(" is false:")[2].strip()
    return text[:REASON_CHARACTERS] or "no reason given"
