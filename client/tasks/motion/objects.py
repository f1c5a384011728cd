"""One client's images as the stuff that scenes are made of: backgrounds, and objects cut out by masks or shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

WAVES = 4  # harmonics of a random outline
RADII = (0.15, 0.42)  # of a random outline, as a share of its window's side


@dataclass
class Collection:
    """Images (3, H, W) and cut-outs (4, h, w; the last channel covers), uint8, of any sizes, on one device.

    `noise` is the largest level of noise in this owner's video.
    """

    images: Sequence[Tensor]
    cutouts: Sequence[Tensor] = ()
    noise: float = 0.3
    _wide: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return self.images[0].device

    def backgrounds(self, places: Tensor, need: int, zoom: float, generator: torch.Generator) -> Tensor:
        """Windows (n, 3, P, P) in [0, 1] of these images at random places; P ≤ zoom · need, as the smallest allows.

        Images with a side under `need` are enlarged to it.
        """
        images = self._of_size(need)
        side = min(int(zoom * need), *(min(image.shape[1:]) for image in images))
        return torch.stack([_window(images[place], side, generator) for place in places.tolist()]).float() / 255

    def objects(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Objects (count, 4, side, side) in [0, 1], colours times cover: where there are cut-outs, half are such."""
        places = torch.randint(len(self.images), (count,), generator=generator)
        colours = self.backgrounds(places, side, 1.0, generator)
        covers = outlines(count, side, generator).to(self.device)
        found = torch.cat([colours * covers, covers], 1)
        if self.cutouts:
            for place in (torch.rand(count, generator=generator) < 0.5).nonzero().flatten().tolist():
                chosen = int(torch.randint(len(self.cutouts), (), generator=generator))
                found[place] = _fitted(self.cutouts[chosen], side)
        return found

    def _of_size(self, need: int) -> list[Tensor]:
        if need not in self._wide:
            self._wide[need] = [_enlarged(image, need) for image in self.images]
        return self._wide[need]


def outlines(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Random smooth shapes (count, 1, side, side), 1 inside: r(θ) = r0 (1 + Σ a_k cos kθ + b_k sin kθ), k ≤ WAVES."""
    axis = torch.arange(side) - (side - 1) / 2
    radius, angle = torch.hypot(axis[:, None], axis[None]), torch.atan2(axis[:, None], axis[None])
    order = torch.arange(1, WAVES + 1)
    waves = order[:, None, None] * angle
    amplitude = 0.25 * torch.randn(2, count, WAVES, generator=generator) / order
    swing = torch.tensordot(amplitude[0], waves.cos(), 1) + torch.tensordot(amplitude[1], waves.sin(), 1)
    middle = RADII[0] + (RADII[1] - RADII[0]) * torch.rand(count, 1, 1, generator=generator)
    inside = side * middle * (1 + swing) - radius + 0.5
    edge = (side / 2 - radius).clamp(0, 1)  # an outline that reaches the window's end closes before it
    return (inside.clamp(0, 1) * edge)[:, None]


def cut_out(image: Tensor, mask: Tensor) -> Tensor:
    """The part of an image (3, H, W) under a mask (H, W), cropped to it: (4, h, w) uint8."""
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    cover = (mask[box] > 0).to(torch.uint8) * 255
    return torch.cat([image[:, box[0], box[1]], cover[None]])


def _window(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    share = torch.rand(2, generator=generator).tolist()
    top, left = (int(part * (length - side + 1)) for part, length in zip(share, image.shape[1:], strict=True))
    return image[:, top : top + side, left : left + side]


def _enlarged(image: Tensor, need: int) -> Tensor:
    factor = need / min(image.shape[1:])
    if factor <= 1:
        return image
    size = [max(need, math.ceil(length * factor)) for length in image.shape[1:]]
    larger = F.interpolate(image[None].float(), size, mode="bicubic", align_corners=False)[0]
    return larger.round().clamp(0, 255).to(torch.uint8)


def _fitted(cutout: Tensor, side: int) -> Tensor:
    """A cut-out scaled to a window, at most twice its size, in its middle, colours times cover."""
    factor = min(side / max(cutout.shape[1:]), 2.0)
    size = [max(1, min(side, round(length * factor))) for length in cutout.shape[1:]]
    small = F.interpolate(cutout[None].float() / 255, size, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = ((side - length) // 2 for length in size)
    small = F.pad(small, (left, side - size[1] - left, top, side - size[0] - top))
    return torch.cat([small[:3] * small[3:], small[3:]])
