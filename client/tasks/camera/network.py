"""Black box → constraint → black box: a network for radiance, the camera, a network for what physics cannot know.

    ln H = ln f⁻¹(x) − ln(2^e w v) + E_θ(x)·(0.1 + 0.9 (1 − m(x)))
    y0   = f(H · 2^e' w' v')
    y    = y0 + (1 − m(x)) · s · D_θ(y0, x)        and in y0 s · E_θ, s = min(1, |Δ|), Δ the change of exposure in EV

E_θ and D_θ are shared; they see the photograph through the inverse of the camera's own response, so that one network
serves every camera. m(x) is 1 where a pixel is well exposed: there physics has the word, and E_θ may take off noise.
With s, a photograph taken again as it was is itself.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_formation import STOP, CameraLayer, View, radius_squared, trusted
from .response import GAMMA, TINY

CELL = 4  # pixels that the context is coarser by
FEATURES = 9  # of each pixel: its exposure by channel, how far it is under and over what is trusted
MARGIN = 32  # pixels around a tile that its middle can depend on, and then some


def features(pixels: Tensor, log_exposure: Tensor) -> Tensor:
    """What the networks see of a photograph: X^(1/2.2), and 1 − m(x) apart for dark and for bright pixels."""
    doubt = 1 - trusted(pixels)
    dark = (pixels < 0.5).to(pixels.dtype)
    return torch.cat([torch.exp(log_exposure / GAMMA), doubt * dark, doubt * (1 - dark)], 1)


class Context(nn.Module):
    """What surrounds each pixel: convolutions on a grid four times coarser, brought back; (B, 9, H, W) → (B, 24, H, W).

    H and W are whole numbers of cells.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        edge = {"padding_mode": "replicate"}
        self.cells = nn.Conv2d(inputs, width, CELL, stride=CELL)
        self.near = nn.Conv2d(width, width, 3, padding=1, **edge)  # type: ignore[arg-type]
        self.far = nn.Conv2d(width, width, 3, padding=2, dilation=2, **edge)  # type: ignore[arg-type]
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, seen: Tensor) -> Tensor:
        found = F.relu(self.cells(seen))
        found = found + F.relu(self.near(found))
        found = found + F.relu(self.far(found))
        return F.interpolate(self.out(found), scale_factor=CELL, mode="bilinear", align_corners=False)


def pixelwise(inputs: int, width: int) -> nn.Sequential:
    """Two layers for each pixel by itself, to three channels, that begin with nothing to add."""
    last = nn.Conv2d(width, 3, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(cast(Tensor, last.bias))
    return nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU(), last)


class SelfCalibrating(nn.Module):
    """Radiance network, camera, residual network. Everything but ``camera`` is shared.

    Args:
        photographs: how many the camera can calibrate one by one.
        width: channels of the context.
        networks: which stand beside the camera: "both", "radiance" (E_θ), "residual" (D_θ) or "none".
    """

    CONTEXT, HEAD = 24, 32

    def __init__(self, photographs: int = 16, width: int = 64, networks: str = "both") -> None:
        super().__init__()
        self.context = Context(FEATURES, width, self.CONTEXT)
        radiance, residual = (networks in ("both", name) for name in ("radiance", "residual"))
        self.radiance = pixelwise(self.CONTEXT + FEATURES, self.HEAD) if radiance else None
        self.residual = pixelwise(self.CONTEXT + FEATURES + 6, self.HEAD) if residual else None
        self.camera = CameraLayer(photographs)

    def forward(self, pixels: Tensor, stops: Tensor) -> Tensor:
        """The photographs (B, 3, H, W), values in [0, 1], as they were with ``stops`` (B,) EV more exposure."""
        return retake(self, pixels, stops)

    def estimate(self, pixels: Tensor, view: View) -> Tensor:
        """ln H (B, 3, H, W)."""
        log_radiance, correction, _ = self._estimate(pixels, view)
        return log_radiance + correction

    def _estimate(self, pixels: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """ln H as the camera has it, what the network adds, and what the networks see of each pixel."""
        log_radiance = self.camera.develop(pixels, view)
        seen = features(pixels, log_radiance + view.log_gain)
        seen = torch.cat([seen, self.context(seen)], 1)
        if self.radiance is None:
            return log_radiance, torch.zeros_like(log_radiance), seen
        gate = 0.1 + 0.9 * (1 - trusted(pixels))
        return log_radiance, gate * self.radiance(seen), seen

    def image(self, pixels: Tensor, view: View, target: View) -> Tensor:
        """The picture y that another view of the same scene gives, not clipped."""
        log_radiance, correction, seen = self._estimate(pixels, view)
        change = target.log_gain - view.log_gain
        share = (change.abs() / STOP).clamp(max=1.0)
        formed = self.camera(log_radiance + share * correction, target)
        if self.residual is None:
            return formed
        extra = self.residual(torch.cat([seen, formed, change / 2], 1))
        return formed + (1 - trusted(pixels)) * share * extra


class BlackBox(nn.Module):
    """The same size without physics: a network told the change of exposure, whose last layers are the client's own.

    y = x + N_θ(x, Δ), Δ the change of exposure in stops. ``camera`` are its last two layers, about as many numbers as
    a camera's response, kept by the client as a camera is.
    """

    CONTEXT, HEAD, OWN = 24, 64, 11

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.context = Context(FEATURES + 1, width, self.CONTEXT)
        self.head = nn.Sequential(
            nn.Conv2d(self.CONTEXT + FEATURES + 1, self.HEAD, 1), nn.ReLU(), nn.Conv2d(self.HEAD, self.HEAD, 1)
        )
        self.camera = pixelwise(self.HEAD, self.OWN)

    def forward(self, pixels: Tensor, stops: Tensor) -> Tensor:
        """The photographs (B, 3, H, W), values in [0, 1], as they were with ``stops`` (B,) EV more exposure."""
        height, width = pixels.shape[-2:]
        pixels = whole_cells(pixels)
        step = (stops / 2)[:, None, None, None].expand(-1, 1, *pixels.shape[-2:])
        seen = torch.cat([features(pixels, GAMMA * torch.log(pixels.clamp(min=TINY))), step], 1)
        found = self.head(torch.cat([seen, self.context(seen)], 1))
        return (pixels + self.camera(F.relu(found)))[..., :height, :width]


def whole_cells(pixels: Tensor) -> Tensor:
    """The picture with its edge repeated on the right and below, up to whole cells."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % CELL, 0, -height % CELL), mode="replicate")


def retake(model: SelfCalibrating, pixels: Tensor, stops: Tensor, radius: Tensor | None = None) -> Tensor:
    """Whole photographs again at ``stops`` (B,) EV more exposure, by a camera whose rows are not asked for.

    ``radius`` is r² (1, 1, H, W) of the pixels, where they are a window of a photograph.
    """
    height, width = pixels.shape[-2:]
    radius = radius_squared(height, width)[None, None].to(pixels) if radius is None else radius
    radius, padded = whole_cells(radius).expand(len(pixels), -1, -1, -1), whole_cells(pixels)
    unknown = torch.full((len(pixels),), -1, dtype=torch.long, device=pixels.device)
    view = model.camera.view(torch.zeros_like(stops), unknown, radius)
    target = model.camera.view(stops, unknown, radius)
    return model.image(padded, view, target)[..., :height, :width]
