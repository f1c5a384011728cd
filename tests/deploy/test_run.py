"""`fedpara deploy run` and a SuperLink that does not answer, or takes no run."""

import socket
import sys

import pytest

from fedpara.deploy import run as running
from fedpara.deploy.folders import init
from fedpara.deploy.plan import read_facts
from fedpara.deploy.run import SuperLink
from fedpara.errors import FederationError
from simulations.benchmarks.loopback import free_port


@pytest.fixture
def link(tmp_path, monkeypatch):
    """Of a server's folder; a port is open, and Flower's command line is whatever a test writes."""
    port = free_port()
    plan = f'[server]\nhost = "localhost"\nport = {port}\nsuperlink-port = {port}\nproxy = "none"\n'
    (tmp_path / "plan.toml").write_text(plan + '[[clients]]\nname = "a"\n')
    init(tmp_path / "plan.toml", tmp_path / "out")
    folder = tmp_path / "out" / "server"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(running, "ASK", 0.1)
    with socket.create_server(("127.0.0.1", port)):
        yield SuperLink(folder, read_facts(folder), 1)


def says(tmp_path, script):
    (tmp_path / "flwr").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "flwr").chmod(0o755)


def test_a_superlink_that_does_not_answer_is_waited_for_and_no_traceback(link, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "HANGS", 0.5)
    says(tmp_path, "exec sleep 60")
    assert link._status("7") == "unknown"
    with pytest.raises(
        FederationError, match=r"'flwr supernode list' failed: no answer from the SuperLink within 0\.5 s"
    ):
        link.nodes()
    assert "did not take the run: no answer from the SuperLink" in link.follow(None)


def test_training_that_is_not_taken_ends_after_some_tries_with_the_reason(link, tmp_path):
    says(tmp_path, "echo the disk is full; exit 1")
    with pytest.raises(FederationError, match=r"could not be registered: the disk is full"):
        running.run(link.folder, wait=1)
    says(tmp_path, "[ $1 = supernode ] && exit 0; echo the disk is full; exit 1")
    with pytest.raises(FederationError, match=r"ended 5 times .*did not take the run: the disk is full"):
        running.run(link.folder, wait=1)


def test_a_superlink_that_ends_while_a_key_is_registered_is_waited_for(link, tmp_path):
    says(
        tmp_path,
        f"test -e {tmp_path}/there && exit 0; touch {tmp_path}/there; echo the SuperLink is unavailable; exit 1",
    )
    SuperLink(link.folder, link.facts, 60).connect()
    says(tmp_path, "echo the SuperLink is unavailable; exit 1")
    fresh = SuperLink(link.folder, link.facts, 0)
    with pytest.raises(FederationError, match="unavailable"):
        fresh.connect()


def test_a_key_that_comes_later_is_registered_once_while_the_training_goes_on(link, tmp_path, caplog):
    asked = tmp_path / "asked"
    says(tmp_path, f'echo "$3" >> {asked}')
    link.connect()
    link.connect()
    (link.folder / "nodes" / "b.pub").write_text("another")
    link._welcome()
    link._welcome()
    assert [line.rpartition("/")[2] for line in asked.read_text().split()] == ["a.pub", "b.pub"]
    says(tmp_path, "echo no room; exit 1")
    (link.folder / "nodes" / "c.pub").write_text("a third")
    link._welcome()
    assert "the key of 'c' could not be registered: no room" in caplog.text
