"""comparison.html: methods beside each other, on the same kind of page as a run's report."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..chart import Chart, Points, dots, figure, scatter
from ..live import bytes_text
from .parts import contents, facts, page, plural, safe, seconds_text, section, table
from .sections import label, shown, unit_of, with_unit

if TYPE_CHECKING:
    from ..compare import Entry

Found = Sequence[Mapping[str, Any]]
_GAP = (math.nan, math.nan)  # between the lines of two seeds


def comparison(
    entries: Sequence[Entry], found: Found, header: Sequence[str], cells: Sequence[Sequence[str]], folder: Path
) -> str:
    """The page.

    Args:
        entries: the runs.
        found: a row for each, as `fedpara.compare.rows` gives them.
        header: names of the columns of the table of methods.
        cells: its rows, text.
        folder: where the page will stand, for links to the runs' own reports.
    """
    methods = table(header, [list(map(safe, line)) for line in cells], label="methods")
    parts = [
        ("methods", "Methods", methods + _note(found)),
        ("curves", "Curves", _curves(entries, found)),
        ("front", "Accuracy and bytes: the Pareto front", _front(entries, found)),
        ("target", "Bytes to the target", _to_target(found)),
        ("runs", "Every run", _runs(entries, found, folder)),
    ]
    body = f"<header><h1>Comparison</h1>{_intro(entries, found)}{contents(parts)}</header><main>"
    return page("Comparison", body + "".join(section(*part) for part in parts) + "</main>")


def _intro(entries: Sequence[Entry], found: Found) -> str:
    names = _names(found)
    seeds = sorted({entry.seed for entry in entries})
    measure = str(found[0]["measure"])
    sign = entries[0].run.sign
    reached = [(row["bytes"], row["method"]) for row in found if row["target"] is not None and row["bytes"] is not None]
    best = max(names, key=lambda name: sign * statistics.fmean(_of(found, name, "last")))
    entry = [
        ("methods", f"{len(names):,}", plural(len(found), "run")),
        (
            "seeds",
            ", ".join(map(str, seeds)) if len(seeds) <= 5 else f"{len(seeds)}",
            "each method's runs differ in it",
        ),
        (
            f"best {label(measure).split(',')[0]}",
            with_unit(statistics.fmean(_of(found, best, "last")), measure),
            f"{best}, mean of {plural(len(_of(found, best, 'last')), 'run')}",
        ),
    ]
    if reached:
        least, method = min(reached)
        entry.append(("fewest bytes to the target", bytes_text(least), f"{method}, in one run"))
    return facts(entry)


def _note(found: Found) -> str:
    aims = sorted({row["target"] for row in found if row["target"] is not None})
    measure = str(found[0]["measure"])
    name = label(measure).split(",")[0].capitalize()
    text = (
        f"Bytes are payload, up and down, of all clients together. {name} is that of the last round: mean and standard "
        "deviation over the seeds. Seconds are those of the slowest client of each round on the link "
        f"{found[0]['link']}, without computing."
    )
    if aims:
        text = (
            f"Target: {', '.join(with_unit(aim, measure) for aim in aims)}{', by seed' if len(aims) > 1 else ''}. "
            "“Reached” says in how many runs; rounds, bytes and seconds are those until then. " + text
        )
    return f"<p class='note'>{safe(text)}</p>"


def _curves(entries: Sequence[Entry], found: Found) -> str:
    measure = str(found[0]["measure"])
    size, unit = unit_of(max(row["bytes_of_all_rounds"] for row in found))
    x = f"payload so far, up and down, {unit} (log scale)"
    lines: dict[str, list[list[tuple[float, float, float]]]] = {name: [] for name in _names(found)}
    for entry in entries:
        judged = [row for row in entry.run.rounds if row.get(measure) is not None]
        lines[entry.method].append(
            [(row["round"], row["total"] / size, shown(row[measure], measure)) for row in judged]
        )
    # What sends nothing has no place on a logarithmic axis: how far it came, all along.
    silent = {name: statistics.fmean(line[-1][2] for line in own) for name, own in lines.items() if not own[0][-1][1]}
    sent = {name: own for name, own in lines.items() if name not in silent}
    charts = [
        Chart(_means(lines, 0), "round", label(measure), "Against rounds", faint=_each(lines, 0)),
        Chart(_means(sent, 1), x, label(measure), "Against bytes", log_x=True, levels=silent, faint=_each(sent, 1)),
    ]
    caption = "Means over seeds; behind them, faintly, a line for each seed. " if len(found) > len(lines) else ""
    if silent:
        caption += f"{', '.join(silent)}: nothing is sent, the level is that of the last round."
    return figure(charts, caption.strip())


Lines = Mapping[str, Sequence[Sequence[tuple[float, float, float]]]]  # of each method's seeds: round, bytes, measure


def _means(lines: Lines, axis: int) -> dict[str, Points]:
    """The mean over seeds of where a round stands and of what it reached, for the rounds that every seed has."""
    return {
        name: [
            (statistics.fmean(at[axis] for at in same), statistics.fmean(at[2] for at in same))
            for same in zip(*own, strict=False)
        ]
        for name, own in lines.items()
    }


def _each(lines: Lines, axis: int) -> dict[str, Points]:
    """Every seed's line, with a gap between them."""
    return {
        name: [point for line in own for point in (*((at[axis], at[2]) for at in line), _GAP)]
        for name, own in lines.items()
        if len(own) > 1
    }


