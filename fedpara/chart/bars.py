"""Bars, rows of dots, histograms, heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .canvas import (
    BOTTOM,
    HEIGHT,
    LETTER,
    NAME,
    TOP,
    WIDTH,
    fill_of,
    grid_x,
    grid_y,
    legend_html,
    log_ticks,
    mark,
    number,
    safe,
    scaled,
    shortened,
    square_key,
    stroke_of,
    svg_element,
    text_at,
    ticks,
    widest,
    x_label,
    y_label,
)

ROW = 22  # height of a row of bars


def panel(svg: str, caption: str = "") -> str:
    """One chart as a figure."""
    said = f"<figcaption>{safe(caption)}</figcaption>" if caption else ""
    return f"<figure><div class='charts one'><div class='panel'>{svg}</div></div>{said}</figure>"


def bars(names: Sequence[str], parts: Mapping[str, Sequence[float]], x: str, title: str) -> str:
    """A bar a name, made of its parts after each other; with a legend where there is more than one part."""
    totals = [math.fsum(part[place] for part in parts.values()) for place in range(len(names))]
    if not names or not max(totals) > 0:
        return ""
    left, right = _room(names), 26
    height = TOP + ROW * len(names) + BOTTOM
    marks = ticks(0, max(totals))
    scale = scaled(0, marks[-1], left, WIDTH - right)
    drawn = [grid_x(marks, scale, TOP, height - BOTTOM), x_label(x, left, right, height)]
    for row, name in enumerate(names):
        top, start = TOP + ROW * row, 0.0
        drawn.append(_name(name, left, top + ROW / 2))
        for look, (part, values) in enumerate(parts.items()):
            if values[row] > 0:
                begin, end = scale(start), scale(start + values[row])
                said = f"{name}: {part + ', ' if len(parts) > 1 else ''}{number(values[row])}"
                box = f"x='{begin:.1f}' y='{top + 3}' width='{max(end - begin, 0.6):.1f}' height='{ROW - 6}'"
                drawn.append(f"<rect {box} {fill_of(look)}><title>{safe(said)}</title></rect>")
                start += values[row]
    said = f"{len(names)} bars, the longest {names[totals.index(max(totals))]} with {number(max(totals))}"
    svg = svg_element(height, title, said, drawn)
    legend = legend_html({part: square_key(look) for look, part in enumerate(parts)}) if len(parts) > 1 else ""
    return f"<figure><div class='charts one'><div class='panel'>{svg}</div></div>{legend}</figure>"


def dots(names: Sequence[str], parts: Mapping[str, Sequence[float]], x: str, title: str) -> str:
    """A row a name, in it a dot for each part, on a logarithmic axis; what is not above 0 is left out."""
    shown = [value for values in parts.values() for value in values if value > 0 and math.isfinite(value)]
    if not shown:
        return ""
    left, right = _room(names), 26
    height = TOP + ROW * len(names) + BOTTOM
    marks = log_ticks(min(shown), max(shown))
    scale = scaled(marks[0], marks[-1], left, WIDTH - right, log=True)
    drawn = [grid_x(marks, scale, TOP, height - BOTTOM), x_label(x, left, right, height)]
    for row, name in enumerate(names):
        y = TOP + ROW * (row + 0.5)
        drawn.append(_name(name, left, y))
        for look, (part, values) in enumerate(parts.items()):
            if values[row] > 0 and math.isfinite(values[row]):
                title_of = f"<title>{safe(f'{name}: {part}, {number(values[row])}')}</title>"
                drawn.append(mark(scale(values[row]), y, look, title_of))
    svg = svg_element(height, title, f"{len(names)} rows from {number(min(shown))} to {number(max(shown))}", drawn)
    legend = legend_html({part: mark(7, 7, look) for look, part in enumerate(parts)})
    return f"<figure><div class='charts one'><div class='panel'>{svg}</div></div>{legend}</figure>"


def histogram(values: Sequence[float], x: str, y: str, bins: int = 24) -> str:
    """How many values lie where, with their median; an SVG element."""
    low, high = min(values), max(values)
    whole = all(float(value).is_integer() for value in values)
    step = max(1, math.ceil((high - low + 1) / bins)) if whole else (high - low or abs(high) or 1.0) / bins
    start = low - 0.5 if whole else low
    counts = [0] * (int((high - start) / step) + 1)
    for value in values:
        counts[min(int((value - start) / step), len(counts) - 1)] += 1
    if not whole and len(counts) > 1 and high > low:  # the last bin holds its upper edge
        counts[-2:] = [counts[-2] + counts[-1]]
    edges = [start + step * place for place in range(len(counts) + 1)]
    y_marks, x_marks = ticks(0, max(counts), whole=True), ticks(edges[0], edges[-1], whole=whole)
    left, right = 30 + widest(map(number, y_marks)), 26
    place_x = scaled(x_marks[0], x_marks[-1], left, WIDTH - right)
    place_y = scaled(0, y_marks[-1], HEIGHT - BOTTOM, TOP)
    drawn = [grid_x(x_marks, place_x, TOP, HEIGHT - BOTTOM), grid_y(y_marks, place_y, left, right)]
    for place, count in enumerate(counts):
        begin, end, top = place_x(edges[place]), place_x(edges[place + 1]), place_y(count)
        single = whole and step == 1
        span = number(edges[place] + 0.5) if single else f"{number(edges[place])} to {number(edges[place + 1])}"
        wide, tall = max(end - begin - 1, 0.6), HEIGHT - BOTTOM - top
        box = f"x='{begin:.1f}' y='{top:.1f}' width='{wide:.1f}' height='{tall:.1f}'"
        drawn.append(f"<rect {box} {fill_of(0)}><title>{safe(f'{span}: {count:,}')}</title></rect>" if count else "")
    median = _median(values)
    path = f"M{place_x(median):.1f} {TOP}V{HEIGHT - BOTTOM}"
    drawn.append(f"<path d='{path}' {stroke_of(1, dashed=False)}><title>median {number(median)}</title></path>")
    drawn += [x_label(x, left, right, HEIGHT), y_label(y)]
    said = f"from {number(low)} to {number(high)}, median {number(median)} (the line)"
    return svg_element(HEIGHT, f"{y} by {x}", said, drawn)


def heat_map(picture: str, columns: Sequence[str], rows: int, x: str, y: str) -> str:
    """A picture (a data URI, a pixel a cell) over named columns and numbered rows; an SVG element."""
    named = len(columns) <= 20
    longest = min(widest(columns), NAME) if named else 0.0
    upright = longest <= 2 * LETTER
    below = BOTTOM if upright else 38 + longest
    marks = ticks(0, rows, whole=True)
    marks = [tick for tick in marks if tick <= rows]
    left, right = 30 + widest(map(number, marks)), 26
    height = HEIGHT + below - BOTTOM
    place_y, step = scaled(0, rows, TOP, height - below), (WIDTH - right - left) / len(columns)
    box = f"x='{left:.1f}' y='{TOP}' width='{WIDTH - right - left:.1f}' height='{height - below - TOP:.1f}'"
    drawn = [
        f"<image href='{picture}' {box} preserveAspectRatio='none' style='image-rendering: pixelated'/>",
        f"<rect {box} fill='none' stroke='currentColor' stroke-opacity='.3'/>",
        *(text_at(left - 6, place_y(tick) + 4, number(tick), "end") for tick in marks),
    ]
    for place, name in enumerate(columns if named else ()):
        middle = left + step * (place + 0.5)
        if upright:
            drawn.append(text_at(middle, height - below + 21, name, "middle"))
        else:
            turned = f"transform='rotate(-90 {middle + 4:.1f} {height - below + 6:.1f})'"
            drawn.append(text_at(middle + 4, height - below + 6, shortened(name, NAME), "end", turned))
    if not named:
        scale = scaled(0, len(columns), left, WIDTH - right)
        drawn += [
            text_at(scale(tick), height - below + 21, number(tick), "middle")
            for tick in ticks(0, len(columns))
            if tick <= len(columns)
        ]
    drawn += [x_label(x, left, right, height), y_label(y, (TOP + height - below) / 2)]
    return svg_element(height, f"{y}, by {x}", f"{rows:,} rows, {len(columns)} columns", drawn)


def _room(names: Sequence[str]) -> float:
    """Left of bars, for their names."""
    return 14 + min(widest(names), NAME)


def _name(name: str, left: float, middle: float) -> str:
    short = shortened(name, NAME)
    title = f"<title>{safe(name)}</title>" if short != name else ""
    return f"<text x='{left - 6:.1f}' y='{middle + 4.5:.1f}' text-anchor='end'>{title}{safe(short)}</text>"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
