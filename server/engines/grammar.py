"""Whether responses can be held to a JSON schema: tried once for each schema, in a process beside the server."""

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
SECONDS = 5.0
"""Longest time that compiling one schema may take."""
START_SECONDS = 120.0
REMEMBERED = 1024
"""Schemas that are known to compile."""
REASON_CHARACTERS = 120
PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""Time and source line in front of what the compiler says."""


class GrammarCheck:
    """Compiles schemas for the tokenizer in a model's directory, one at a time.

    The process starts with the first schema, which takes a few seconds, and is started anew after one that took too
    long. Who asks for the same schema at the same time waits for the same work.
    """

    def __init__(self, model: Path, seconds: float = SECONDS) -> None:
        self._model, self._seconds = model, seconds
        self._accepted: OrderedDict[str, None] = OrderedDict()
        self._work: Shared[None] = Shared()
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._process: Popen[str] | None = None

    async def check(self, schema: dict[str, object]) -> None:
        """Compile ``schema``, unless it is known to compile.

        Raises:
            Refused: it cannot be compiled, or not in time.
            EnginesDown: the process does not start.
        """
        text = json.dumps(schema)
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._accepted:
            await self._work.get(key, lambda: self._compile(text))
            self._accepted[key] = None
            if len(self._accepted) > REMEMBERED:
                self._accepted.popitem(last=False)
        self._accepted.move_to_end(key)

    def close(self) -> None:
        """End the process; the next schema starts another."""
        if self._process is not None:
            self._process.kill()

    async def _compile(self, text: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._compile_in_process, text)

    def _compile_in_process(self, text: str) -> None:
        process = self._running()
        answer = _ask(process, json.dumps(text), self._seconds)
        if not answer:
            raise Refused(f"a schema that can be prepared within {self._seconds:g} s")
        if failure := json.loads(answer):
            raise Refused(f"a schema that can be made a grammar ({_reason(failure)})")

    def _running(self) -> "Popen[str]":
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "server.engines.grammar_worker", str(self._model), str(os.getpid())]
            process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
            self._process = process
            if not _ask(process, "", START_SECONDS):
                log.error("the process that checks schemas did not start")
                raise EnginesDown("the process that checks schemas did not start")
        return self._process


def _ask(process: "Popen[str]", line: str, seconds: float) -> str:
    """The line that the process answers to ``line``; empty if it ends instead, or is killed after ``seconds``."""
    impatience = Timer(seconds, process.kill)
    impatience.start()
    try:
        if line and process.stdin:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        answer = process.stdout.readline() if process.stdout else ""
    except OSError:
        answer = ""
    finally:
        impatience.cancel()
    if not answer:
        process.kill()
        process.wait()
    return answer


def _reason(failure: str) -> str:
    """What the compiler says, without the place in its source."""
    text = PLACE.sub("", " ".join(failure.split())).rpartition(" is false:")[2].strip()
    return text[:REASON_CHARACTERS] or "no reason given"
