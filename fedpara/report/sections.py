"""What a run's own files tell: how it went, what it sent, what was dropped, where the time went."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..chart import Chart, Points, figure, histogram, panel
from ..errors import FedparaError
from ..live import SHARES, bytes_text, times
from ..live import figure as number
from ..run import Row, Run, versions
from .parts import bar, facts, folded, plural, safe, seconds_text, table

FEW = 8  # clients, above which their values are charted
SHOWN, MOST = 15, 1000  # rows of a long table that stand openly, and that are in the page at all
SERVER_DATA, HELD_OUT = "server's test data", "clients' held-out data"
_NO_METRIC = frozenset(
    ["round", "replies", "up", "up_message", "down", "down_message", "total", "dense_total", "seconds", "factor_gap"]
)
PURPOSES = {
    "weights": "the network, or its changes",
    "scales": "scales of the quantised values",
    "seed": "the first network, as the seed of its random numbers",
    "control": "what the method sends beside the network",
    "evaluation": "the network, to be judged by clients",
    "retry": "the whole network again, to a client that lost its own",
    "roll-call": "who is there",
}
JUDGEMENTS = "what clients found of the network"
PHASES = {
    "send": "server encodes and sends",
    "start": "client starts its process",
    "decode": "client decodes",
    "train": "client trains",
    "encode": "client encodes",
    "wait": "on the way, in queues, waiting",
    "checkpoint": "the last checkpoint is written still",
    "aggregate": "server averages",
    "evaluate": "server judges the network",
}


def measure_of(run: Run) -> str:
    """The metric that the run is judged by, also of an unfinished one."""
    if run.summary:
        return run.measure
    try:
        own = run.task.measure
    except FedparaError:  # the task or its data may be gone since
        own = "accuracy"
    return own if any(own in row for row in run.rounds) else f"client_{own}"


def label(metric: str) -> str:
    """A metric with its unit, for an axis or a column."""
    name = metric.removeprefix("client_").replace("_", " ")
    if metric in SHARES:
        return f"{name}, %"
    return f"{name.replace('psnr', 'PSNR')}, dB" if "psnr" in name else name.replace("ssim", "SSIM")


def shown(value: float, metric: str) -> float:
    """A value in the unit of its `label`."""
    return 100 * value if metric in SHARES else value


def with_unit(value: float | None, metric: str) -> str:
    """A value as people read it."""
    return number(value, metric) + (" dB" if "psnr" in metric and value is not None else "")


def unit_of(most: float) -> tuple[float, str]:
    """The unit in which so many bytes are a handy number."""
    return next(
        ((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most >= size), (1.0, "bytes")
    )


# --------------------------------------------------------------------------------------------------------------- top


def headline(run: Run) -> str:
    """What was trained, and the run in a few figures."""
    recipe = run.recipe
    title = f"<h1>{safe(recipe.name)}</h1>"
    title += f"<p>{safe(recipe.description)}</p>" if recipe.description else ""
    everyone = recipe.cohort >= recipe.clients
    who = "all of them" if everyone else f"{recipe.cohort:,} of them"
    text = (
        f"{plural(recipe.clients, 'client')} {'trains' if recipe.clients == 1 else 'train'} one network together (task "
        f"{safe(recipe.task)}). In a round, {who} {'train' if recipe.cohort > 1 else 'trains'} it on data that stay "
        "where they are and send the change; the server averages."
    )
    left = recipe.rounds - len(run.rounds)
    unfinished = "" if run.summary else f"<p><strong>Unfinished: {plural(left, 'round')} to go.</strong></p>"
    return f"{title}<p class='soft'>{text}</p>{unfinished}{facts(_facts(run))}"


def _facts(run: Run) -> Iterable[tuple[str, str, str]]:
    rows, recipe, measure = run.rounds, run.recipe, measure_of(run)
    if not rows:
        return
    judged = [row for row in rows if _known(row.get(measure))]
    if judged:
        last = judged[-1]
        best = max(judged, key=lambda row: run.sign * row[measure])
        note = f"best {with_unit(best[measure], measure)} in round {best['round']}" if best is not last else "its best"
        of = HELD_OUT if measure.startswith("client_") else SERVER_DATA
        yield label(measure).split(",")[0], with_unit(last[measure], measure), f"on {of}; {note}"
    total, dense = rows[-1]["total"], rows[-1]["dense_total"]
    fewer = f"{times(total, dense)} fewer than dense in float32 ({bytes_text(dense)})" if total else "nothing was sent"
    yield "payload, up and down", bytes_text(total), fewer
    if run.summary:
        own, twin = run.summary["uplink_payload"], run.summary["dense_twin_model"]
        yield "a model, up", bytes_text(own), f"dense in float32: {bytes_text(twin)}"
    yield "rounds", f"{len(rows):,}", f"{recipe.cohort:,} of {plural(recipe.clients, 'client')} in each"
    spent = math.fsum(row["seconds"] for row in rows)
    yield "time", seconds_text(spent), f"{seconds_text(spent / len(rows))} a round"
    lost, used = sum(len(row["dropped"]) for row in rows), sum(row["replies"] for row in rows)
    yield "replies averaged", f"{used:,}", f"{lost:,} dropped" if lost else "none dropped"


# ---------------------------------------------------------------------------------------------------------- progress


def progress(run: Run) -> str:
    """The measure against rounds and against bytes, losses, bytes a round; every round's figures."""
    rows = run.rounds
    if not rows:
        return "<p>No round has been finished yet.</p>"
    measure = measure_of(run).removeprefix("client_")
    named = {measure: SERVER_DATA, f"client_{measure}": HELD_OUT}
    judged = {name: [row for row in rows if _known(row.get(key))] for key, name in named.items()}
    size, unit = unit_of(max(row["total"] for row in rows))

    def against(x: str, scale: float) -> dict[str, Points]:
        found = {name: [(row[x] / scale, shown(row[key], key)) for row in judged[name]] for key, name in named.items()}
        return {name: points for name, points in found.items() if points}

    charts = [
        Chart(against("round", 1), "round", label(measure), "Against rounds"),
        Chart(
            against("total", size),
            f"payload so far, up and down, {unit} (log scale)",
            label(measure),
            "Against bytes",
            log_x=True,
        ),
    ]
    caption = "Clients judge the network that they receive, before they train it." if judged[HELD_OUT] else ""
    return figure(charts, caption) + figure(_further(rows)) + _every_round(run, measure)


