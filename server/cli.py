"""``infalign serve``."""

import asyncio
import logging
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from infalign.bundle import read_bundle, reward_models
from infalign.errors import InvalidValue
from infalign.home import bundle_path
from server.options import parse_settings, settings_options


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
    found = read_bundle(bundle or bundle_path("demo"))
    listener = _bind(settings.host, settings.port)

    import uvicorn
    from transformers import AutoTokenizer

    from server.app import Served, create_app
    from server.engines.vllm import VllmEngines
    from server.logs import configure

    configure(settings)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    adapters = {name: policy.directory for name, policy in found.policies.items() if policy.is_adapter}
    if reference:
        adapters = {}
    aligned = {name: policy.record.procedure for name, policy in found.policies.items()}
    policies = {f"{found.manifest.name}-reference": "standard"} if reference else aligned
    model = found.reference if reference or adapters else found.policy().directory
    scoring = reward_models(found.reward_model)
    judging = {name: AutoTokenizer.from_pretrained(path) for name, path in scoring.items()}
    tokenizers = AutoTokenizer.from_pretrained(model), judging
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        signal.raise_signal(signal.SIGTERM)

    engines = VllmEngines(model, tuple(scoring.values()), settings, adapters)
    app = create_app(settings, engines, Served(found, tokenizers, policies), stop)
    host, port = listener.getsockname()[:2]
    print(f"serving {', '.join(policies)} ({found.path}) on http://{host}:{port}", file=sys.stderr)
    # uvicorn drains, then raises the signal anew: end as after Ctrl-C, with our own exit code.
    signal.signal(signal.SIGTERM, _interrupt)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(server.serve(sockets=[listener]))
    return 1 if failures else 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _bind(host: str, port: int) -> socket.socket:
    """Bind before the engines start, so that a taken port is known at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise InvalidValue(
            "--host/--port", f"{host}:{port}", f"a free address of this machine ({error.strerror})"
        ) from error
    return listener
