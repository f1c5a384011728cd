"""What the networks are trained by and judged by: the loss of Oh et al., and structural similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import Magnifier

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels


def magnification_loss(model: Magnifier, batch: tuple[Tensor, ...], regulariser: float) -> Tensor:
    """L1(Y, Ŷ) + λ [L1(V_a, V_b) + L1(V'_b, V'_Y) + L1(M_b, M'_b)] (Oh et al., Equation 6; λ = `regulariser`).

    The batch holds frames A and B, the truth Y, B' and Y' (the same with another colour), (n, 3, h, w) in [−1, 1], and
    α, (n,). V is texture, which motion must not change; M is shape, which colour must not change.
    """
    a, b, truth, b_coloured, truth_coloured, alpha = batch
    # channels last, which a CPU's convolutions of few channels are a third faster with
    frames = torch.cat([a, b, b_coloured, truth_coloured]).contiguous(memory_format=torch.channels_last)
    textures, shapes = model.encode(frames)
    of_a, of_b, of_b_coloured, of_truth = textures.chunk(4)
    before, shape, shape_coloured, _ = shapes.chunk(4)
    drawn = model.decode(of_b, shape, model.manipulate(shape, shape - before, alpha), frames.chunk(4)[1])
    apart = F.l1_loss(of_a, of_b) + F.l1_loss(of_b_coloured, of_truth) + F.l1_loss(shape, shape_coloured)
    return F.l1_loss(drawn, truth) + regulariser * apart


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of images (n, c, h, w) in [0, 1], at least 11 pixels a side, (n,).

    The mean over channels and windows of (2 μ μ' + c₁)(2 σ_xy + c₂) / ((μ² + μ'² + c₁)(σ² + σ'² + c₂)), with c₁ = 0.01²
    and c₂ = 0.03², under a Gaussian window of 11 × 11, σ = 1.5 (Wang et al., IEEE TIP 2004).
    """
    channels = first.shape[1]
    axis = torch.arange(WINDOW, dtype=first.dtype, device=first.device) - WINDOW // 2
    line = torch.exp(-0.5 * (axis / DEVIATION).square())
    line = line / line.sum()
    stack = torch.cat([first, second, first * first, second * second, first * second], 1)
    across = line.expand(5 * channels, 1, 1, WINDOW)
    means = F.conv2d(F.conv2d(stack, across, groups=5 * channels), across.transpose(2, 3), groups=5 * channels)
    x, y, xx, yy, xy = means.chunk(5, 1)
    alike = (2 * x * y + 0.01**2) * (2 * (xy - x * y) + 0.03**2)
    apart = (x * x + y * y + 0.01**2) * (xx - x * x + yy - y * y + 0.03**2)
    return (alike / apart).mean((1, 2, 3))
