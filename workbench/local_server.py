"""A server of a bundle that lives as long as the command that needs it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from workbench.errors import ServerGone

STOP_SECONDS = 60
"""Seconds that the server may take to stop."""
LOG_LINES = 5
"""Last lines of the log that an error repeats."""


@contextmanager
def serve_bundle(bundle: Path, reference: bool, log: Path) -> Iterator[str]:
    """Serve a bundle on this machine by ``infalign serve``. Settings come from the environment, as for the command.

    Args:
        bundle: The bundle.
        reference: Serve its reference in the policy's place.
        log: File that the server's output is written to.

    Yields:
        The server's address.

    Raises:
        ServerGone: The server ended before it was ready.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), *(["--reference"] if reference else [])]
    command = [sys.executable, "-m", "workbench.local_server", str(os.getpid()), "serve", str(bundle), *options]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=10).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-LOG_LINES:]
    raise ServerGone(f"the server of the bundle ended with status {process.returncode}: {' | '.join(lines)}")


def _run(parent: int) -> None:
    """Run a command line of ``infalign`` in this process, which ends with its parent."""
    from infalign.cli import main
    from infalign.lifetime import end_with_parent

    end_with_parent(parent)
    main()


if __name__ == "__main__":
    _run(int(sys.argv.pop(1)))
