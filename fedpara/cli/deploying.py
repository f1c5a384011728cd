"""fedpara deploy: a server and clients on machines of their own."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
from pathlib import Path

import click

from .options import Group, figures, json_option
from .running import KEYS_OF_A_RUN, finite, succeeded, summary_of

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(
    cls=Group,
    epilog="""\b
Examples, in the order of a deployment:
  fedpara deploy init clinics.toml              a folder for each machine
  fedpara deploy check clinics/server           on each machine: what is wrong, and what to do
  fedpara deploy start clinics/server           on each machine: the SuperLink or SuperNode
  fedpara deploy run clinics/server             on the server: train
  fedpara deploy status clinics/server          how far it is""",
)
def deploy() -> None:
    """A server and clients on machines of their own, over TLS and with a key for each."""


EPILOG_INIT = """\b
Examples:
  fedpara deploy init clinics.toml
  fedpara deploy init clinics.toml --output /srv/clinics

\b
Example of a PLAN:
  name = "clinics"
  recipe = "digits"                # or a TOML file beside the plan
  [changes]                        # keys of the recipe
  rounds = 50
  [server]
  host = "fl.example.org"
  [[clients]]
  name = "north"
  data-dir = "/srv/images"
  [[clients]]
  name = "south"
  device = "cuda:0\""""


@deploy.command(epilog=EPILOG_INIT)
@click.argument("plan", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--output", type=FOLDER, help="Where the folders go [default: the plan's name].")
@json_option("output, and folders, a row each: folder, new")
def init(plan: Path, output: Path | None, as_json: bool) -> None:
    """Write a folder for each machine: keys, certificates, units, a Compose file, a README.

    What is there already is never overwritten: a client added to the PLAN later gets its folder by the same call.
    """
    from ..deploy.folders import init as write

    output = output or plan.with_suffix("")
    with figures(as_json) as show:
        written = write(plan, output)
        lines = [f"{folder}: {'written' if new else 'kept as it was'}" for folder, new in written.items()]
        lines.append("Carry each folder to its machine and keep 'authority' under lock; each README says the rest.")
        rows = [{"folder": folder, "new": new} for folder, new in written.items()]
        show({"output": output, "folders": rows}, "\n".join(lines))


@deploy.command(
    epilog="""\b
Examples:
  fedpara deploy check clinics/client-north
  fedpara deploy check clinics/server --json | jq '.findings[] | select(.passed | not)'"""
)
@click.argument("folder", type=FOLDER)
@json_option("folder, passed, and findings, a row each: what, passed, text")
def check(folder: Path, as_json: bool) -> None:
    """Look at everything that can be wrong on this machine; each line passes or says what to do.

    FOLDER is the server's or a client's. The exit code is 1 where a line does not pass.
    """
    from ..app import load
    from ..deploy.check import check as look

    found = []
    with figures(as_json) as show:
        for finding in look(folder, load("client.enrolled").enrolled):
            found.append(finding)
            mark = click.style("pass", fg="green") if finding.passed else click.style("FAIL", fg="red")
            click.echo(f"{mark}  {finding.what:11}  {finding.text}")
        passed = all(finding.passed for finding in found)
        show({"folder": folder, "passed": passed, "findings": [dataclasses.asdict(each) for each in found]}, "")
    sys.exit(0 if passed else 1)


@deploy.command(
    epilog="""\b
Examples:
  fedpara deploy start clinics/client-north
  fedpara deploy start clinics/server --print"""
)
@click.argument("folder", type=FOLDER)
@click.option("--print", "show", is_flag=True, help="Show the command line and end.")
def start(folder: Path, show: bool) -> None:
    """Run the SuperLink or SuperNode that FOLDER is for, in the foreground, until it is stopped."""
    from ..deploy import start as starting

    if show:
        click.echo(shlex.join(starting.command(folder.resolve())))
    else:
        sys.exit(starting.start(folder, lambda line: click.echo(f"fedpara: {line}", err=True)))


@deploy.command(
    name="run",
    epilog="""\b
Examples:
  fedpara deploy run clinics/server
  fedpara deploy run clinics/server --wait 30 --json > figures.json

\b
Ctrl-C ends the watching, not the training: the same command takes it up again.""",
)
@click.argument("folder", type=FOLDER)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    callback=finite,
    default=300,
    show_default=True,
    help="Seconds for a SuperLink to come.",
)
@json_option(KEYS_OF_A_RUN)
def run_training(folder: Path, wait: float, as_json: bool) -> None:
    """Train what the server's FOLDER is for, on its SuperLink; goes on after whatever ended it."""
    from .. import report
    from ..deploy.run import run as follow

    logging.getLogger("fedpara").setLevel(logging.WARNING)
    with figures(as_json) as show:
        run = follow(folder, wait=wait)
        page = report.write(run)
        show(summary_of(run, page), f"report: {page}")
    succeeded(run)


@deploy.command(
    epilog="""\b
Examples:
  fedpara deploy status clinics/server
  fedpara deploy status clinics/server --json | jq .done"""
)
@click.argument("folder", type=FOLDER)
@json_option(
    "folder, rounds, done, finished, measure, value (of the last evaluation), payload (bytes so far), dropped (in the "
    "last round: client, reason), keys, nodes (online and registered; null where the SuperLink does not answer)"
)
def status(folder: Path, as_json: bool) -> None:
    """Show how far the training of the server's FOLDER is, and which nodes are online."""
    from ..deploy.status import status as look

    with figures(as_json) as show:
        found = look(folder)
        show(dataclasses.asdict(found), str(found))
