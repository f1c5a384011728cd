"""What the networks are trained by: cross-entropy, its least over nine shifts, LSGAN, a fixed filter bank, syntax."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .instructions import modal
from .knittability import violated
from .network import Discriminator, frozen

SHIFTS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))  # whole maps, in cells
ORIENTATIONS, WAVELENGTHS = 4, (4.0, 8.0)  # of the filter bank; pixels


def cell_weights(programs: Tensor, ground: float) -> Tensor:
    """1 for every cell but those of the program's most frequent instruction, which count ``ground``; float."""
    is_ground = programs == modal(programs).view(-1, 1, 1)
    return torch.where(is_ground, ground, 1.0)


def cross_entropy(logits: Tensor, programs: Tensor, weights: Tensor) -> Tensor:
    """Σ w·CE / Σ w of each program, (n,). Logits (n, 17, r, c), programs and weights (n, r, c)."""
    each = F.cross_entropy(logits, programs.long(), reduction="none")
    return (each * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-6)


def shifted_cross_entropy(logits: Tensor, programs: Tensor, weights: Tensor) -> Tensor:
    """min over nine whole-map shifts of the cross-entropy within the border of one cell, (n,).

    MILCE of Kaspar et al., Section 4: min_s Σ w CE(logits(p), program(p + s)) / Σ w, p off the border: a photograph may
    lie up to a cell beside its program.
    """
    rows, columns = programs.shape[1:]
    inner = logits[..., 1:-1, 1:-1]
    losses = []
    for dy, dx in SHIFTS:
        own = (slice(None), slice(1 + dy, rows - 1 + dy), slice(1 + dx, columns - 1 + dx))
        losses.append(cross_entropy(inner, programs[own], weights[own]))
    return torch.stack(losses).min(0).values


def adversarial(judge: Discriminator, refined: Tensor, told: Tensor, rendered: Tensor, known: Tensor) -> Tensor:
    """LSGAN's two losses in one: ½[(D(x) − 1)² + D(R)²] teaches the discriminator, (D(R) − 1)² the refiner alone.

    Renderings x of programs ``known``, refined photographs R said to show ``told``.
    """
    taught = 0.5 * ((judge(rendered, known) - 1).square().mean() + judge(refined.detach(), told).square().mean())
    with frozen(judge):
        fooled = (judge(refined, told) - 1).square().mean()
    return taught + fooled


def perceptual(images: Tensor, targets: Tensor) -> Tensor:
    """How far two pictures (n, 1, h, w) are apart in the energies of a bank of Gabor filters, pooled over a cell.

    mean |√(g_even² + g_odd²) − same of the target|: texture and direction of yarn count, not where exactly it lies.
    """
    return (_energies(images) - _energies(targets)).abs().mean()


def _energies(images: Tensor) -> Tensor:
    answers = F.conv2d(images, gabor_bank().to(images), padding=7)
    even, odd = answers.chunk(2, 1)
    return F.avg_pool2d((even.square() + odd.square() + 1e-6).sqrt(), 8)


@lru_cache(maxsize=1)
def gabor_bank() -> Tensor:
    """Even, then odd filters of four orientations and two wavelengths, (16, 1, 15, 15), of mean 0 and norm 1."""
    axis = torch.arange(15.0) - 7
    y, x = axis[:, None], axis[None]
    even, odd = [], []
    for wavelength in WAVELENGTHS:
        window = torch.exp(-(x**2 + y**2) / (2 * (0.5 * wavelength) ** 2))
        for n in range(ORIENTATIONS):
            angle = n * math.pi / ORIENTATIONS
            phase = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
            even.append(window * (phase.cos() - (window * phase.cos()).sum() / window.sum()))
            odd.append(window * phase.sin())
    bank = torch.stack([*even, *odd])
    return (bank / bank.flatten(1).norm(dim=1).view(-1, 1, 1))[:, None]


def syntax(logits: Tensor) -> Tensor:
    """Violations of syntax that are expected of a cell, under the probabilities that the logits say."""
    return violated(logits.softmax(1)).mean()
