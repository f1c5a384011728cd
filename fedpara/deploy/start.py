"""The Flower programs of a folder, their command lines and environment: the same by hand, in a unit, in a container."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .plan import NodeFacts, ServerFacts, read_facts
from .supervise import Supervisor

EXECUTOR = 'from fedpara.app import load; load("client.executor").main()'


def command(folder: Path) -> list[str]:
    """The command line of a folder's SuperLink or SuperNode. Raises ConfigError where the folder is neither's."""
    return _command(folder, read_facts(folder))


def environment(folder: Path) -> dict[str, str]:
    """This process's environment with what Flower's programs need: a home in the folder, nothing fetched or told."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",  # seconds, 1 otherwise, before a message's process starts
        "OMP_WAIT_POLICY": "PASSIVE",  # several programs share the cores, see fedpara.cli
        **os.environ,
        "PATH": programs,
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def start(folder: Path, tell: Callable[[str], None]) -> int:
    """Run the folder's SuperLink or SuperNode until this process is asked to end; the exit code.

    From an empty folder: Flower's programs import from where they are started. A SuperNode that ends is started again:
    it ends where its key is not registered yet, and where the server still believes that its predecessor lives.

    Args:
        folder: made by `fedpara deploy init`.
        tell: shown a line for each restart.
    """
    folder = folder.resolve()
    facts = read_facts(folder)
    program, *arguments = _command(folder, facts)
    found = Path(sys.executable).parent / program
    if not found.is_file():
        raise ConfigError(f"{program} is not beside {sys.executable}: install flwr in the same environment as fedpara")
    line = [sys.executable, "-m", "fedpara.deploy.program", str(os.getpid()), str(found), *arguments]
    empty, env = prepare(folder), environment(folder)
    with only_one(folder, "start"):
        if isinstance(facts, NodeFacts):
            own = folder / "work" / "bin"
            install_executor(own)
            env["PATH"] = f"{own}{os.pathsep}{env['PATH']}"
        supervisor = Supervisor(line, empty, env)
        if isinstance(facts, ServerFacts):  # a port that is taken stays so: whoever started it decides
            return supervisor.once()
        if facts.metrics_port:
            from .metrics import NodeMetrics, serve

            serve(facts.metrics_port, NodeMetrics(folder))
        return supervisor.forever(
            lambda code, pause: tell(
                f"the SuperNode ended with exit code {code}: either its key is not registered yet, or the server still "
                f"holds its predecessor, or cannot be reached (fedpara deploy check says which); again in {pause:g} s"
            )
        )


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder's lock, which ends with this process however it ends.

    Raises:
        ConfigError: another process holds it.
    """
    with (folder / "work" / f"{what}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"'fedpara deploy {what}' runs for {folder} already, as process {lock.read().strip() or 'unknown'}: "
                "stop that one first"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def install_executor(folder: Path) -> None:
    """Write a ``flower-superexec`` that forks ClientApps into a folder, for the front of a SuperNode's PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "flower-superexec"
    script.write_text(f"""#!/bin/sh\nexec "{sys.executable}" -c '{EXECUTOR}' "$@"\n""")
    script.chmod(0o700)


def prepare(folder: Path) -> Path:
    """The folder's empty place to start programs from, and Flower's home beside it."""
    for name in ("work/empty", "flwr", "state"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder / "work" / "empty"


def _command(folder: Path, facts: ServerFacts | NodeFacts) -> list[str]:
    return _superlink(folder, facts) if isinstance(facts, ServerFacts) else _supernode(folder, facts)


def _superlink(folder: Path, facts: ServerFacts) -> list[str]:
    return [
        "flower-superlink",
        *("--ssl-ca-certfile", str(folder / "ca.crt")),
        *("--ssl-certfile", str(folder / "server.pem"), "--ssl-keyfile", str(folder / "server.key")),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--host", "127.0.0.1", "--port", str(facts.superlink_port)),
        *("--health-server-address", f"127.0.0.1:{facts.health_port}"),
        *("--database", str(folder / "state" / "superlink.db")),
    ]


def _supernode(folder: Path, facts: NodeFacts) -> list[str]:
    return [
        "flower-supernode",
        *("--root-certificates", str(folder / "ca.crt")),
        *("--superlink", address(facts.host, facts.port)),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--host", "127.0.0.1", "--port", str(facts.node_port)),
        *("--node-config", node_config(folder, facts)),
    ]


def node_config(folder: Path, facts: NodeFacts) -> str:
    """What the node's own processes learn: Flower's list of key=value."""
    values: dict[str, str | int | float] = {"device": facts.device, "state-dir": str(folder / "state")}
    values["own-process"] = 1  # for every message: one that hangs may be ended
    values["log"] = str(folder / "state" / "messages.jsonl")
    if facts.data_dir:
        values["data-dir"] = str((folder / facts.data_dir).expanduser())  # an absolute one stays what it is
    if facts.gpu_memory:
        values["gpu-memory"] = facts.gpu_memory
    if facts.rank_share is not None:
        values["rank-share"] = facts.rank_share
    if facts.partition is None:
        values["client"] = facts.client
    else:
        values |= {"partition-id": facts.partition, "num-partitions": facts.partitions or facts.partition + 1}
    for key, value in values.items():
        if isinstance(value, str) and ('"' in value or "'" in value or "\n" in value):
            raise ConfigError(f"{key} = {value!r}: Flower's node config takes no quotation marks")
    return " ".join(f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in values.items())


def address(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
