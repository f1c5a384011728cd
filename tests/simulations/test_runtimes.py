"""One app in three runtimes: the same recipe and seed give the same accuracy and the same payload bytes."""

import json

import pytest

import fedpara as fp
from fedpara.app import find_recipe
from fedpara.config import read_recipe
from fedpara.deploy.keys import write_authority, write_node_key, write_server_certificate
from simulations.benchmarks.loopback import free_port
from tests.conftest import PROGRAMS, Silent
from tests.flower import Flower, check_same

# Each waits longer than a minute for several things in turn.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group(PROGRAMS)]
OVERRIDES = {"rounds": 3, "clients": 2, "cohort": 2, "epochs": 1}
# What is kept on nodes between rounds: personal factors, control variates, residuals.
PERSONAL = OVERRIDES | {"strategy": "scaffold", "parametrization": "pfedpara", "gamma": 0.5, "local": ["biases"]}
PERSONAL |= {"uplink": "int4+feedback"}


@pytest.fixture
def flower(tmp_path):
    programs = Flower(tmp_path)
    yield programs
    programs.close()


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """The recipe in this process: what the other runtimes must reproduce."""
    recipe = read_recipe(find_recipe("digits"), OVERRIDES)
    return fp.simulate(recipe, folder=tmp_path_factory.mktemp("local") / "run", observer=Silent())


def run_config(folder, changes=OVERRIDES, **more):
    overrides = ", ".join(f"{key} = {json.dumps(value)}" for key, value in changes.items())
    config = {"recipe": "digits", "overrides": overrides, "folder": str(folder), **more}
    return " ".join(f"{key}='{value}'" for key, value in config.items())


def test_flwr_run_on_ray_gives_the_same(flower, in_process, tmp_path):
    port = free_port()
    database = str(tmp_path / "state.db")
    flower.start(
        "superlink",
        *("flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port), "--database", database),
    )
    (flower.home / "config.toml").write_text(f'[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    flower.wait_for_port(port, "superlink")
    nodes = "num-supernodes=2 client-resources-num-cpus=1"
    options = ("--federation-config", nodes, "--run-config", run_config(tmp_path / "run"))
    flower.run_to_the_end("test", *options)
    check_same(fp.Run(tmp_path / "run"), in_process)


def test_superlink_and_two_supernodes_over_tls_give_the_same(flower, in_process, tmp_path):
    write_server_certificate(tmp_path, write_authority(tmp_path, "test"), ("localhost", "127.0.0.1"), 2)
    port, database, ca = free_port(), str(tmp_path / "state.db"), str(tmp_path / "ca.crt")
    flower.start(
        "superlink",
        *("flower-superlink", "--ssl-ca-certfile", ca, "--ssl-certfile", str(tmp_path / "server.pem")),
        *("--ssl-keyfile", str(tmp_path / "server.key"), "--enable-supernode-auth", "--database", database),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"),
    )
    address = f'address = "127.0.0.1:{port}"\nroot-certificates = "{ca}"\n'
    (flower.home / "config.toml").write_text(f"[superlink.test]\n{address}")
    flower.wait_for_port(port, "superlink")
    for place in range(2):
        (tmp_path / f"{place}").mkdir()
        write_node_key(tmp_path / f"{place}")
        flower.flwr("supernode", "register", str(tmp_path / f"{place}" / "node.pub"), "test")
        flower.start(
            f"node{place}",
            *("flower-supernode", "--root-certificates", ca, "--superlink", f"127.0.0.1:{port}"),
            *("--auth-supernode-private-key", str(tmp_path / f"{place}" / "node.key"), "--port", str(free_port())),
            *("--node-config", f"partition-id={place} num-partitions=2"),
        )
    listed = flower.run_to_the_end("test", "--run-config", run_config(tmp_path / "run"))
    run = fp.Run(tmp_path / "run")
    check_same(run, in_process)
    # SuperLink's own count of what it moved: the ledger's messages, and a few hundred bytes of answers for each.
    traffic = listed["network-traffic"]
    assert run.ledger.total("up", "message") == pytest.approx(traffic["inbound-bytes"], rel=0.01)
    assert run.ledger.total(unit="message") == pytest.approx(traffic["total-bytes"], rel=0.01)
    check_resumed(flower, tmp_path)


def check_resumed(flower, tmp_path):
    """A second `flwr run` goes on where the first ended, and nodes find what they kept."""
    folder = tmp_path / "personal"
    flower.run_to_the_end("test", "--run-config", run_config(folder, PERSONAL | {"rounds": 2}))
    whole = PERSONAL | {"final_evaluation": True}
    flower.run_to_the_end("test", "--run-config", run_config(folder, whole, resume="yes"))
    expected = fp.simulate(read_recipe(find_recipe("digits"), whole), folder=tmp_path / "alone", observer=Silent())
    run = fp.Run(folder)
    for row, other in zip(run.rounds, expected.rounds, strict=True):
        assert (row["up"], row["down"], row["dropped"]) == (other["up"], other["down"], [])
        assert row["client_accuracy"] == pytest.approx(other["client_accuracy"], abs=0.02)
    assert [row["client"] for row in run.clients] == [row["client"] for row in expected.clients]
    assert run.ledger.by("purpose").keys() >= {"weights", "scales", "control", "seed", "evaluation"}
