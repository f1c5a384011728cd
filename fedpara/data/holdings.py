"""Who holds what: the classes of every client as a table and as a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import chart
from .images import Split
from .partition import Partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TABLE_CLASSES = 12  # columns that fit a terminal; above it a row names the largest class only
_BAR_CLIENTS = 50
_BAR_CLASSES = 20  # colours that can be told apart
_HEAT_ROWS = 400
_BLUE, _RED = "#33628d", "#c4472b"
_BINS = 30


@dataclass(frozen=True, eq=False)
class Holdings:
    """Examples of each class that each client holds: counts int64 (clients, classes)."""

    clients: tuple[str, ...]
    classes: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples of each client, (clients,)."""
        return np.asarray(self.counts.sum(axis=1), np.int64)

    @property
    def effective_labels(self) -> NDArray[np.float64]:
        """exp of the entropy of each client's labels, (clients,): 1 for one class, `classes` for an even mix."""
        shares = self.shares
        logs = np.log(np.where(shares > 0, shares, 1.0))
        return np.asarray(np.exp(-(shares * logs).sum(axis=1)), np.float64)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Part of each client's examples in each class, (clients, classes); zeros for a client without examples."""
        return self.counts / np.maximum(self.sizes, 1)[:, None]

    def table(self, limit: int = 20) -> str:
        """Aligned text: a summary, then a row for each of the first `limit` clients."""
        header, rows = self.rows(min(limit, len(self.clients)))
        return aligned(self.summary(), header, rows, len(self.clients) - len(rows))

    def summary(self) -> str:
        """One line: clients, examples, sizes and classes of a client."""
        sizes, held = self.sizes, (self.counts > 0).sum(axis=1)
        return (
            f"{len(self.clients):,} clients, {sizes.sum():,} examples: {_range(sizes)} each (median "
            f"{np.median(sizes):,.0f}), {_range(held)} of {len(self.classes)} classes"
        )

    def rows(self, limit: int) -> tuple[list[str], list[list[str]]]:
        """Names of the columns, and a row of cells for each of the first `limit` clients."""
        counts = self.counts[:limit]
        held = (counts > 0).sum(axis=1)
        if len(self.classes) <= _TABLE_CLASSES:
            header = ["client", "examples", *(_short(name) for name in self.classes)]
            cells = [[f"{n:,}" if n else "·" for n in row] for row in counts.tolist()]
        else:
            header = ["client", "examples", "classes", "effective", "largest class", "share"]
            cells = [
                [str(k), f"{e:.1f}", self.classes[top], f"{share:.0%}"]
                for k, e, top, share in zip(
                    held.tolist(),
                    self.effective_labels[:limit].tolist(),
                    counts.argmax(axis=1).tolist(),
                    self.shares[:limit].max(axis=1).tolist(),
                    strict=True,
                )
            ]
        names, sizes = self.clients[:limit], self.sizes[:limit].tolist()
        rows = [[name, f"{n:,}", *row] for name, n, row in zip(names, sizes, cells, strict=True)]
        return header, rows

    def charts(self) -> str:
        """The same pictures as in `plot`, as HTML that takes the colours of the page around it."""
        if len(self.clients) <= _BAR_CLIENTS and len(self.classes) <= _BAR_CLASSES:
            parts = {name: self.counts[:, c].tolist() for c, name in enumerate(self.classes)}
            return chart.bars(self.clients, parts, "examples", "Examples of each class, by client")
        heat = chart.heat_map(
            self._stain(), self.classes, len(self.clients), "class", "clients, by their largest class"
        )
        sizes = chart.histogram(self.sizes.tolist(), "examples of a client", "clients")
        mixed = chart.histogram(self.effective_labels.round(3).tolist(), "effective classes of a client", "clients")
        said = (
            "In the map, the stronger a cell's colour, the larger the class's part of the client's examples, up to "
            f"{self.shares.max():.0%}. Effective classes: exp of the entropy of a client's labels, 1 where it holds "
            "one class. Upright lines are medians."
        )
        panels = "".join(f"<div class='panel'>{svg}</div>" for svg in (heat, sizes, mixed))
        return f"<figure><div class='charts'>{panels}</div><figcaption>{said}</figcaption></figure>"

    def _stain(self) -> str:
        """The heat map's cells, a pixel each: one colour, as opaque as the share is large; a data URI."""
        from PIL import Image

        shares = self.shares[self._sorted()]
        pixels = np.full((*shares.shape, 4), (44, 134, 204, 0), np.uint8)
        pixels[..., 3] = np.round(255 * shares / max(shares.max(), 1e-9))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    def _sorted(self) -> NDArray[np.int64]:
        """Rows of a heat map: clients by their largest class, at most so many as can be seen."""
        shares = self.shares
        # The jitter breaks ties evenly: among clients of few examples, most have several largest classes.
        jitter = np.random.Generator(np.random.PCG64(0)).random(shares.shape) * 1e-9
        order = np.lexsort((-shares.max(axis=1), (shares + jitter).argmax(axis=1)))
        rows = np.linspace(0, len(order) - 1, min(len(order), _HEAT_ROWS)).round().astype(np.int64)
        return np.asarray(order[rows], np.int64)

    def plot(self, path: Path) -> None:
        """A picture (by the suffix: png, svg, pdf): bars for up to 50 clients and 20 classes, else a heat map of label
        shares with histograms of sizes and of effective labels."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # Without pyplot, whose global state and choice of window belong to the caller.
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        if len(self.clients) <= _BAR_CLIENTS and len(self.classes) <= _BAR_CLASSES:
            self._bars(figure)
        else:
            self._overview(figure)
        figure.suptitle(self.summary(), fontsize=10, x=0.01, ha="left")
        figure.savefig(path, dpi=150)

    def _bars(self, figure: Figure) -> None:
        from matplotlib import colormaps

        clients, classes = self.counts.shape
        figure.set_size_inches(9, 1.6 + 0.21 * max(clients, 6))
        axes = figure.add_subplot()
        colours = colormaps["tab10" if classes <= 10 else "tab20"]
        left = np.zeros(clients)
        for c, name in enumerate(self.classes):
            axes.barh(range(clients), self.counts[:, c], left=left, color=colours(c), label=name, height=0.82)
            left += self.counts[:, c]
        axes.set_yticks(range(clients), self.clients, fontsize=8)
        axes.set_ylim(clients - 0.4, -0.6)
        axes.set_xlabel("examples")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        _plain(axes)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="class", title_fontsize=8)

    def _overview(self, figure: Figure) -> None:
        figure.set_size_inches(10, 6)
        grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1))
        self._heat_map(figure, figure.add_subplot(grid[:, 0]))
        _histogram(figure.add_subplot(grid[0, 1]), self.sizes, "examples of a client")
        effective = figure.add_subplot(grid[1, 1])
        _histogram(effective, self.effective_labels, "effective labels of a client (exp of entropy)")

    def _heat_map(self, figure: Figure, axes: Axes) -> None:
        image = axes.imshow(
            self.shares[self._sorted()], aspect="auto", cmap="Blues", vmin=0, interpolation="nearest",
            extent=(-0.5, len(self.classes) - 0.5, len(self.clients), 0),
        )  # fmt: skip
        if len(self.classes) <= 30:
            axes.set_xticks(range(len(self.classes)), [_short(name) for name in self.classes], rotation=90, fontsize=8)
        axes.set_xlabel("class")
        axes.set_ylabel("clients, sorted by their largest class")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        figure.colorbar(image, ax=axes, label="share of the client's examples", shrink=0.6, pad=0.02)


def holdings(split: Split, partition: Partition, classes: Sequence[str] | None = None) -> Holdings:
    """Counts the labels of every client. classes: their names; the numbers where None."""
    labels = split.labels.numpy()
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(labels.max()) + 1)))
    client = np.repeat(np.arange(len(partition)), partition.sizes)
    cells = client * len(names) + labels[partition.order]
    counts = np.bincount(cells, minlength=len(partition) * len(names)).reshape(len(partition), len(names))
    return Holdings(partition.clients, names, counts)


def _histogram(axes: Axes, values: NDArray[np.int64] | NDArray[np.float64], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    whole = bool(np.issubdtype(values.dtype, np.integer)) and high - low < _BINS
    bins = np.arange(low - 0.5, high + 1) if whole else np.linspace(low, max(high, low + 1), _BINS + 1)
    axes.hist(values, bins=bins.tolist(), color=_BLUE)
    median = float(np.median(values))
    axes.axvline(
        median, color=_RED, linewidth=1.2, label=f"median {median:,.0f}" if high > 100 else f"median {median:.3g}"
    )
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel("clients", fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.5g}")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 10 else name[:9] + "…"


def _range(values: NDArray[np.int64]) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def aligned(summary: str, header: list[str], rows: list[list[str]], left: int) -> str:
    """A summary and rows as text, figures under each other; then how many more there are."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [summary]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    if left > 0:
        lines.append(f"… and {left:,} more")
    return "\n".join(lines)
