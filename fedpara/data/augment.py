"""Synthetic variants of a client's own images: moved, mirrored, warped, and pasted into one another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

_CELLS = 4  # an elastic warp's control points span the image in this many cells: about one bend across it
_POINTS = _CELLS + 3
_DRAWS = 11  # uniform numbers that an image uses besides its elastic control points


@dataclass(frozen=True)
class Augmentation:
    """What may happen to an image. Everything is off at 0; amounts are drawn evenly for every image.

    shift: pixels, each way. flip: probability of a left-right mirror (True: 0.5). rotate, shear: degrees, either way.
    scale: 0.1 is 0.9 to 1.1 times. elastic: typical displacement (standard deviation) of a smooth warp, pixels.
    cutmix: probability that a patch of another image of the batch is pasted in (Yun et al., 2019). pad: what comes in
    at the edges, "zero" (black, so augment before normalising) or "reflect" (the image, mirrored at its edge).
    Raises ConfigError.
    """

    shift: int = 0
    flip: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    cutmix: float = 0.0
    pad: Literal["zero", "reflect"] = "zero"

    def __post_init__(self) -> None:
        if isinstance(self.flip, bool):
            object.__setattr__(self, "flip", 0.5 if self.flip else 0.0)
        if self.shift < 0 or int(self.shift) != self.shift:
            raise ConfigError(f"shift is {self.shift}; it is a whole number of pixels, 0 or more")
        limits = {"flip": 1.0, "cutmix": 1.0, "rotate": 180.0, "shear": 60.0, "scale": 0.9, "elastic": math.inf}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit or math.isinf(value):
                upper = "" if math.isinf(limit) else f" to {limit:g}"
                raise ConfigError(f"{name} is {value}; it must be 0{upper or ' or more'}")
        if self.pad not in ("zero", "reflect"):
            raise ConfigError(f'pad is {self.pad!r}; it must be "zero" or "reflect"')

    @property
    def warps(self) -> bool:
        """Whether images are resampled between pixels."""
        return bool(self.rotate or self.scale or self.shear or self.elastic)


@torch.no_grad()
def augment(
    images: Tensor, labels: Tensor, config: Augmentation, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented images (B, C, H, W), and their targets: `labels` as given, or with cutmix soft ones (B, num_classes).

    images: float, on any device. generator: draws on its own device, so a CPU generator gives the same images
    everywhere. Raises ConfigError.
    """
    _check(images, labels, num_classes)
    # Drawn in one layout for all: what one operation does to an image does not depend on which others are on.
    draws = _draw(images, _DRAWS, generator)
    if len(images) > 0:
        if config.flip:
            images = torch.where((draws[:, 0] < config.flip).view(-1, 1, 1, 1), images.flip(-1), images)
        if config.shift:
            images = _shift(images, draws[:, 1:3], config)
        if config.warps:
            images = _warp(images, draws[:, 3:6], config, generator)
    if config.cutmix:
        return _cutmix(images, labels, draws[:, 6:11], config.cutmix, num_classes)
    return images, labels


def _draw(images: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), (B, columns), on the images' device."""
    return torch.rand(len(images), columns, generator=generator, device=generator.device).to(
        images.device, non_blocking=True
    )


def _check(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise ConfigError(
            f"images are {images.dtype} {tuple(images.shape)}; expected float (B, C, H, W), as images.float() / 255 is"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ConfigError(f"labels are {labels.dtype} {tuple(labels.shape)}; expected int64 ({len(images)},)")
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; expected 1 or more")


def _shift(images: Tensor, draws: Tensor, config: Augmentation) -> Tensor:
    """Moves each image by whole pixels: out[y, x] = in[y + dy, x + dx]."""
    height, width = images.shape[-2:]
    offsets = ((2 * config.shift + 1) * draws).long()  # from -shift, in each direction
    if config.pad == "zero":
        images = F.pad(images, (config.shift,) * 4)
        rows, columns = _run(offsets[:, 0], height), _run(offsets[:, 1], width)
    else:
        rows = _mirrored(_run(offsets[:, 0] - config.shift, height), height)
        columns = _mirrored(_run(offsets[:, 1] - config.shift, width), width)
    places = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).view(len(images), 1, -1)
    moved = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1))
    return moved.view(*images.shape[:2], height, width)


