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
from infalign.validation import explain

LOOPBACK = "127.0.0.1"


@click.command(short_help="Serve a bundle over HTTP.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--host", default=LOOPBACK, show_default=True, help="Address to bind.")
@click.option("--port", type=int, default=8000, show_default=True, help="TCP port; 0 takes a free one.")
@click.option(
    "--reference", is_flag=True, help="Serve the bundle's reference in the policy's place, as NAME-reference."
)
@click.option("--max-n", type=int, default=64, show_default=True, help="Largest N of a request.")
@click.option("--max-sequences", type=int, default=64, show_default=True, help="Sequences an engine runs at a time.")
@click.option(
    "--kv-cache-mib", type=int, default=256, show_default=True, help="KV cache of each engine on CPU, in MiB."
)
@click.option(
    "--gpu-memory",
    type=float,
    default=0.4,
    show_default=True,
    help="Share of GPU memory of the policy's engine, and of the reward models' together.",
)
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
def serve(bundle: Path | None, reference: bool, **options: Any) -> int:
    """Serve BUNDLE (default: the demo) over HTTP.

    Refuses a bundle with a changed or missing file, or whose parts were not made for each other.
    """
    from pydantic import ValidationError

    from server.settings import Settings

    try:
        settings = Settings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise explain({**first, "loc": (flag,)}, Settings) from error
    found = read_bundle(bundle or bundle_path("demo"))
    listener = _bind(settings.host, settings.port)

    import uvicorn
    from transformers import AutoTokenizer

    from server.app import Served, create_app
    from server.engines.vllm import VllmEngines

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    adapters = {name: policy.directory for name, policy in found.policies.items() if policy.is_adapter}
    if reference:
        adapters = {}
    names = (f"{found.manifest.name}-reference",) if reference else tuple(found.policies)
    model = found.reference if reference or adapters else found.policy().directory
    scoring = reward_models(found.reward_model)
    judging = {name: AutoTokenizer.from_pretrained(path) for name, path in scoring.items()}
    tokenizers = AutoTokenizer.from_pretrained(model), judging
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        signal.raise_signal(signal.SIGTERM)

    engines = VllmEngines(model, tuple(scoring.values()), settings, adapters)
    app = create_app(settings, engines, Served(found, tokenizers, names), stop)
    host, port = listener.getsockname()[:2]
    print(f"serving {', '.join(names)} ({found.path}) on http://{host}:{port}", file=sys.stderr)
    # uvicorn drains, then raises the signal anew: end as after Ctrl-C, with our own exit code.
    signal.signal(signal.SIGTERM, _interrupt)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30))
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
