"""How far a server's training is, read from its folder and asked of its SuperLink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import read_recipe
from ..errors import ConfigError, FederationError
from ..live import bytes_text, figure
from ..run import ROUNDS, read_rows
from ..task import load_task
from .plan import ServerFacts, read_facts
from .run import SuperLink

WAIT = 1.0  # seconds for a SuperLink to answer


@dataclass(frozen=True)
class Status:
    """A training at this moment. ``nodes`` is None where the SuperLink does not answer."""

    folder: Path
    rounds: int
    done: int
    finished: bool
    measure: str
    value: float | None
    payload: int
    dropped: list[dict[str, str]]
    keys: list[str]
    nodes: Mapping[str, int] | None

    def __str__(self) -> str:
        state = "finished" if self.finished else "not finished" if self.done else "not begun"
        lines = [f"{state}: {self.done} of {self.rounds} rounds, {bytes_text(self.payload)} of payload"]
        if self.value is not None:
            lines.append(f"{self.measure} {figure(self.value, self.measure)}")
        lines += [f"dropped in the last round: {entry['client']}: {entry['reason']}" for entry in self.dropped]
        known = f"{len(self.keys)} keys in the folder 'nodes'"
        if self.nodes is None:
            return "\n".join([*lines, f"{known}; the SuperLink does not answer: fedpara deploy start {self.folder}"])
        return "\n".join([*lines, f"{known}, {self.nodes['registered']} registered, {self.nodes['online']} online"])


def status(folder: Path) -> Status:
    """How far the training of a server's folder is. Raises ConfigError for another folder."""
    folder = folder.resolve()
    facts = read_facts(folder)
    if not isinstance(facts, ServerFacts):
        raise ConfigError(f"{folder} is a client's folder: the server's knows how far the training is")
    recipe = read_recipe(folder / "recipe.toml")
    rows = read_rows(folder / "run" / ROUNDS)
    measure = load_task(recipe.task).measure
    named = [name for name in (measure, f"client_{measure}") if any(name in row for row in rows)]
    judged = [row[named[0]] for row in rows if named and row.get(named[0]) is not None]
    return Status(
        folder=folder,
        rounds=recipe.rounds,
        done=len(rows),
        finished=(folder / "run" / "summary.json").is_file(),
        measure=named[0] if named else measure,
        value=judged[-1] if judged else None,
        payload=rows[-1]["total"] if rows else 0,
        dropped=rows[-1]["dropped"] if rows else [],
        keys=sorted(path.stem for path in (folder / "nodes").glob("*.pub")),
        nodes=_nodes(folder, facts),
    )


def _nodes(folder: Path, facts: ServerFacts) -> dict[str, Any] | None:
    try:
        listed = SuperLink(folder, facts, WAIT).nodes()
    except FederationError:
        return None
    return {"registered": len(listed), "online": sum(node["status"] == "online" for node in listed)}
