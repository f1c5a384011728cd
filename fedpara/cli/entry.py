"""The group of all commands, and what a mistake, an interruption and an error look like."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback

import click
from click.exceptions import NoArgsIsHelpError

from ..errors import ConfigError, FedparaError, whereabouts
from . import completion, deploying, listing, new, running, sizing
from .options import Group, Stopped

EPILOG = """\b
Examples:
  fedpara simulate digits                     train ten clients on this machine, half a minute
  fedpara new my-project                      a small project for a model and data of your own
  fedpara size vgg16 --gamma 0.1              what a model costs to send
  fedpara compare runs/*                      runs beside each other
  fedpara COMMAND --help                      every option with its default, and examples

\b
Exit codes: 0 done; 1 it could not be done, one line says why and what to do; 2 a command, option or recipe
that is not right; 130 stopped with Ctrl-C. Figures with --json go to standard output alone."""


@click.group(
    cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="fedpara", message="%(prog)s %(version)s")
def cli() -> None:
    """Federated learning for a hundredth of the bytes, every byte counted."""
    # Threads that spin while they wait take a busy machine's cores from those that compute. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


for command in (
    *(running.simulate, running.compare, running.report, running.export, running.apply),
    *(sizing.size, listing.recipes, listing.tasks, new.new, deploying.deploy, completion.completion),
):
    cli.add_command(command)


def main() -> None:
    """Entry point: runs a command, and ends the process with its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)  # the live table shows what is dropped
    try:
        cli.main(prog_name="fedpara", standalone_mode=False)
        sys.stdout.flush()  # a pipe that nobody reads any more is noticed here, not in the interpreter's last breath
        gc.freeze()  # nothing of this is worth a search for garbage on the way out
    except BaseException as error:
        sys.exit(_ended(error))


def _ended(error: BaseException) -> int:
    """Tell what ended a command, in one line; its exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else bool(error.code)
    if isinstance(error, BrokenPipeError):  # as of "fedpara recipes | head -1": who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return 2
    text, code = _verdict(error)
    if code == 130 and sys.stderr.isatty():
        click.echo(err=True)  # behind the ^C that the terminal shows
    click.echo(f"fedpara: {' '.join(text.split())}", err=True)
    if code == 1 and os.environ.get("FEDPARA_TRACEBACK"):
        traceback.print_exception(error)
    return code


def _verdict(error: BaseException) -> tuple[str, int]:
    """What happened and what to do about it, and the exit code."""
    if isinstance(error, Stopped):
        return error.message, error.exit_code
    if isinstance(error, click.ClickException):
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fedpara"
        return f"{error.format_message()} (see {where} --help)", 2
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "stopped", 130
    if isinstance(error, FedparaError):
        return str(error), 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}: see that it is there, that it is yours, and that the disk has room", 1
    return (
        f"{type(error).__name__}: {error} ({whereabouts(error)}): this was not foreseen; "
        "FEDPARA_TRACEBACK=1 shows where it came from"
    ), 1
