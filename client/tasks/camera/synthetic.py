"""Synthetic variation: a client's own photographs linearised, lit anew, and taken again by random cameras.

No data set holds one scene at every exposure through many cameras. But any photograph is a scene: made linear, spread
over a high dynamic range by a smooth random gain, and put through a camera drawn at random, it shows the networks what
clipped and dark pixels looked like before.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .image_formation import STOP, View, vignetting
from .response import GAMMA, TINY, expose, random_responses

READ_NOISE, SHOT_NOISE = 1e-3, 2e-4  # deviation at no light, and variance for each unit of exposure, of a full sensor


class RandomCameras(NamedTuple):
    """Cameras drawn at random, one an example."""

    response: Tensor  # (B, 3, 257)
    balance: Tensor  # (B, 3), EV, mean 0
    falloff: Tensor  # (B, 2)


def random_cameras(count: int, generator: torch.Generator, measured: Path | None = None) -> RandomCameras:
    """Responses as `random_responses`; white balances within some 0.3 EV; corners of 0.45 to 1 of the light."""
    balance = 0.3 * torch.randn(count, 3, generator=generator)
    balance = balance - balance.mean(1, keepdim=True)
    corner = 0.55 * torch.rand(count, generator=generator)
    bow = torch.rand(count, generator=generator)
    falloff = -corner[:, None] * torch.stack([bow, 1 - bow], 1)
    return RandomCameras(random_responses(count, generator, measured), balance, falloff)


def log_gain(camera: RandomCameras, stops: Tensor, radius: Tensor) -> Tensor:
    """ln(2^e w v) of each camera (B, 3, H, W) at ``stops`` (B,) EV; r² (B, 1, H, W)."""
    gain = STOP * (stops[:, None] + camera.balance)[..., None, None]
    return gain + torch.log(vignetting(radius, camera.falloff))


def gain_maps(count: int, height: int, width: int, generator: torch.Generator, stops: float = 1.5) -> Tensor:
    """Smooth random light (count, 1, H, W) in EV, of deviation ``stops``: bicubic between 4 × 4 normal draws."""
    coarse = stops * torch.randn(count, 1, 4, 4, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)


def photograph(exposures: Tensor, response: Tensor, generator: torch.Generator) -> Tensor:
    """What a camera stores of exposures X (B, 3, H, W): shot and read noise, response, clipping, eight bits."""
    noise = torch.randn(exposures.shape, generator=generator)
    noisy = exposures + noise * (SHOT_NOISE * exposures + READ_NOISE**2).sqrt()
    pixels = expose(noisy.clamp(min=1e-6).log(), response).clamp(0, 1)
    return (pixels * 255).round() / 255


def reexposed(
    pixels: Tensor, radius: Tensor, generator: torch.Generator, measured: Path | None = None, reach: float = 3.0
) -> tuple[Tensor, Tensor, View, View]:
    """Photographs (B, 3, H, W) of some camera as scenes for random ones: two pictures x, y of each, and how taken.

    Linearised by x^2.2, lit by `gain_maps`, exposed so that the middle of the scene lies somewhere from 0.02 to 0.7 of
    full scale, and again up to ``reach`` EV from there.
    """
    count, _, height, width = pixels.shape
    light = GAMMA * pixels.clamp(min=TINY).log() + STOP * gain_maps(count, height, width, generator)
    middle = light.flatten(1).median(1).values
    key = 0.02 * 35 ** torch.rand(count, generator=generator)
    light = light + (key.log() - middle)[:, None, None, None]
    camera = random_cameras(count, generator, measured)
    steps = reach * (2 * torch.rand(count, generator=generator) - 1)
    first = View(camera.response, log_gain(camera, torch.zeros(count), radius))
    second = View(camera.response, log_gain(camera, steps, radius))
    given = photograph((light + first.log_gain).exp(), camera.response, generator)
    wanted = photograph((light + second.log_gain).exp(), camera.response, generator)
    return given, wanted, first, second
