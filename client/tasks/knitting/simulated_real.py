"""Simulated photographs of fabric: no set of real ones is public, so what a camera makes of knitting is drawn too.

Never called real: a *simulated photograph* is a rendering with a mill's own yarn, fuzz, stretch, misplacement, light,
wear and noise. A mill's ranges are its own, drawn from its name and the seed: no mill's photographs look like others'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpara.seeds import generator_for

from .instructions import P
from .programs import USUAL, Mix
from .renderer import CELL, Yarn, render

MARGIN = 3  # cells around the program that are drawn too: stretching brings them into view
YARNS = 3  # that a mill has
# What each mill in turn knits most of, beside the usual mix.
SPECIALITIES: tuple[Mapping[str, float], ...] = (
    {"cables": 4.0, "lace": 0.4},
    {"lace": 1.6, "ribs": 0.5},
    {"held": 3.0, "tucked": 3.0, "lace": 0.6},
    {"ribs": 2.0, "blocks": 2.0, "texture": 1.5},
)


@dataclass(frozen=True)
class Mill:
    """A mill's designs, yarn and camera. Lengths in pixels, the rest in shares of full scale unless said otherwise."""

    name: str
    mix: Mix
    yarns: tuple[Yarn, ...]
    fuzz: float  # fibres that stand off, and the haze they make
    stretch: float  # deviation of the elastic warp
    misplaced: float  # deviation of where the program's grid lies, in cells; never more than one
    light: float  # how uneven it is
    contrast: float
    brightness: float
    blur: float  # deviation
    noise: float
    wear: float  # share of the fabric that is felted

    @property
    def title(self) -> str:
        return f"{self.name} (simulated)"


def mill(name: str, place: int, seed: int) -> Mill:
    """The mill of this name and place in the population; a place below 0 is the one that knits the usual mix."""
    generator = generator_for(seed, "mill", name)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    families = dict(USUAL)
    purl = Mix.purl
    if place >= 0:
        for family, factor in SPECIALITIES[place % len(SPECIALITIES)].items():
            families[family] *= factor
        purl += between(-0.2, 0.2)
    yarn = Yarn(
        radius=between(0.115, 0.165),
        plies=between(0.05, 0.4),
        twist=between(1.8, 4.0),
        light=between(-0.7, 0.7),
        shade=between(170, 235),
        spread=between(-0.02, 0.03),
        lean=between(-0.12, 0.12),
    )
    yarns = tuple(
        replace(yarn, radius=yarn.radius * between(0.93, 1.07), shade=yarn.shade * between(0.9, 1.08))
        for _ in range(YARNS)
    )
    return Mill(
        name,
        Mix(families, purl),
        yarns,
        fuzz=between(0.05, 0.4),
        stretch=between(1.0, 2.0),
        misplaced=between(0.05, 0.25),
        light=between(0.1, 0.35),
        contrast=between(0.55, 1.0),
        brightness=between(-0.1, 0.12),
        blur=between(0.4, 0.8),
        noise=between(0.008, 0.03),
        wear=between(0.0, 0.12),
    )


def photographs(programs: Tensor, own: Mill, generator: torch.Generator) -> Tensor:
    """Simulated photographs of these programs (n, rows, columns) at a mill: uint8 (n, 8 rows, 8 columns)."""
    count, rows, columns = programs.shape
    size = (rows * CELL, columns * CELL)
    around = _surrounded(programs)
    which = torch.randint(len(own.yarns), (count,), generator=generator)
    fabric = torch.empty(count, *(CELL * n for n in around.shape[1:]))
    for number, yarn in enumerate(own.yarns):
        chosen = which == number
        if chosen.any():
            fabric[chosen] = render(around[chosen], yarn).float() / 255
    fabric = fabric[:, None]
    fabric = fabric + own.fuzz * _fibres(fabric, generator)
    haze = 0.6 * own.fuzz
    fabric = (1 - haze) * fabric + haze * blurred(fabric, 1.5)
    if own.wear:
        felted = _felted(fabric, own.wear, generator)
        fabric = fabric + felted * (blurred(fabric, 2.0) - fabric)
    seen = _warped(fabric, size, own, generator)
    seen = _lit(seen, own, generator)
    seen = blurred(seen, own.blur * (0.8 + 0.4 * float(torch.rand((), generator=generator))))
    seen = seen + own.noise * torch.randn(seen.shape, generator=generator)
    return (seen.clamp(0, 1) * 255).round().to(torch.uint8)[:, 0]


