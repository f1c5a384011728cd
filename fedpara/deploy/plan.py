"""What a deployment is: the short TOML file that `fedpara deploy init` reads, and the facts that each folder holds."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import build, load_toml, normalise, setting
from ..errors import ConfigError

FACTS = "deploy.toml"  # the file that says what a folder is for
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_PATH = re.compile(r"/[\w./-]*")  # goes into units and nginx.conf, where blanks and % mean something
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True)
class Server:
    """The machine that aggregates."""

    host: str = setting("", "name or address at which the nodes reach the server")
    addresses: tuple[str, ...] = setting((), "further names and addresses that the certificate is for")
    port: int = setting(
        9092, "port that the nodes reach: the proxy's, or the SuperLink's where there is none", low=1, high=65535
    )
    superlink_port: int = setting(9091, "port of the SuperLink, on loopback only", low=1, high=65535)
    health_port: int = setting(9097, "port of the SuperLink's gRPC health service, on loopback only", low=1, high=65535)
    metrics_port: int = setting(0, "where Prometheus may ask, on loopback; 0: nowhere", low=0, high=65535)
    proxy: str = setting("nginx", "what stands in front of the SuperLink", choices=("nginx", "none"))
    days: int = setting(825, "days for which the server's certificate is valid", low=1, high=3650)


@dataclass(frozen=True)
class Node:
    """One client: a machine, or one of several on it."""

    name: str = setting("", "the client's name, in the ledger and in every message to people")
    data_dir: str = setting("", "folder of its data, never sent anywhere; empty: set it on the machine")
    device: str = setting("auto", "where it computes: cpu, cuda, cuda:N or auto")
    gpu_memory: float = setting(0.0, "GiB of its GPU that a process may take; 0: all", low=0)
    partition: int | None = setting(None, "its place in a data set that all hold and share out, from 0", low=0)
    rank_share: float | None = setting(None, "its share of the ranks, one of the recipe's rank-shares", above=0, high=1)


@dataclass(frozen=True)
class Plan:
    """A whole deployment."""

    name: str = setting("federation", "name of the federation")
    recipe: str = setting("digits", "what is trained: a built-in recipe, or a TOML file beside this one")
    path: str = setting("/opt/fedpara", "where the folders will lie on their machines, and the virtual environment")
    server: Server = field(default_factory=Server)
    clients: tuple[Node, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)  # keys of the recipe, as on the command line


@dataclass(frozen=True)
class ServerFacts:
    """What the server's folder knows. The public keys in its ``nodes`` folder say who the clients are."""

    role: str
    federation: str
    host: str
    port: int
    superlink_port: int
    health_port: int
    proxy: str
    metrics_port: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeFacts:
    """What a node's folder knows. Its owner may change everything but the first five."""

    role: str
    federation: str
    client: str
    host: str
    port: int
    data_dir: str = ""
    device: str = "auto"
    gpu_memory: float = 0.0
    partition: int | None = None
    partitions: int | None = None
    rank_share: float | None = None
    node_port: int = 9094  # of this node's own processes, on loopback; one each where several share a machine
    metrics_port: int = 0  # where Prometheus may ask, on loopback; 0: nowhere
    versions: Mapping[str, str] = field(default_factory=dict)


def read_plan(path: Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        ConfigError: no such file, an unknown key, a value that is not allowed, a name given twice.
    """
    if not path.is_file():
        raise ConfigError(f"no plan at {path}: give a TOML file; 'fedpara deploy init --help' shows an example")
    table = normalise(load_toml(path))
    listed = table.pop("clients", [])
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise ConfigError(f"{path}: clients is a list of tables, each beginning with [[clients]]")
    changes = table.pop("changes", {})
    if not isinstance(changes, dict):
        raise ConfigError(f"{path}: changes is a table of keys of the recipe, beginning with [changes]")
    clients = tuple(build(Node, normalise(item), f"clients[{place}].") for place, item in enumerate(listed))
    plan = build(Plan, table, "")
    _check(plan, clients, path)
    return replace(plan, clients=clients, changes=changes)


def _check(plan: Plan, clients: tuple[Node, ...], path: Path) -> None:
    if not clients:
        raise ConfigError(f"{path}: no clients: add a table [[clients]] with a name for each")
    if not plan.server.host:
        raise ConfigError(f"{path}: server.host is missing: the name or address at which the nodes reach the server")
    for name in (plan.server.host, *plan.server.addresses):
        check_host(name)
    if not _PATH.fullmatch(plan.path):
        raise ConfigError(f"path = '{plan.path}': an absolute one of letters, digits, '.', '_' and '-' is needed")
    names = [client.name for client in clients]
    for name in (plan.name, *names):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"name '{name}': up to 40 small letters, digits and dashes, for example 'north-clinic'")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: more than one client is called {', '.join(twice)}")
    places = [client.partition for client in clients if client.partition is not None]
    if len(set(places)) < len(places) or any(place >= len(clients) for place in places):
        raise ConfigError(f"{path}: partitions are {places}: each client's own, below {len(clients)}")
    ports = [plan.server.superlink_port, plan.server.health_port]
    ports += [plan.server.port] if plan.server.proxy != "none" else []
    if len(set(ports)) < len(ports):
        raise ConfigError(f"{path}: port, superlink-port and health-port must differ, given {ports}")


def check_host(name: str) -> None:
    """Raises ConfigError for what is neither a host's name nor an address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if len(name) > 253 or not _HOST.fullmatch(name):
            raise ConfigError(
                f"'{name}' is no host name and no address: give for example 'fl.example.org' or '192.0.2.10', "
                "without https:// and without a port"
            ) from None


def read_facts(folder: Path) -> ServerFacts | NodeFacts:
    """What a folder made by `fedpara deploy init` is for.

    Raises:
        ConfigError: it is no such folder, or its deploy.toml was changed into something that cannot be.
    """
    if not (folder / FACTS).is_file():
        raise ConfigError(f"{folder} holds no {FACTS}: give the server's or a client's folder of 'fedpara deploy init'")
    table = normalise(load_toml(folder / FACTS))
    versions = table.pop("versions", {})
    kinds: dict[Any, type[ServerFacts] | type[NodeFacts]] = {"server": ServerFacts, "client": NodeFacts}
    kind = kinds.get(table.get("role"))
    if kind is None:
        raise ConfigError(f"{folder / FACTS}: role = {table.get('role')!r} is neither 'server' nor 'client'")
    try:
        return replace(build(kind, table, ""), versions=versions)
    except TypeError as error:
        raise ConfigError(f"{folder / FACTS} is not complete: {error}") from None
