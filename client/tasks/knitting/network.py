"""The networks of inverse knitting (Kaspar et al., ICML 2019): readers of stitches, the refiner, the discriminator.

Sizes at width 64 are the paper's: Img2prog 0.59 M parameters, Img2prog++ 0.79 M, refiner 0.59 M. Photographs are
(n, 1, h, w) in [−1, 1], h and w multiples of 8; a program's logits are (n, 17, h/8, w/8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .instructions import COUNT

SCALE = 8  # pixels a cell, and how much coarser readers end
NEARLY_ONE = 0.999  # atanh's range


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, instance normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.InstanceNorm2d(outputs), nn.ReLU())


class Block(nn.Module):
    """x + conv(ReLU(conv(x))), each convolution normalised by instance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.InstanceNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) → the same shape."""
        changed: Tensor = self.second(self.first(x))
        return x + changed


def blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(count)))


class Img2prog(nn.Module):
    """Three strided convolutions, residual blocks, what went into them beside what came out, two convolutions.

    ``plus`` (Img2prog++) also brings the photograph and the two finer grids down to the cells by space-to-depth.
    """

    def __init__(self, width: int = 64, depth: int = 6, plus: bool = False) -> None:
        super().__init__()
        self.fine, self.middle = conv(1, width, 2), conv(width, width, 2)
        self.coarse = conv(width, width, 2)
        self.body = blocks(width, depth)
        folded = ((1, 8), (width, 4), (width, 2)) if plus else ()  # channels and how much finer than the cells
        self.folds = nn.ModuleList(
            nn.Sequential(nn.PixelUnshuffle(factor), nn.Conv2d(channels * factor**2, width, 1), nn.ReLU())
            for channels, factor in folded
        )
        self.join = conv((2 + len(folded)) * width, width)
        self.head = nn.Conv2d(width, COUNT, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, h, w) → logits (n, 17, h/8, w/8)."""
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        parts = [self.body(coarse), coarse]
        parts += [fold(part) for fold, part in zip(self.folds, (x, fine, middle), strict=False)]
        logits: Tensor = self.head(self.join(torch.cat(parts, 1)))
        return logits


class Refiner(nn.Module):
    """Makes a photograph look like a rendering: R(x) = tanh(atanh(x) + N(x)), with N = 0 to begin with.

    N is one convolution, two strided ones, residual blocks, two upsamplings with convolutions, and a last one.
    """

    def __init__(self, width: int = 64, depth: int = 6) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(1, width), conv(width, width, 2), conv(width, width, 2))
        self.body = blocks(width, depth)
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv(width, width),
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv(width, width),
        )
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, h, w) in [−1, 1] → the same."""
        change = self.last(self.up(self.body(self.down(x))))
        return torch.tanh(torch.atanh(NEARLY_ONE * x) + change)


class Discriminator(nn.Module):
    """Patch by patch, is this a rendering of this program? Scores (n, 1, h/8, w/8), 1 for yes (LSGAN)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 4, 2, 1),
            nn.InstanceNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 4, 2, 1),
            nn.InstanceNorm2d(width),
            nn.LeakyReLU(0.2),
        )
        self.judge = nn.Sequential(
            nn.Conv2d(width + COUNT, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1)
        )

    def forward(self, x: Tensor, programs: Tensor) -> Tensor:
        """Images (n, 1, h, w) and the programs they are said to show, (n, h/8, w/8)."""
        told = F.one_hot(programs.long(), COUNT).movedim(-1, 1).to(x.dtype)
        scores: Tensor = self.judge(torch.cat([self.look(x), told], 1))
        return scores


class Knitter(nn.Module):
    """A reader, and before it, where there is one, the refiner of photographs with its discriminator.

    Args:
        width: channels of the reader; 64 is the paper's.
        depth: residual blocks of the reader and of the refiner.
        plus: Img2prog++ instead of Img2prog.
        refiner: channels of the refiner and the discriminator; 0: there are none.
    """

    def __init__(self, width: int = 64, depth: int = 6, plus: bool = False, refiner: int = 0) -> None:
        super().__init__()
        self.reader = Img2prog(width, depth, plus)
        self.refiner = Refiner(refiner, depth) if refiner else None
        self.discriminator = Discriminator(refiner) if refiner else None

    def refined(self, photographs: Tensor) -> Tensor:
        """Photographs as the reader sees them."""
        return photographs if self.refiner is None else self.refiner(photographs)

    def forward(self, photographs: Tensor) -> Tensor:
        """Photographs (n, 1, h, w) in [−1, 1] → logits (n, 17, h/8, w/8)."""
        logits: Tensor = self.reader(self.refined(photographs))
        return logits


def scaled(images: Tensor) -> Tensor:
    """Grey images uint8 (n, h, w) as networks take them, (n, 1, h, w): mean 0, at most 1 away from it.

    Each by its own mean and deviation, (x − mean) / (3 · deviation), clipped: exposure and contrast tell nothing.
    """
    x = images[:, None].float()
    x = x - x.mean((2, 3), keepdim=True)
    spread = x.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1.0)
    return (x / (3 * spread)).clamp(-1, 1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Whatever is computed inside sends gradients through the module but none into it."""
    own = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in own:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in own:
            parameter.requires_grad_(True)
