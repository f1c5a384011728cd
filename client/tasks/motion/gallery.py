"""What the report shows of a trained magnifier: SSIM by motion and noise beside the classical methods, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpara.task import Exhibit

from .baselines import BASELINES
from .judging import NOISES, SIZES, Judged, Method, by_case, score, table
from .objects import Collection

SCENES = 4  # one of each kind that moves; of each, every motion and every noise
SHOWN = ((0.1, 0.0), (0.1, 0.3), (0.5, 0.1))  # motion and noise of the pictures

Rows = dict[str, list[float]]  # by method, a value for each case


def network_method(model: nn.Module) -> Method:
    """A network as one of the methods."""
    return lambda a, b, alpha, motion: model(a, b, alpha)


def grid(own: Collection, magnified: float, seed: int) -> Judged:
    """Every motion at every noise, the noises after each other."""
    cases = [(size, noise) for noise in NOISES for size in SIZES]
    return Judged(own, cases, SCENES * len(cases), magnified, seed)


def exhibits(model: nn.Module, own: Collection, magnified: float, seed: int, folder: Path) -> Sequence[Exhibit]:
    """Tables, a plot and pictures, on images that no client owns."""
    judged = grid(own, magnified, seed)
    methods: Mapping[str, Method] = {**BASELINES, "this network": network_method(model)}
    with torch.no_grad():
        rows = {
            name: by_case(score(method, judged, torch.device("cpu"))[0], judged) for name, method in methods.items()
        }
        pictures = _pictures(methods, own, magnified, seed, folder / "frames.png")
    shown = [
        Exhibit(
            f"SSIM to the true magnification to {magnified:g} px, {SCENES} scenes from photographs of no client",
            _plot(rows, folder / "ssim.svg"),
            tables(rows),
        ),
        Exhibit("Frames: " + "; ".join(f"{size:g} px at noise {noise:g}" for size, noise in SHOWN), pictures),
    ]
    return shown


def tables(rows: Rows) -> str:
    """A table for each level of noise, by motion."""
    parts = []
    for place, noise in enumerate(NOISES):
        own = slice(place * len(SIZES), (place + 1) * len(SIZES))
        heads = [f"{size:g} px" for size in SIZES]
        parts.append(f"noise {noise:g}\n" + table({name: values[own] for name, values in rows.items()}, heads))
    return "\n\n".join(parts)


def _plot(rows: Rows, path: Path) -> Path:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(NOISES), sharey=True)
    for place, (axes, noise) in enumerate(zip(panels, NOISES, strict=True)):
        for name, values in rows.items():
            axes.plot(SIZES, values[place * len(SIZES) : (place + 1) * len(SIZES)], marker=".", label=name)
        axes.set_xscale("log")
        axes.set_xticks(SIZES, [f"{size:g}" for size in SIZES])
        axes.minorticks_off()
        axes.set_title(f"noise {noise:g}", fontsize=10)
        axes.set_xlabel("input motion, px")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("SSIM to the truth")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)
    return path


def _pictures(methods: Mapping[str, Method], own: Collection, magnified: float, seed: int, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns: dict[str, Tensor] = {}
    judged = Judged(own, SHOWN, len(SHOWN), magnified, seed)
    a, b, truth, alpha, motion = judged.batch(torch.arange(len(judged)))
    columns["truth"] = truth
    for name, method in methods.items():
        columns[name] = method(a, b, alpha, motion)
    figure = Figure(figsize=(2 * len(columns), 2.1 * len(SHOWN)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for row, axes_row in enumerate(figure.subplots(len(SHOWN), len(columns), squeeze=False)):
        for axes, (name, frames) in zip(axes_row, columns.items(), strict=True):
            axes.imshow(((frames[row] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=9)
    figure.savefig(path)
    return path
