"""fedpara deploy status: how far a training is, with and without a SuperLink to ask."""

import json

import pytest

import fedpara as fp
from fedpara.deploy.folders import init
from fedpara.deploy.run import SuperLink
from fedpara.deploy.status import status

PLAN = """
name = "clinics"
recipe = "digits"
[changes]
rounds = 7
[server]
host = "fl.example.org"
superlink-port = 1
[[clients]]
name = "north"
[[clients]]
name = "south"
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "clinics.toml").write_text(PLAN)
    init(tmp_path / "clinics.toml", tmp_path / "out")
    return tmp_path / "out" / "server"


def test_before_it_has_begun_and_without_a_superlink(server, monkeypatch):
    monkeypatch.setattr("fedpara.deploy.status.WAIT", 0.0)
    found = status(server)
    assert (found.done, found.rounds, found.finished, found.value, found.nodes) == (0, 7, False, None, None)
    assert found.keys == ["north", "south"]
    assert "not begun: 0 of 7 rounds" in str(found)
    assert "the SuperLink does not answer: fedpara deploy start" in str(found)


def test_while_it_runs(server, monkeypatch):
    (server / "run").mkdir()
    dropped = [{"client": "south", "reason": "no answer"}]
    rows = [{"round": n, "total": 10 * n, "accuracy": n / 10, "dropped": dropped} for n in (1, 2)]
    (server / "run" / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(SuperLink, "nodes", lambda self: [{"status": "online"}, {"status": "offline"}])
    found = status(server)
    assert (found.done, found.value, found.payload, found.dropped) == (2, 0.2, 20, dropped)
    assert found.nodes == {"registered": 2, "online": 1}
    assert "accuracy 20.00 %" in str(found)
    assert "south: no answer" in str(found)
    (server / "run" / "summary.json").write_text("{}")
    assert status(server).finished


def test_a_clients_folder_knows_nothing_of_it(server):
    with pytest.raises(fp.ConfigError, match="is a client's folder"):
        status(server.parent / "client-north")
