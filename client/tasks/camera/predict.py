"""A trained network on whole photographs, of any size: in tiles, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .image_formation import View, radius_squared
from .network import MARGIN, SelfCalibrating, whole_cells
from .scenes import Photograph

SIDE = 512  # of a tile without its margins


def predict(
    model: nn.Module,
    given: Photograph,
    stops: float,
    device: torch.device | str = "cpu",
    *,
    gain: Tensor | None = None,
) -> Tensor:
    """The photograph with ``stops`` EV more exposure, (3, H, W) in [0, 1], by the camera as the model holds it.

    ``gain`` (3,) is ln of what its white balance is changed by.
    """
    step = torch.tensor([stops], device=device)
    more = torch.zeros(3) if gain is None else gain

    def picture(pixels: Tensor, radius: Tensor) -> Tensor:
        if not isinstance(model, SelfCalibrating):
            return model(pixels, step)
        row = torch.tensor([given.row], device=device)
        view = model.camera.view(torch.zeros_like(step), row, radius)
        target = model.camera.view(step, row, radius, exact=True)
        target = View(target.response, target.log_gain + more.to(device)[:, None, None])
        return model.image(pixels, view, target)

    with torch.no_grad():
        return in_tiles(picture, given.pixels, device).clamp(0, 1)


def in_tiles(picture: Callable[[Tensor, Tensor], Tensor], pixels: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """``picture(x, r²)``, x (1, 3, h, w) in [0, 1] in whole cells, of a whole photograph uint8 (3, H, W), joined."""
    height, width = pixels.shape[-2:]
    result = torch.empty(3, height, width)
    for top, left in _corners(height, width):
        y0, x0 = max(0, top - MARGIN), max(0, left - MARGIN)
        part = pixels[None, :, y0 : top + SIDE + MARGIN, x0 : left + SIDE + MARGIN].to(device).float() / 255
        radius = radius_squared(*part.shape[-2:], y0, x0, (height, width))[None, None].to(device)
        found = picture(whole_cells(part), whole_cells(radius))[0, :, top - y0 :, left - x0 :].cpu()
        room = result[:, top : top + SIDE, left : left + SIDE]
        room.copy_(found[:, : room.shape[1], : room.shape[2]])
    return result


def _corners(height: int, width: int) -> Iterator[tuple[int, int]]:
    for top in range(0, height, SIDE):
        for left in range(0, width, SIDE):
            yield top, left


def develop(model: SelfCalibrating, given: Photograph, device: torch.device | str = "cpu") -> Tensor:
    """ln of the scene's radiance (3, H, W) as one photograph tells it, relative to a nominal exposure of 0 EV."""

    def log_radiance(pixels: Tensor, radius: Tensor) -> Tensor:
        step, row = torch.tensor([given.exposure], device=device), torch.tensor([given.row], device=device)
        return model.estimate(pixels, model.camera.view(step, row, radius))

    return in_tiles(log_radiance, given.pixels, device)


def shown_error(picture: Tensor, given: Photograph, wanted: Photograph) -> Tensor:
    """Squared errors (3, N) of a picture, over the pixels that both photographs show."""
    return shown((picture - wanted.pixels.float() / 255).square(), given, wanted)


def shown(picture: Tensor, given: Photograph, wanted: Photograph) -> Tensor:
    """Of a picture (3, H, W) the pixels that both photographs show, (3, N)."""
    valid = [photo.valid.flatten() for photo in (given, wanted) if photo.valid is not None]
    return picture.flatten(1)[:, torch.stack(valid).all(0)] if valid else picture.flatten(1)


def psnr(squared_error: Tensor) -> float:
    """10 log10(1 / mean squared error) in dB; of equal pictures 99."""
    return min(99.0, -10 * float(torch.log10(squared_error.mean().clamp(min=1e-12))))
