"""Lines and points over axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .canvas import (
    BOTTOM,
    HEIGHT,
    TOP,
    WIDTH,
    colour_of,
    fill_of,
    grid_x,
    grid_y,
    legend_html,
    line_key,
    log_ticks,
    number,
    safe,
    scaled,
    square_key,
    stroke_of,
    svg_element,
    ticks,
    widest,
    width,
    x_label,
    y_label,
)

Points = Sequence[tuple[float, float]]

_SHOWN = 400  # points of a line; more would not be seen
_NAMED = 60  # points of a line that tell their values to a mouse


@dataclass(frozen=True)
class Chart:
    """Named lines over common axes. A point that is not finite (or not above 0 on a log axis) breaks its line.

    ``levels`` are horizontal lines, all along; ``faint`` ones stand behind those of the same names. Labels name what is
    shown, with its unit: "accuracy, %". ``colours`` gives a name a place in `COLOURS` other than that in the legend.
    """

    series: Mapping[str, Points]
    x: str
    y: str
    title: str = ""
    log_x: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)
    faint: Mapping[str, Points] = field(default_factory=dict)
    colours: Mapping[str, int] = field(default_factory=dict)


def line_chart(chart: Chart, looks: Mapping[str, int] | None = None) -> str:
    """The chart as an SVG element, without a legend; nothing where there is no point to show.

    ``looks`` says in which place of the legend a name stands, for charts that share one.
    """
    parts, faint = (
        {name: pieces for name, points in lines.items() if (pieces := _pieces(points, chart.log_x))}
        for lines in (chart.series, chart.faint)
    )
    levels = {name: level for name, level in chart.levels.items() if math.isfinite(level)}
    points = [point for pieces in (*parts.values(), *faint.values()) for piece in pieces for point in piece]
    if not points and not levels:
        return ""
    looks = looks or _looks([chart])
    axes = _axes(points or [(1.0, level) for level in levels.values()], list(levels.values()), chart)
    drawn = [axes.grid]
    for name, level in levels.items():
        title = f"<title>{safe(f'{name}: {number(level)}')}</title>"
        line = f"M{axes.left} {axes.y(level):.1f}H{WIDTH - axes.right}"
        drawn.append(f"<path d='{line}' {stroke_of(looks[name])} stroke-opacity='.8'>{title}</path>")
    for name, pieces in faint.items():
        look = f"fill='none' stroke='{colour_of(looks[name])}' stroke-width='1.5' stroke-opacity='.45'"
        drawn += [f"<polyline points='{_path(piece, axes)}' {look}/>" for piece in pieces]
    for name, pieces in parts.items():
        drawn += [_line(piece, name, looks[name], axes) for piece in pieces]
    name = ": ".join(filter(None, (chart.title, f"{chart.y} against {chart.x}")))
    return svg_element(HEIGHT, name, _said(parts, levels), drawn)


def figure(charts: Sequence[Chart], caption: str = "") -> str:
    """Charts beside each other, with one legend under them."""
    looks = _looks(charts)
    drawn = [(chart, svg) for chart in charts if (svg := line_chart(chart, looks))]
    if not drawn:
        return ""
    titles = [f"<p class='title'>{safe(chart.title)}</p>" if chart.title else "" for chart, _ in drawn]
    panels = "".join(f"<div class='panel'>{title}{svg}</div>" for title, (_, svg) in zip(titles, drawn, strict=True))
    legend = legend_html({name: line_key(look) for name, look in looks.items()}) if len(looks) > 1 else ""
    said = f"<figcaption>{safe(caption)}</figcaption>" if caption else ""
    single = " one" if len(drawn) == 1 else ""
    return f"<figure><div class='charts{single}'>{panels}</div>{legend}{said}</figure>"


def _looks(charts: Sequence[Chart]) -> dict[str, int]:
    """Where each name stands in the legend of these charts, or which colour it asked for."""
    names = dict.fromkeys(name for chart in charts for name in (*chart.series, *chart.levels, *chart.faint))
    asked = {name: colour for chart in charts for name, colour in chart.colours.items()}
    return {name: asked.get(name, place) for place, name in enumerate(names)}


def scatter(points: Mapping[str, tuple[float, float]], front: Sequence[str], chart: Chart) -> str:
    """Numbered points on a logarithmic axis, filled and joined where they are of the ``front``; names in a legend.

    ``chart`` gives labels, title and levels.
    """
    shown = {name: (x, y) for name, (x, y) in points.items() if x > 0 and math.isfinite(x) and math.isfinite(y)}
    levels = chart.levels
    if not shown and not levels:
        return ""
    axes = _axes(list(shown.values()) or [(1.0, y) for y in levels.values()], list(levels.values()), chart)
    line = _path(sorted(shown[name] for name in front if name in shown), axes)
    drawn = [axes.grid, f"<polyline points='{line}' fill='none' stroke='currentColor' stroke-opacity='.4'/>"]
    items = {}
    for place, name in enumerate([*shown, *levels]):
        best = name in front
        if name in shown:
            x, y = axes.x(shown[name][0]), axes.y(shown[name][1])
            fill = fill_of(place) if best else "fill='var(--paper, #fff)'"
            ink = "fill='var(--paper, #fff)'" if best else fill_of(place)
            said = f"<title>{safe(f'{name}: {number(shown[name][0])}, {number(shown[name][1])}')}</title>"
            dot = f"<circle cx='{x:.1f}' cy='{y:.1f}' r='9' {fill} {stroke_of(place, dashed=False)}/>"
            drawn.append(f"<g>{said}{dot}<text x='{x:.1f}' y='{y + 4:.1f}' class='in' {ink}>{place + 1}</text></g>")
            items[f"{place + 1} {name}"] = square_key(place)
        else:
            path = f"M{axes.left} {axes.y(levels[name]):.1f}H{WIDTH - axes.right}"
            drawn.append(f"<path d='{path}' {stroke_of(place)}><title>{safe(name)}</title></path>")
            items[name] = line_key(place)
    svg = svg_element(HEIGHT, chart.title, f"{len(shown)} points, {len(front)} of them on the front", drawn)
    return (
        f"<figure><div class='charts one'><div class='panel'>{svg}</div></div>{legend_html(items)}"
        f"<figcaption>{safe(chart.title)}</figcaption></figure>"
    )


@dataclass(frozen=True)
class _Axes:
    """Where values stand, and the lines and labels of the grid."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    left: float
    right: float
    grid: str


