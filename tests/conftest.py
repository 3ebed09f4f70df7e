"""What all tests have in common."""

import signal


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes of tests: a shell starts what it puts in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
