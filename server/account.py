"""What is known of one request while it is answered: its id, what it asks for, how long engines worked for it.

The account travels in a context variable, so that tasks which a request starts write into it too. Where there is no
request, as in calls from a script, nothing is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter

from infalign.procedures import FixedN


@dataclass
class Account:
    """One request's."""

    request_id: str
    keep_text: bool = False
    """Whether prompt and selected text are kept, for the log."""
    started: float = field(init=False)
    procedure: FixedN | None = None
    """Set once it is known to decode."""
    n: int | None = None
    model: str | None = None
    prompt: str | None = None
    selected: list[str] | None = None
    lines: set[str] = field(default_factory=set)
    """What was logged of it, where each of its candidates would log the same."""
    _calls: int = 0
    _since: float = 0.0
    _busy: float = 0.0

    def __post_init__(self) -> None:
        self.started = perf_counter()

    def call_begins(self) -> None:
        """An engine is asked for something."""
        if not self._calls:
            self._since = perf_counter()
        self._calls += 1

    def call_ends(self) -> None:
        """It has answered, or nobody waits for it any more."""
        self._calls -= 1
        if not self._calls:
            self._busy += perf_counter() - self._since

    def seconds(self) -> tuple[float, float]:
        """Time since the request came in, and the part of it in which no engine was at work for it."""
        now = perf_counter()
        busy = self._busy + (now - self._since if self._calls else 0)
        return now - self.started, now - self.started - busy


current: ContextVar[Account | None] = ContextVar("account", default=None)


@contextmanager
def engine_call() -> Iterator[None]:
    """Around every call of an engine, or waiting for one that another request has made."""
    account = current.get()
    if account is None:
        yield
        return
    account.call_begins()
    try:
        yield
    finally:
        account.call_ends()


def decoding(procedure: FixedN, n: int, model: str | None, prompt: str) -> None:
    """The request decodes ``prompt`` by ``procedure`` with ``n`` candidates of ``model``."""
    if account := current.get():
        account.procedure, account.n, account.model = procedure, n, model
        account.prompt = prompt if account.keep_text else None


def selected(texts: list[str]) -> None:
    """The candidates that the client gets."""
    if (account := current.get()) and account.keep_text:
        account.selected = texts


def first_time(line: str) -> bool:
    """Whether the request has not logged ``line`` before; it counts as logged from now on."""
    if (account := current.get()) is None:
        return True
    new = line not in account.lines
    account.lines.add(line)
    return new
