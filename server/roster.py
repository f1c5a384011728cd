"""Who takes part: asks every node for its client's name, so that a client is sampled by name in every runtime."""

from __future__ import annotations

import logging
import time

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedpara.errors import FederationError, FedparaError, UpdateError
from fedpara.slices import check_share
from fedpara.wire import CONFIG, RANK_SHARE, ROUND

from .grid import CodedGrid

WAIT = 300.0  # seconds that the server waits for clients to come
log = logging.getLogger("fedpara")


def call_the_roll(grid: CodedGrid, clients: int, cohort: int, wait: float = WAIT) -> dict[str, int]:
    """Names of the clients that are there, and their nodes, in an order that depends on the names alone.

    Raises:
        FederationError: fewer than a cohort answered in time, or two nodes gave one name.
    """
    known = getattr(grid.inner, "clients", None)  # the in-process runtime knows its clients
    if known is not None:
        grid.names = {node: name for name, node in known.items()}
        grid.shares = {name: grid.recipe.rank_share(place) for place, name in enumerate(known)}
        return {name: node for name, node in known.items() if grid.shares[name]}
    nodes = _wait_for_nodes(grid, clients, wait)
    content = RecordDict({CONFIG: ConfigRecord({ROUND: 0})})
    ids = grid.push_messages([Message(content, node, MessageType.QUERY) for node in nodes])
    found: dict[str, int] = {}
    for reply in grid.replies([message_id for message_id in ids if message_id], wait):
        try:
            grid.open(reply)
            name, share = _introduction(reply)
        except FedparaError as error:
            log.warning("node %d does not take part: %s", reply.metadata.src_node_id, error)
            continue
        if name in found:
            raise FederationError(f"two nodes call themselves '{name}': give each its own name or partition-id")
        found[name] = reply.metadata.src_node_id
        grid.shares[name] = float(share)
    if len(found) < cohort:
        raise FederationError(f"{len(found)} of {clients} clients answered, a round needs {cohort}: start the others")
    grid.names = {node: name for name, node in found.items()}
    return {name: node for name, node in sorted(found.items()) if grid.shares[name]}


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


def _wait_for_nodes(grid: CodedGrid, clients: int, wait: float) -> list[int]:
    """The nodes there are, once as many as the recipe has clients have come or the wait is over."""
    end, seen = time.monotonic() + wait, -1
    while len(nodes := sorted(grid.get_node_ids())) < clients and time.monotonic() < end:
        if len(nodes) != seen:
            log.warning("%d of %d clients are connected; waiting up to %g s for the others", len(nodes), clients, wait)
        seen = len(nodes)
        time.sleep(0.5)
    return nodes