def _further(rows: Sequence[Row]) -> list[Chart]:
    losses = {SERVER_DATA: "loss", HELD_OUT: "client_loss", "in training": "train_loss"}
    lines = {name: [(row["round"], row[key]) for row in rows if _known(row.get(key))] for name, key in losses.items()}
    size, unit = unit_of(max(max(row["up"], row["down"]) for row in rows))
    ways = {"up, from clients": "up", "down, to clients": "down"}
    sent = {name: [(row["round"], row[way] / size) for row in rows] for name, way in ways.items()}
    found = {name: line for name, line in lines.items() if line}
    return [Chart(found, "round", "loss", "Loss"), Chart(sent, "round", f"payload, {unit}", "Bytes of each round")]


def _every_round(run: Run, measure: str) -> str:
    rows = run.rounds
    metrics = list(dict.fromkeys(key for row in rows for key in row if key not in _NO_METRIC and _known(row[key])))
    metrics.sort(key=lambda key: (key.removeprefix("client_") != measure, "loss" not in key))
    gap = any("factor_gap" in row for row in rows)
    header = ["round", *(_column(key) for key in metrics), "up", "down", "up + down so far", "replies", "dropped"]
    header += ["factor gap"] * gap + ["time"]
    lines = []
    for row in rows[-MOST:]:
        sent = [bytes_text(row[key]) for key in ("up", "down", "total")]
        cells = [number(row[key], key) if _known(row.get(key)) else "–" for key in metrics]
        counts = [f"{row['replies']:,}", f"{len(row['dropped']):,}" if row["dropped"] else "–"]
        last = [number(row.get("factor_gap"))] * gap + [seconds_text(row["seconds"])]
        lines.append([f"{row['round']:,}", *cells, *sent, *counts, *last])
    note = (
        "<p class='note'>Factor gap: how far the mean of the clients' factors is from the mean of their weights, as a "
        "share of the step.</p>"
        if gap
        else ""
    )
    most = f"The last {MOST:,} rounds" if len(rows) > MOST else "Every round"
    return folded(f"{most} in figures", table(header, lines, label="rounds") + note, printed=len(rows) <= 100)


def _column(metric: str) -> str:
    if metric.startswith("train_"):
        return f"{metric.removeprefix('train_').replace('_', ' ')} in training"
    name = metric.removeprefix("client_").replace("_", " ").replace("psnr", "PSNR").replace("ssim", "SSIM")
    return f"clients' {name}" if metric.startswith("client_") else name


