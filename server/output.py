"""What libraries and engine processes write to stdout and stderr, past the log: lines of the log too."""

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

from server.logs import PROBES

log = logging.getLogger("infalign.output")
DESCRIPTORS = (1, 2)
PIPE_BYTES = 1 << 20
"""What engines can write while this process is busy, before they have to wait."""
LONGEST = 2000
"""Bytes of a line that are logged."""
PROCESS = r"(?:\([\w .=-]+\) )?(?:[A-Z]+ [\d-]+ [\d:.]+ \[[\w./]+:\d+\] )?"
"""What vLLM puts before the lines of its processes: ``(EngineCore pid=7) ERROR 01-31 10:00:00 [core.py:1100]``."""
CRASH = re.compile(
    PROCESS
    + r"(?:Traceback \(most recent call last\):"
    + r'|\s*File "[^"]+", line \d+(?: in \S+|, in \S+)?'
    + r"|(?:Current t|T)hread 0x[0-9a-f]+.*"
    + r"|Fatal Python error: .*"
    + r"|(?:[\w.]+: )?(?:CUDA|cuDNN|CUBLAS|NCCL|HIP) (?:error|out of memory).*"
    + r"|(?:Segmentation fault|Aborted|Killed|Bus error|Illegal instruction)(?: \(core dumped\))?"
    + r"|terminate called .*|(?:malloc|free|realloc)\(\): .*|double free .*)"
)
"""Lines that say how a process died. A client can imitate them, and then sees its own words in the log."""
EXCEPTION = re.compile(PROCESS + r"[\w.]+(?:Error|Exception|Exit|Interrupt)(?=:|$)")
"""The type of an exception, without its message, which may quote a request."""


class Output:
    """Redirects the file descriptors 1 and 2 into the log while it is entered; processes that are started inherit them.

    Until there has been a request every line is logged as it came. From then on a library may quote requests: unless
    ``log_text`` allows that, lines that say how a process died are logged, and of others how long they are.
    ``console`` is the stderr of before, for the log itself. So that a crash of this process is seen, its own
    faulthandler writes there.
    """

    def __init__(self, log_text: bool) -> None:
        self.quote, self._log_text = True, log_text
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(descriptor) for descriptor in DESCRIPTORS]
        self.console: TextIO = open(self._saved[1], "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
        self._end = secrets.token_hex(16).encode()

    def __enter__(self) -> Self:
        reading, writing = os.pipe()
        with suppress(OSError):  # a user may have only so many large ones
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        for descriptor in DESCRIPTORS:
            os.dup2(writing, descriptor)
        os.close(writing)
        faulthandler.enable(self.console)
        self._reader = Thread(target=self._read, args=(reading,), name="output", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # The pipe does not end here: processes that outlive us for a moment hold it open.
        os.write(DESCRIPTORS[1], self._end + b"\n")
        for descriptor, saved in zip(DESCRIPTORS, self._saved, strict=True):
            os.dup2(saved, descriptor)
        self._reader.join(5)

    def watch(self, app: ASGIApp) -> ASGIApp:
        """``app``, whose first request ends the time in which every line is logged as it came."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] not in PROBES:
                self.quote = self._log_text
            await app(scope, receive, send)

        return watched

    def _read(self, reading: int) -> None:
        rest = b""
        with open(reading, "rb", buffering=0) as pipe:
            while chunk := pipe.read(PIPE_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    text, end, _ = line.partition(self._end)
                    self._log(text)
                    if end:
                        return
                if len(rest) > LONGEST:
                    self._log(rest)
                    rest = b""

    def _log(self, line: bytes) -> None:
        text = line[:LONGEST].decode("utf-8", "backslashreplace").rstrip()
        if not text:
            return
        if CRASH.fullmatch(text):
            log.error("%s", text)
        elif self.quote:
            log.warning("%s", text)
        elif found := EXCEPTION.match(text):
            log.error("%s (--log-text shows what it says)", found[0])
        else:
            log.warning("a library wrote %d bytes (--log-text shows them)", len(line))
