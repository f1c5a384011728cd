"""What can be wrong on a machine of a deployment, looked for before it costs a night: a line each, with what to do."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from ..config import Recipe, read_recipe
from ..device import find_device
from ..errors import FedparaError
from ..task import build_task
from .folders import versions
from .plan import NodeFacts, ServerFacts, read_facts
from .start import address

Checks = dict[str, Callable[[], str]]
Enrolled = Callable[[str, Path, Path], bool]

ROOM = 2 * 10**9  # bytes: checkpoints, what nodes keep, logs
SOON = datetime.timedelta(days=30)
WAIT = 5.0  # seconds for an answer
GATES = ("SuperLink", "server", "proxy")
AHEAD, BEHIND = 4.0, 240.0  # seconds that a node's clock may differ: Flower refuses signatures from 5 s in the future


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is in order, and what was found, or what to do."""

    what: str
    passed: bool
    text: str


class Trouble(Exception):
    """What a check found wrong, and the remedy."""


def check(folder: Path, enrolled: Enrolled) -> Iterator[Finding]:
    """Every check that makes sense on this machine, one after the other. Raises ConfigError for another folder.

    Args:
        folder: the server's or a client's.
        enrolled: asks the server at an address, by an authority's certificate, whether it knows a private key.
    """
    folder = folder.resolve()
    facts = read_facts(folder)
    if isinstance(facts, ServerFacts):
        own = _server_checks(folder, facts)
    else:
        own = _client_checks(folder, facts) | {"key": partial(_enrolled, folder, facts, enrolled)}
    for what, look in {**_common_checks(folder, facts), **own}.items():
        finding = _look(what, look)
        yield finding
        if what in GATES and not finding.passed:  # what comes after it would fail for the same reason
            return


