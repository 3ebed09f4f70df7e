"""Captures what libraries and engine processes write to stdout and stderr, and logs it."""

import faulthandler
import fcntl
import logging
import os
import re
import secrets
import sys
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Self, TextIO

from starlette.types import ASGIApp, Receive, Scope, Send

from server.observability.logs import PROBES

log = logging.getLogger("infalign.output")
STANDARD_DESCRIPTORS = (1, 2)
PIPE_BYTES = 1 << 20
"""Size of the pipe. Engines can write this much while the server process is busy."""
MAX_LINE_BYTES = 2000
"""Longer lines are cut."""
PROCESS_PREFIX = r"(?:\([\w .=-]+\) )?(?:[A-Z]+ [\d-]+ [\d:.]+ \[[\w./]+:\d+\] )?"
"""The prefix of vLLM's processes, such as ``(EngineCore pid=7) ERROR 01-31 10:00:00 [core.py:1100]``."""
CRASH = re.compile(
    PROCESS_PREFIX
    + r"(?:Traceback \(most recent call last\):"
    + r'|\s*File "[^"]+", line \d+(?: in \S+|, in \S+)?'
    + r"|(?:Current t|T)hread 0x[0-9a-f]+.*"
    + r"|Fatal Python error: .*"
    + r"|(?:[\w.]+: )?(?:CUDA|cuDNN|CUBLAS|NCCL|HIP) (?:error|out of memory).*"
    + r"|(?:Segmentation fault|Aborted|Killed|Bus error|Illegal instruction)(?: \(core dumped\))?"
    + r"|terminate called .*|(?:malloc|free|realloc)\(\): .*|double free .*)"
)
"""Lines that tell how a process died. A client that imitates them sees its own words in the log."""
EXCEPTION = re.compile(PROCESS_PREFIX + r"[\w.]+(?:Error|Exception|Exit|Interrupt)(?=:|$)")
"""The type of an exception. Its message is left out, because it may quote a request."""


class Output:
    """Context manager that redirects stdout and stderr of this process and its children into the log.

    Lines are logged in full until the first request. From then on, a library may quote requests in its output. Unless
    ``log_text`` is set, only lines that tell how a process died are logged then. Of all other lines the log says how
    long they are. Python's faulthandler writes to ``console``, so that a crash of this process stays visible.

    Args:
        log_text: Whether lines may always be logged in full.

    Attributes:
        console: The original stderr. The log itself is written there.
        quotes_lines: Whether lines are logged in full now.
    """

    def __init__(self, log_text: bool) -> None:
        self.quotes_lines, self._log_text = True, log_text
        sys.stdout.flush()
        sys.stderr.flush()
        self._originals = [os.dup(descriptor) for descriptor in STANDARD_DESCRIPTORS]
        self.console: TextIO = open(self._originals[1], "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
        self._end = secrets.token_hex(16).encode()

    def __enter__(self) -> Self:
        read_end, write_end = os.pipe()
        with suppress(OSError):  # the kernel limits how many large pipes a user may have
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        for descriptor in STANDARD_DESCRIPTORS:
            os.dup2(write_end, descriptor)
        os.close(write_end)
        faulthandler.enable(self.console)
        self._reader = Thread(target=self._read, args=(read_end,), name="output", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # The reader does not see the end of the pipe: child processes that are still running hold it open.
        os.write(STANDARD_DESCRIPTORS[1], self._end + b"\n")
        for descriptor, original in zip(STANDARD_DESCRIPTORS, self._originals, strict=True):
            os.dup2(original, descriptor)
        self._reader.join(5)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return ``app`` with a wrapper that notices the first request."""

        async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] not in PROBES:
                self.quotes_lines = self._log_text
            await app(scope, receive, send)

        return wrapper

    def _read(self, read_end: int) -> None:
        rest = b""
        with open(read_end, "rb", buffering=0) as pipe:
            while chunk := pipe.read(PIPE_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    text, end, _ = line.partition(self._end)
                    self._log(text)
                    if end:
                        return
                if len(rest) > MAX_LINE_BYTES:
                    self._log(rest)
                    rest = b""

    def _log(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode("utf-8", "backslashreplace").rstrip()
        if not text:
            return
        if CRASH.fullmatch(text):
            log.error("%s", text)
        elif self.quotes_lines:
            log.warning("%s", text)
        elif exception := EXCEPTION.match(text):
            log.error("%s (--log-text shows what it says)", exception[0])
        else:
            log.warning("a library wrote %d bytes (--log-text shows them)", len(line))