def _run(starts: Tensor, size: int) -> Tensor:
    """`size` places in a row from each start, (B, size)."""
    return torch.arange(size, device=starts.device) + starts[:, None]


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places outside, mirrored at the edges, over and over where a shift is larger than the image."""
    places = places.remainder(2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


def _warp(images: Tensor, draws: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotation, scale, shear and elastic warp together, so that pixels are interpolated only once."""
    height, width = images.shape[-2:]
    grid = F.affine_grid(_affine(draws, config, height, width), list(images.shape), align_corners=False)
    if config.elastic:
        grid = grid + _elastic(_draw(images, 2 * _POINTS**2, generator), config.elastic, height, width)
    mode = "zeros" if config.pad == "zero" else "reflection"
    return F.grid_sample(images, grid.to(images.dtype), "bilinear", mode, align_corners=False)


def _affine(draws: Tensor, config: Augmentation, height: int, width: int) -> Tensor:
    """Maps (B, 2, 3) from places in the result to places in the image, in grid_sample's units of half the image."""
    centred = 2 * draws - 1
    angle = math.radians(config.rotate) * centred[:, 0]
    zoom = 1 / (1 + config.scale * centred[:, 1])
    lean = torch.tan(math.radians(config.shear) * centred[:, 2])
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    # The units differ where the image is not square, or a rotation would distort it.
    across, down = height / width, width / height
    zero = torch.zeros_like(cos)
    rows = (cos, (lean * cos - sin) * across, zero, sin * down, lean * sin + cos, zero)
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _elastic(draws: Tensor, pixels: float, height: int, width: int) -> Tensor:
    """Smooth random displacements (B, H, W, 2), in grid_sample's units; the idea is Simard et al.'s (2003)."""
    # Both directions side by side in every row, as grid_sample reads them, so that two products make the whole field.
    noise = ((draws - 0.5) * pixels).view(-1, _POINTS, 2 * _POINTS)
    return (_spline(height, draws.device) @ noise @ _across(height, width, draws.device)).view(-1, height, width, 2)


@lru_cache(maxsize=16)
def _across(height: int, width: int, device: torch.device) -> Tensor:
    """Weights (2 points, 2 width) along a row, from noise in ±1/2 to displacements of deviation 1 pixel."""
    # Uniform noise has deviation 1/√12, the spline's weights keep 0.48 of it, and grid_sample's unit is half the image.
    unit = 2 * math.sqrt(12) / 0.48
    scales = torch.diag(torch.tensor([unit / width, unit / height], device=device))
    weights = _spline(width, device).T[:, None, :, None] * scales[:, None, :]
    return weights.reshape(2 * _POINTS, 2 * width)


@lru_cache(maxsize=16)
def _spline(size: int, device: torch.device) -> Tensor:
    """Weights (size, points) of the uniform cubic B-spline at the centre of each pixel; every row sums to 1."""
    place = (torch.arange(size) + 0.5) * (_CELLS / size)
    distance = (place[:, None] - (torch.arange(_POINTS) - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far).to(device)


def _cutmix(
    images: Tensor, labels: Tensor, draws: Tensor, probability: float, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Pastes into some images the same patch of another; a label weighs what its image has of the pixels."""
    height, width = images.shape[-2:]
    partner = _other(draws[:, 0])
    side = draws[:, 2].sqrt() * (draws[:, 1] < probability)  # patches' areas are even in [0, 1]: Beta(1, 1)
    rows = _inside(height, side, draws[:, 3])
    columns = _inside(width, side, draws[:, 4])
    patch = rows[:, None, :, None] & columns[:, None, None, :]
    share = (rows.sum(1) * columns.sum(1)).to(images.dtype)[:, None] / max(height * width, 1)
    hard = F.one_hot(labels, num_classes).to(images.dtype)
    return torch.where(patch, images[partner], images), (1 - share) * hard + share * hard[partner]


def _other(draws: Tensor) -> Tensor:
    """A partner for every image, (B,): the next one along a random circle, so that no image meets itself."""
    order = draws.argsort()
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _inside(size: int, side: Tensor, centre: Tensor) -> Tensor:
    """Whether each of `size` places lies in a span of `side` of it around `centre`, (B, size); the edges cut it off."""
    place = torch.arange(size, device=side.device) + 0.5
    return (place - centre[:, None] * size).abs() < side[:, None] * (size / 2)
