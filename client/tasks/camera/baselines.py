"""What there was before: gamma scaling, and Debevec and Malik's least squares (SIGGRAPH 1997)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .image_formation import STOP
from .response import GAMMA
from .scenes import Photograph

LEVELS = 256
_Array = NDArray[np.float64]


def gamma_scaling(pixels: Tensor, stops: float) -> Tensor:
    """(x^2.2 · 2^Δ)^(1/2.2), clipped: what everyone does without knowing the camera."""
    return (pixels * 2 ** (stops / GAMMA)).clamp(0, 1)


def hat(levels: NDArray[np.integer]) -> _Array:
    """w(z), largest in the middle of the pixel values and nothing at both ends (their Equation 4)."""
    return np.minimum(levels, LEVELS - 1 - levels).astype(np.float64)


def inverse_responses(
    photographs: Sequence[Photograph], smoothness: float = 20.0, samples: int = 400, seed: int = 0
) -> _Array:
    """g(z) = ln f⁻¹(z) of each channel, (3, 256), g(127) = 0, from an aligned bracket.

    Least squares over pixels i and photographs j of w(z_ij)(g(z_ij) − ln E_i − ln Δt_j), and of λ w(z) g''(z) (their
    Equation 3). Pixels are drawn at random among those that every photograph shows.
    """
    stack = np.stack([photo.pixels.numpy() for photo in photographs])  # (J, 3, H, W)
    shown = np.all(
        [np.ones(photo.size, bool) if photo.valid is None else photo.valid.numpy() for photo in photographs], 0
    )
    places = np.flatnonzero(shown)
    chosen = np.random.default_rng(seed).choice(places, min(samples, len(places)), replace=False)
    times = STOP * np.array([photo.exposure for photo in photographs])
    values = stack.reshape(len(stack), 3, -1)[:, :, chosen].astype(np.int64)
    return np.stack([_solve(values[:, channel], times, smoothness) for channel in range(3)])


def _solve(values: NDArray[np.int64], times: _Array, smoothness: float) -> _Array:
    """One channel; values (J, N). The pixels' ln E are eliminated: each stands in its own rows alone."""
    photos, pixels = values.shape
    rows = np.zeros((photos * pixels, LEVELS))
    weight = hat(values).reshape(-1) + 1e-3
    rows[np.arange(rows.shape[0]), values.reshape(-1)] = weight
    right = weight * np.repeat(times, pixels)
    # Projecting on what is orthogonal to each pixel's column, its weights, leaves equations in g alone.
    column = (weight.reshape(photos, pixels) / np.sqrt((weight.reshape(photos, pixels) ** 2).sum(0))).reshape(-1, 1)
    of = np.tile(np.arange(pixels), photos)

    def projected(matrix: _Array) -> _Array:
        sums = np.zeros((pixels, matrix.shape[1]))
        np.add.at(sums, of, column * matrix)
        return matrix - column * sums[of]

    bends = np.zeros((LEVELS - 2, LEVELS))
    at = np.arange(LEVELS - 2)
    bend = smoothness * hat(at + 1)
    bends[at, at], bends[at, at + 1], bends[at, at + 2] = bend, -2 * bend, bend
    middle = np.zeros((1, LEVELS))
    middle[0, LEVELS // 2 - 1] = 1
    system = np.concatenate([projected(rows), bends, middle])
    target = np.concatenate([projected(right[:, None])[:, 0], np.zeros(len(bends) + 1)])
    return np.linalg.lstsq(system, target, rcond=None)[0]


def radiance_map(photographs: Sequence[Photograph], inverse: _Array) -> Tensor:
    """ln E (3, H, W), the hat-weighted mean over the photographs (their Equation 6).

    Where all of them are at an end of the scale, the least exposed one's for bright pixels, the most for dark ones.
    """
    total = weights = np.zeros(photographs[0].pixels.shape)
    for photo in photographs:
        levels = photo.pixels.numpy()
        weight = hat(levels.astype(np.int64)) * (1.0 if photo.valid is None else photo.valid.numpy())
        total = total + weight * (_looked_up(inverse, levels) - STOP * photo.exposure)
        weights = weights + weight
    ordered = sorted(photographs, key=lambda photo: photo.exposure)
    ends = [_looked_up(inverse, photo.pixels.numpy()) - STOP * photo.exposure for photo in (ordered[0], ordered[-1])]
    fallback = np.where(ordered[0].pixels.numpy() > LEVELS // 2, ends[0], ends[1])
    return torch.from_numpy(np.where(weights > 0, total / np.maximum(weights, 1e-9), fallback)).float()


def retaken(pixels: Tensor, inverse: _Array, stops: float) -> Tensor:
    """A photograph uint8 (3, H, W) at ``stops`` more exposure, in [0, 1]: g(x) + Δ ln 2, read backwards in g."""
    light = _looked_up(inverse, pixels.numpy()) + STOP * stops
    rising = np.maximum.accumulate(inverse, 1)
    levels = np.arange(LEVELS) / (LEVELS - 1)
    return torch.from_numpy(np.stack([np.interp(light[c], rising[c], levels) for c in range(3)])).float()


def _looked_up(inverse: _Array, levels: NDArray[np.uint8]) -> _Array:
    return np.stack([inverse[channel][levels[channel]] for channel in range(3)])
