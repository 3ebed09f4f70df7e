"""Ctrl-C that something drops is raised again."""

import os
import signal

import pytest

from training.interrupts import raise_interrupt, remember_interrupts
from training.progress import make_bar


class Dropper:
    """Is interrupted where Python prints exceptions and drops them."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_an_interrupt_that_was_dropped_comes_at_the_next_step_of_a_bar() -> None:
    steps = []

    def run() -> None:
        with remember_interrupts(), make_bar("sft", 3) as bar:
            for step in range(3):
                bar.update()
                steps.append(step)
                Dropper()

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps == [0]


def test_an_interrupt_that_was_dropped_comes_at_the_end_at_the_latest() -> None:
    def run() -> None:
        with remember_interrupts():
            Dropper()

    with pytest.raises(KeyboardInterrupt):
        run()


def test_an_interrupt_that_was_not_dropped_is_raised_at_once_and_only_then() -> None:
    def run() -> None:
        with remember_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("this was reached")

    with pytest.raises(KeyboardInterrupt):
        run()
    raise_interrupt()
    with remember_interrupts():
        raise_interrupt()


def test_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with remember_interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
