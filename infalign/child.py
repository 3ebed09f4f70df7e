"""A process that answers calls, each within a time limit. If it hangs or dies, it harms nobody else."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from infalign.errors import one_line


class ChildFailed(Exception):
    """A call failed, or the process ended."""


class Child:
    """The parent's side.

    Args:
        name: What the process is, for messages.
        module: Module that is run. It calls :func:`answer_calls`.
        arguments: Arguments of the module.
    """

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self._name, self._command = name, [sys.executable, "-m", module, *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lifeline: Connection | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, seconds: float) -> None:
        """Start the process anew.

        Args:
            seconds: Longest time until it is ready.

        Raises:
            ChildFailed: It says that it cannot answer calls, or it ended.
            TimeoutError: It is not ready in time.
        """
        self.close()
        self._connection, far_end = Pipe()
        self._lifeline, far_lifeline = Pipe()
        descriptors = (far_end.fileno(), far_lifeline.fileno())
        # Not by multiprocessing: the workers that draw rollouts are its daemons, which may not have children.
        self._process = subprocess.Popen(
            [*self._command, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )
        far_end.close()
        far_lifeline.close()
        try:
            self._receive(seconds)
        except (ChildFailed, TimeoutError):
            self.close()
            raise

    def call(self, arguments: Any, seconds: float) -> Any:
        """Call the process.

        Args:
            arguments: What is sent.
            seconds: Longest time that the answer may take. After it, the process is killed.

        Returns:
            The answer.

        Raises:
            ChildFailed: The call failed, or the process ended.
            TimeoutError: There was no answer in time.
        """
        assert self._connection is not None  # noqa: S101 - start() opened it
        try:
            self._connection.send(arguments)
        except OSError as error:
            self.close()
            raise ChildFailed(f"{self._name} ended its process") from error
        return self._receive(seconds)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for end in (self._connection, self._lifeline):
            if end is not None:
                end.close()
        self._process = self._connection = self._lifeline = None

    def _receive(self, seconds: float) -> Any:
        assert self._connection is not None  # noqa: S101 - start() opened it
        try:
            if not self._connection.poll(seconds):
                self.close()
                raise TimeoutError(f"{self._name} took more than {seconds:g} s")
            failure, value = self._connection.recv()
        except TimeoutError:
            raise
        except (EOFError, OSError) as error:
            self.close()
            raise ChildFailed(f"{self._name} ended its process") from error
        if failure:
            raise ChildFailed(f"{self._name} failed: {failure}")
        return value


def answer_calls(descriptors: Sequence[str], prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """Answer the parent's calls until it closes the connection or ends. This is the child's side.

    The first message says whether calls can be answered. Each message is a pair: what went wrong, or an empty text, and
    the answer.

    Args:
        descriptors: The last arguments of the command line: of the connection, and of the lifeline.
        prepare: Returns the function that answers.
    """
    connection, lifeline = Connection(int(descriptors[0])), int(descriptors[1])
    sys.stdout = sys.stderr  # what is printed must not mix with the output of the command
    Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    try:
        answer = prepare()
    except BaseException as error:
        connection.send((f"{type(error).__name__}: {one_line(error)}", None))
        return
    connection.send(("", None))
    while True:
        try:
            arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(("", answer(arguments)))
        except Exception as error:
            traceback.print_exc()
            connection.send((f"{type(error).__name__}: {one_line(error)}", None))


def _end_with(lifeline: int) -> None:
    """End this process when the other end of the lifeline closes, even if a call hangs."""
    os.read(lifeline, 1)
    os._exit(0)