def clients(run: Run) -> str:
    """The last evaluation, client by client, where every client took part in one."""
    own = measure_of(run).removeprefix("client_")
    rows = [row for row in run.clients if _known(row.get(own))]
    if not rows:
        return ""
    sign, key = run.sign, f"client_{own}"
    rows.sort(key=lambda row: sign * row[own])
    values = [shown(row[own], key) for row in rows]
    text = (
        f"After the last round, {plural(len(rows), 'client')} judged what they end up with on held-out data of their "
        f"own: {label(key).split(',')[0]} {with_unit(statistics.fmean(row[own] for row in rows), key)} in the mean of "
        f"clients, {with_unit(rows[0][own], key)} for the worst, {with_unit(rows[-1][own], key)} for the best."
    )
    metrics = [name for name in rows[0] if name != "client" and all(_known(row.get(name)) for row in rows)]
    metrics.sort(key=lambda name: (name != own, name == "loss"))
    header = ["client", *(_column(f"client_{name}").removeprefix("clients' ") for name in metrics)]
    lines = [
        [
            safe(row["client"]),
            *(f"{row[name]:,}" if name == "examples" else number(row[name], f"client_{name}") for name in metrics),
        ]
        for row in rows
    ]
    picture = ""
    if len(values) > FEW:
        picture = panel(histogram(values, label(key), "clients"), "The upright line is the median.")
    return f"<p>{safe(text)}</p>{picture}{long_table(header, lines, 'the worst', 'in the same order')}"


def long_table(header: Sequence[str], lines: Sequence[Sequence[str]], which: str, rest: str) -> str:
    """The first rows openly, the others when they are asked for."""
    if len(lines) <= SHOWN + 5:
        return table(header, lines, label=header[0])
    left = lines[SHOWN:MOST]
    more = (
        f"The other {len(left):,}" if SHOWN + len(left) == len(lines) else f"The next {len(left):,} of {len(lines):,}"
    )
    first = f"<p class='note'>{safe(f'{which.capitalize()} {SHOWN} of {len(lines):,}:')}</p>"
    return first + table(header, lines[:SHOWN], label=header[0]) + folded(f"{more}, {rest}", table(header, left))


# ------------------------------------------------------------------------------------------------------------- bytes


def ledger(run: Run) -> str:
    """Bytes by direction and purpose, and by client."""
    book = run.ledger
    if not len(book):
        return ""
    total, message = book.total(), book.total(unit="message")
    text = (
        "<p><b>Payload</b> is what the codec produced: the network's numbers with their scales, seeds and everything "
        "else that the method sends. <b>Message</b> is what Flower sends for it, with names and framing."
    )
    paper = run.summary.get("paper_gib")
    if paper is not None:
        text += (
            f" <b>The paper's figure</b>, 2 × participants × parameter bytes × rounds, would be {paper:.4g} GiB "
            f"({bytes_text(paper * 2**30)})."
        )
    carried = book.by("direction", "purpose", unit="message")
    rows = []
    for (way, purpose), payload in sorted(book.by("direction", "purpose").items(), reverse=True):
        said = JUDGEMENTS if (way, purpose) == ("up", "evaluation") else PURPOSES.get(purpose, "")
        name = f"{'up' if way == 'up' else 'down'}: {purpose}"
        share = bar(payload / total if total else 0)
        rows.append([safe(name), bytes_text(payload), share, bytes_text(carried[way, purpose]), safe(said)])
    rows.append(["total", bytes_text(total), "", bytes_text(message), ""])
    header = ("way and purpose", "payload", "", "message", "what it is")
    return f"{text}</p>{table(header, rows, words=(4,), total=True)}{_by_client(run)}"


def _by_client(run: Run) -> str:
    ways: defaultdict[str, dict[str, int]] = defaultdict(lambda: {"up": 0, "down": 0})
    for (client, way), payload in run.ledger.by("client", "direction").items():
        ways[str(client)][way] += payload
    asked = Counter(str(client) for row in run.rounds for client in row["cohort"])
    order = sorted(ways, key=lambda name: (-sum(ways[name].values()), name))
    most = max(sum(own.values()) for own in ways.values())
    lines = [
        [
            safe(name),
            bytes_text(sum(ways[name].values())),
            bar(sum(ways[name].values()) / most if most else 0),
            bytes_text(ways[name]["up"]),
            bytes_text(ways[name]["down"]),
            f"{asked[name]:,}",
        ]
        for name in order
    ]
    middle = statistics.median(sum(own.values()) for own in ways.values())
    text = f"<p>{plural(len(asked), 'client')} trained in {plural(len(run.rounds), 'round')}, "
    text += f"{'one of them' if len(ways) == 1 else 'each'} moved {bytes_text(middle)} in the median.</p>"
    header = ("client", "up + down", "", "up", "down", "rounds")
    return f"<h3>By client</h3>{text}{long_table(header, lines, 'the first', 'by what they moved')}"


