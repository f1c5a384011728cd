"""How a camera forms an image: exposure, white balance, vignetting, response. The first physics layer.

    y = f(H · 2^e · w · v(r))        H radiance, e exposure in stops (EV), w white balance, v vignetting, f response

The camera's own quantities are few and mean something; they are fitted to its photographs and stay with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from client.tasks.physics.layer import Quantity

from . import response

STOP = math.log(2)
RAMPS = (0.15, 0.9)  # pixel values between which physics is trusted wholly
VIGNETTING = (0.1, 2.0)


class View(NamedTuple):
    """How one camera takes photographs: its response, and what the light is multiplied by before it."""

    response: Tensor  # (B, 3, 257)
    log_gain: Tensor  # (B, 3, H, W): ln(2^e · w · v)

    def fixed(self, examples: slice = slice(None)) -> View:
        """Of these examples, as constants."""
        return View(self.response[examples].detach(), self.log_gain[examples].detach())

    def beside(self, other: View) -> View:
        """Both, one behind the other in the batch."""
        return View(torch.cat([self.response, other.response]), torch.cat([self.log_gain, other.log_gain]))


class CameraLayer(nn.Module):
    """A camera's response, vignetting, and of each photograph the white balance and what its exposure is off by.

    Photographs that it is to calibrate have a row, in the order of the client's files; row -1 is one of which nothing
    is known beyond its nominal exposure.
    """

    quantities = (
        Quantity("response", "of full scale, at exposures (k/256)^2.2", 0, 1),
        Quantity("vignetting", "", -1, 1),
        Quantity("white_balance", "EV", -2, 2),
        Quantity("exposure", "EV", -0.5, 0.5),
    )

    def __init__(self, photographs: int, terms: int = 2) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, response.KNOTS - 1))
        self.falloff = nn.Parameter(torch.zeros(terms))
        self.balance = nn.Parameter(torch.zeros(photographs, 3))
        self.offset = nn.Parameter(torch.zeros(photographs))

    @property
    def calibrated(self) -> bool:
        """Whether it was fitted to anything."""
        return bool(self.logits.detach().ne(0).any())

    def values(self) -> Mapping[str, Tensor]:
        of = {quantity.name: quantity.of for quantity in self.quantities}
        balance = of["white_balance"](self.balance)
        return {
            "response": response.curve(self.logits),
            "vignetting": of["vignetting"](self.falloff),
            # The gauge: a gain that all channels have in common is exposure.
            "white_balance": balance - balance.mean(-1, keepdim=True),
            "exposure": of["exposure"](self.offset),
        }

    def view(self, exposure: Tensor, row: Tensor, radius: Tensor, *, exact: bool = False) -> View:
        """Of photographs with these nominal exposures (B,) in EV, rows (B,), and r² of their pixels (B, 1, H, W).

        ``exact``: the exposure is as said, of a photograph that nobody took; the white balance is still the row's.
        """
        values = self.values()
        known = ((row >= 0) & (row < len(self.offset))).to(exposure.dtype)
        row = row.clamp(0, len(self.offset) - 1)
        stops = exposure if exact else exposure + known * values["exposure"][row]
        balance = known[:, None] * values["white_balance"][row]
        gain = STOP * (stops[:, None] + balance)[..., None, None] + torch.log(vignetting(radius, values["vignetting"]))
        return View(values["response"].expand(len(row), -1, -1), gain)

    def forward(self, log_radiance: Tensor, view: View) -> Tensor:
        """Form the image: pixel values (B, 3, H, W) of ln H."""
        return response.expose(log_radiance + view.log_gain, view.response)

    def develop(self, pixels: Tensor, view: View) -> Tensor:
        """ln H of pixel values, as far as they tell: the same backwards."""
        return response.develop(pixels, view.response) - view.log_gain

    def regulariser(self) -> Tensor:
        """1e-4 Σ (second difference)² of each response in units of the straight line's slope, and ridges.

        Two of its ambiguities end here: exposures may be off by some 0.05 EV and no more, since a common factor of all
        would be another response; and balances are about 1, since a common one would be another scene.
        """
        values = self.values()
        bend = (values["response"].diff(n=2, dim=-1) * (response.KNOTS - 1)).square().sum(-1).mean()
        ridges = values["exposure"].square().sum() / 0.05**2 + values["white_balance"].square().sum() / 0.15**2
        ridges = ridges + values["vignetting"].square().sum()
        return 1e-4 * bend + 1e-5 * ridges

    def plot(self, path: Path, truth: Mapping[str, Tensor] | None = None) -> Path:
        """The three response curves, and the vignetting from the middle to the corner."""
        from .plots import camera

        return camera(path, self.values(), truth or {})


def vignetting(radius: Tensor, terms: Tensor) -> Tensor:
    """v(r) = clamp(1 + Σ α_k r^{2k}), of r² (..., 1 at the corner); terms (K,) or (B, K) for r² (B, 1, H, W)."""
    powers = torch.stack([radius ** (k + 1) for k in range(terms.shape[-1])], -1)
    weights = terms if terms.dim() == 1 else terms[:, None, None, None]
    return (1 + (powers * weights).sum(-1)).clamp(*VIGNETTING)


def radius_squared(
    height: int, width: int, top: int = 0, left: int = 0, whole: tuple[int, int] | None = None
) -> Tensor:
    """r² (H, W) of the pixels of a window of a photograph of the size ``whole``; 1 at the photograph's corner."""
    full_height, full_width = whole or (height, width)
    y = (torch.arange(height) + top + 0.5) - full_height / 2
    x = (torch.arange(width) + left + 0.5) - full_width / 2
    return (y[:, None] ** 2 + x[None, :] ** 2) / ((full_height**2 + full_width**2) / 4)


def trusted(pixels: Tensor) -> Tensor:
    """m(c): 1 for pixel values from 0.15 to 0.9, falling to 0 at 0 and at 1 with the square of the distance."""
    low, high = RAMPS
    under = ((low - pixels) / low).clamp(0.0, 1.0)
    over = ((pixels - high) / (1 - high)).clamp(0.0, 1.0)
    return 1 - under**2 - over**2