def _front(entries: Sequence[Entry], found: Found) -> str:
    from ..compare import pareto

    measure, sign = str(found[0]["measure"]), entries[0].run.sign
    size, unit = unit_of(max(row["bytes_of_all_rounds"] for row in found))
    points = {
        name: (
            statistics.fmean(_of(found, name, "bytes_of_all_rounds")) / size,
            shown(statistics.fmean(_of(found, name, "last")), measure),
        )
        for name in _names(found)
    }
    best = pareto({name: (cost, sign * value) for name, (cost, value) in points.items()})
    levels = {f"{name}: nothing is sent": value for name, (cost, value) in points.items() if not cost}
    title = (
        f"{label(measure).split(',')[0].capitalize()} at the end against the payload of all rounds, means over seeds"
    )
    chart = Chart({}, f"payload of all rounds, {unit} (log scale)", label(measure), title, True, levels)
    note = "<p>Filled: on the front, no other method has fewer bytes and is as good, or is better with as few.</p>"
    return scatter(points, [name for name in points if name in best], chart) + note


def _to_target(found: Found) -> str:
    reached = [row for row in found if row["bytes"] is not None]
    if not reached or all(row["target"] is None for row in found):
        return ""
    names = _names(reached)
    size, unit = unit_of(max(row["bytes"] for row in reached))
    ways = {
        f"{way}, {where}": [statistics.fmean(_of(reached, name, way)) / size for name in names]
        for way, where in (("up", "from clients"), ("down", "to clients"))
    }
    missing = [name for name in _names(found) if name not in names]
    note = f"<p class='note'>Never reached by {safe(', '.join(missing))}.</p>" if missing else ""
    x = f"payload to the target, {unit} (log scale)"
    return dots(names, ways, x, "Payload to the target, mean of the seeds that reached it") + note


def _runs(entries: Sequence[Entry], found: Found, folder: Path) -> str:
    measure = str(found[0]["measure"])
    header = ["run", "seed", "at the end", "best", "target", "rounds to it", "bytes to it", "bytes, all rounds"]
    header += ["s on link", "time"]
    lines = []
    for entry, row in zip(entries, found, strict=True):
        until = row["target"] is not None
        spent = math.fsum(each["seconds"] for each in entry.run.rounds)
        lines.append(
            [
                _link(entry, folder),
                str(entry.seed),
                *(with_unit(row[key], measure) for key in ("last", "best", "target")),
                f"{row['rounds']:,}" if until and row["rounds"] is not None else "–",
                bytes_text(row["bytes"]) if until and row["bytes"] is not None else "–",
                bytes_text(row["bytes_of_all_rounds"]),
                "–" if row["seconds_on_link"] is None else f"{row['seconds_on_link']:.1f}",
                seconds_text(spent),
            ]
        )
    return table(header, lines, label="runs")


def _link(entry: Entry, folder: Path) -> str:
    """The method's name, leading to the run's own report where there is one."""
    report = entry.run.folder / "report.html"
    if not report.is_file():
        return safe(entry.method)
    way = quote(os.path.relpath(report.absolute(), folder.absolute()).replace(os.sep, "/"))
    return f"<a href='{safe(way)}'>{safe(entry.method)}</a>"


def _names(found: Found) -> list[str]:
    return list(dict.fromkeys(str(row["method"]) for row in found))


def _of(found: Found, method: str, key: str) -> list[float]:
    return [row[key] for row in found if row["method"] == method]
