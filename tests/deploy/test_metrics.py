"""What Prometheus is told: the ledger's figures of the server, and what each node did; nothing that a client holds."""

import json
import urllib.request

import pytest
from flwr.app import Context, RecordDict
from prometheus_client.parser import text_string_to_metric_families

import fedpara as fp
from fedpara.config import read_recipe
from fedpara.deploy.folders import init
from fedpara.deploy.metrics import NodeMetrics, ServerMetrics, kind_of, serve
from fedpara.deploy.plan import read_facts
from fedpara.errors import ConfigError
from simulations.benchmarks.loopback import free_port
from simulations.local import LocalGrid, local_grid
from tests.conftest import SMALL, Silent

RECIPE = read_recipe(SMALL, {"rounds": 2, "uplink": "int4+entropy"})


def scraped(collector):
    port = free_port()
    serve(port, collector)
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_servers_figures_are_the_runs(tmp_path):
    run = fp.simulate(RECIPE, folder=tmp_path / "run", observer=Silent())
    found = scraped(ServerMetrics(tmp_path))
    assert found["fedpara_round",] == 2
    assert found["fedpara_replies",] == found["fedpara_cohort",] == 2
    assert found["fedpara_measure", "accuracy"] == run.rounds[-1]["accuracy"]
    for way in ("up", "down"):
        assert found["fedpara_payload_bytes_total", way] == run.ledger.total(way)
        assert found["fedpara_message_bytes_total", way] == pytest.approx(run.ledger.total(way, "message"), rel=0.2)
    phases = {key[1] for key in found if key[0] == "fedpara_round_seconds_total"}
    assert phases >= {"send", "decode", "train", "encode", "wait", "aggregate", "evaluate"}


def test_a_run_that_has_not_begun_has_no_figures_yet(tmp_path):
    assert scraped(ServerMetrics(tmp_path))["fedpara_round",] == 0
    assert scraped(NodeMetrics(tmp_path))["fedpara_node_round",] == 0


def test_a_port_that_is_taken_is_a_config_error(tmp_path):
    port = free_port()
    serve(port, NodeMetrics(tmp_path))
    with pytest.raises(ConfigError, match=rf"metrics-port = {port}: .*set another one"):
        serve(port, NodeMetrics(tmp_path))


class Logging(LocalGrid):
    """A LocalGrid whose nodes keep a log as those of a deployment do."""

    folder = None

    def _context(self, node):
        log = str(self.folder / f"{node}" / "state" / "messages.jsonl")
        return Context(1, node, super()._context(node).node_config | {"log": log}, RecordDict(), {})


def test_a_nodes_figures_are_what_it_moved_and_its_log_has_no_values(tmp_path):
    from server.federation import Federation

    with local_grid(RECIPE, tmp_path / "clients") as grid:
        grid.__class__, grid.folder = Logging, tmp_path
        run = Federation(grid, RECIPE, tmp_path / "run", Silent()).run()
        names = {node: name for name, node in grid.clients.items()}
    moved = run.ledger.by("client", "direction")
    for node, name in names.items():
        folder = tmp_path / str(node)
        if (name, "up") not in moved:
            continue
        found = scraped(NodeMetrics(folder))
        assert found["fedpara_node_payload_bytes_total", "up"] == moved[name, "up"]
        assert found["fedpara_node_payload_bytes_total", "down"] == moved[name, "down"]
        assert found["fedpara_node_messages_total", "train"] > 0
        for line in (folder / "state" / "messages.jsonl").read_text().splitlines():
            assert json.loads(line).keys() <= {"time", "kind", "round", "seconds", "down", "up", "error"}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("no answer within 30 s", "no answer"),
        ("not waited for: 16 others were faster", "not needed"),
        ("its change has 34 times the cohort's median norm", "stands out"),
        ("RuntimeError: something of the client's own", "error"),
    ],
)
def test_reasons_have_few_names(reason, kind):
    assert kind_of(reason) == kind


def test_ports_are_each_machines_own_and_the_dashboard_asks_for_what_there_is(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('[server]\nhost = "h"\nmetrics-port = 9400\n[[clients]]\nname = "a"\n[[clients]]\nname = "b"\n')
    init(plan, tmp_path / "out")
    facts = [read_facts(tmp_path / "out" / name) for name in ("server", "client-a", "client-b")]
    assert [own.metrics_port for own in facts] == [9400, 9401, 9402]
    dashboard = json.loads((tmp_path / "out" / "server" / "grafana.json").read_text())
    fp.simulate(RECIPE, folder=tmp_path / "run", observer=Silent())
    known = {key[0] for key in (*scraped(ServerMetrics(tmp_path)), *scraped(NodeMetrics(tmp_path)))}
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    # Series without a sample yet (drops, errors) are declared all the same.
    known |= {"fedpara_drops_total"}
    assert all(any(name in expression for name in known) for expression in asked)
