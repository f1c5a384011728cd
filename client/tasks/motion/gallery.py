"""What the report shows of a trained magnifier: SSIM by motion and noise beside the classical methods, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedpara.chart import Chart
from fedpara.task import Exhibit

from .baselines import BASELINES
from .judging import NOISES, SIZES, Judged, Method, by_case, score
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


def exhibits(model: nn.Module, own: Collection, magnified: float, seed: int) -> Sequence[Exhibit]:
    """Charts, tables and pictures, on images that no client owns."""
    judged = grid(own, magnified, seed)
    methods: Mapping[str, Method] = {"this network": network_method(model), **BASELINES}
    with torch.no_grad():
        rows = {
            name: by_case(score(method, judged, torch.device("cpu"))[0], judged) for name, method in methods.items()
        }
        pictures = _pictures(methods, own, magnified, seed)
    caption = f"SSIM to the true magnification to {magnified:g} px, {SCENES} scenes from photographs of no client"
    return [
        Exhibit(caption, charts=_charts(rows), rows=table_rows(rows)),
        Exhibit("Frames magnified by each method", pictures=pictures),
    ]


def table_rows(rows: Rows) -> list[list[str]]:
    """A line for each method at each level of noise, a column for each motion; the first line names these."""
    lines = [["method", "noise", *(f"{size:g} px" for size in SIZES)]]
    for noise, own in _by_noise():
        lines += [[name, f"{noise:g}", *(f"{value:.3f}" for value in values[own])] for name, values in rows.items()]
    return lines


def _charts(rows: Rows) -> list[Chart]:
    return [
        Chart(
            {name: list(zip(SIZES, values[own], strict=True)) for name, values in rows.items()},
            "motion between the frames, px (log scale)",
            "SSIM to the truth",
            f"Noise {noise:g}",
            log_x=True,
        )
        for noise, own in _by_noise()
    ]


def _by_noise() -> list[tuple[float, slice]]:
    """Each level of noise, and where its cases stand."""
    return [(noise, slice(place * len(SIZES), (place + 1) * len(SIZES))) for place, noise in enumerate(NOISES)]


def _pictures(
    methods: Mapping[str, Method], own: Collection, magnified: float, seed: int
) -> dict[str, list[tuple[str, Tensor]]]:
    """The first frame, the truth and what each method makes of it, a row a case."""
    judged = Judged(own, SHOWN, len(SHOWN), magnified, seed)
    a, b, truth, alpha, motion = judged.batch(torch.arange(len(judged)))
    frames = {"given": a, "truth": truth} | {name: method(a, b, alpha, motion) for name, method in methods.items()}
    return {
        f"A motion of {size:g} px, noise {noise:g}": [(name, (own[row] + 1) / 2) for name, own in frames.items()]
        for row, (size, noise) in enumerate(SHOWN)
    }