def _axes(points: Points, levels: Sequence[float], chart: Chart) -> _Axes:
    xs, ys = [x for x, _ in points], [*(y for _, y in points), *levels]
    whole = all(float(x).is_integer() for x in xs)
    x_marks = log_ticks(min(xs), max(xs)) if chart.log_x else ticks(min(xs), max(xs), whole=whole)
    y_marks = ticks(min(ys), max(ys))
    left, right = 30 + widest(map(number, y_marks)), 10 + width(number(x_marks[-1])) / 2
    x = scaled(x_marks[0], x_marks[-1], left, WIDTH - right, chart.log_x)
    y = scaled(y_marks[0], y_marks[-1], HEIGHT - BOTTOM, TOP)
    grid = grid_x(x_marks, x, TOP, HEIGHT - BOTTOM) + grid_y(y_marks, y, left, right)
    return _Axes(x, y, left, right, grid + x_label(chart.x, left, right, HEIGHT) + y_label(chart.y))


def _pieces(points: Points, log_x: bool) -> list[list[tuple[float, float]]]:
    """A line in the pieces between its gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [_thinned(piece, _SHOWN) for piece in pieces if piece]


def _thinned(line: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many of the points, evenly spread, with the first and the last."""
    if len(line) <= most:
        return line
    return [line[place * (len(line) - 1) // (most - 1)] for place in range(most)]


def _line(piece: list[tuple[float, float]], name: str, look: int, axes: _Axes) -> str:
    drawn = [f"<polyline points='{_path(piece, axes)}' fill='none' {stroke_of(look)} stroke-linejoin='round'/>"]
    size = 4 if len(piece) == 1 else 2.4 if len(piece) <= 25 else 0
    for x, y in _thinned(piece, _NAMED):
        title = f"<title>{safe(f'{name}, {number(x)}: {number(y)}')}</title>"
        place = f"cx='{axes.x(x):.1f}' cy='{axes.y(y):.1f}'"
        drawn.append(f"<circle {place} r='{size}' {fill_of(look)}/>" if size else "")
        drawn.append(f"<circle {place} r='8' fill-opacity='0'>{title}</circle>")
    return "".join(drawn)


def _path(line: Points, axes: _Axes) -> str:
    return " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)


def _said(parts: Mapping[str, Sequence[Points]], levels: Mapping[str, float]) -> str:
    """A chart in words."""
    said = []
    for name, pieces in parts.items():
        (x, first), (until, last) = pieces[0][0], pieces[-1][-1]
        said.append(f"{name}: {number(first)} at {number(x)}, {number(last)} at {number(until)}")
    return "; ".join([*said, *(f"{name}: {number(level)} all along" for name, level in levels.items())])
