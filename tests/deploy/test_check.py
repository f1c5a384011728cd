"""`fedpara deploy check`: each thing that can be wrong is a line that says what to do, and no traceback."""

import datetime
import re
import socket
import ssl
import threading
import time
from email.utils import formatdate

import pytest

from client.enrolled import enrolled
from fedpara.deploy import check as checks
from fedpara.deploy.folders import init
from fedpara.deploy.keys import write_authority, write_server_certificate
from fedpara.deploy.plan import read_facts
from tests.fedpara.test_cli import call

PLAN = """
[server]
host = "localhost"
port = {port}
superlink-port = {port}
proxy = "none"
[[clients]]
name = "a"
partition = 0
"""


@pytest.fixture
def port():
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@pytest.fixture
def made(tmp_path, port):
    (tmp_path / "plan.toml").write_text(PLAN.format(port=port))
    init(tmp_path / "plan.toml", tmp_path / "out")
    return tmp_path / "out"


def lines(folder):
    return {finding.what: finding for finding in checks.check(folder, enrolled)}


def fails(folder, what, words):
    finding = lines(folder)[what]
    assert not finding.passed, finding
    assert re.search(words, finding.text), finding
    assert "\n" not in finding.text


def answering(port, certificate=None, skew=None):
    """A server on this port that answers one request and then another, with TLS where it has a certificate."""
    listener = socket.create_server(("127.0.0.1", port))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        context.load_cert_chain(certificate / "server.pem", certificate / "server.key")

    def serve():
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                near = context.wrap_socket(near, server_side=True) if certificate else near
                near.recv(4096)
                when = f"Date: {formatdate(time.time() - skew, usegmt=True)}\r\n" if skew is not None else ""
                near.sendall(f"HTTP/1.1 404 Not Found\r\n{when}Content-Length: 0\r\n\r\n".encode())
            except OSError:
                pass
            near.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.fixture
def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pointed_at(folder, port):
    file = folder / "deploy.toml"
    file.write_text(re.sub(r"(?m)^port = \d+", f"port = {port}", file.read_text()))
    return folder


def test_what_can_be_seen_without_the_server_is_in_order(made):
    found = lines(made / "client-a")
    assert [finding.what for finding in found.values() if not finding.passed] == ["server"]
    assert list(found)[-1] == "server"  # what comes after it would fail for the same reason
    assert re.search(r"\d+ examples to train on, \d+ held out", found["data"].text)
    server = lines(made / "server")
    assert [finding.what for finding in server.values() if not finding.passed] == ["SuperLink"]
    assert "localhost" in server["certificate"].text


def test_the_command_prints_each_line_and_ends_with_1(made, monkeypatch, capsys):
    code, printed, _ = call(["deploy", "check", str(made / "client-a")], monkeypatch, capsys)
    assert code == 1
    assert re.search(r"^pass +device +cpu", printed, flags=re.M)
    assert re.search(r"^FAIL +server +localhost:\d+: .*firewall", printed, flags=re.M)


def test_a_key_that_others_can_read(made):
    (made / "client-a" / "node.key").chmod(0o644)
    fails(made / "client-a", "secret key", "chmod 600")
    (made / "client-a" / "node.key").unlink()
    fails(made / "client-a", "secret key", "No such file")


def test_other_versions(made):
    file = made / "client-a" / "deploy.toml"
    file.write_text(re.sub(r'torch = ".*"', 'torch = "1.0"', file.read_text()))
    fails(made / "client-a", "versions", r"torch \S+ here, the federation has others: pip install torch==1\.0")


def test_certificates_of_another_init_for_another_name_or_out_of_date(made, tmp_path):
    server = made / "server"
    (tmp_path / "x").mkdir()
    authority = write_authority(tmp_path / "x", "another")
    write_server_certificate(tmp_path / "x", authority, ("localhost",), 100)
    (server / "server.pem").write_bytes((tmp_path / "x" / "server.pem").read_bytes())
    fails(server, "certificate", "not signed by this ca.crt")
    (server / "ca.crt").write_bytes((tmp_path / "x" / "ca.crt").read_bytes())
    assert lines(server)["certificate"].passed
    file = server / "deploy.toml"
    file.write_text(file.read_text().replace('"localhost"', '"fl.example.org"'))
    fails(server, "certificate", "nodes ask for fl.example.org: renew it")
    (server / "ca.crt").write_text("nonsense")
    fails(server, "authority", "no certificate")


@pytest.mark.parametrize(("days", "words"), [(10, "only: renew it"), (-1, "was valid until .*: renew it")])
def test_a_certificate_that_ends_soon(made, days, words, monkeypatch):
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=825 - days)

    monkeypatch.setattr(checks.datetime, "datetime", Later)
    fails(made / "server", "certificate", words)


def test_a_disk_that_is_full(made, monkeypatch):
    monkeypatch.setattr(checks, "ROOM", 10**18)
    fails(made / "client-a", "disk", "make room for")


def test_a_device_and_data_that_are_not_there(made):
    file = made / "client-a" / "deploy.toml"
    file.write_text(file.read_text().replace('"auto"', '"cuda:7"'))
    fails(made / "client-a", "device", "not on this machine")
    recipe = made / "client-a" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('dataset = "digits"', 'dataset = "folder"'))
    file.write_text(file.read_text().replace('data-dir = ""', 'data-dir = "nowhere"'))
    fails(made / "client-a", "data", "nowhere")


def test_a_port_without_tls_and_the_authority_of_others(made, tmp_path, free):
    client = pointed_at(made / "client-a", free)
    plain = answering(free)
    fails(client, "server", "does not speak TLS")
    plain.close()
    (tmp_path / "x").mkdir()
    write_server_certificate(tmp_path / "x", write_authority(tmp_path / "x", "another"), ("localhost",), 100)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other = probe.getsockname()[1]
    listener = answering(other, tmp_path / "x")
    fails(pointed_at(client, other), "server", "right machine, and this its ca.crt")
    listener.close()


@pytest.mark.parametrize(("skew", "passes"), [(0, True), (60, False), (-60, True), (-3600, False)])
def test_a_clock_that_is_off(made, free, skew, passes):
    client = pointed_at(made / "client-a", free)
    listener = answering(free, made / "server", skew)
    facts = read_facts(client)
    finding = checks._look("clock", lambda: checks._clock(client, facts))
    assert finding.passed is passes
    assert passes or "set it by NTP" in finding.text
    assert lines(client)["key"].passed is False  # what answers here is no SuperLink
    listener.close()


def test_an_unknown_name(made):
    file = made / "client-a" / "deploy.toml"
    file.write_text(file.read_text().replace('"localhost"', '"no-such-host.invalid"'))
    fails(made / "client-a", "server", "name service")


def test_a_server_without_its_test_data_is_told_where_to_set_it(made):
    recipe = made / "server" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('dataset = "digits"', 'dataset = "folder"'))
    fails(made / "server", "test data", r"folder.*data_dir in .*recipe\.toml")
