"""Drawings: what a camera learnt, and pictures of exposures beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .image_formation import vignetting
from .response import GAMMA, KNOTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("tab:red", "tab:green", "tab:blue")


def camera(path: Path, values: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Path:
    """Response curves and vignetting, learnt (lines) and true (dashed), as SVG; the path."""
    figure = _figure(9, 3.6)
    response, falloff = figure.subplots(1, 2)
    curves(response, values["response"], truth.get("response"))
    radius = torch.linspace(0, 1, 100)
    falloff.plot(radius, vignetting(radius**2, values["vignetting"].detach()), color="k", label="learnt")
    if "vignetting" in truth:
        falloff.plot(radius, vignetting(radius**2, truth["vignetting"]), "k--", alpha=0.6, label="true")
    falloff.set(xlabel="distance from the middle, 1 at the corner", ylabel="light", ylim=(0, 1.1))
    falloff.legend(frameon=False)
    falloff.grid(alpha=0.3)
    figure.savefig(path, format="svg")
    return path


def curves(axes: Axes, learnt: Tensor, truth: Tensor | None = None) -> None:
    """A response's three channels over the stops below a full sensor."""
    stops = GAMMA * torch.log2(torch.linspace(0, 1, KNOTS)[1:])
    for channel, colour in enumerate(COLOURS):
        axes.plot(
            stops, learnt[channel, 1:].detach(), color=colour, linewidth=1.4, label="learnt" if not channel else None
        )
        if truth is not None:
            label = "true" if not channel else None
            axes.plot(stops, truth[channel, 1:], "--", color=colour, linewidth=1, alpha=0.7, label=label)
    axes.set(xlim=(-8, 0), xlabel="exposure, stops below full", ylabel="pixel value")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
