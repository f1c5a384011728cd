"""Line charts as SVG: no import to wait for, the page's own colours by day and by night, text that can be selected."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 300, 56, 20, 12, 44
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by the colour-blind too (Okabe and Ito, 2008)


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str, *, log_x: bool = False) -> str:
    """Named lines over common axes, as an SVG element; points that are not finite (or not above 0 on a log axis) go."""
    shown = {name: line for name, points in series.items() if (line := _finite(points, log_x))}
    points = [point for line in shown.values() for point in line]
    if not points:
        return ""
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    x_ticks = log_ticks(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs))
    y_ticks = ticks(min(ys), max(ys))
    place_x = _scale([*xs, *x_ticks], LEFT, WIDTH - RIGHT, log_x)
    place_y = _scale([*ys, *y_ticks], HEIGHT - BOTTOM, TOP, False)
    parts = [_grid_x(place_x(tick), tick) for tick in x_ticks] + [_grid_y(place_y(tick), tick) for tick in y_ticks]
    for place, (line, colour) in enumerate(zip(shown.values(), COLOURS * len(shown), strict=False)):
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in line)
        dash = " stroke-dasharray='6 3'" if place % 2 else ""
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'{dash}/>")
        parts += [_dot(place_x(x), place_y(y), colour) for x, y in line] if len(line) == 1 else []
    falls = sum(place_y(line[-1][1]) for line in shown.values()) / len(shown) > HEIGHT / 2
    parts.append(_legend(list(shown), TOP + 10 if falls else HEIGHT - BOTTOM + 4 - 16 * len(shown)))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    turned = f"transform='rotate(-90 12 {HEIGHT / 2:.0f})'"
    parts.append(_text(12, HEIGHT / 2, y_label, "middle", turned))
    box = f"viewBox='0 0 {WIDTH} {HEIGHT}' role='img' font-size='12' fill='currentColor'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {box}>{''.join(parts)}</svg>"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) around a range; about so many."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a range above 0; with 2 and 5 of each where these are few."""
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(high)), first + 1)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below = max([tick for tick in found if tick <= low], default=found[0])
    above = min([tick for tick in found if tick >= high and tick > below], default=found[-1])
    return [tick for tick in found if below <= tick <= above]


def _finite(points: Points, log_x: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)]


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> Callable[[float], float]:
    """From values to places, the least at ``start`` and the largest at ``end``."""
    low, high = (math.log10(value) if log else value for value in (min(values), max(values)))
    return lambda value: start + (end - start) * ((math.log10(value) if log else value) - low) / (high - low)


def _grid_x(place: float, tick: float) -> str:
    line = f"<path d='M{place:.1f} {TOP}V{HEIGHT - BOTTOM}' stroke='currentColor' stroke-opacity='.15'/>"
    return line + _text(place, HEIGHT - BOTTOM + 16, f"{tick:.6g}", "middle")


def _grid_y(place: float, tick: float) -> str:
    line = f"<path d='M{LEFT} {place:.1f}H{WIDTH - RIGHT}' stroke='currentColor' stroke-opacity='.15'/>"
    return line + _text(LEFT - 6, place + 4, f"{tick:.6g}", "end")


def _legend(names: Sequence[str], top: float) -> str:
    """On the right, where the curves leave room."""
    rows = []
    for place, name in enumerate(names):
        y = top + 16 * place
        rows.append(_text(WIDTH - RIGHT - 30, y + 4, name, "end"))
        dash = " stroke-dasharray='6 3'" if place % 2 else ""
        rows.append(
            f"<path d='M{WIDTH - RIGHT - 26} {y}h22' stroke='{COLOURS[place % 4]}' stroke-width='2' fill='none'{dash}/>"
        )
    return "".join(rows)


def _dot(x: float, y: float, colour: str) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {more}>{html.escape(text)}</text>"
