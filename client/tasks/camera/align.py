"""Shifts between the photographs of a bracket, by median threshold bitmaps (G. Ward, J. of Graphics Tools, 2003)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedpara.errors import DataError

from .scenes import Photograph

SMALLEST = 32  # side of the coarsest level
REACH = SMALLEST // 4  # pixels that are looked for there, each way: an eighth of the shorter side or more
SHARES = (0.5, 0.35, 0.65, 0.2, 0.8, 0.1, 0.9)  # of pixels under the threshold, the first that both frames can tell
UNSURE = 4  # steps of eight bits around the threshold that noise can cross
DISAGREE = 0.3  # share of bits that differ where two pictures show different things; chance alone gives 0.5
AGREE = 0.4  # correlation of slopes at some 64 to 128 pixels: of one view 0.7 to 1, turned by 3 degrees 0.1 to 0.4
TURN, GAIN = 0.5, 0.05  # degrees between the turns that are tried first; what one must gain to be believed
FLAT = 0.02  # slopes so small, in ln(value), are noise
_Grey = NDArray[np.float32]


def aligned(photographs: Sequence[Photograph]) -> tuple[list[Photograph], list[tuple[int, int]]]:
    """The photographs cut to what all of them show, and by how many pixels (down, right) each was shifted.

    Each is compared with its neighbour in exposure. Whole shifts are found, and turns of a few degrees.

    Raises:
        DataError: two of them do not show the same view, or share less than half of it.
    """
    order = sorted(range(len(photographs)), key=lambda place: photographs[place].exposure)
    found = list(photographs)
    shifts = {order[0]: (0, 0)}
    for a, b in pairwise(order):
        first, second = _grey(found[a]), _grey(found[b])
        if degrees := turn(first, second):
            found[b] = turned(found[b], degrees)
            second = _grey(found[b])
        down, right = shift(first, second, found[a].name, found[b].name)
        shifts[b] = (shifts[a][0] + down, shifts[a][1] + right)
    return _cut(found, [shifts[place] for place in range(len(found))])


def _grey(photo: Photograph) -> _Grey:
    return photo.pixels.float().mean(0).numpy()


def turned(photo: Photograph, degrees: float) -> Photograph:
    """The photograph turned anticlockwise about its middle; what comes from outside of it is not valid."""
    pixels = Image.fromarray(photo.pixels.permute(1, 2, 0).contiguous().numpy())
    valid = np.ones(photo.size, np.uint8) if photo.valid is None else photo.valid.numpy().astype(np.uint8)
    inside = Image.fromarray(255 * valid).rotate(degrees, Image.Resampling.BILINEAR)
    found = torch.from_numpy(np.array(pixels.rotate(degrees, Image.Resampling.BICUBIC))).permute(2, 0, 1)
    return replace(photo, pixels=found.contiguous(), valid=torch.from_numpy(np.array(inside) == 255))


def turn(a: _Grey, b: _Grey) -> float:
    """By how many degrees ``b`` must be turned anticlockwise to lie on ``a``, up to 3 or so; 0 where that gains little.

    Slopes are compared at small size for every half degree and shifts around what thresholds tell, then at twice
    and four times that size near the best.
    """
    thresholds = _thresholds(a, b)
    if thresholds is None or min(a.shape) < 2 * SMALLEST:
        return 0.0
    levels = [(a, b)]
    while min(levels[-1][0].shape) >= 4 * SMALLEST:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    shrunk = 2 ** (len(levels) - 1)
    down, right = (round(by / shrunk) for by in _found_shift(a, b, thresholds))
    best, angle, gain, reach = 0.0, 0.0, 0.0, 2
    for place, (fine, coarse) in enumerate(reversed(levels[-3:])):
        step = TURN / 2**place
        tried = [0.0, *np.arange(-3, 3.1, step)] if place == 0 else [angle, angle - step, angle + step]
        around = [(down + y, right + x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
        scores = {
            (degrees, by): _slopes_agree(*_overlap(fine, other, by)) or 0.0
            for degrees in tried
            for other in [np.asarray(Image.fromarray(coarse).rotate(degrees, Image.Resampling.BILINEAR))]
            for by in around
        }
        angle, (down, right) = max(scores, key=lambda own: scores[own])
        if place == 0:
            best = scores[angle, (down, right)]
            gain = best - max(score for (degrees, _), score in scores.items() if degrees == 0)
        down, right, reach = 2 * down, 2 * right, 1
    return float(angle) if gain > GAIN and best > AGREE else 0.0


def _cut(
    photographs: Sequence[Photograph], shifts: list[tuple[int, int]]
) -> tuple[list[Photograph], list[tuple[int, int]]]:
    height, width = photographs[0].size
    low = [max(own[axis] for own in shifts) for axis in (0, 1)]
    high = [side + min(own[axis] for own in shifts) for axis, side in ((0, height), (1, width))]
    if 2 * (high[0] - low[0]) < height or 2 * (high[1] - low[1]) < width:
        raise DataError(
            f"the photographs share less than half of their view (shifts {shifts}): take them from one place"
        )
    found = []
    for photo, (down, right) in zip(photographs, shifts, strict=True):
        rows, columns = slice(low[0] - down, high[0] - down), slice(low[1] - right, high[1] - right)
        valid = None if photo.valid is None else photo.valid[rows, columns]
        found.append(replace(photo, pixels=photo.pixels[:, rows, columns], valid=valid))
    return found, shifts


def shift(a: _Grey, b: _Grey, name_a: str = "a", name_b: str = "b") -> tuple[int, int]:
    """By how many pixels (down, right) ``b`` must be moved to lie on ``a``; both grey (H, W), values 0 to 255.

    Raises:
        DataError: nowhere do they agree.
    """
    thresholds = _thresholds(a, b)
    if thresholds is None:
        return 0, 0  # one of them is all black or all white: nothing tells where it lies
    best = _found_shift(a, b, thresholds)
    moved = _different(a, b, thresholds, best)
    found = agreement(*_overlap(a, b, best))
    if found < AGREE if found is not None else moved > DISAGREE:
        told = f"{100 * moved:.0f} % of their outlines differ" if found is None else f"their edges agree to {found:.2f}"
        raise DataError(
            f"{name_a} and {name_b} do not show the same view ({told}): "
            "give photographs of one view, from one place, not turned"
        )
    return best


def _found_shift(a: _Grey, b: _Grey, thresholds: tuple[float, float]) -> tuple[int, int]:
    """The shift (down, right) with the fewest bits on different sides of the thresholds, from coarse to fine."""
    levels = [(a, b)]
    while min(levels[-1][0].shape) >= 2 * SMALLEST:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    best = (0, 0)
    reach = min(REACH, min(a.shape) // 4)
    for level, (fine, coarse) in enumerate(reversed(levels)):
        best = (2 * best[0], 2 * best[1])
        near = range(-1, 2) if level else range(-reach, reach + 1)
        around = [(best[0] + y, best[1] + x) for y in near for x in near]
        best = min(around, key=lambda by: (_different(fine, coarse, thresholds, by), abs(by[0]) + abs(by[1])))
    at_rest, moved = (_different(a, b, thresholds, by) for by in ((0, 0), best))
    return (0, 0) if moved > 0.8 * at_rest else best  # registered already, as far as can be told


def agreement(a: _Grey, b: _Grey) -> float | None:
    """How far two pictures (H, W) that lie on each other have the same slopes of ln(value), a correlation.

    Slopes do not change with exposure. None where too few are clipped in neither, or there are none to compare.
    """
    while min(a.shape) >= 4 * SMALLEST:
        a, b = _halved(a), _halved(b)
    return _slopes_agree(a, b)


def _slopes_agree(a: _Grey, b: _Grey) -> float | None:
    """The same of these very pixels."""
    clear = (np.minimum(a, b) > 10) & (np.maximum(a, b) < 245)
    log_a, log_b = np.log(a + 8), np.log(b + 8)
    both = [clear[1:] & clear[:-1], clear[:, 1:] & clear[:, :-1]]
    slopes_a, slopes_b = (
        np.concatenate([np.diff(log, axis=axis)[shown] for axis, shown in enumerate(both)]) for log in (log_a, log_b)
    )
    strength = float(np.sqrt((slopes_a**2).sum() * (slopes_b**2).sum()))
    if len(slopes_a) < max(200, 0.02 * a.size) or strength < FLAT**2 * len(slopes_a):
        return None
    return float((slopes_a * slopes_b).sum()) / strength


def _thresholds(a: _Grey, b: _Grey) -> tuple[float, float] | None:
    """Values that part both pictures in the same share of pixels, well inside both ends of the scale."""
    for share in SHARES:
        low, high = np.quantile(a, share), np.quantile(b, share)
        if all(2 * UNSURE < value < 255 - 2 * UNSURE for value in (low, high)):
            return float(low), float(high)
    return None


def _halved(grey: _Grey) -> _Grey:
    height, width = (side // 2 * 2 for side in grey.shape)
    return grey[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3), dtype=np.float32)


def _different(a: _Grey, b: _Grey, thresholds: tuple[float, float], by: tuple[int, int]) -> float:
    """Share of pixels on different sides of the thresholds with b moved, of those that are surely on one."""
    first, second = (part - middle for part, middle in zip(_overlap(a, b, by), thresholds, strict=True))
    sure = (np.abs(first) > UNSURE) & (np.abs(second) > UNSURE)
    return float(((first > 0) != (second > 0))[sure].mean()) if sure.any() else 1.0


def _overlap(a: _Grey, b: _Grey, by: tuple[int, int]) -> tuple[_Grey, _Grey]:
    """What both show with b moved."""
    height, width = a.shape
    rows = [slice(max(0, by[0]), height + min(0, by[0])), slice(max(0, -by[0]), height - max(0, by[0]))]
    columns = [slice(max(0, by[1]), width + min(0, by[1])), slice(max(0, -by[1]), width - max(0, by[1]))]
    return a[rows[0], columns[0]], b[rows[1], columns[1]]


def valid_area(pixels: torch.Tensor) -> torch.Tensor | None:
    """Where (H, W) a photograph shows its scene, None for everywhere.

    Registered brackets may fill what lies outside with pure blue; it counts as that where it takes half of an edge.
    """
    blue = (pixels == torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None]).all(0)
    edges = (blue[0], blue[-1], blue[:, 0], blue[:, -1])
    return ~blue if any(float(edge.float().mean()) > 0.5 for edge in edges) else None
