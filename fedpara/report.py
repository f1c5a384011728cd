"""report.html: one self-contained page about a run."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chart import line_chart
from .checkpoint import replace_file
from .errors import FedparaError
from .live import bytes_text, figure, times
from .run import Run

if TYPE_CHECKING:
    from .task import Exhibit

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1.5rem 0; background: #fff; border-radius: 6px; padding: .5rem; overflow-x: auto; }
figure svg, figure img { max-width: 100%; height: auto; display: block; margin: auto; }
figure.charts { background: none; display: grid; gap: 1rem; }
@media (min-width: 46rem) { figure.charts { grid-template-columns: 1fr 1fr; } }
.charts figcaption { color: inherit; grid-column: 1 / -1; }
figcaption { color: #333; text-align: center; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; background: #8881; padding: 1rem; border-radius: 6px; }
@media print { body { max-width: none; } }
"""


def write(run: Run) -> Path:
    """Write ``report.html`` into the run's folder; its path."""
    sections = [
        _headline(run),
        _curves(run),
        _exhibits(run),
        _ledger(run),
        _holdings(run),
        _sizes(run),
        _dropped(run),
        _recipe(run),
    ]
    file = run.folder / "report.html"
    replace_file(file, page(run.recipe.name, "".join(sections)).encode())
    return file


def page(title: str, body: str) -> str:
    """A self-contained page."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>"


def _headline(run: Run) -> str:
    summary = run.summary
    if not summary:
        progress = f"Unfinished: {len(run.rounds)} of {run.recipe.rounds} rounds."
        return f"<h1>{html.escape(run.recipe.name)}</h1><p>{progress}</p>"
    measure, total = summary["measure"], summary["payload_up"] + summary["payload_down"]
    text = (
        f"{measure} {figure(summary['value'], measure)} after {summary['rounds']} rounds; "
        f"{bytes_text(total)} of payload, {times(total, summary['dense_payload'])} fewer than dense weights in float32 "
        f"({bytes_text(summary['dense_payload'])}); {summary['seconds']:.1f} s."
    )
    description = f"<p>{html.escape(run.recipe.description)}</p>" if run.recipe.description else ""
    return f"<h1>{html.escape(run.recipe.name)}</h1>{description}<p><strong>{text}</strong></p>"


def _curves(run: Run) -> str:
    measure = run.measure.removeprefix("client_")
    keys = {measure: "server's test data", f"client_{measure}": "clients' held-out data, before training"}
    charts = []
    for x, label, log in (("round", "round", False), ("total", "payload, up and down, MB", True)):
        scale = 1e6 if x == "total" else 1
        rows = {name: [(row[x] / scale, row[key]) for row in run.rounds if key in row] for key, name in keys.items()}
        charts.append(line_chart({name: points for name, points in rows.items() if points}, label, measure, log_x=log))
    caption = html.escape(f"{measure} against rounds and against bytes")
    return f"<figure class='charts'>{''.join(charts)}<figcaption>{caption}</figcaption></figure>" if any(charts) else ""


def _ledger(run: Run) -> str:
    ledger = run.ledger
    rows = [
        (f"{way} · {purpose}", bytes_text(payload), bytes_text(message))
        for (way, purpose), payload in sorted(ledger.by("direction", "purpose", unit="payload").items())
        for message in [ledger.by("direction", "purpose", unit="message")[way, purpose]]
    ]
    rows.append(("total", bytes_text(ledger.total()), bytes_text(ledger.total(unit="message"))))
    clients = sorted(ledger.by("client", unit="payload").items(), key=lambda item: -item[1])[:20]
    by_client = [(html.escape(str(client)), bytes_text(count)) for client, count in clients]
    paper = run.summary.get("paper_gib")
    note = "<p>Payload is what the codec produced; message is what Flower sends for it."
    if paper is not None:
        note += f" The paper's figure, 2 × participants × parameter bytes × rounds: {paper:.4g} GiB."
    note += "</p>"
    return (
        "<h2>Bytes</h2>"
        + note
        + table_html(("", "payload", "message"), rows)
        + "<h3>By client (the 20 that moved most)</h3>"
        + table_html(("client", "payload"), by_client)
    )


def _holdings(run: Run) -> str:
    try:
        holdings = run.task.holdings(run.recipe.clients)
    except FedparaError as error:  # the data may be gone since
        return f"<h2>Who holds what</h2><p>{html.escape(str(error))}</p>"
    if holdings is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        holdings.plot(Path(folder) / "holdings.svg")
        picture = _inline((Path(folder) / "holdings.svg").read_text(encoding="utf-8"), "who holds what")
    return f"<h2>Who holds what</h2>{picture}<div class='wide'><pre>{html.escape(holdings.table())}</pre></div>"


def _exhibits(run: Run) -> str:
    """What the task itself shows of the trained network."""
    from .task import Task

    if not run.summary:
        return ""
    try:
        if type(run.task).exhibits is Task.exhibits:
            return ""
        run.task.personal = run.model
        with tempfile.TemporaryDirectory() as folder:
            shown = run.task.exhibits(run.model(), Path(folder))
            return "<h2>What it does</h2>" + "".join(map(_exhibit, shown))
    except FedparaError as error:  # the data may be gone since
        return f"<h2>What it does</h2><p>{html.escape(str(error))}</p>"


def _exhibit(shown: Exhibit) -> str:
    table = f"<div class='wide'><pre>{html.escape(shown.table)}</pre></div>" if shown.table else ""
    if shown.picture is None:
        return f"<h3>{html.escape(shown.caption)}</h3>{table}"
    if shown.picture.suffix == ".svg":
        return _inline(shown.picture.read_text(encoding="utf-8"), shown.caption) + table
    data = base64.b64encode(shown.picture.read_bytes()).decode()
    caption = html.escape(shown.caption)
    picture = f"<img alt='{caption}' src='data:image/png;base64,{data}'>"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>{table}"


def _sizes(run: Run) -> str:
    from .cost import size
    from .task import build_model

    try:
        model = build_model(run.recipe, run.task)
    except FedparaError as error:  # as above
        return f"<h2>Sizes by layer</h2><p>{html.escape(str(error))}</p>"
    return f"<h2>Sizes by layer</h2><pre>{html.escape(str(size(model, codec=run.recipe.uplink)))}</pre>"


def _dropped(run: Run) -> str:
    rows = [
        (str(row["round"]), html.escape(entry["client"]), html.escape(entry["reason"]))
        for row in run.rounds
        for entry in row["dropped"]
    ]
    return f"<h2>Dropped replies</h2>{table_html(('round', 'client', 'reason'), rows)}" if rows else ""


def _recipe(run: Run) -> str:
    import torch

    from . import __version__

    text = (run.folder / "recipe.toml").read_text(encoding="utf-8")
    versions = f"fedpara {__version__}, torch {torch.__version__}"
    return f"<h2>Recipe</h2><pre>{html.escape(text)}</pre><p>{versions}, seed {run.recipe.seed}</p>"


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def figure_html(draw: Callable[[Any], None], caption: str, panels: int = 2) -> str:
    """A plot as inline SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, panels)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return _inline(buffer.getvalue(), caption)


def _inline(svg: str, caption: str) -> str:
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"