def _surrounded(programs: Tensor) -> Tensor:
    """Programs with plain cells around them, as their outermost ones."""
    wide = F.pad(programs[:, None].float(), (MARGIN,) * 4, mode="replicate")[:, 0]
    wide = torch.where(wide > P, torch.zeros_like(wide), wide).to(programs.dtype)
    wide[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = programs
    return wide


def _fibres(fabric: Tensor, generator: torch.Generator) -> Tensor:
    """Hairs: noise drawn out along a direction of each photograph's own, more where there is yarn."""
    noise = torch.randn(fabric.shape, generator=generator)
    angle = torch.rand(len(fabric), generator=generator) * torch.pi
    steps = torch.linspace(-2.5, 2.5, 6)
    kernel = torch.zeros(len(fabric), 1, 7, 7)
    x = (3 + steps * torch.cos(angle)[:, None]).round().long()
    y = (3 + steps * torch.sin(angle)[:, None]).round().long()
    for n in range(len(fabric)):
        kernel[n, 0, y[n], x[n]] = 1
    kernel = kernel / kernel.sum((2, 3), keepdim=True).sqrt()
    drawn = F.conv2d(noise.transpose(0, 1), kernel, padding=3, groups=len(fabric)).transpose(0, 1)
    return 0.25 * drawn * (0.3 + fabric)


def _felted(fabric: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Patches of worn fabric, 0 to 1."""
    field = _smooth_field(len(fabric), 6, fabric.shape[2:], generator)
    bound = torch.quantile(field.flatten(1), 1 - share, dim=1).view(-1, 1, 1, 1)
    return torch.sigmoid(6 * (field - bound)) * 0.8


def _warped(fabric: Tensor, size: tuple[int, int], own: Mill, generator: torch.Generator) -> Tensor:
    """What the frame sees: the fabric stretched, turned and put beside its place a little."""
    count = len(fabric)
    height, width = fabric.shape[2:]
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    bend = own.stretch * _smooth_field(2 * count, 5, size, generator).view(count, 2, *size)
    angle = 0.012 * torch.randn(count, 1, 1, generator=generator)
    off = (own.misplaced * torch.randn(count, 2, 1, 1, generator=generator)).clamp(-1, 1) * CELL
    middle_y, middle_x = size[0] / 2, size[1] / 2
    from_x = x + bend[:, 0] + off[:, 0] - angle * (y - middle_y) + MARGIN * CELL
    from_y = y + bend[:, 1] + off[:, 1] + angle * (x - middle_x) + MARGIN * CELL
    grid = torch.stack([2 * from_x / width - 1, 2 * from_y / height - 1], -1)
    return F.grid_sample(fabric, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _lit(seen: Tensor, own: Mill, generator: torch.Generator) -> Tensor:
    """Uneven light, the corners darker, another exposure and contrast each time."""
    light = 1 + own.light * _smooth_field(len(seen), 3, seen.shape[2:], generator).clamp(-1.5, 1.5) * 0.6
    y, x = (torch.linspace(-1, 1, n) for n in seen.shape[2:])
    corners = 1 - 0.4 * own.light * (y[:, None] ** 2 + x**2) / 2
    swing = 0.85 + 0.3 * torch.rand(len(seen), 1, 1, 1, generator=generator)
    level = own.brightness + 0.06 * torch.randn(len(seen), 1, 1, 1, generator=generator)
    return (0.5 + own.contrast * swing * (seen - 0.5) + level) * light * corners


def _smooth_field(count: int, knots: int, size: tuple[int, int] | torch.Size, generator: torch.Generator) -> Tensor:
    """Smooth random fields (count, 1, height, width) of deviation 1 at their knots."""
    coarse = torch.randn(count, 1, knots, knots, generator=generator)
    return F.interpolate(coarse, tuple(size), mode="bicubic", align_corners=True)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Images (n, 1, h, w) behind a Gaussian of this deviation in pixels."""
    reach = max(1, round(2.5 * deviation))
    axis = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    line = torch.exp(-0.5 * (axis / deviation) ** 2)
    line = (line / line.sum()).view(1, 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, line), line.transpose(2, 3))
