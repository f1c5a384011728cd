"""Who takes part: every node is asked for its client's name, so that a client is sampled by name in every runtime."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedpara.config import Recipe
from fedpara.errors import FederationError, FedparaError, UpdateError
from fedpara.slices import check_share
from fedpara.wire import CONFIG, RANK_SHARE, ROUND

from .grid import CodedGrid

WAIT = 300.0  # seconds that the server waits for clients to come
log = logging.getLogger("fedpara")


class Roster:
    """The clients of a federation by name, and which of them are connected. Those that come later are taken in.

    Args:
        grid: is told names and shares of the ranks.
        recipe: how many clients there are, how many a cohort has, and how many a round needs at least.
        wait: seconds to wait for them.
    """

    def __init__(self, grid: CodedGrid, recipe: Recipe, wait: float = WAIT) -> None:
        self._grid, self._recipe, self._wait = grid, recipe, wait
        self._found: dict[str, int] = {}
        self._asked: dict[int, str] = {}  # node -> message, of those that have not answered
        # The in-process runtime knows its clients, and they are always there.
        self._known: dict[str, int] | None = getattr(grid.inner, "clients", None)
        self._here: dict[str, int] = {}

    def call(self) -> dict[str, int]:
        """Ask everybody, wait for the answers: names and nodes, in an order that depends on the names alone.

        Raises:
            FederationError: fewer than a cohort answered in time, or two nodes gave one name.
        """
        if self._known is not None:
            self._grid.names = {node: name for name, node in self._known.items()}
            self._grid.shares = {name: self._recipe.rank_share(place) for place, name in enumerate(self._known)}
            self._here = {name: node for name, node in self._known.items() if self._grid.shares[name]}
            return self._here
        self._ask(self._wait_for(self._recipe.clients))
        for reply in self._grid.replies(list(self._asked.values()), self._wait):
            self._enter(reply)
        self._check_enough(self._found, "answered", self._recipe.cohort)
        return self._taking_part(self._found)

    def look(self) -> dict[str, int]:
        """Who is connected now, newcomers too once they have answered.

        Raises:
            FederationError: fewer than a round needs were connected in time.
        """
        if self._known is not None:
            return self._here
        for reply in self._grid.pulls(self._asked.values()) if self._asked else []:
            self._enter(reply)
        nodes, least = set(self._grid.get_node_ids()), self._recipe.min_replies
        if len(nodes & set(self._found.values())) < least:
            nodes = set(self._wait_for(least))
        self._asked = {node: message for node, message in self._asked.items() if node in nodes}
        self._ask(nodes - set(self._found.values()) - self._asked.keys())
        here = self._taking_part({name: node for name, node in self._found.items() if node in nodes})
        self._check_enough(here, "are connected", least)
        return here

    def _check_enough(self, found: dict[str, int], how: str, least: int) -> None:
        if len(found) < least:
            there = f"{len(found)} of {self._recipe.clients} clients {how}"
            raise FederationError(f"{there}, a round needs {least}: start the others, then resume")

    def _taking_part(self, found: dict[str, int]) -> dict[str, int]:
        return {name: found[name] for name in sorted(found) if self._grid.shares.get(name, 1.0)}

    def _ask(self, nodes: Iterable[int]) -> None:
        content = RecordDict({CONFIG: ConfigRecord({ROUND: 0})})
        asked = sorted(nodes)
        ids = self._grid.push_messages([Message(content, node, MessageType.QUERY) for node in asked])
        self._asked |= {node: found for node, found in zip(asked, ids, strict=True) if found}

    def _enter(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        self._asked.pop(node, None)
        try:
            self._grid.open(reply)
            name, share = _introduction(reply)
        except FedparaError as error:
            log.warning("node %d does not take part: %s", node, error)
            return
        if self._found.get(name, node) != node:
            raise FederationError(f"two nodes call themselves '{name}': give each its own name or partition-id")
        self._found[name] = node
        self._grid.names[node] = name
        self._grid.shares[name] = share

    def _wait_for(self, least: int) -> list[int]:
        """The nodes there are, once so many have come or the wait is over."""
        end, seen = time.monotonic() + self._wait, -1
        while len(nodes := sorted(self._grid.get_node_ids())) < least and time.monotonic() < end:
            if len(nodes) != seen:
                log.warning("%d of %d clients are connected; waiting up to %g s", len(nodes), least, self._wait)
            seen = len(nodes)
            time.sleep(0.5)
        return nodes


def _introduction(reply: Message) -> tuple[str, float]:
    """The name in an answer to the roll-call, and the share of the ranks. Raises FedparaError where they are none."""
    record = reply.content.config_records.get(CONFIG)
    if record is None or not record.get("client"):
        raise UpdateError("the answer to the roll-call carries no name")
    share = record.get(RANK_SHARE, 1.0)
    if not isinstance(share, int | float):
        raise UpdateError(f"rank share {share!r} is no number")
    if share:
        check_share(share)
    return str(record["client"]), float(share)
