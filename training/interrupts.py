"""Ctrl-C during training, which must not get lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. If that is a callback of the garbage collector
or of the import system, Python prints the exception and drops it. Some libraries drop it too. So an interrupt is
remembered here, and raised again at the next step of a stage.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _InterruptHandler:
    """A handler of SIGINT that remembers whether it was called."""

    received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.default_int_handler(number, frame)


@contextmanager
def remember_interrupts() -> Iterator[None]:
    """Remember interrupts within this context. Enter it in the main thread.

    Raises:
        KeyboardInterrupt: An interrupt came and something dropped it.
    """
    previous = signal.signal(signal.SIGINT, _InterruptHandler())
    try:
        yield
        raise_interrupt()
    finally:
        signal.signal(signal.SIGINT, previous)


def raise_interrupt() -> None:
    """Raise an interrupt again that came within :func:`remember_interrupts` and that something dropped.

    Raises:
        KeyboardInterrupt: There was one.
    """
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _InterruptHandler) and handler.received:
        raise KeyboardInterrupt
