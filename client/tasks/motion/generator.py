"""Two frames of a moving scene, and the same scene moved (1 + α) times as far: made of a client's own images.

A scene is a background and cut-out objects, each a continuous image: its pixels, every one a Gaussian. A frame samples
it behind a Gaussian of about one pixel of its own (the optics), at any sub-pixel position, so that a translation is
exact and the magnified frame is the truth and not an estimate. Translation and sampling are separable,
Ky · image · Kxᵀ, which is all the work: two products of matrices a layer and frame, for a whole batch at once, on any
device.

The five kinds of sample and the ranges are those of Oh et al., section 3.4: the layers move independently, so that
occlusion appears by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .objects import Collection

KINDS = ("objects on a background", "background alone", "objects on a blurred background", "static", "objects move")
OPTICS = (0.5, 1.0)  # standard deviation of a frame's Gaussian, in its pixels: from sharp to that of the paper
BLURRED = (1.5, 2.7)  # of a blurred background
LEAST = 0.7  # in source pixels: under it a sum of Gaussians shows the source's grid
ZOOM = 1.6  # source pixels a frame pixel, at most; objects too
MARGIN = 8  # three deviations of the widest Gaussian, in frame pixels
COLOUR = 0.25  # largest shift of a channel in the colour-perturbed frames, on [−1, 1]


@dataclass(frozen=True)
class Ranges:
    """What samples are drawn from. Lengths are in pixels of the frames."""

    crop: int = 64  # side of a frame
    alpha: float = 100.0  # largest α
    motion: float = 10.0  # largest motion from A to B
    magnified: float = 10.0  # largest motion from A to the truth
    objects: tuple[int, int] = (7, 15)  # fewest and most in a scene

    @property
    def need(self) -> int:
        """Side of the background that a frame and all its motions look at, at zoom 1."""
        return self.crop + 2 * math.ceil(self.magnified + MARGIN)


@dataclass(frozen=True)
class Plan:
    """What happens in n scenes of a background and K objects; everything random but noise and textures."""

    kind: Tensor  # (n,), a place in KINDS
    alpha: Tensor  # (n,)
    shift: Tensor  # (n, 1 + K, 2), motion from A to B in pixels (y, x), the background first; zero where it is static
    shown: Tensor  # (n, K), whether the object is there
    optics: Tensor  # (n,)
    blur: Tensor  # (n,), standard deviation of the background
    noise: Tensor  # (n,), level of the noise, see `noisy`


@dataclass(frozen=True)
class Frames:
    """Frames in [−1, 1], (n, 3, h, w), and α, (n,)."""

    a: Tensor
    b: Tensor
    truth: Tensor
    alpha: Tensor


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def random_plan(count: int, ranges: Ranges, noise: float, generator: torch.Generator) -> Plan:
    """Plans for training: 1 + α uniform on a logarithmic scale, and motions up to what α leaves of `magnified`."""
    alpha = (1 + ranges.alpha) ** torch.rand(count, generator=generator) - 1
    largest = (ranges.magnified / (1 + alpha)).clamp(max=ranges.motion)
    sizes = largest[:, None] * torch.rand(count, 1 + ranges.objects[1], generator=generator)
    kind = torch.randint(len(KINDS), (count,), generator=generator)
    level = uniform(0, noise, (count,), generator)
    return _plan(kind, alpha, sizes, level, ranges, generator=generator)


def even_plan(size: Tensor, noise: Tensor, ranges: Ranges, generator: torch.Generator, first: int = 0) -> Plan:
    """Plans for judging, (n,) each: all that moves moves by `size`, and by `ranges.magnified` in the truth.

    The kinds that move come in turn, from the place `first`.
    """
    kind = torch.tensor([0, 1, 2, 4])[torch.arange(first, first + len(size)) % 4]
    sizes = size[:, None].expand(-1, 1 + ranges.objects[1])
    return _plan(kind, ranges.magnified / size - 1, sizes, noise, ranges, generator=generator)


def _plan(
    kind: Tensor, alpha: Tensor, sizes: Tensor, noise: Tensor, ranges: Ranges, *, generator: torch.Generator
) -> Plan:
    count, most = len(kind), ranges.objects[1]
    angle = uniform(0, 2 * math.pi, (count, 1 + most), generator)
    shift = sizes[..., None] * torch.stack([angle.sin(), angle.cos()], -1)
    shift[kind == 3] = 0
    shift[kind == 4, 0] = 0
    fewest = ranges.objects[0]
    number = torch.randint(fewest, most + 1, (count, 1), generator=generator) * (kind != 1)[:, None]
    optics = uniform(*OPTICS, (count,), generator)
    blur = torch.where(kind == 2, uniform(*BLURRED, (count,), generator), optics)
    return Plan(kind, alpha, shift, torch.arange(most) < number, optics, blur, noise)


def render(own: Collection, images: Tensor, plan: Plan, ranges: Ranges, generator: torch.Generator) -> Frames:
    """The plans' scenes, on backgrounds from these images, without noise: frames A, B and the truth."""
    count, most = plan.shown.shape
    factor = torch.stack([torch.zeros(count), torch.ones(count), 1 + plan.alpha])  # A, B and the truth
    moved = factor[..., None, None] * plan.shift  # (3, n, 1 + K, 2)
    windows = own.backgrounds(images, ranges.need, ZOOM, generator)
    zoom = _zooms(count, windows.shape[-1] / ranges.need, generator)
    middle = torch.full((count, 2), ranges.crop / 2)
    scene = _sampled(windows, moved[:, :, 0], middle, zoom, plan.blur, side=ranges.crop)
    sample, place = plan.shown.nonzero(as_tuple=True)
    if len(sample):
        layers = own.objects(len(sample), ranges.crop, generator)
        middle = uniform(0, ranges.crop, (len(sample), 2), generator)
        zoom = _zooms(len(sample), ZOOM, generator)
        drawn = _sampled(layers, moved[:, sample, 1 + place], middle, zoom, plan.optics[sample], side=ranges.crop)
        for layer in range(most):  # the first lies lowest
            chosen = (place == layer).nonzero().flatten()
            colour, cover = drawn[:, chosen].split([3, 1], 2)
            below = sample[chosen]
            scene[:, below] = scene[:, below] * (1 - cover) + colour
    return Frames(*(2 * scene - 1), plan.alpha.to(own.device))


