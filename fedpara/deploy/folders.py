"""Writes a deployment's folders: one for the authority, one for the server, one for each client."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ..app import find_recipe
from ..config import Recipe, read_recipe, to_table
from ..errors import ConfigError
from .keys import Key, write_authority, write_node_key, write_server_certificate
from .plan import FACTS, NodeFacts, Plan, ServerFacts, read_plan

LOCAL = ("localhost", "127.0.0.1")  # the server's own programs reach the SuperLink there
VERSIONED = ("fedpara", "flwr", "torch")


class _Text(Template):
    delimiter = "@"


def init(plan_file: Path, output: Path) -> dict[Path, bool]:
    """Write the folders of a plan: each with whether it is new. What is there already stays as it is.

    So a client that joins later is added to the plan, and gets its folder by the same call; its public key then has to
    be carried to the server's ``nodes``, where the server's folder has left this machine.

    Raises:
        ConfigError: the plan or its recipe is not valid, the output cannot be a folder, or the authority's key is gone
            and new folders need it.
    """
    plan = read_plan(plan_file)
    source = plan_file.parent / plan.recipe
    recipe = _recipe(plan, source if source.is_file() else find_recipe(plan.recipe))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {output} cannot be made: {error.strerror}: choose another --output") from None
    authority, server = output / "authority", output / "server"
    written = {authority: _new(authority, partial(_authority, plan=plan))}
    written[server] = _new(server, partial(_server, plan=plan, recipe=recipe, authority=authority))
    for place, node in enumerate(plan.clients):
        folder = output / f"client-{node.name}"
        facts = NodeFacts(
            *("client", plan.name, node.name, plan.server.host, plan.server.port, node.data_dir, node.device),
            gpu_memory=node.gpu_memory,
            partition=node.partition,
            partitions=None if node.partition is None else len(plan.clients),
            rank_share=node.rank_share,
            node_port=9094 + place,
            metrics_port=_metrics_port(plan, place + 1),
            versions=versions(),
        )
        written[folder] = _new(folder, partial(_client, plan=plan, recipe=recipe, facts=facts, server=server))
    return written


def _recipe(plan: Plan, source: Path) -> Recipe:
    """The plan's recipe for as many clients as the plan has, with the plan's changes."""
    clients = len(plan.clients)
    cohort = min(read_recipe(source).cohort, clients)
    recipe = read_recipe(source, {"clients": clients, "cohort": cohort, "data_dir": "", **plan.changes})
    if recipe.clients != clients:
        raise ConfigError(f"changes.clients = {recipe.clients}, and the plan lists {clients}: leave it out")
    for node in plan.clients:
        if node.rank_share is not None and node.rank_share not in recipe.rank_shares:
            raise ConfigError(f"rank-share {node.rank_share} of '{node.name}' is none of {list(recipe.rank_shares)}")
    return recipe


def _new(folder: Path, fill: Callable[[Path], None]) -> bool:
    """Fill a folder under another name, then give it its own: one that stands is whole. False where it stood before."""
    if folder.exists():
        return False
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    fill(unfinished)
    unfinished.rename(folder)
    return True


def _authority(folder: Path, plan: Plan) -> None:
    write_authority(folder, plan.name)
    until = datetime.date.today() + datetime.timedelta(days=plan.server.days)
    _write(folder / "README.md", "authority.md", {"federation": plan.name, "until": until.isoformat()})


def _server(folder: Path, plan: Plan, recipe: Recipe, authority: Path) -> None:
    server = plan.server
    hosts = tuple(dict.fromkeys((server.host, *server.addresses, *LOCAL)))
    write_server_certificate(folder, _load_authority(authority), hosts, server.days)
    shutil.copy(authority / "ca.crt", folder)
    (folder / "nodes").mkdir()
    ports = server.port, server.superlink_port, server.health_port
    facts = ServerFacts("server", plan.name, server.host, *ports, server.proxy, server.metrics_port, versions())
    _write_facts(folder, facts)
    _write_recipe(folder, recipe)
    final = f"{plan.path}/server"
    text = {**_names(plan, final), "proxy_unit": "", "proxy_text": _NO_PROXY}
    if server.proxy == "nginx":
        _write(folder / "nginx.conf", "nginx.conf", text)
        _write(folder / "systemd" / "fedpara-proxy.service", "proxy.service", text)
        _write(folder / "compose.yaml", "server-compose.yaml", text)
        text |= {"proxy_unit": " fedpara-proxy", "proxy_text": _PROXY}
    _write(folder / "systemd" / "fedpara-superlink.service", "superlink.service", text)
    _write(folder / "systemd" / "fedpara-run.service", "run.service", text)
    _write(folder / "README.md", "server.md", text)
    if server.metrics_port:
        _write(folder / "grafana.json", "grafana.json", text)


_PROXY = (
    "It needs nginx (`sudo apt install nginx`, and `sudo systemctl disable --now nginx`: the unit here starts its own)."
)
_NO_PROXY = "The plan has no proxy: nodes reach the SuperLink on loopback only, which is right for one machine alone."


def _client(folder: Path, plan: Plan, recipe: Recipe, facts: NodeFacts, server: Path) -> None:
    public = write_node_key(folder)
    shutil.copy(server / "ca.crt", folder)
    (server / "nodes").mkdir(exist_ok=True)
    (server / "nodes" / f"{facts.client}.pub").write_bytes(public)
    _write_facts(folder, facts)
    _write_recipe(folder, recipe)
    data_text = f"now `{facts.data_dir}`" if facts.data_dir else "not set yet"
    text = _names(plan, f"{plan.path}/client-{facts.client}") | {"client": facts.client, "data_text": data_text}
    _write(folder / "systemd" / f"fedpara-{facts.client}.service", "node.service", text)
    _write(folder / "compose.yaml", "client-compose.yaml", text)
    _write(folder / "README.md", "client.md", text)


def _metrics_port(plan: Plan, place: int) -> int:
    """Another one for each node, since several may share a machine."""
    return plan.server.metrics_port + place if plan.server.metrics_port else 0


def _names(plan: Plan, folder: str) -> dict[str, str]:
    server = plan.server
    return {
        "federation": plan.name,
        "host": server.host,
        "port": str(server.port),
        "superlink_port": str(server.superlink_port),
        "path": plan.path,
        "folder": folder,
        "version": versions()["fedpara"],
    }


def versions() -> dict[str, str]:
    """Versions that must be alike on every machine."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in VERSIONED}


def _load_authority(folder: Path) -> tuple[Key, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is needed to sign a new server certificate, and cannot be read: {error}") from None
    if not isinstance(key, Key):
        raise ConfigError(f"{folder / 'ca.key'} is no elliptic-curve key: bring the authority that init wrote")
    return key, certificate


def _write(file: Path, template: str, text: Mapping[str, str]) -> None:
    source = resources.files(__package__).joinpath("templates", template).read_text(encoding="utf-8")
    file.parent.mkdir(exist_ok=True)
    file.write_text(_Text(source).substitute(text), encoding="utf-8")


def _write_facts(folder: Path, facts: ServerFacts | NodeFacts) -> None:
    values = dataclasses.asdict(facts).items()
    table: dict[str, Any] = {key.replace("_", "-"): value for key, value in values if value is not None}
    (folder / FACTS).write_text(tomli_w.dumps(table), encoding="utf-8")


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    (folder / "recipe.toml").write_text(tomli_w.dumps(to_table(recipe)), encoding="utf-8")
