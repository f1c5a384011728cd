"""What the report shows of a run: responses learnt against true ones, exposures predicted, figures by camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedpara.chart import Chart
from fedpara.task import Exhibit

from . import response
from .baselines import gamma_scaling
from .examples import HeldOut, held_out
from .network import SelfCalibrating
from .predict import predict, psnr, shown_error
from .scenes import Camera, Photograph

Shown = Mapping[str, tuple[nn.Module, Camera]]  # each camera's own model, and its photographs
CHANNELS = {"red": 6, "green": 2, "blue": 0}  # and their places in the report's colours
LOWEST, EVERY = 8, 4  # stops below a full sensor that are shown; of which knots


def exhibits(shown: Shown) -> Sequence[Exhibit]:
    """Figures by camera, response curves, and pictures of exposures held out."""
    pairs = {name: held for name, (_, camera) in shown.items() if (held := held_out(camera)) is not None}
    found = [Exhibit("Exposures held out", rows=_rows(shown, pairs))] if pairs else []
    charts = [
        _responses(name, model.camera.values()["response"], camera.truth.get("response"))
        for name, (model, camera) in shown.items()
        if isinstance(model, SelfCalibrating)
    ]
    if charts:
        found.append(Exhibit("Response curves learnt and, faintly behind them, the true ones", charts=charts))
    for name, held in list(pairs.items())[-1:]:
        caption = f"{name}, a scene that it was not trained on: exposures predicted from one photograph"
        found.append(Exhibit(caption, pictures=_pictures(shown[name][0], held)))
    return found


def _rows(shown: Shown, pairs: Mapping[str, HeldOut]) -> list[list[str]]:
    """A line a camera: its own model's PSNR, that of gamma scaling, and how far its response is from the true one."""
    heads = ["this run, PSNR dB", "darker", "brighter", "gamma 2.2, PSNR dB", "response RMSE"]
    lines = [["camera", *heads]]
    for name, held in pairs.items():
        model, camera = shown[name]
        own = [score(model, *pair) for pair in held.pairs]
        darker = [a for a, (given, wanted) in zip(own, held.pairs, strict=True) if wanted.exposure < given.exposure]
        brighter = [a for a, (given, wanted) in zip(own, held.pairs, strict=True) if wanted.exposure > given.exposure]
        plain = [
            psnr(shown_error(gamma_scaling(g.pixels.float() / 255, w.exposure - g.exposure), g, w))
            for g, w in held.pairs
        ]
        error = "–"
        if isinstance(model, SelfCalibrating) and "response" in camera.truth:
            error = f"{response.rmse(model.camera.values()['response'], camera.truth['response']):.4f}"
        lines.append([name, *map(_mean, (own, darker, brighter, plain)), error])
    return lines


def _responses(name: str, learnt: Tensor, truth: Tensor | None) -> Chart:
    """A response's three channels over the stops below a full sensor, the true ones behind them."""
    stops = (response.GAMMA * torch.log2(torch.linspace(0, 1, response.KNOTS)[1:])).tolist()

    def curves(values: Tensor) -> dict[str, list[tuple[float, float]]]:
        lines = (zip(stops, own[1:].tolist(), strict=True) for own in values.detach())
        shown = ([(x, y) for x, y in line if x >= -LOWEST][::EVERY] for line in lines)
        return dict(zip(CHANNELS, shown, strict=True))

    axes = "exposure, stops below full", "pixel value", name
    return Chart(curves(learnt), *axes, faint={} if truth is None else curves(truth), colours=CHANNELS)


def score(model: nn.Module, given: Photograph, wanted: Photograph) -> float:
    """PSNR of a photograph predicted from another, in dB."""
    return psnr(shown_error(predict(model, given, wanted.exposure - given.exposure), given, wanted))


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "–"


def _pictures(model: nn.Module, held: HeldOut) -> dict[str, list[tuple[str, Tensor]]]:
    """The last scene's photograph, what was predicted from it, and what the camera took."""
    given = held.pairs[-1][0]
    same = [wanted for other, wanted in held.pairs if other is given]
    predicted = [(wanted, predict(model, given, wanted.exposure - given.exposure)) for wanted in same]
    return {
        "Given": [(f"{given.exposure:+g} EV", given.pixels.float() / 255)],
        "Predicted": [(f"{w.exposure:+g} EV: {score(model, given, w):.1f} dB", picture) for w, picture in predicted],
        "Taken by the camera": [(f"{wanted.exposure:+g} EV", wanted.pixels.float() / 255) for wanted in same],
    }
