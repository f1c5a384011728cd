"""Encoder, manipulator and decoder: the network of Oh et al. (ECCV 2018), and a light one for laptops.

Both take frames in [−1, 1], (n, 3, h, w) with h and w multiples of 4, and a magnification α, (n,). Motion δ from frame
A to frame B becomes (1 + α) δ: with α = 0 the result is frame B. Both offer the parts that the loss and the magnifier
of videos need one by one:

    texture, shape = encode(x);   shape' = manipulate(shape, change, α);   y = decode(texture, shape, shape', x)

`change` is M_b − M_a, or what a temporal filter passes of M_b. `reach` is how far, in pixels, a pixel of the result may
look: a tile with so much around it gives the same pixels as the whole frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.errors import ConfigError

STRIDE = 4  # the coarsest grid of either network, in pixels


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size (divided by its stride), with reflected borders."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect", bias=bias)


class Block(nn.Module):
    """x + conv(ReLU(conv(x)))."""

    def __init__(self, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.first, self.second = conv(width, width, bias=bias), conv(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) → the same shape."""
        return x + self.second(F.relu(self.first(x)))


def blocks(width: int, count: int, *, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(*(Block(width, bias=bias) for _ in range(count)))


class Magnifier(nn.Module):
    """What both networks share: M' = M_b + h(α g(M_b − M_a)) between an encoder and a decoder.

    g and h have no biases: what does not move is not manipulated, whatever α, and α = 0 manipulates nothing.
    """

    reach: int
    look: nn.Module  # g, a ReLU behind it
    act: nn.Module  # h

    def forward(self, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        """Frames A and B, (n, 3, h, w) in [−1, 1], and α, (n,) → frame B with its motion magnified (1 + α) times."""
        _, before = self.encode(a)
        texture, shape = self.encode(b)
        return self.decode(texture, shape, self.manipulate(shape, shape - before, alpha), b)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Texture at a quarter of the resolution and shape at half of it."""
        raise NotImplementedError

    def manipulate(self, shape: Tensor, change: Tensor, alpha: Tensor) -> Tensor:
        """M' = M + h(α g(change)); α of (n,)."""
        return shape + self.act(alpha.view(-1, 1, 1, 1) * F.relu(self.look(change)))

    def decode(self, texture: Tensor, shape: Tensor, manipulated: Tensor, frame: Tensor) -> Tensor:
        """The magnified frame, (n, 3, h, w), from the texture and shape of `frame` and the manipulated shape."""
        raise NotImplementedError


class Paper(Magnifier):
    """The network of Oh et al., Figure 2 and supplement: 918,928 parameters, without biases and normalisation."""

    reach = 96

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 16, 7), nn.ReLU(), conv(16, 32, 3, 2), nn.ReLU(), blocks(32, 3))
        self.texture = nn.Sequential(conv(32, 32, 3, 2), nn.ReLU(), blocks(32, 2))
        self.shape = blocks(32, 2)
        self.look = conv(32, 32, 7)
        self.act = nn.Sequential(conv(32, 32), Block(32))
        self.widen = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv(32, 32), nn.ReLU())
        self.join = blocks(64, 9)
        self.draw = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv(64, 32), nn.ReLU(), conv(32, 3, 7))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Texture (n, 32, h/4, w/4) and shape (n, 32, h/2, w/2)."""
        common = self.encoder(x)
        return self.texture(common), self.shape(common)

    def decode(self, texture: Tensor, shape: Tensor, manipulated: Tensor, frame: Tensor) -> Tensor:
        """The frame drawn from its texture and the manipulated shape; neither `shape` nor `frame` is looked at."""
        drawn: Tensor = self.draw(self.join(torch.cat([self.widen(texture), manipulated], 1)))
        return drawn


class Light(Magnifier):
    """A light network of under 100,000 parameters, for laptops: Y = X_b + D(V, M') − D(V, M_b).

    In the manner of Ha et al. (arXiv 2403.01898): linear encoders, and a decoder that works at a low resolution. What
    the decoder cannot draw of frame B is taken from frame B itself, so that α = 0, and whatever does not move, is
    given back as it came.
    """

    reach = 48
    # What draws, and the small layers that all must pass through: a fifth of the numbers, and most of what factorising
    # every layer costs (simulations/benchmarks/RESULTS.md).
    keep_dense = ("merge", "up.*", "refine", "draw.*")

    def __init__(self, width: int = 32, deep: int = 36, textures: int = 16) -> None:
        super().__init__()
        self.shape = conv(3, width, 5, 2)
        self.texture = nn.Conv2d(3, textures, 6, 4, 1, padding_mode="reflect", bias=False)
        self.look, self.act = conv(width, width), conv(width, width)
        self.down = conv(width, deep, 3, 2, bias=True)
        self.merge = nn.Conv2d(deep + textures, deep, 1)
        self.think = blocks(deep, 2, bias=True)
        self.up = nn.Sequential(nn.Conv2d(deep, 4 * width, 1), nn.PixelShuffle(2))
        self.refine = conv(width, width, bias=True)
        self.draw = nn.Sequential(conv(width, 12, bias=True), nn.PixelShuffle(2))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Texture (n, 16, h/4, w/4) and shape (n, 32, h/2, w/2), both linear in the frame."""
        return self.texture(x), self.shape(x)

    def decode(self, texture: Tensor, shape: Tensor, manipulated: Tensor, frame: Tensor) -> Tensor:
        """The frame, and what the manipulation of its shape changes in how it is drawn."""
        after, before = self._draw(torch.cat([texture, texture]), torch.cat([manipulated, shape])).chunk(2)
        return frame + after - before

    def _draw(self, texture: Tensor, shape: Tensor) -> Tensor:
        deep = F.relu(self.merge(torch.cat([F.relu(self.down(shape)), texture], 1)))
        fine = F.relu(self.refine(shape + self.up(self.think(deep))))
        drawn: Tensor = self.draw(fine)
        return drawn


NETWORKS = {"light": Light, "paper": Paper}


def build(name: str) -> Magnifier:
    """The network of this name. Raises ConfigError for one that there is not."""
    if name not in NETWORKS:
        raise ConfigError(f"motion.model = '{name}' is not one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()
