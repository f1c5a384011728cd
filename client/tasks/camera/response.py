"""Camera responses: from exposure X, 1 where the sensor is full, to pixel values in [0, 1], monotone.

A curve is held as 257 values at the exposures (k/256)^2.2, close together where the eye and every camera's curve look
closely: a response of x^(1/2.2) is the straight line. Between them it is linear in X^(1/2.2).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpara.data.files import data_roots
from fedpara.errors import DataError

KNOTS = 257
GAMMA = 2.2
LEAK = 0.01  # slope above the sensor's full scale, so that a clipped pixel still has a gradient
LEAST_SLOPE = 0.02  # of the straight line's: a curve that stood still could not be inverted
TINY = 0.5 / 255  # pixel values under half a step of eight bits are told from nothing


def curve(logits: Tensor) -> Tensor:
    """Monotone knots (..., 257) from free numbers (..., 256): sums of softmax increments, from 0 to 1.

    Zeros give the straight line, x^(1/2.2).
    """
    share = torch.softmax(logits, -1)
    steps = (1 - LEAST_SLOPE) * share + LEAST_SLOPE / logits.shape[-1]
    rising = torch.cumsum(steps, -1)
    return torch.cat([torch.zeros_like(rising[..., :1]), rising], -1)


def expose(log_exposure: Tensor, knots: Tensor) -> Tensor:
    """Pixel values (B, C, ...) of exposures X, given as ln X; knots (B, C, 257). Above X = 1 leaky."""
    place = torch.exp(log_exposure / GAMMA).flatten(2)
    scaled = place.clamp(max=1.0) * (KNOTS - 1)
    below = scaled.detach().floor().clamp(0, KNOTS - 2)
    low = knots.gather(2, below.long())
    high = knots.gather(2, below.long() + 1)
    value = low + (scaled - below) * (high - low) + LEAK * (place - 1).clamp(min=0.0)
    return value.reshape(log_exposure.shape)


def develop(pixels: Tensor, knots: Tensor) -> Tensor:
    """ln X of pixel values in [0, 1] (B, C, ...): the response read backwards; knots (B, C, 257).

    Values under half a step of eight bits are taken for that half step. The inverse is tabled at the 256 values that
    eight bits have, where it is exact, and linear in X^(1/2.2) between them.
    """
    table = inverse(knots)
    scaled = pixels.clamp(TINY, 1.0).flatten(2) * 255
    below = scaled.detach().floor().clamp(0, 254)
    low, high = table.gather(2, below.long()), table.gather(2, below.long() + 1)
    place = low + (scaled - below) * (high - low)
    return (GAMMA * torch.log(place.clamp(min=1e-4))).reshape(pixels.shape)


def inverse(knots: Tensor) -> Tensor:
    """X^(1/2.2) at the pixel values 0, 1/255, … 1 (..., 256) of a response (..., 257), differentiable in its knots."""
    levels = torch.linspace(0, 1, 256, dtype=knots.dtype, device=knots.device)
    # Counting the knots under each level instead of searching: it is small, and every export format knows it.
    first = torch.ceil(knots.detach() * 255).clamp(0, 255).long()
    count = torch.zeros(*knots.shape[:-1], 256, dtype=knots.dtype, device=knots.device)
    below = count.scatter_add(-1, first, torch.ones_like(knots)).cumsum(-1).long() - 1
    below = below.clamp(0, KNOTS - 2)
    low, high = knots.gather(-1, below), knots.gather(-1, below + 1)
    return (below + (levels - low) / (high - low)) / (KNOTS - 1)


def knots_of(exposures: Tensor, values: Tensor) -> Tensor:
    """A response given at ascending exposures in [0, 1] (N,), values (..., N), at the 257 knots, from 0 to 1.

    Raises:
        DataError: it falls somewhere.
    """
    if bool((values.diff(dim=-1) < -1e-6).any()):
        raise DataError("a camera response falls somewhere: give one that rises with exposure")
    wanted = (torch.linspace(0, 1, KNOTS, dtype=torch.float64) ** GAMMA).numpy()
    flat = values.reshape(-1, values.shape[-1]).double().numpy()
    rows = [np.interp(wanted, exposures.double().numpy(), row) for row in flat]
    found = torch.from_numpy(np.stack(rows)).reshape(*values.shape[:-1], KNOTS)
    found = (found - found[..., :1]) / (found[..., -1:] - found[..., :1])
    straight = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
    return ((1 - LEAST_SLOPE) * found + LEAST_SLOPE * straight).float()


def rmse(knots: Tensor, truth: Tensor) -> float:
    """Root mean square difference of two responses over their knots and channels, in shares of full scale."""
    return float((knots.detach().cpu().double() - truth.double()).square().mean().sqrt())


# -------------------------------------------------------------------------------------------------- random responses


def random_responses(count: int, generator: torch.Generator, measured: Path | None = None) -> Tensor:
    """Responses of random cameras, (count, 3, 257): parametric ones, or drawn on a basis of measured ones.

    Parametric: p(X) = (1 − s)·X^(1/γ) + s·S(X^(1/γ)), γ in [1.7, 2.8], S(t) = 3t² − 2t³ a film's toe and shoulder, s in
    [0, 0.7], the three channels' γ within 5 % of each other. Measured: f = f0 + Σ c_k h_k (Grossberg and Nayar,
    CVPR 2003, EMoR), with the first five bases.
    """
    if measured is not None:
        return _measured(count, generator, str(measured))
    gamma = 1.7 + 1.1 * torch.rand(count, 1, 1, generator=generator)
    gamma = gamma * (1 + 0.05 * (2 * torch.rand(count, 3, 1, generator=generator) - 1))
    film = 0.7 * torch.rand(count, 1, 1, generator=generator)
    straight = torch.linspace(0, 1, KNOTS) ** GAMMA
    risen = straight ** (1 / gamma)
    found = (1 - film) * risen + film * (3 * risen**2 - 2 * risen**3)
    return (1 - LEAST_SLOPE) * found + LEAST_SLOPE * torch.linspace(0, 1, KNOTS)


# Deviations of the first coefficients: each basis of EMoR explains less, by about this much.
SPREAD = (1.5, 0.7, 0.3, 0.15, 0.08)


def _measured(count: int, generator: torch.Generator, file: str) -> Tensor:
    """Draws on EMoR that rise everywhere; the three channels share most of their coefficients."""
    exposures, mean, bases = _emor(file)
    spread = torch.tensor(SPREAD, dtype=torch.float64)
    found: list[Tensor] = []
    while len(found) < count:
        common = torch.randn(1, len(SPREAD), generator=generator, dtype=torch.float64)
        own = torch.randn(3, len(SPREAD), generator=generator, dtype=torch.float64)
        curves = mean + (spread * (common + 0.1 * own)) @ bases
        if bool((curves.diff(dim=-1) >= 0).all()):
            found.append(knots_of(exposures, curves))
    return torch.stack(found)


@lru_cache(maxsize=2)
def _emor(file: str) -> tuple[Tensor, Tensor, Tensor]:
    """Exposures, mean response and first bases of emor.npz. Raises DataError where the file is not that."""
    try:
        with np.load(file) as data:
            parts = [torch.from_numpy(np.asarray(data[key], np.float64)) for key in ("E", "f0", "h")]
    except Exception as error:  # numpy raises many kinds for a damaged archive
        raise DataError(f"{file} is no response basis (E, f0, h as in EMoR): {error}") from None
    return parts[0], parts[1], parts[2][: len(SPREAD)]


def measured_basis(folder: str) -> Path | None:
    """hdr/emor.npz of measured responses, where a data folder has it: this one, $FEDPARA_DATA, the cache."""
    roots = data_roots(Path(folder).expanduser() if folder else None)
    return next((file for root in roots if (file := root / "hdr" / "emor.npz").is_file()), None)
