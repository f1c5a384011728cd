"""The parts that pages are made of. What is called HTML is taken as it is; all other text is escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from .style import STYLE

Row = Sequence[str]
LONG = 24  # letters of a row's name, above which it wraps


def page(title: str, body: str) -> str:
    """A self-contained page: nothing in it is loaded from elsewhere."""
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    head += f"<title>{safe(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>{body}</body></html>\n"


def safe(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def section(name: str, title: str, body: str) -> str:
    """A part of a page that its contents link to; nothing where there is nothing to show."""
    return f"<section id='{name}'><h2>{safe(title)}</h2>{body}</section>" if body else ""


def contents(parts: Iterable[tuple[str, str, str]]) -> str:
    """Links to the sections (name, title, body) that have a body."""
    links = "".join(f"<a href='#{name}'>{safe(title)}</a>" for name, title, body in parts if body)
    return f"<nav aria-label='Contents'>{links}</nav>"


def facts(entries: Iterable[tuple[str, str, str]]) -> str:
    """Name, figure and a remark under it, beside each other."""
    cells = "".join(
        f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd>{f'<dd>{safe(note)}</dd>' if note else ''}</div>"
        for name, value, note in entries
    )
    return f"<dl class='facts'>{cells}</dl>"


def table(
    header: Row,
    rows: Sequence[Row],
    *,
    names: Sequence[int] = (),
    words: Sequence[int] = (),
    total: bool = False,
    label: str = "",
) -> str:
    """A table that scrolls in a box of its own.

    Args:
        header: names of the columns.
        rows: their cells as HTML; the first names the row. A cell of `bar` fills its own column.
        names: columns of names; those that are neither these nor words are figures.
        words: columns of sentences, which wrap.
        total: whether the last row sums up the others.
        label: what the table shows, for those who hear the page.
    """
    kinds = ["name" if place in names else "words" if place in words else "" for place in range(len(header))]
    head = "".join(_cell("th scope=col", name, kind) for name, kind in zip(map(safe, header), kinds, strict=True))
    lines = []
    for place, (first, *cells) in enumerate(rows):
        last = " class='total'" if total and place == len(rows) - 1 else ""
        line = "".join(
            _cell("td", cell, "bar" if cell.startswith("<i") else kind)
            for cell, kind in zip(cells, kinds[1:], strict=True)
        )
        kind = "long" if len(first) > LONG else kinds[0]
        lines.append(f"<tr{last}>{_cell('th scope=row', first, kind)}{line}</tr>")
    box = f"class='wide' tabindex='0' role='region' aria-label='{safe(label or header[0] or 'table')}'"
    return f"<div {box}><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _cell(tag: str, content: str, kind: str) -> str:
    return f"<{tag}{f' class={kind!r}' if kind else ''}>{content}</{tag[:2]}>"


def bar(share: float) -> str:
    """A cell of a table that shows a share of the longest bar, from 0 to 1."""
    return f"<i style='width:{100 * min(max(share, 0.0), 1.0):.1f}%'></i>"


def folded(summary: str, body: str, *, printed: bool = False) -> str:
    """What is shown when it is asked for; on paper only where it is ``printed``."""
    return f"<details{' class=print' if printed else ''}><summary>{safe(summary)}</summary>{body}</details>"


def seconds_text(seconds: float) -> str:
    """A time as people say it: ``0.42 s``, ``24.3 s``, ``4 min 12 s``, ``3 h 5 min``."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"


def plural(count: int, word: str, words: str = "") -> str:
    """``1 round``, ``1,200 rounds``."""
    return f"{count:,} {word if count == 1 else words or word + 's'}"
