"""Where the seconds of a run's rounds went: `fedpara simulate --profile`, and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SERVER = ("send", "checkpoint", "aggregate", "evaluate")  # phases of the server; in between it waits for clients


def profile(rows: Sequence[Mapping[str, Any]], processes: int) -> list[tuple[str, float, float]]:
    """What, seconds, and share of the rounds' seconds, over all rounds; clients' seconds divided by their processes.

    Args:
        rows: a run's rounds.
        processes: how many clients train at once; 1 in the process of the server itself.
    """
    whole = sum(row["seconds"] for row in rows)
    phases: Counter[str] = Counter()
    clients: Counter[str] = Counter()
    for row in rows:
        phases.update({name: row["phases"].get(name, 0.0) for name in SERVER})
        clients.update({name: seconds / processes for name, seconds in row.get("client_seconds", {}).items()})
    waited = whole - sum(phases.values())
    found = [("rounds", whole), *((f"server: {name}", phases[name]) for name in SERVER)]
    found += [(f"clients: {name}", seconds) for name, seconds in clients.items()]
    found.append(("on the way, decoding, idle", max(waited - sum(clients.values()), 0.0)))
    return [(name, seconds, seconds / whole if whole else 0.0) for name, seconds in found]


def table(rows: Sequence[Mapping[str, Any]], processes: int) -> str:
    """The profile as text."""
    lines = [f"{'':28}{'seconds':>10}{'share':>8}{'ms a round':>12}"]
    for name, seconds, share in profile(rows, processes):
        lines.append(f"{name:28}{seconds:10.2f}{100 * share:7.1f}%{1e3 * seconds / max(len(rows), 1):12.1f}")
    return "\n".join(lines)
