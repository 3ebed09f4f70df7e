"""The command ``infalign key``."""

import re
from pathlib import Path
from typing import get_args

import click

from infalign.errors import InvalidValue
from server.access.keys import KEY_NAME, KeyRecord, Role, edit_keys, generate_key, hash_key

AT_LEAST_ONE = click.IntRange(min=1)


@click.command(short_help="Make or remove an API key.")
@click.argument("name")
@click.option(
    "--keys",
    required=True,
    type=click.Path(path_type=Path),
    envvar="INFALIGN_KEYS",
    help="File of keys, made if absent.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(get_args(Role)),
    help="generate: decode and score; probe: worst-of-n and all candidates; admin: everything. May be repeated.",
)
@click.option("--requests-per-minute", type=AT_LEAST_ONE, help="Most requests in any minute; no limit if left out.")
@click.option("--concurrent", type=AT_LEAST_ONE, help="Most requests at a time; no limit if left out.")
@click.option("--remove", is_flag=True, help="Take NAME out of the file instead.")
def key(
    name: str,
    keys: Path,
    roles: tuple[Role, ...],
    requests_per_minute: int | None,
    concurrent: int | None,
    remove: bool,
) -> None:
    """Make an API key for NAME and print it, this once: the file holds only its hash.

    A running server reads the file again on SIGHUP.
    """
    if remove and (roles or requests_per_minute or concurrent):
        raise InvalidValue("--remove", True, "alone, without --role and limits")
    if not remove and not roles:
        raise InvalidValue("--role", None, f"one of {', '.join(get_args(Role))}, or several")
    if not re.fullmatch(KEY_NAME, name):
        raise InvalidValue("NAME", name, "up to 64 letters, digits, dots, dashes and underscores")
    with edit_keys(keys) as records:
        if remove:
            if records.pop(name, None) is None:
                raise InvalidValue("NAME", name, f"a name in {keys}: {', '.join(records) or 'it has none'}")
        elif name in records:
            raise InvalidValue("NAME", name, f"a name that is not in {keys} yet; --remove takes one out")
        else:
            api_key = generate_key()
            records[name] = KeyRecord(
                sha256=hash_key(api_key.encode()),
                roles=tuple(dict.fromkeys(roles)),
                requests_per_minute=requests_per_minute,
                concurrent=concurrent,
            )
    if remove:
        click.echo(f"{name} removed from {keys}", err=True)
        return
    click.echo(f"key {name} ({', '.join(roles)}), shown this once; {keys} has its hash:", err=True)
    click.echo(api_key)
