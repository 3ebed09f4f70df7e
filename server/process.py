"""The process that serves: its signals, its output, its port, the HTTP server in it."""

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from infalign.errors import InvalidValue
from server.settings import Settings

if TYPE_CHECKING:
    from server.app import Served
    from server.engines import Engines


def run(settings: Settings, prepare: Callable[[], tuple["Engines", "Served"]]) -> int:
    """Serve what ``prepare`` returns until a signal ends it, or its engines have failed for good.

    SIGTERM and SIGINT end it cleanly from the very beginning; SIGHUP never does. The port is bound before ``prepare``
    is called.

    Returns:
        The exit status: 0 after a signal, 1 after a failure of the engines.

    Raises:
        InvalidValue: the address is taken, or open to others without keys.
        InfAlignError: what ``prepare`` raises.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        signal.raise_signal(signal.SIGTERM)

    with suppress(KeyboardInterrupt), bind(settings) as listener:
        _serve(settings, listener, prepare, stop)
    return 1 if failures else 0


def _serve(
    settings: Settings,
    listener: socket.socket,
    prepare: Callable[[], tuple["Engines", "Served"]],
    stop: Callable[[BaseException], None],
) -> None:
    from server.logs import configure
    from server.output import Output

    with Output(settings.log_text) as output:
        configure(settings, output.console)
        logging.getLogger("vllm").setLevel(logging.ERROR)
        engines, served = prepare()
        from server.app import create_app

        app = create_app(settings, engines, served, stop, console=output.console)
        host, port = listener.getsockname()[:2]
        names = ", ".join(served.policies)
        gc.collect()
        gc.freeze()  # what is there now stays; walking it at each full collection would be noticed
        print(f"serving {names} ({served.bundle.path}) on http://{host}:{port}", file=output.console, flush=True)
        asyncio.run(_answer(settings, output.watch(app), listener, app.state.keyring))


async def _answer(settings: Settings, app: Any, listener: socket.socket, keyring: Any) -> None:
    import uvicorn
    from sse_starlette.sse import AppStatus

    from server.connections import Connections

    # Streams in flight are drained like any other request, not cut off at once.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    connections = Connections(settings)
    config = uvicorn.Config(
        app,
        http=connections.protocol,  # type: ignore[arg-type]
        h11_max_incomplete_event_size=settings.max_header_kib * 1024,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        backlog=connections.backlog,
        timeout_keep_alive=max(1, round(settings.idle_timeout)),
        timeout_graceful_shutdown=settings.drain,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, keyring.reread)
    # uvicorn drains, then raises the signal anew: end as after Ctrl-C, with our own exit code.
    await uvicorn.Server(config).serve(sockets=[listener])


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def bind(settings: Settings) -> socket.socket:
    """A socket bound to the address of the settings.

    Raises:
        InvalidValue: the address is taken, or open to others without keys.
    """
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends small packets at once where it knows that they are TCP's; else answers wait 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise InvalidValue(
            "--host/--port", f"{host}:{port}", f"a free address of this machine ({error.strerror})"
        ) from error
    if settings.keys is None and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        listener.close()
        raise InvalidValue(
            "--host",
            host,
            "without keys, 127.0.0.1 or another address of this machine alone; "
            "`infalign key NAME --role generate --keys FILE` makes a key, and --keys FILE lets in who has one",
        )
    return listener
