"""Options that the commands share: how the server is reached, and how responses are sampled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from infalign.errors import InvalidValue
from workbench.connection import Connection
from workbench.local_server import serve_bundle
from workbench.pace import Pace

DEFAULT_URL = "http://127.0.0.1:8000"
Command = Callable[..., Any]


@dataclass(frozen=True)
class Access:
    """How the server is reached."""

    url: str | None
    key: str | None
    bundle: Path | None
    reference: bool
    concurrency: int
    retries: int
    patience: float
    timeout: float

    @contextmanager
    def serve(self, log: Path) -> Iterator[str]:
        """Serve the bundle, if there is one.

        Args:
            log: File that the server's output is written to.

        Yields:
            Address of the server.

        Raises:
            InvalidValue: Options contradict each other.
            ServerGone: The bundle cannot be served.
        """
        if self.bundle and self.url:
            raise InvalidValue("--url", self.url, "--url or --bundle, not both")
        if self.bundle and not self.bundle.is_dir():
            raise InvalidValue("--bundle", str(self.bundle), "the folder of a bundle")
        if self.reference and not self.bundle:
            raise InvalidValue("--reference", True, "nothing without --bundle")
        if self.bundle:
            click.echo(f"starting a server of {self.bundle}; its output is in {log}", err=True)
            with serve_bundle(self.bundle, self.reference, log) as url:
                yield url
        else:
            yield self.url or DEFAULT_URL

    def connect(self, url: str) -> Connection:
        """Make the connection to the server at an address."""
        return Connection(url, self.key, Pace(self.concurrency, self.patience), self.timeout)


ACCESS = (
    click.option("--url", help=f"Address of a running server.  [default: {DEFAULT_URL}]"),
    click.option("--key", envvar="INFALIGN_API_KEY", show_envvar=True, help="API key of the server."),
    click.option(
        "--bundle",
        type=click.Path(file_okay=False, path_type=Path),
        help="In place of --url: serve this bundle while the command runs.",
    ),
    click.option("--reference", is_flag=True, help="With --bundle, serve its reference in the policy's place."),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 1024),
        default=8,
        show_default=True,
        help="Requests at a time; fewer as long as the server refuses some.",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        default=5,
        show_default=True,
        help="How often what failed is asked for again.",
    ),
    click.option(
        "--patience",
        type=click.FloatRange(0),
        default=300,
        show_default=True,
        help="Seconds for which the server may give no answer at all.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=660,
        show_default=True,
        help="Seconds of one request.",
    ),
)


def access_options(command: Command) -> Command:
    """Give a command the options of :class:`Access`, which it gets as ``access``."""

    @wraps(command)
    def run(**values: Any) -> Any:
        access = Access(**{name: values.pop(name) for name in Access.__dataclass_fields__})
        return command(access=access, **values)

    return _decorate(run, ACCESS)


SAMPLING = (
    click.option("--temperature", type=click.FloatRange(0, 2), help="Temperature.  [default: the bundle's]"),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus.  [default: the bundle's]"),
    click.option("--max-tokens", type=click.IntRange(1), help="Longest response.  [default: the bundle's]"),
)


def sampling_options(command: Command) -> Command:
    """Give a command the options of sampling, which it gets as ``sampling``: a mapping for the body of a request."""

    @wraps(command)
    def run(**values: Any) -> Any:
        given = {name: values.pop(name) for name in ("temperature", "top_p", "max_tokens")}
        return command(sampling={name: value for name, value in given.items() if value is not None}, **values)

    return _decorate(run, SAMPLING)


def _decorate(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
