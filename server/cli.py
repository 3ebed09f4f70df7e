"""The command ``infalign serve``."""

from pathlib import Path
from typing import Any

import click

from infalign.bundle import read_bundle
from infalign.errors import InvalidValue
from infalign.home import bundle_path
from infalign.model_bundle import make_bundle
from server.options import parse_settings, settings_options
from server.process import run


@click.command(short_help="Serve a bundle over HTTP.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--reference", is_flag=True, help="Serve the bundle's reference in the policy's place, as NAME-reference."
)
@click.option("--policy", metavar="MODEL", help="Serve this model: a directory, or a hub id. Needs --reward or --harm.")
@click.option(
    "--reward", "rewards", multiple=True, metavar="REWARD", help="A reward of it, as `infalign bundle` takes it."
)
@click.option("--harm", "harms", multiple=True, metavar="REWARD", help="The same, where a high score means worse.")
@click.option("--rubric", metavar="FILE", help="File with what judges read, as `infalign bundle` takes it.")
@click.option("--prompts", metavar="FILE", help="File of prompts to calibrate, as `infalign bundle` takes it.")
@settings_options
def serve(
    bundle: Path | None,
    reference: bool,
    policy: str | None,
    rewards: tuple[str, ...],
    harms: tuple[str, ...],
    rubric: str | None,
    prompts: str | None,
    **options: str | None,
) -> int:
    """Serve BUNDLE (default: the demo) over HTTP.

    With --policy, a bundle is made of that model and its rewards first, and kept for the next time.

    Refuses a bundle with a changed or missing file, or whose parts were not made for each other. The options from
    --host on can be set in the environment too: INFALIGN_PORT for --port, and so on.
    """
    settings = parse_settings(options)
    models = {"--reward": rewards, "--harm": harms, "--rubric": _listed(rubric), "--prompts": _listed(prompts)}
    if policy and bundle:
        raise InvalidValue("--policy", policy, f"BUNDLE or --policy, not both; BUNDLE is {bundle}")
    if policy and not (rewards or harms):
        raise InvalidValue("--policy", policy, "a --reward or --harm to go with it")
    if not policy and (given := [name for name, values in models.items() if values]):
        raise InvalidValue(given[0], models[given[0]][0], "nothing without --policy: the bundle has its rewards")
    if policy:
        models["--reasoning-parser"] = _listed(settings.reasoning_parser)
        settings = settings.model_copy(update={"trust_rewards": True})  # whoever names a reward trusts it

    def locate() -> Path:
        return make_bundle(policy, models) if policy else bundle or bundle_path("demo")

    def prepare(path: Path) -> Any:
        content = read_bundle(path)
        from server.assembly import assemble

        return assemble(content, settings, reference)

    return run(settings, locate, prepare)


def _listed(value: str | None) -> tuple[str, ...]:
    return (value,) if value else ()
