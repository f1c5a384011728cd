"""What the report shows of a run: responses learnt against true ones, exposures predicted, figures by camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpara.task import Exhibit

from . import plots, response
from .baselines import gamma_scaling
from .examples import HeldOut, held_out
from .network import SelfCalibrating
from .predict import predict, psnr, shown_error
from .scenes import Camera, Photograph

Shown = Mapping[str, tuple[nn.Module, Camera]]  # each camera's own model, and its photographs


def exhibits(shown: Shown, folder: Path) -> Sequence[Exhibit]:
    """Pictures and a table; pictures are written into ``folder``."""
    pairs = {name: held for name, (_, camera) in shown.items() if (held := held_out(camera)) is not None}
    found = [Exhibit("Exposures held out, PSNR in dB", table=_table(shown, pairs))] if pairs else []
    learnt = {
        name: (model.camera.values(), camera.truth)
        for name, (model, camera) in shown.items()
        if isinstance(model, SelfCalibrating)
    }
    if learnt:
        curves = {name: values for name, (values, _) in learnt.items()}
        picture = plots.cameras(folder / "responses.svg", curves, {name: truth for name, (_, truth) in learnt.items()})
        found.append(Exhibit("Response curves: learnt, and true where it is known (dashed)", picture))
    for name, held in list(pairs.items())[-1:]:
        picture = plots.strip(folder / "exposures.png", _rows(shown[name][0], held))
        found.append(Exhibit(f"{name}, a scene that it was not trained on: predicted above, taken below", picture))
    return found


def _table(shown: Shown, pairs: Mapping[str, HeldOut]) -> str:
    """A line a camera: its own model's PSNR, that of gamma scaling, and how far its response is from the true one."""
    lines = [f"{'camera':14} {'this run':>9} {'darker':>8} {'brighter':>9} {'gamma 2.2':>10} {'response RMSE':>14}"]
    for name, held in pairs.items():
        model, camera = shown[name]
        own = [score(model, *pair) for pair in held.pairs]
        darker = [a for a, (given, wanted) in zip(own, held.pairs, strict=True) if wanted.exposure < given.exposure]
        brighter = [a for a, (given, wanted) in zip(own, held.pairs, strict=True) if wanted.exposure > given.exposure]
        plain = [
            psnr(shown_error(gamma_scaling(g.pixels.float() / 255, w.exposure - g.exposure), g, w))
            for g, w in held.pairs
        ]
        line = f"{name:14} {_mean(own):9} {_mean(darker):8} {_mean(brighter):9} {_mean(plain):10}"
        if isinstance(model, SelfCalibrating) and "response" in camera.truth:
            line += f" {response.rmse(model.camera.values()['response'], camera.truth['response']):14.4f}"
        lines.append(line)
    return "\n".join(lines)


def score(model: nn.Module, given: Photograph, wanted: Photograph) -> float:
    """PSNR of a photograph predicted from another, in dB."""
    return psnr(shown_error(predict(model, given, wanted.exposure - given.exposure), given, wanted))


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "–"


def _rows(model: nn.Module, held: HeldOut) -> list[list[tuple[str, Tensor]]]:
    """The last scene's photograph and what was predicted from it; below, what the camera took."""
    given = held.pairs[-1][0]
    same = [wanted for other, wanted in held.pairs if other is given]
    first = [(f"given, {given.exposure:+g} EV", given.pixels.float() / 255)]
    predicted = [predict(model, given, wanted.exposure - given.exposure) for wanted in same]
    above = [(f"{w.exposure:+g} EV: {score(model, given, w):.1f} dB", p) for w, p in zip(same, predicted, strict=True)]
    below = [(f"{w.exposure:+g} EV, taken", w.pixels.float() / 255) for w in same]
    return [first + above, [("", torch.ones_like(first[0][1])), *below]]
