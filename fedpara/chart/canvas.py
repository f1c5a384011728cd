"""What charts are drawn with: ticks, scales, grids, text, legends.

Colours are variables of the page's style sheet (`fedpara.report`), with their values by day where there is none.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

WIDTH, HEIGHT, TOP, BOTTOM = 440, 284, 12, 50
LETTER = 8.9  # width of a figure in a wide typeface, at a chart's largest size of text (14, see the style sheet)
NAME = 130  # room for the name of a bar or of a column
# Told apart by the colour-blind too: by day these, after Okabe and Ito (2008), by night lighter ones.
COLOURS = (
    "#0b6fb8", "#c8500a", "#00805a", "#b0478f", "#8a6d00", "#5a5fcf", "#c2354f", "#6b6b6b", "#007c8a", "#7a4a2b",
)  # fmt: skip
DASHES = ("", "7 3", "2 3", "9 3 2 3")


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) around a range; about so many. ``whole``: none between."""
    most = max(abs(low), abs(high))
    if high - low <= 1e-12 * max(most, 1e-9):  # one value, but for rounding
        half = (most if most > 1e-9 else 1.0) / 2
        low, high = low - half, high + half
        if whole:
            low, high = math.floor(low), math.ceil(high)
    raw = max((high - low) / count, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a range above 0; with 2 and 5 of each where these are few; even steps in a narrow range."""
    if high < 4 * low:
        even = ticks(low, high) if high > low else ticks(low / 1.5, low * 1.5)
        if even[0] > 0:
            return even
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(high)), first + 1)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below = max([tick for tick in found if tick <= low], default=found[0])
    above = min([tick for tick in found if tick >= high and tick > below], default=found[-1])
    return [tick for tick in found if below <= tick <= above]


def number(value: float) -> str:
    """A figure as people read it, of at most six digits: ``12,000``, ``0.25``."""
    if value and (abs(value) >= 1e9 or abs(value) < 1e-4):
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.6g}"


def scaled(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """From values to places, the least at ``start`` and the largest at ``end``."""
    if log:
        low, high = math.log10(low), math.log10(high)
    return lambda value: start + (end - start) * ((math.log10(value) if log else value) - low) / (high - low)


def grid_x(marks: Sequence[float], place: Callable[[float], float], top: float, bottom: float) -> str:
    """A line for each mark; its number where there is room."""
    drawn, free = [], -math.inf
    for mark in marks:
        x, half = place(mark), width(number(mark)) / 2
        drawn.append(f"<path d='M{x:.1f} {top}V{bottom:.1f}' stroke='currentColor' stroke-opacity='.13'/>")
        if x - half > free:
            drawn.append(text_at(x, bottom + 21, number(mark), "middle"))
            free = x + half + LETTER
    return "".join(drawn)


def grid_y(marks: Sequence[float], place: Callable[[float], float], left: float, right: float) -> str:
    """A line and a number for each mark."""
    lines = (
        f"<path d='M{left:.1f} {place(mark):.1f}H{WIDTH - right:.1f}' stroke='currentColor' stroke-opacity='.13'/>"
        + text_at(left - 6, place(mark) + 4.5, number(mark), "end")
        for mark in marks
    )
    return "".join(lines)


def x_label(text: str, left: float, right: float, height: float) -> str:
    """What the x axis shows, under it."""
    text = shortened(text, WIDTH - 8)
    half = width(text) / 2 + 4
    return text_at(min(max((left + WIDTH - right) / 2, half), WIDTH - half), height - 8, text, "middle")


def y_label(text: str, middle: float = (TOP + HEIGHT - BOTTOM) / 2) -> str:
    """What the y axis shows, upright beside it."""
    turned = f"transform='rotate(-90 14 {middle:.0f})'"
    return text_at(14, middle, shortened(text, HEIGHT - BOTTOM), "middle", turned)


def legend_html(keys: Mapping[str, str]) -> str:
    """Names with what stands for them (see `line_key`, `mark`); it wraps where the page is narrow."""
    rows = "".join(
        f"<li><svg class='key' viewBox='0 0 {26 if 'H26' in key else 14} 14' height='14' aria-hidden='true'>{key}</svg>"
        f"{safe(name)}</li>"
        for name, key in keys.items()
    )
    return f"<ul class='legend'>{rows}</ul>"


def line_key(place: int) -> str:
    """A piece of a line, for a legend."""
    return f"<path d='M0 7H26' fill='none' {stroke_of(place)}/>"


def square_key(place: int) -> str:
    """A patch of a bar, for a legend."""
    return f"<rect width='12' height='12' y='1' rx='2' {fill_of(place)}/>"


def mark(x: float, y: float, place: int, title: str = "") -> str:
    """A disc for every second one, a diamond for the others, so that colour is not all that tells."""
    if place % 2:
        return f"<path d='M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z' {fill_of(place)}>{title}</path>"
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' {fill_of(place)}>{title}</circle>"


def stroke_of(place: int, *, dashed: bool = True) -> str:
    """The stroke of what stands in this place of a legend: ten colours, and dashes that tell neighbours apart too."""
    dash = DASHES[(place // len(COLOURS) + place % 2) % len(DASHES)] if dashed else ""
    return f"stroke='{colour_of(place)}' stroke-width='2'" + (f" stroke-dasharray='{dash}'" if dash else "")


def fill_of(place: int) -> str:
    """The fill of what stands in this place of a legend."""
    return f"fill='{colour_of(place)}'" + (" fill-opacity='.5'" if place // len(COLOURS) % 2 else "")


def colour_of(place: int) -> str:
    """Its colour, by day and by night."""
    own = place % len(COLOURS)
    return f"var(--c{own}, {COLOURS[own]})"


def text_at(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    """Text in a chart."""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {more}>{safe(text)}</text>"


def svg_element(height: float, name: str, description: str, parts: Sequence[str]) -> str:
    """A chart of its parts, with what it is and says in words."""
    box = f"viewBox='0 0 {WIDTH} {height:.0f}' role='img' class='chart' font-size='13' fill='currentColor'"
    said = f"<title>{safe(name)}</title><desc>{safe(description)}</desc>"
    return f"<svg {box}>{said}{''.join(parts)}</svg>"


def width(text: str) -> float:
    """What a text takes at most, by the kind of its letters: an estimate, for nothing is measured here."""
    return sum(map(_letter, text))


def _letter(letter: str) -> float:
    if letter in "MWmw@%…" or ord(letter) > 0x2E00:
        return 1.9 * LETTER
    return LETTER / 1.6 if letter in "iljtf .,:;'|" else LETTER


def widest(texts: Iterable[str]) -> float:
    """The width of the longest of them."""
    return max(map(width, texts))


def shortened(text: str, room: float) -> str:
    """As much of a text as there is room for."""
    if width(text) <= room:
        return text
    while text and width(text + "…") > room:
        text = text[:-1]
    return text + "…"


def safe(text: str) -> str:
    """Text within an element or between quotes, without the characters that XML has no place for."""
    return html.escape("".join(letter if letter.isprintable() else " " for letter in text))
