"""An account of each request while it is answered: its id, what it asks for, and how long engines worked for it.

The account is kept in a context variable, so tasks that a request starts write to the same account. Outside of a
request, for example in a script, nothing is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter

from infalign.controlled import ServedProcedure


@dataclass
class Account:
    """The account of one request.

    Args:
        request_id: Identifies the request in logs and answers.
        keep_text: Whether to keep the prompt and the selected texts, for the log.
    """

    request_id: str
    keep_text: bool = False
    start: float = field(init=False)
    procedure: ServedProcedure | None = None
    """The decoding procedure, as soon as the request is known to decode."""
    n: int | None = None
    model: str | None = None
    prompt: str | None = None
    selected_texts: list[str] | None = None
    """The texts that the client gets."""
    warnings: list[str] = field(default_factory=list)
    """The codes of warnings in the answer."""
    lines: set[str] = field(default_factory=set)
    """Log lines of the request that are written once, although each of its candidates causes them."""
    _calls: int = 0
    _busy_since: float = 0.0
    _busy_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.start = perf_counter()

    def begin_call(self) -> None:
        """Note that a call to an engine has begun."""
        if not self._calls:
            self._busy_since = perf_counter()
        self._calls += 1

    def end_call(self) -> None:
        """Note that a call to an engine has ended, or that nobody waits for it any more."""
        self._calls -= 1
        if not self._calls:
            self._busy_seconds += perf_counter() - self._busy_since

    def durations(self) -> tuple[float, float]:
        """Return the request's age in seconds, and how many of them no engine was working for it."""
        now = perf_counter()
        busy = self._busy_seconds + (now - self._busy_since if self._calls else 0)
        return now - self.start, now - self.start - busy


current_account: ContextVar[Account | None] = ContextVar("account", default=None)
"""The account of the request that the running code belongs to."""


@contextmanager
def engine_call() -> Iterator[None]:
    """Count the time in the block as time in which an engine works for the request.

    Put it around every call to an engine, and around waiting for a call that another request has made.
    """
    account = current_account.get()
    if account is None:
        yield
        return
    account.begin_call()
    try:
        yield
    finally:
        account.end_call()


def note_decoding(procedure: ServedProcedure, n: int, model: str | None, prompt: str) -> None:
    """Note what the request decodes.

    Args:
        procedure: The decoding procedure.
        n: The number of candidates.
        model: The policy that generates them.
        prompt: The rendered prompt. It is kept only if the account keeps text.
    """
    if account := current_account.get():
        account.procedure, account.n, account.model = procedure, n, model
        account.prompt = prompt if account.keep_text else None


def note_warning(code: str) -> None:
    """Note that the answer has a warning."""
    if account := current_account.get():
        account.warnings.append(code)


def note_selected(texts: list[str]) -> None:
    """Note the texts of the selected candidates, if the account keeps text."""
    if (account := current_account.get()) and account.keep_text:
        account.selected_texts = texts


def is_new_line(line: str) -> bool:
    """Return whether the request has not logged ``line`` before, and remember it."""
    if (account := current_account.get()) is None:
        return True
    is_new = line not in account.lines
    account.lines.add(line)
    return is_new
