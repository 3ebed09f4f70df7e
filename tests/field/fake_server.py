"""``infalign serve`` over engines in memory: python -m tests.field.fake_server [OPTIONS of infalign serve].

The engines do as the prompt says: ``hang`` draws nothing; ``long`` answers with 32 MB; whatever follows ``stderr`` is
written to stderr past Python, as native libraries do, and by another process to stdout; ``bug`` raises what
nobody expects; ``crash`` ends the process by SIGABRT.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from server.engines import Completion, Delta, Sampling
from server.options import parse_settings, settings_options
from server.process import run
from tests.fakes import FakeEngines, fake_served


class Obedient(FakeEngines):
    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        command, _, text = "".join(map(chr, prompt)).partition(" ")
        if command == "hang":
            await asyncio.sleep(3600)
        if command == "long":
            return Completion("x" * (32 << 20), 3, "stop")
        if command == "stderr":
            os.write(2, text.encode())
            await (await asyncio.create_subprocess_exec("printf", "%s", text)).wait()
        if command == "bug":
            raise LookupError(text)
        if command == "crash":
            os.abort()
        return await super().generate(prompt, sampling, listen)


@click.command()
@click.option("--slow-start", is_flag=True)
@settings_options
def serve(slow_start: bool, **options: str | None) -> int:
    """Serve."""

    def prepare(_: Path) -> tuple[FakeEngines, object]:
        print("preparing", file=sys.stderr, flush=True)
        time.sleep(3600 if slow_start else 0)
        return Obedient(1 << 20), fake_served()

    return run(parse_settings(options), lambda: Path(), prepare)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(serve(standalone_mode=False))
