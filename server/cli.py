"""The command ``infalign serve``."""

from pathlib import Path
from typing import Any

import click

from infalign.bundle import read_bundle
from infalign.home import bundle_path
from server.options import parse_settings, settings_options
from server.process import run


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

    def prepare() -> Any:
        content = read_bundle(bundle or bundle_path("demo"))
        from server.assembly import assemble

        return assemble(content, settings, reference)

    return run(settings, prepare)
