"""A server and three clients over TLS and with keys: as accurate and as cheap as in process, and hard to kill."""

import json
import re
import shutil

import pytest

import fedpara as fp
from fedpara.config import read_recipe
from simulations.benchmarks.loopback import NAMES
from tests.conftest import Silent
from tests.flower import check_same

# Each waits longer than a minute for several things in turn.
pytestmark = [pytest.mark.slow, pytest.mark.deploy, pytest.mark.timeout(1800)]


def in_process(deployment, folder):
    return fp.simulate(read_recipe(deployment.server / "recipe.toml"), folder=folder, observer=Silent())


def test_a_deployment_trains_as_in_process_and_its_checks_say_what_is_wrong(deploy, tmp_path):
    deployment = deploy(rounds=3)
    expected = in_process(deployment, tmp_path / "alone")
    failed = deployment.fedpara("deploy", "check", str(deployment.server), code=1)
    assert re.search(r"FAIL +SuperLink .*start it with fedpara deploy start", failed)
    assert re.search(r"FAIL +server ", deployment.fedpara("deploy", "check", str(deployment.client("north")), code=1))
    deployment.start_all()
    shown = deployment.fedpara("deploy", "run", str(deployment.server), timeout=400)
    assert "this run" in shown
    run = fp.Run(deployment.server / "run")
    check_same(run, expected)
    phases = run.rounds[1]["phases"]
    assert list(phases) == ["send", "start", "decode", "train", "encode", "wait", "checkpoint", "aggregate", "evaluate"]
    assert phases["start"] > 0
    assert all(deployment.descendants(name, "client.executor") for name in NAMES)  # what ClientApps are forked from
    check_traffic(deployment, run)
    for folder in (deployment.server, *map(deployment.client, NAMES)):
        assert "FAIL" not in deployment.fedpara("deploy", "check", str(folder))
    stranger = deployment.client("north") / "node.key"
    stranger.write_bytes((deployment.client("south") / "node.key").read_bytes().replace(b"OPENSSH", b"OPENSSL"))
    assert "no private key" in deployment.fedpara("deploy", "check", str(deployment.client("north")), code=1)
    again = deployment.fedpara("deploy", "run", str(deployment.server))  # a finished run is shown, not repeated
    assert "this run" in again
    assert [deployment.stop(name) for name in (*NAMES, "server")] == [0, 0, 0, 0]


def check_traffic(deployment, run):
    """SuperLink's own count of what it moved agrees with the ledger."""
    from fedpara.deploy.plan import read_facts
    from fedpara.deploy.run import CONNECTION, SuperLink

    link = SuperLink(deployment.server, read_facts(deployment.server), 10)
    listed = json.loads(link.flwr("list", CONNECTION, "--format", "json").stdout)["runs"]
    assert len(listed) == 1
    assert run.ledger.total(unit="message") == pytest.approx(listed[0]["network-traffic"]["total-bytes"], rel=0.01)


def test_killed_programs_are_started_again_and_the_training_goes_on(deploy, tmp_path):
    deployment = deploy(rounds=5, deadline=120)
    expected = in_process(deployment, tmp_path / "alone")
    deployment.start_all()
    deployment.start_training()
    deployment.wait_for_round(1, 240)
    assert deployment.kill("server", "serverapp")
    deployment.wait_for_round(2, 240)
    assert deployment.kill("server", "flower-superlink")
    deployment.processes.pop("server").wait(30)
    deployment.start_server()  # as its unit does
    code = deployment.processes["run"].wait(500)
    assert code == 0, deployment.log("run")
    assert "going on" in deployment.log("run")
    run = fp.Run(deployment.server / "run")
    assert [row["round"] for row in run.rounds] == [1, 2, 3, 4, 5]
    assert run.rounds[-1]["accuracy"] == pytest.approx(expected.rounds[-1]["accuracy"], abs=1e-3)
    assert run.ledger.total() == expected.ledger.total()


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not on this machine")
def test_behind_the_proxy_nodes_reach_the_fleet_api_and_nothing_else(deploy):
    deployment = deploy("nginx", rounds=1)
    deployment.start_all()
    deployment.start_proxy()
    deployment.fedpara("deploy", "run", str(deployment.server), timeout=400)
    assert fp.Run(deployment.server / "run").rounds[0]["replies"] == 3
    shown = deployment.fedpara("deploy", "check", str(deployment.server))
    assert re.search(r"pass +fence .*lets the Fleet API through, and nothing else", shown)
    assert deployment.stop("proxy") == 0
    conf = deployment.server / "nginx.conf"
    conf.write_text(conf.read_text().replace("location /v1/fleet/ {", "location /v1/ {"))
    deployment.start_proxy()
    failed = deployment.fedpara("deploy", "check", str(deployment.server), code=1)
    assert re.search(r"FAIL +fence .*/v1/control/list-runs answers", failed)
