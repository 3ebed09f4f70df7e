"""A real server process over engines in memory, and raw connections to it."""

import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HANGING = 60
"""Seconds after which something hangs; no claim of speed."""


@dataclass(frozen=True)
class Running:
    """A server that answers, or is about to."""

    process: "subprocess.Popen[bytes]"
    written: Path

    @property
    def log(self) -> str:
        """All that it has written to stderr."""
        return self.written.read_bytes().decode()

    @property
    def port(self) -> int:
        """Where it listens."""
        found = re.search(r"on http://127.0.0.1:(\d+)$", self.log, re.MULTILINE)
        assert found, self.log
        return int(found[1])

    def connect(self) -> socket.socket:
        """A new connection, whose calls do not hang."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(HANGING)
        return connection

    def exchange(self, *parts: bytes) -> bytes:
        """All that comes back until the server closes the connection."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            return read_all(connection)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until it is true."""
        until = time.monotonic() + HANGING
        while not condition():
            assert time.monotonic() < until, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.05)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the connection is closed or reset."""
    received = b""
    try:
        while chunk := connection.recv(1 << 16):
            received += chunk
    except ConnectionResetError:
        pass
    return received


@contextmanager
def launched(folder: Path, *options: str, files: int | None = None, until: str = "ready, ") -> Iterator[Running]:
    """A server with these options of ``infalign serve``, and at most ``files`` descriptors, once it has said ``until``.

    Killed at the end, unless it has ended by itself.
    """
    command = [sys.executable, "-m", "tests.field.fake_server", "--port", "0", *options]
    with (folder / "log").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stderr=stderr,
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None,
        )
    running = Running(process, folder / "log")
    try:
        running.wait_for(lambda: until in running.log)
        yield running
    finally:
        process.kill()
        process.wait(HANGING)