def _zooms(count: int, most: float, generator: torch.Generator) -> Tensor:
    """Source pixels a frame pixel, (n, 2): 1 to `most`, the same on both axes, either mirrored or not."""
    mirrored = 2 * torch.randint(2, (count, 2), generator=generator) - 1
    return uniform(1, most, (count, 1), generator) * mirrored


def _sampled(layers: Tensor, moved: Tensor, middle: Tensor, zoom: Tensor, sigma: Tensor, *, side: int) -> Tensor:
    """Frames (3, n, C, side, side) of layers (n, C, P, P): F[i, j] = Σ Ky[i, y] layer[y, x] Kx[j, x].

    `middle` (n, 2) is where the layer's middle lies in frame A, `moved` (3, n, 2) how far it moves from there; `zoom`
    (n, 2) is in source pixels a frame pixel, negative where the layer is mirrored; `sigma` (n,) in frame pixels. A
    layer is zero outside of its pixels.
    """
    count, channels, source, _ = layers.shape
    device = layers.device
    middle, moved, zoom, sigma = (part.to(device) for part in (middle, moved, zoom, sigma))
    pixels = torch.arange(side, device=device) + 0.5
    at = (pixels - (middle + moved)[..., None]) * zoom[..., None] + (source - 1) / 2  # (3, n, 2, side)
    width = (sigma[:, None] * zoom.abs()).clamp(min=LEAST)[..., None, None]  # (n, 2, 1, 1)
    apart = (at[..., None] - torch.arange(source, device=device)) / width
    far = apart.square().clamp(max=50)  # e⁻²⁵: further out come denormal numbers, which are slow to multiply
    weights = torch.exp(-0.5 * far) / (math.sqrt(2 * math.pi) * width)
    rows, columns = weights.unbind(2)  # (3, n, side, P)
    half = rows.transpose(0, 1).reshape(count, 3 * side, source) @ layers.transpose(1, 2).reshape(count, source, -1)
    whole = half.view(count, 3, side * channels, source) @ columns.permute(1, 0, 3, 2)
    return whole.view(count, 3, side, channels, side).permute(1, 0, 3, 2, 4)


def photographed(frames: Frames, plan: Plan, generator: torch.Generator) -> Frames:
    """What a camera of 8 bits makes of frames A and B: noise, then dither and rounding. The truth stays as it is."""
    pixels = generator
    if frames.a.is_cuda:  # drawn where they are needed
        pixels = torch.Generator(frames.a.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    level = plan.noise.to(frames.a.device)
    a, b = (dithered(noisy(frame, level, pixels), pixels) for frame in (frames.a, frames.b))
    return Frames(a, b, frames.truth, frames.alpha)


def noisy(frames: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """x + level · N(0, 1) · √((x + 1)/127.5), x in [−1, 1], level (n,): shot noise, its variance the light's."""
    normal = torch.randn(frames.shape, generator=generator, device=frames.device)
    return frames + level.view(-1, 1, 1, 1) * normal * ((frames + 1).clamp(min=0) / 127.5).sqrt()


def dithered(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Rounded to 8 bits after a uniform dither of one step, so that the mean of many frames knows more than 8 bits."""
    dither = torch.rand(frames.shape, generator=generator, device=frames.device) - 0.5
    return ((frames + 1) * 127.5 + dither).round().clamp(0, 255) / 127.5 - 1


def recoloured(frames: Frames, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frame B and the truth with another colour: the same shift of each channel, up to COLOUR, on both."""
    shift = uniform(-COLOUR, COLOUR, (len(frames.b), 3, 1, 1), generator).to(frames.b.device)
    return frames.b + shift, frames.truth + shift
