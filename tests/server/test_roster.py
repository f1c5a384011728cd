"""The roll-call: clients by the names they give, those that come later too, and a clear end where none come."""

import pytest
from flwr.app import Context, RecordDict

from fedpara.config import read_recipe
from fedpara.errors import FederationError
from server.federation import Federation
from server.grid import CodedGrid
from server.roster import Roster
from simulations.local import LocalGrid, local_grid
from tests.conftest import SMALL, Silent

RECIPE = read_recipe(SMALL, {"rounds": 4, "cohort": 2})


class Remote(LocalGrid):
    """A LocalGrid whose clients have to be asked who they are, and of which only some are connected."""

    def __init__(self, inner):
        self.__dict__.update(inner.__dict__)
        self.nodes = list(self.__dict__.pop("clients").values())
        self.connected = list(self.nodes)

    def _context(self, node):
        config = {**self._node_config, "partition-id": self.nodes.index(node), "num-partitions": len(self.nodes)}
        return Context(1, node, config, self._states.get(node, RecordDict()), {})

    def get_node_ids(self):
        return list(self.connected)


@pytest.fixture
def remote(tmp_path):
    with local_grid(RECIPE, tmp_path / "clients") as grid:
        yield Remote(grid)


def coded(remote, recipe=RECIPE):
    return CodedGrid(remote, recipe, {})


def test_names_are_in_order_whatever_the_nodes_are(remote):
    remote.connected.reverse()
    roster = Roster(coded(remote), RECIPE, wait=1)
    assert list(roster.call()) == [f"client-000{place}" for place in range(4)]
    assert list(roster.call().values()) == sorted(remote.nodes)


def test_too_few_for_a_cohort_end_with_what_to_do(remote):
    remote.connected = remote.nodes[:1]
    with pytest.raises(FederationError, match="1 of 4 clients answered, a round needs 2: start the others"):
        Roster(coded(remote), RECIPE, wait=0.1).call()


def test_who_leaves_is_not_asked_and_who_comes_is_taken_in(remote):
    remote.connected = remote.nodes[:3]
    roster = Roster(coded(remote), RECIPE, wait=0.1)
    assert len(roster.call()) == 3
    remote.connected = remote.nodes[1:]
    assert list(roster.look()) == ["client-0001", "client-0002"]  # the newcomer is asked now
    assert list(roster.look()) == ["client-0001", "client-0002", "client-0003"]
    remote.connected = list(remote.nodes)
    assert len(roster.look()) == 4
    remote.connected = []
    with pytest.raises(FederationError, match="0 of 4 clients are connected, a round needs 1"):
        roster.look()


def test_two_clients_of_one_name_are_refused(remote, monkeypatch):
    monkeypatch.setattr("client.app.client_name", lambda runtime, context: "north")
    with pytest.raises(FederationError, match="two nodes call themselves 'north'"):
        Roster(coded(remote), RECIPE, wait=1).call()


def test_a_newcomer_with_a_name_that_is_taken_is_refused_and_the_others_go_on(remote, monkeypatch):
    names = dict(zip(remote.nodes, ["north", "south", "west", "north"], strict=True))
    monkeypatch.setattr("client.app.client_name", lambda runtime, context: names[remote.nodes[place(context)]])
    remote.connected = remote.nodes[:3]
    roster = Roster(coded(remote), RECIPE, wait=1)
    assert list(roster.call()) == ["north", "south", "west"]
    remote.connected = list(remote.nodes)
    roster.look()
    assert roster.look()["north"] == remote.nodes[0]
    assert [(one["client"], "already: give each its own" in one["reason"]) for one in roster.refused] == [
        ("north", True)
    ]
    remote.connected = remote.nodes[1:]  # with a new key, the client has a new node: the old one is gone
    roster.look()
    assert roster.look()["north"] == remote.nodes[3]
    assert roster.refused == []


def place(context):
    return context.node_config["partition-id"]


def test_who_cannot_take_part_is_named_with_its_reason(remote, monkeypatch, tmp_path):
    broken = remote.nodes[0]
    whole = remote._context

    def context(node):
        made = whole(node)
        if node == broken:
            made.node_config |= {"client": "north", "device": "cuda:77"}
        return made

    monkeypatch.setattr(remote, "_context", context)
    run = Federation(remote, RECIPE, tmp_path / "run", Silent()).run()
    assert all(row["replies"] == 2 for row in run.rounds)
    for row in run.rounds:
        (refused,) = row["dropped"]
        assert refused["client"] == "north"
        assert "does not take part: " in refused["reason"]
        assert "cuda:77" in refused["reason"]
    remote.connected = [broken]
    with pytest.raises(FederationError, match=r"0 of 4 clients answered.*; north does not take part: .*cuda:77"):
        Roster(coded(remote), RECIPE, wait=0.1).call()


def test_a_client_of_another_version_is_left_out(remote, monkeypatch):
    monkeypatch.setattr("server.grid.code_hash", lambda: "00000000")
    with pytest.raises(FederationError, match="0 of 4 clients answered"):
        Roster(coded(remote), RECIPE, wait=1).call()


def test_a_federation_goes_on_with_who_is_there(remote, tmp_path):
    class Leaving(Silent):
        def finished_round(self, row):
            super().finished_round(row)
            remote.connected = remote.nodes[:3] if row["round"] == 1 else list(remote.nodes)

    run = Federation(remote, RECIPE, tmp_path / "run", Leaving()).run()
    assert all(row["replies"] == 2 and not row["dropped"] for row in run.rounds)
    assert "client-0003" not in run.rounds[1]["cohort"]
