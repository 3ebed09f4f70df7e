"""The ``infalign`` command. Each subcommand is in its own package, which is imported on use."""

import errno
import sys
from importlib import import_module
from typing import NoReturn

import click

from infalign.errors import InfAlignError

COMMANDS = {
    "frontier": ("infalign.commands", "What transformations gain under a procedure, at which KL, in theory."),
    "train": ("training.cli", "Train a CTRL checkpoint and write its bundle."),
    "bundle": ("training.existing", "Make a bundle of a policy and rewards that exist, without training."),
    "calibrate": ("training.extension", "Calibrate further prompts for a bundle."),
    "evaluate": ("training.cli", "Measure a bundle on fresh draws: win rates, KL, what a judge says."),
    "join": ("infalign.commands", "Put the adapters of several bundles into one."),
    "serve": ("server.cli", "Serve a bundle over HTTP, Best-of-N and Worst-of-N."),
    "decode": ("workbench.decode", "Answer every prompt of a file by best-of-N or worst-of-N."),
    "probe": ("workbench.probe", "Draw many samples of each prompt of a file, and store them."),
    "report": ("workbench.report.command", "Show what the samples of a campaign say."),
    "key": ("server.access.command", "Make or remove an API key of the server."),
}


class LazyGroup(click.Group):
    """A command group with the names and one-line help of its commands, which imports a command only on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Args:
            ctx: Context of the group.
            cmd_name: Name of the command.

        Returns:
            The command, or None if there is none of that name.
        """
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="infalign")
def infalign() -> None:
    """Inference-aware alignment: train for Best-of-N or Worst-of-N decoding, and serve it."""


def main() -> NoReturn:
    """Run the command line.

    A mistake of the user, or a full disk, is one line on stderr and exit code 2. Ctrl-C is exit code 130.

    Raises:
        SystemExit: Always, with the exit code.
    """
    try:
        status = infalign(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()))
    except InfAlignError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"{error.filename or 'output'}: no space left on the disk")
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", code=130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    click.echo(f"infalign: {message}", err=True)
    sys.exit(code)
