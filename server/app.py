"""The ServerApp: the same federation under `flwr run`, on Flower's simulation or on SuperLink and SuperNodes."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedpara import report
from fedpara.app import find_recipe
from fedpara.config import Recipe, read_recipe
from fedpara.errors import ConfigError
from fedpara.live import LiveTable
from fedpara.loggers import observed
from fedpara.run import fresh_name

from .federation import Federation

app = ServerApp()
log = logging.getLogger("fedpara")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the recipe that the run config names."""
    config = context.run_config
    recipe = configured_recipe(config)
    folder = Path(str(config.get("folder") or new_folder(recipe)))
    observer = observed(recipe, folder, LiveTable(Console(force_terminal=False, width=110)))
    try:
        run = Federation(grid, recipe, folder, observer, resume=bool(config.get("resume"))).run()
    finally:
        observer.close()
    log.info("report: %s", report.write(run))


def configured_recipe(config: Mapping[str, Any]) -> Recipe:
    """The recipe of a Flower run config, with its overrides.

    Raises:
        ConfigError: the overrides are not TOML keys and values.
    """
    text = str(config.get("overrides") or "")
    try:
        overrides = tomllib.loads(f"all = {{ {text} }}")["all"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"overrides = {text!r} is not TOML ({error}): write for example 'rounds = 3, seed = 1'"
        ) from None
    if config.get("data-dir"):
        overrides["data_dir"] = str(config["data-dir"])
    return read_recipe(find_recipe(str(config.get("recipe") or "digits")), overrides)


def new_folder(recipe: Recipe) -> Path:
    """A folder in the home directory: the ServerApp's own working directory belongs to Flower."""
    return Path.home() / "fedpara-runs" / fresh_name(recipe)
