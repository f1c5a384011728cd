"""Who takes part: every node is asked for its client's name, so that a client is sampled by name in every runtime."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable, Mapping

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from torch import Tensor

from client.arrays import record_in
from fedpara.config import Recipe
from fedpara.errors import FederationError, FedparaError, UpdateError
from fedpara.slices import check_share
from fedpara.wire import CONFIG, FROZEN, LATE, RANK_SHARE, ROUND, SAYS, fingerprint

from .grid import CodedGrid

WAIT = 300.0  # seconds that the server waits for clients to come
log = logging.getLogger("fedpara")


class Roster:
    """The clients of a federation by name, and which of them are connected. Those that come later are taken in.

    Args:
        grid: is told names and shares of the ranks.
        recipe: how many clients there are, how many a cohort has, and how many a round needs at least.
        wait: seconds to wait for them.
        frozen: weights that are never sent: who draws others from the seed does not take part.
    """

    def __init__(
        self, grid: CodedGrid, recipe: Recipe, wait: float = WAIT, *, frozen: Mapping[str, Tensor] | None = None
    ) -> None:
        self._grid, self._recipe, self._wait = grid, recipe, wait
        self._question = {ROUND: 0} | ({FROZEN: fingerprint(frozen).hex()} if frozen else {})
        self._found: dict[str, int] = {}
        self._asked: dict[int, str] = {}  # node -> message, of those that have not answered
        # The in-process runtime knows its clients, and they are always there.
        self._known: dict[str, int] | None = getattr(grid.inner, "clients", None)
        self._here: dict[str, int] = {}
        self._began = False
        self._refused: dict[int, tuple[str, str]] = {}  # node -> the client's name, and why it does not take part

    @property
    def refused(self) -> list[dict[str, str]]:
        """Who is connected and does not take part, with the reason."""
        return [{"client": name, "reason": f"does not take part: {why}"} for name, why in self._refused.values()]

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
        self._began = True
        self._check_enough(self._found, "answered", self._recipe.cohort)
        return self._taking_part(self._found)

    def look(self) -> dict[str, int]:
        """Who is connected now, newcomers too once they have answered.

        Raises:
            FederationError: fewer than a round needs were connected in time.
        """
        if self._known is not None:
            return self._here
        nodes, least = set(self._grid.get_node_ids()), self._recipe.min_replies
        for reply in self._grid.pulls(self._asked.values()) if self._asked else []:
            self._enter(reply, nodes)
        if len(nodes & set(self._found.values())) < least:
            nodes = set(self._wait_for(least))
        self._refused = {node: refused for node, refused in self._refused.items() if node in nodes}
        self._asked = {node: message for node, message in self._asked.items() if node in nodes}
        self._ask(nodes - set(self._found.values()) - self._asked.keys())
        here = self._taking_part({name: node for name, node in self._found.items() if node in nodes})
        self._check_enough(here, "are connected", least)
        return here

    def _check_enough(self, found: dict[str, int], how: str, least: int) -> None:
        if len(found) < least:
            there = f"{len(found)} of {self._recipe.clients} clients {how}"
            why = "".join(f"; {name} does not take part: {why}" for name, why in self._refused.values())
            raise FederationError(f"{there}, a round needs {least}: start the others, then resume{why}")

    def _taking_part(self, found: dict[str, int]) -> dict[str, int]:
        return {name: found[name] for name in sorted(found) if self._grid.shares.get(name, 1.0)}

    def _ask(self, nodes: Iterable[int]) -> None:
        content = RecordDict({CONFIG: ConfigRecord(dict(self._question))})
        asked = sorted(nodes)
        ttl = self._wait + self._recipe.deadline + LATE  # who comes in the middle of a round is looked at after it
        ids = self._grid.push_messages([Message(content, node, MessageType.QUERY, ttl=ttl) for node in asked])
        self._asked |= {node: found for node, found in zip(asked, ids, strict=True) if found}

    def _enter(self, reply: Message, connected: Container[int] = ()) -> None:
        """Take in who answered the roll-call, if it can take part. ``connected``: nodes that are here now."""
        node = reply.metadata.src_node_id
        self._asked.pop(node, None)
        try:
            self._grid.open(reply)
            name, share = _introduction(reply)
            before = self._found.get(name, node)
            if before != node and before in connected:  # a node with a new key may take the place of one that is gone
                raise UpdateError(f"another node is called '{name}' already: give each its own name or partition-id")
        except FedparaError as error:
            name, why = _refusal(reply, str(error), f"node {node}")
            self._refused[node] = name, why
            log.warning("%s does not take part: %s", name, why)
            return
        if before != node and not self._began:
            raise FederationError(f"two nodes call themselves '{name}': give each its own name or partition-id")
        self._refused.pop(node, None)
        self._grid.names.pop(before, None)
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


def _refusal(reply: Message, error: str, node: str) -> tuple[str, str]:
    """The client's name, as far as it gave it, and why it does not take part."""
    if reply.has_content():
        record = record_in(reply.content, CONFIG, ConfigRecord) or {}
        return str(record.get("client") or node), error
    name, says, why = error.partition(SAYS)
    return (name, why) if says else (node, error)


def _introduction(reply: Message) -> tuple[str, float]:
    """The name in an answer to the roll-call, and the share of the ranks. Raises FedparaError where they are none."""
    record = record_in(reply.content, CONFIG, ConfigRecord)
    if record is None or not record.get("client"):
        raise UpdateError("the answer to the roll-call carries no name")
    share = record.get(RANK_SHARE, 1.0)
    if not isinstance(share, int | float):
        raise UpdateError(f"rank share {share!r} is no number")
    if share:
        check_share(share)
    return str(record["client"]), float(share)