def _look(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except (Trouble, FedparaError) as error:
        return Finding(what, False, " ".join(str(error).split()))
    except OSError as error:
        return Finding(what, False, f"{error.strerror or error}")


def _common_checks(folder: Path, facts: ServerFacts | NodeFacts) -> Checks:
    secret = "server.key" if isinstance(facts, ServerFacts) else "node.key"
    return {
        "versions": partial(_versions, facts),
        "secret key": partial(_secret, folder / secret),
        "authority": partial(_valid, folder / "ca.crt"),
        "disk": partial(_disk, folder),
    }


def _server_checks(folder: Path, facts: ServerFacts) -> Checks:
    checks: Checks = {
        "certificate": partial(_certificate, folder, facts),
        "test data": partial(_test_data, folder),
        "SuperLink": partial(_superlink, folder, facts),
        "health": partial(_health, facts),
        "nodes": partial(_nodes, folder, facts),
    }
    if facts.proxy != "none":
        checks |= {"proxy": partial(_reach, folder, facts), "fence": partial(_fence, folder, facts)}
    return checks


def _client_checks(folder: Path, facts: NodeFacts) -> Checks:
    return {
        "device": partial(_device, facts.device),
        "data": partial(_data, folder, facts),
        "server": partial(_reach, folder, facts),
        "clock": partial(_clock, folder, facts),
    }


def _versions(facts: ServerFacts | NodeFacts) -> str:
    here = versions()
    other = {name: wanted for name, wanted in facts.versions.items() if here.get(name) != wanted}
    if other:
        found = ", ".join(f"{name} {here.get(name)}" for name in other)
        wanted = " ".join(f"{name}=={version}" for name, version in other.items())
        raise Trouble(f"{found} here, the federation has others: pip install {wanted}")
    return ", ".join(f"{name} {version}" for name, version in here.items())


def _secret(file: Path) -> str:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        raise Trouble(f"{file.name} has mode {mode:04o}, so that others on this machine can read it: chmod 600 {file}")
    with file.open("rb"):
        return f"{file.name} is readable by its owner alone"


def _valid(file: Path) -> str:
    certificate = _load(file)
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if left < datetime.timedelta(0):
        raise Trouble(f"{file.name} was valid until {until}: renew it, see the README in the folder 'authority'")
    if left < SOON:
        raise Trouble(f"{file.name} is valid until {until} only: renew it, see the README in the folder 'authority'")
    return f"{file.name} is valid until {until}"


def _load(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError:
        raise Trouble(f"{file.name} is no certificate: bring the one that init wrote") from None


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        raise Trouble(f"{free / 1e9:.1f} GB are free at {folder}: make room for {ROOM / 1e9:g} GB at least")
    return f"{free / 1e9:.0f} GB free"


def _certificate(folder: Path, facts: ServerFacts) -> str:
    own, authority = _load(folder / "server.pem"), _load(folder / "ca.crt")
    try:
        own.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        raise Trouble("server.pem was not signed by this ca.crt: bring both from the same init") from None
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [str(name.value) for name in names]
    if facts.host not in hosts:
        raise Trouble(f"server.pem is for {', '.join(hosts)}, and nodes ask for {facts.host}: renew it with that name")
    return f"{_valid(folder / 'server.pem')}, for {', '.join(hosts)}"


def _recipe(folder: Path) -> Recipe:
    return read_recipe(folder / "recipe.toml")


def _test_data(folder: Path) -> str:
    try:
        data = build_task(_recipe(folder)).server_data()
    except FedparaError as error:
        raise Trouble(f"{error}: data_dir in {folder / 'recipe.toml'} says where the server's own are") from None
    return "the recipe has none: only clients judge the model" if data is None else f"{len(data)} examples"


def _superlink(folder: Path, facts: ServerFacts) -> str:
    _handshake(folder, "127.0.0.1", facts.superlink_port, "start it with fedpara deploy start")
    for outside in _own_addresses():
        with contextlib.suppress(OSError), socket.create_connection((outside, facts.superlink_port), 1):
            raise Trouble(
                f"the SuperLink answers at {outside}:{facts.superlink_port} too, where anybody can submit code: "
                "it must listen on loopback only"
            )
    return f"answers on 127.0.0.1:{facts.superlink_port}, and there alone"


def _own_addresses() -> set[str]:
    """This machine's addresses but loopback."""
    with contextlib.suppress(OSError):
        found = {str(item[4][0]) for item in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        return {item for item in found if not item.startswith("127.")}
    return set()


def _health(facts: ServerFacts) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{facts.health_port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT)
        except grpc.RpcError as error:
            raise Trouble(
                f"no answer on 127.0.0.1:{facts.health_port} ({error.code().name}): start the SuperLink again"
            ) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Trouble("the SuperLink says that it is not serving: look at its log")
    return "serving"


def _nodes(folder: Path, facts: ServerFacts) -> str:
    from .run import SuperLink

    keys = sorted(path.stem for path in (folder / "nodes").glob("*.pub"))
    if not keys:
        raise Trouble("no key in the folder 'nodes': bring each client's node.pub there as NAME.pub")
    listed = SuperLink(folder, facts, WAIT).nodes()
    online = sum(node["status"] == "online" for node in listed)
    return f"{len(keys)} keys, {len(listed)} registered (fedpara deploy run registers the rest), {online} online"


def _fence(folder: Path, facts: ServerFacts) -> str:
    """From the proxy's port only the Fleet API may be reached."""
    for path in ("/v1/control/list-runs", "/v1/runtime/get-nodes", "/v1/fleet/register-node", "/"):
        status, _ = _post(folder, facts.host, facts.port, path)
        if status not in (403, 404):
            raise Trouble(f"{facts.host}:{facts.port}{path} answers {status}: the proxy must refuse it, see nginx.conf")
    return f"port {facts.port} lets the Fleet API through, and nothing else"


def _device(name: str) -> str:
    device = find_device(name)
    if device.type != "cuda":
        return f"{device}" + ("" if name != "auto" else " (no GPU is visible)")
    free, total = torch.cuda.mem_get_info(device)
    return f"{device}: {torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _data(folder: Path, facts: NodeFacts) -> str:
    recipe = _recipe(folder)
    task = build_task(recipe, data_dir=str((folder / facts.data_dir).expanduser()) if facts.data_dir else "")
    name = facts.client
    if facts.partition is not None:
        name = task.population(recipe.clients)[facts.partition]
    data = task.client_data(name, recipe.clients)
    held = 0 if data.held_out is None else len(data.held_out)
    if len(data.train) == 0:
        raise Trouble("no training examples: set data-dir in deploy.toml")
    return f"{len(data.train)} examples to train on, {held} held out"


def _reach(folder: Path, facts: ServerFacts | NodeFacts) -> str:
    remedy = "is the server running, and does a firewall let this port through?"
    until = _handshake(folder, facts.host, facts.port, remedy)
    return f"{address(facts.host, facts.port)} answers, its certificate is for that name and valid until {until}"


def _handshake(folder: Path, host: str, port: int, remedy: str) -> str:
    """TLS with the federation's authority; until when the certificate is valid."""
    try:
        with (
            socket.create_connection((host, port), WAIT) as plain,
            _tls(folder).wrap_socket(plain, server_hostname=host) as secure,
        ):
            found = secure.getpeercert() or {}
            return f"{datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found['notAfter']))):%Y-%m-%d}"
    except ssl.SSLCertVerificationError as error:
        where = address(host, port)
        raise Trouble(f"{where}: {error.verify_message}: is it the right machine, and this its ca.crt?") from None
    except ssl.SSLError as error:
        raise Trouble(f"{address(host, port)} does not speak TLS ({error.reason}): is it the right port?") from None
    except socket.gaierror:
        raise Trouble(f"the name {host} is not known here: look at this machine's name service") from None
    except OSError as error:
        raise Trouble(f"{address(host, port)}: {error.strerror or 'no answer'}: {remedy}") from None


def _tls(folder: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(folder / "ca.crt"))
    except ssl.SSLError:
        raise Trouble("ca.crt is no certificate: bring the one that init wrote") from None


def _post(folder: Path, host: str, port: int, path: str) -> tuple[int, http.client.HTTPMessage]:
    connection = http.client.HTTPSConnection(host, port, context=_tls(folder), timeout=WAIT)
    try:
        connection.request("POST", path, headers={"Content-Length": "0"})
        answer = connection.getresponse()
        return answer.status, answer.headers
    except (OSError, http.client.HTTPException) as error:
        raise Trouble(f"{address(host, port)}: {error}") from None
    finally:
        connection.close()


def _clock(folder: Path, facts: NodeFacts) -> str:
    _, headers = _post(folder, facts.host, facts.port, "/v1/fleet/get-run")
    if not headers["Date"]:
        raise Trouble(f"{facts.host} does not say what time it is: set this machine's clock by NTP to be sure")
    skew = time.time() - email.utils.parsedate_to_datetime(headers["Date"]).timestamp()
    if not -BEHIND < skew < AHEAD:
        raise Trouble(f"this machine's clock is {skew:+.0f} s off the server's, which then refuses it: set it by NTP")
    return f"{skew:+.0f} s off the server's"


def _enrolled(folder: Path, facts: NodeFacts, enrolled: Enrolled) -> str:
    if not enrolled(address(facts.host, facts.port), folder / "ca.crt", folder / "node.key"):
        raise Trouble(
            f"the server does not know this key: its owner puts node.pub there as nodes/{facts.client}.pub, "
            "and fedpara deploy run registers it, also while it runs"
        )
    return "the server knows it"