# ----------------------------------------------------------------------------------------------------- dropped, time


def dropped(run: Run) -> str:
    """Why replies were not averaged, by reason and by client."""
    drops = [
        (row["round"], str(entry["client"]), str(entry["reason"])) for row in run.rounds for entry in row["dropped"]
    ]
    if not run.rounds:
        return ""
    if not drops:
        return "<p>None: every reply that was asked for was averaged.</p>"
    reasons: defaultdict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for drop in drops:
        reasons[re.sub(r"\d[\d.,]*(e[+-]?\d+)?", "0", drop[2])].append(drop)  # reasons that differ in figures are one
    lines = [
        [safe(own[0][2]), f"{len(own):,}", f"{len({client for _, client, _ in own}):,}", safe(_some_rounds(own))]
        for own in sorted(reasons.values(), key=len, reverse=True)
    ]
    counts = Counter(client for _, client, _ in drops)
    by_client = [[safe(name), f"{count:,}"] for name, count in counts.most_common()]
    every = [[f"{round:,}", safe(client), safe(reason)] for round, client, reason in drops[:MOST]]
    used = sum(row["replies"] for row in run.rounds)
    return (
        f"<p>{plural(len(drops), 'reply', 'replies')} of {plural(len(counts), 'client')} were left out, "
        f"{used:,} were averaged. A reply is left out whole, and the run goes on with the others.</p>"
        + table(("reason (an example of its figures)", "replies", "clients", "rounds"), lines[:MOST], words=(0, 3))
        + "<h3>By client</h3>"
        + long_table(("client", "replies dropped"), by_client, "the first", "by how many were dropped")
        + folded("Each of them", table(("round", "client", "reason"), every, names=(1,), words=(2,)))
    )


def _some_rounds(own: Sequence[tuple[int, str, str]]) -> str:
    rounds = sorted({round for round, _, _ in own})
    return ", ".join(map(str, rounds)) if len(rounds) <= 8 else f"{len(rounds)} of {rounds[0]} to {rounds[-1]}"


def seconds(run: Run) -> str:
    """Seconds by phase, over all rounds."""
    phases: Counter[str] = Counter()
    everyone: Counter[str] = Counter()
    for row in run.rounds:
        own = dict(row.get("phases", {}))
        before = math.fsum(own.values()) - row["seconds"]  # a process that started while the server did other things
        if before > 0 and "start" in own:
            own["start"] = max(own["start"] - before, 0.0)
        phases.update(own)
        everyone.update(row.get("client_seconds", {}))
    whole = math.fsum(phases.values())
    if not whole:
        return ""
    lines = [
        [
            safe(PHASES.get(name, name)),
            seconds_text(spent),
            f"{100 * spent / whole:.1f} %",
            bar(spent / max(phases.values())),
            seconds_text(spent / len(run.rounds)),
            seconds_text(everyone[name]) if name in everyone else "–",
        ]
        for name, spent in phases.items()
    ]
    whole_rounds = math.fsum(row["seconds"] for row in run.rounds)
    text = (
        f"<p>{plural(len(run.rounds), 'round')} took {seconds_text(whole_rounds)}. A client's seconds are those of the "
        "one that took longest in its round, without what it did before; the last column adds up all clients, who may "
        "train at the same time.</p>"
    )
    return text + table(("phase", "time", "share", "", "a round", "all clients together"), lines)


def recipe(run: Run) -> str:
    """All that a repetition needs."""
    text = (run.folder / "recipe.toml").read_text(encoding="utf-8")
    used: Mapping[str, Any] = run.summary.get("versions") or {}
    rows = [[safe(name), safe(version)] for name, version in (used or versions()).items()]
    when = run.summary.get("finished")
    note = f"<p>Finished {safe(when)}. " if when else "<p>"
    note += f"Seed {run.recipe.seed}: the same recipe, seed and versions give the same network"
    note += "." if used else "; the versions are those of this report."
    return f"{note}</p>{table(('', 'version'), rows, names=(1,), label='versions')}<pre>{safe(text)}</pre>"


def _known(value: Any) -> bool:
    """A number to show: not a switch, a text or a list, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
