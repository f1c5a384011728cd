"""Pictures of programs: a coloured chart with a legend, and how sure each of its cells is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .instructions import COUNT, MEANINGS, NAMES, PALETTE
from .knittability import Violation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = ("", "–", "∩", "×", "→", "⇒", "←", "⇐", "→", "⇒", "←", "⇐", "╱", "╱", "╲", "╲", "S")


def chart(program: Tensor, wrong: Sequence[Violation] = ()) -> bytes:
    """A program (rows, columns) in colours with signs, a legend of what is in it, broken rules framed; a PNG."""
    rows, columns = program.shape
    cell = min(0.34, 24 / max(rows, columns))
    figure = _figure(cell * columns + 2.9, max(cell * rows + 0.8, 2.4))
    axes = figure.add_subplot()
    draw(axes, program, signs=cell > 0.15)
    for violation in wrong:
        place = (violation.column - 0.5, violation.row - 0.5)
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="red", linewidth=2))
    _number(axes, rows, columns)
    _legend(figure, program, bool(wrong))
    return _png(figure)


def draw(axes: Axes, program: Tensor, *, signs: bool = True) -> None:
    """A program in colours."""
    axes.imshow(coloured(program), interpolation="nearest")
    rows, columns = program.shape
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#00000030", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    if not signs:
        return
    for row, line in enumerate(program.tolist()):
        for column, own in enumerate(line):
            if SHORT[own]:
                axes.text(
                    column, row, SHORT[own], ha="center", va="center", fontsize=8, color=_ink(own), family="DejaVu Sans"
                )


def coloured(program: Tensor) -> NDArray[np.uint8]:
    """A program in the palette's colours, (rows, columns, 3)."""
    return np.array(PALETTE, np.uint8)[program.numpy()]


def confidence_map(sure: Tensor) -> bytes:
    """The probability of the instruction read in each cell, (rows, columns); a PNG."""
    rows, columns = sure.shape
    cell = min(0.3, 24 / max(rows, columns))
    figure = _figure(cell * columns + 1.6, max(cell * rows + 0.8, 2.4))
    axes = figure.add_subplot()
    shown = axes.imshow(sure.numpy(), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    _number(axes, rows, columns)
    figure.colorbar(shown, ax=axes, label="confidence")
    return _png(figure)


def _number(axes: Axes, rows: int, columns: int) -> None:
    """Stitches counted from 0, as in the table of confidences."""
    step = 5 if max(rows, columns) <= 60 else 20
    axes.set_xticks(range(0, columns, step))
    axes.set_yticks(range(0, rows, step))
    axes.set_xlabel("column")
    axes.set_ylabel("row")


def _legend(figure: Figure, program: Tensor, wrong: bool) -> None:
    from matplotlib.patches import Patch

    found = torch.bincount(program.flatten().long(), minlength=COUNT)
    entries = [
        Patch(
            facecolor=np.array(PALETTE[own]) / 255,
            edgecolor="#00000060",
            label=f"{NAMES[own]} {SHORT[own]}  {MEANINGS[own]} ({int(found[own])})",
        )
        for own in found.argsort(descending=True).tolist()
        if found[own]
    ]
    if wrong:
        entries.append(Patch(fill=False, edgecolor="red", linewidth=2, label="cannot be knitted so"))
    figure.legend(handles=entries, loc="outside right upper", fontsize=7, frameon=False)


def _ink(own: int) -> str:
    red, green, blue = PALETTE[own]
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 120 else "white"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
