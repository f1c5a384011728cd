"""report.html: one self-contained page about a run, for a screen of any width and for paper."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import replace_file
from ..run import Run
from . import network, sections
from .parts import contents, page, section


def write(run: Run) -> Path:
    """Write ``report.html`` into the run's folder; its path."""
    parts = [
        ("progress", "Progress", sections.progress(run)),
        ("clients", "What each client ends up with", sections.clients(run)),
        ("exhibits", "What the network does", network.exhibits(run)),
        ("bytes", "Every byte", sections.ledger(run)),
        ("holdings", "Who holds what", network.holdings(run)),
        ("sizes", "Sizes, layer by layer", network.sizes(run)),
        ("dropped", "Dropped replies", sections.dropped(run)),
        ("seconds", "Where the time went", sections.seconds(run)),
        ("recipe", "Recipe, versions, seed", sections.recipe(run)),
    ]
    body = f"<header>{sections.headline(run)}{contents(parts)}</header>"
    body += "<main>" + "".join(section(*part) for part in parts) + "</main>"
    file = run.folder / "report.html"
    replace_file(file, page(run.recipe.name, body).encode())
    return file
