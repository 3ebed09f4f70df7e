"""The server process: signals, output, port, and the HTTP server."""

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infalign.errors import InvalidValue
from server.settings import Settings

if TYPE_CHECKING:
    from server.app import ServedBundle
    from server.engines import Engines


def run(
    settings: Settings, locate: Callable[[], Path], prepare: Callable[[Path], tuple["Engines", "ServedBundle"]]
) -> int:
    """Serve until a signal arrives or the engines have failed for good.

    SIGTERM and SIGINT stop the server cleanly at any time. SIGHUP never stops it. The port is bound before ``locate``
    is called.

    Args:
        settings: The operator's settings.
        locate: Finds the bundle, or makes it. What it prints is not logged.
        prepare: Creates the engines and the served bundle.

    Returns:
        The exit status: 0 after a signal, 1 after a failure of the engines.

    Raises:
        InvalidValue: The address is in use, or it is reachable from other machines and there are no API keys.
        InfAlignError: Whatever ``locate`` and ``prepare`` raise.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        signal.raise_signal(signal.SIGTERM)

    with suppress(KeyboardInterrupt), bind(settings) as listener:
        path = locate()
        _serve(settings, listener, lambda: prepare(path), stop)
    return 1 if failures else 0


def _serve(
    settings: Settings,
    listener: socket.socket,
    prepare: Callable[[], tuple["Engines", "ServedBundle"]],
    stop: Callable[[BaseException], None],
) -> None:
    from server.observability.logs import configure_logging
    from server.observability.output import Output

    with Output(settings.log_text) as output:
        configure_logging(settings, output.console)
        logging.getLogger("vllm").setLevel(logging.ERROR)
        engines, served_bundle = prepare()
        from server.app import create_app

        app = create_app(settings, engines, served_bundle, stop, console=output.console)
        host, port = listener.getsockname()[:2]
        names = ", ".join(served_bundle.policies)
        gc.collect()
        gc.freeze()  # these objects stay; walking them at each full collection would delay requests
        print(f"serving {names} ({served_bundle.bundle.path}) on http://{host}:{port}", file=output.console, flush=True)
        asyncio.run(_run_http_server(settings, output.wrap(app), listener, app.state.keyring))


async def _run_http_server(settings: Settings, app: Any, listener: socket.socket, keyring: Any) -> None:
    import uvicorn
    from sse_starlette.sse import AppStatus

    from server.connections import Connections

    # By default sse-starlette ends streams at once on shutdown. They are drained like any other request instead.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    connections = Connections(settings)
    config = uvicorn.Config(
        app,
        http=connections.create_connection,  # type: ignore[arg-type]
        h11_max_incomplete_event_size=settings.max_header_kib * 1024,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        backlog=connections.backlog,
        timeout_keep_alive=max(1, round(settings.idle_timeout)),
        timeout_graceful_shutdown=settings.drain,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, keyring.reload)
    # uvicorn drains, then raises the signal again. SIGTERM is handled like Ctrl-C, so run() sets the exit code.
    await uvicorn.Server(config).serve(sockets=[listener])


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def bind(settings: Settings) -> socket.socket:
    """Bind a socket to the address in the settings.

    Raises:
        InvalidValue: The address is in use, or it is reachable from other machines and there are no API keys.
    """
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With IPPROTO_TCP asyncio sets TCP_NODELAY. Without it, small answers wait 40 ms for an ACK.
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
