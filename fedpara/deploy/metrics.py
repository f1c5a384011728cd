"""What a Prometheus server can ask of a deployment's machines, read from the files that its programs write anyway.

Round, cohort, bytes by direction, seconds by phase and drops by reason; no data, label or weight is in them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector, CollectorRegistry

from ..errors import ConfigError
from ..run import read_rows

KINDS = {  # of reasons why a client was dropped: what stands in the reason, and the name of its kind
    "does not take part": "does not take part",
    "no answer within": "no answer",
    "not waited for": "not needed",
    "times the cohort's median": "stands out",
    "other code": "other code",
    "NaN, infinite": "not finite",
    "another model's": "another model",
}


def serve(port: int, collector: Collector) -> None:
    """Answer Prometheus on ``/metrics`` of this port, on loopback, from a thread.

    Raises:
        ConfigError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ConfigError(f"metrics-port = {port}: {error.strerror}: set another one in deploy.toml") from None


class ServerMetrics(Collector):
    """Of the run in a server's folder."""

    def __init__(self, folder: Path) -> None:
        self._rounds = folder / "run" / "rounds.jsonl"

    def collect(self) -> Iterator[Metric]:
        rows = read_rows(self._rounds)
        last: dict[str, Any] = rows[-1] if rows else {}
        yield GaugeMetricFamily("fedpara_round", "rounds that are done", last.get("round", 0))
        yield GaugeMetricFamily("fedpara_cohort", "clients asked in the last round", len(last.get("cohort", ())))
        yield GaugeMetricFamily("fedpara_replies", "usable replies in the last round", last.get("replies", 0))
        judged = ((name, last[name]) for name in last if re.fullmatch(r"(client_)?(accuracy|loss|psnr|ssim)", name))
        yield _labelled(GaugeMetricFamily("fedpara_measure", "of the last round", labels=["name"]), judged)
        sums = {way: sum(row[way] for row in rows) for way in ("up", "down")}
        yield _labelled(_counter("fedpara_payload_bytes", "payload of all clients", "direction"), sums.items())
        sums = {way: sum(row[f"{way}_message"] for row in rows) for way in ("up", "down")}
        yield _labelled(_counter("fedpara_message_bytes", "messages of all clients", "direction"), sums.items())
        phases: Counter[str] = Counter()
        drops: Counter[str] = Counter()
        for row in rows:
            phases.update(row["phases"])
            drops.update(kind_of(entry["reason"]) for entry in row["dropped"])
        yield _labelled(_counter("fedpara_round_seconds", "of all rounds, by phase", "phase"), phases.items())
        yield _labelled(_counter("fedpara_drops", "replies that did not count, by reason", "reason"), drops.items())


class NodeMetrics(Collector):
    """Of the messages that a client has answered; its log is in its folder's ``state``."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "state" / "messages.jsonl"

    def collect(self) -> Iterator[Metric]:
        rows = read_rows(self._log)
        kinds = Counter(row["kind"] for row in rows)
        phases: Counter[str] = Counter()
        for row in rows:
            phases.update(row["seconds"])
        yield GaugeMetricFamily("fedpara_node_round", "the last round that it took part in", _last(rows, "round"))
        yield GaugeMetricFamily("fedpara_node_last_message", "when it answered last, Unix seconds", _last(rows, "time"))
        yield _labelled(_counter("fedpara_node_messages", "messages answered, by kind", "kind"), kinds.items())
        refused = sum("error" in row for row in rows)
        yield CounterMetricFamily("fedpara_node_errors", "messages answered with an error", refused)
        bytes_moved = {way: sum(row[way] for row in rows) for way in ("up", "down")}
        yield _labelled(_counter("fedpara_node_payload_bytes", "payload", "direction"), bytes_moved.items())
        yield _labelled(_counter("fedpara_node_seconds", "by phase", "phase"), phases.items())


def kind_of(reason: str) -> str:
    """A reason without what is different each time, so that a series has few names."""
    return next((kind for words, kind in KINDS.items() if words in reason), "error")


def _last(rows: list[dict[str, Any]], key: str) -> float:
    return float(rows[-1][key]) if rows else 0.0


def _counter(name: str, text: str, label: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=[label])


def _labelled(family: Metric, values: Iterable[tuple[str, float]]) -> Metric:
    for label, value in values:
        family.add_metric([label], value)  # type: ignore[attr-defined]
    return family
