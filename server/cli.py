"""``infalign serve``."""

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from infalign.bundle import read_bundle
from infalign.errors import InvalidValue
from infalign.home import bundle_path
from server.options import parse_settings, settings_options
from server.settings import Settings


@click.command(short_help="Serve a bundle over HTTP.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--reference", is_flag=True, help="Serve the bundle's reference in the policy's place, as NAME-reference."
)
@settings_options
def serve(bundle: Path | None, reference: bool, **options: str | None) -> int:
    """Serve BUNDLE (default: the demo) over HTTP.

    Refuses a bundle with a changed or missing file, or whose parts were not made for each other. Every option but
    --reference can be set in the environment too: INFALIGN_PORT for --port, and so on.
    """
    settings = parse_settings(options)
    listener = _bind(settings)
    found = read_bundle(bundle or bundle_path("demo"))

    import uvicorn
    from sse_starlette.sse import AppStatus

    from server.app import create_app
    from server.assembly import assemble
    from server.logs import configure

    configure(settings)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    engines, served = assemble(found, settings, reference)
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        signal.raise_signal(signal.SIGTERM)

    app = create_app(settings, engines, served, stop)
    host, port = listener.getsockname()[:2]
    print(f"serving {', '.join(served.policies)} ({found.path}) on http://{host}:{port}", file=sys.stderr)
    # Streams in flight are drained like any other request, not cut off at once.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    # uvicorn drains, then raises the signal anew: end as after Ctrl-C, with our own exit code.
    signal.signal(signal.SIGTERM, _interrupt)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=settings.drain
        )
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(server, listener, app.state.keyring))
    return 1 if failures else 0


async def _serve(server: Any, listener: socket.socket, keyring: Any) -> None:
    with keyring.reread_on_hangup():
        await server.serve(sockets=[listener])


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _bind(settings: Settings) -> socket.socket:
    """Bind before anything else, so that a taken port, or one open to others without keys, is refused at once."""
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
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
