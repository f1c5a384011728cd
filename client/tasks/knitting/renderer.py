"""Fabric drawn from its program, stitch by stitch: grey, eight pixels a cell, the same for the same program.

Every instruction is a few strokes of yarn about its cell: legs of loops, bumps, floats, held loops, leaning heads. Each
stroke is a shaded round thread that lies at some height; where strokes meet, the highest is seen. So each instruction
is drawn once, as a tile of shades and heights that reaches over its neighbours, and a fabric is the highest of all the
tiles that reach into a pixel: fifteen look-ups and maxima for all cells of all programs at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .instructions import COUNT, MOVES, K, M, P, S, T, from_behind

CELL = 8  # pixels a side
FINE = 2  # tiles are drawn this many times finer, and averaged at the end
REACH_Y, REACH_X = 1, 2  # cells that a tile covers beyond its own, up and down, left and right
_GAP, _HOLE = 26, 10  # grey where there is no yarn, and in a hole

Points = list[tuple[float, float, float]]  # x to the right, y down, in cells from the cell's top left; height 0 to 1


@dataclass(frozen=True)
class Yarn:
    """What a thread looks like."""

    radius: float = 0.135  # of a cell
    plies: float = 0.12  # how deep the grooves between plies are
    twist: float = 2.6  # grooves a cell of length
    light: float = 0.35  # from the left (positive) or right
    shade: float = 205.0  # grey of the brightest
    spread: float = 0.0  # how much wider loops are than they are by themselves, in cells
    lean: float = 0.0  # how far all loops lean, in cells


CLEAN = Yarn()


@dataclass(frozen=True)
class Stroke:
    """A thread along a smooth line through these points, thicker or thinner than the yarn by ``thick``."""

    points: Points
    thick: float = 1.0
    hole: bool = False  # no thread but a dark spot


def strokes(instruction: int) -> list[Stroke]:
    """What is drawn of an instruction, in its own cell's coordinates; the foot is below, the head reaches up."""
    if instruction in MOVES:
        return _moved(MOVES[instruction], knit=instruction < 8)
    if instruction in (12, 13, 14, 15):
        above = instruction in (12, 14)
        return [*_leaning(1 if instruction < 14 else -1, 0.99 if above else 0.72), *_behind()]
    if instruction == P:
        return _bump()
    if instruction == M:
        floating = [(-0.2, 0.62, 0.42), (0.5, 0.55, 0.42), (1.2, 0.62, 0.42)]
        return [Stroke(floating, 0.8), *_legs(length=1.9, thick=0.85, wide=0.8)]
    return _knit(instruction)


def _knit(instruction: int) -> list[Stroke]:
    """K; T, which holds a loop beside it; S, two loops in one."""
    more: list[Stroke] = []
    if instruction == T:
        held = [(0.06, 1.0, 0.7), (0.18, 0.4, 0.95), (0.5, 0.12, 1.0), (0.82, 0.4, 0.95), (0.94, 1.0, 0.7)]
        more = [Stroke(held, 0.85)]
    elif instruction == S:
        more = [
            Stroke([(0.5 + side * 0.04, 1.05, 0.75), (0.5 + side * 0.14, 0.3, 1.0), (0.5 + side * 0.05, -0.12, 0.98)])
            for side in (-1, 1)
        ]
    length, thick = {T: (1.7, 1.0), S: (1.15, 1.2)}.get(instruction, (1.15, 1.0))
    return [*_legs(length, thick), *more, *_behind()]


def _moved(step: int, *, knit: bool) -> list[Stroke]:
    """A loop whose head went ``step`` columns aside, and the hole that it left."""
    hole = Stroke([(0.46, -0.2, 0.93), (0.54, -0.2, 0.93)], 1.7, hole=True)
    if knit:
        return [*_leaning(step, 0.97), hole, *_behind()]
    arc = [(-0.05, 0.7, 0.8), (0.3, 0.3, 0.9), (0.5 + 0.45 * step, 0.08, 0.97), (0.85 + 0.8 * step, 0.3, 0.94)]
    return [Stroke(arc), *_bump(height=-0.12)[1:], hole]


def _legs(length: float = 1.15, thick: float = 1.0, wide: float = 1.0) -> list[Stroke]:
    """The two legs of a knit loop, a V from its foot up to its head."""
    return [
        Stroke(
            [
                (0.5 + side * 0.07, length, 0.5),
                (0.5 + side * 0.2 * wide, 0.55 * length, 0.85),
                (0.5 + side * 0.36 * wide, 0.1, 0.8),
                (0.5 + side * 0.3 * wide, -0.12, 0.5),
            ],
            thick,
        )
        for side in (-1, 1)
    ]


def _behind() -> list[Stroke]:
    """Arcs of knit loops that lie at the back."""
    return [
        Stroke([(0.15, 0.1, 0.2), (0.5, -0.1, 0.3), (0.85, 0.1, 0.2)], 0.9),
        Stroke([(-0.3, 0.7, 0.1), (0.0, 0.9, 0.25), (0.3, 0.7, 0.1)], 0.9),
        Stroke([(0.7, 0.7, 0.1), (1.0, 0.9, 0.25), (1.3, 0.7, 0.1)], 0.9),
    ]


def _bump(height: float = 0.0) -> list[Stroke]:
    """A purl loop: its head over the row above, the arcs to its neighbours below."""
    return [
        Stroke(
            [
                (-0.04, 0.66, 0.7 + height),
                (0.2, 0.3, 0.9 + height),
                (0.5, 0.16, 0.92 + height),
                (0.8, 0.3, 0.9 + height),
                (1.04, 0.66, 0.7 + height),
            ]
        ),
        Stroke([(-0.38, 0.62, 0.4 + height), (0.0, 0.88, 0.66 + height), (0.38, 0.62, 0.4 + height)], 0.95),
        Stroke([(0.62, 0.62, 0.4 + height), (1.0, 0.88, 0.66 + height), (1.38, 0.62, 0.4 + height)], 0.95),
        Stroke([(0.3, 0.95, 0.15), (0.22, 0.4, 0.2), (0.3, -0.1, 0.15)], 0.8),
        Stroke([(0.7, 0.95, 0.15), (0.78, 0.4, 0.2), (0.7, -0.1, 0.15)], 0.8),
    ]


def _leaning(step: int, height: float) -> list[Stroke]:
    """The legs of a loop whose head lies ``step`` columns aside."""
    return [
        Stroke(
            [
                (0.5 + side * 0.07, 1.1, 0.55),
                (0.5 + side * 0.17 + 0.25 * step, 0.68, height - 0.04),
                (0.5 + side * 0.2 + 0.75 * step, 0.22, height),
                (0.5 + side * 0.2 + step, -0.15, height - 0.1),
            ]
        )
        for side in (-1, 1)
    ]


def render(programs: Tensor, yarn: Yarn = CLEAN, *, back: bool = False) -> Tensor:
    """Fabric of programs (n, rows, columns), uint8 (n, 8 rows, 8 columns), its front or its back.

    Around the program its outermost cells are taken to go on, as knit or purl.
    """
    if back:
        programs = from_behind(programs)
    count, rows, columns = programs.shape
    tiles = _tiles(yarn)
    around = _continued(programs.long())
    seen: Tensor | None = None
    for place, (dy, dx) in enumerate(_neighbours()):
        own = around[:, REACH_Y + dy : REACH_Y + dy + rows, REACH_X + dx : REACH_X + dx + columns]
        part = tiles[place].index_select(0, own.reshape(-1))
        seen = part if seen is None else torch.maximum(seen, part, out=seen)
    assert seen is not None
    shades = (seen & 255).view(count, rows, columns, CELL, FINE, CELL, FINE)
    total = shades.sum((4, 6), dtype=torch.int16)
    grey = ((total + FINE * FINE // 2) // (FINE * FINE)).to(torch.uint8)
    return grey.permute(0, 1, 3, 2, 4).reshape(count, rows * CELL, columns * CELL)


def _neighbours() -> list[tuple[int, int]]:
    return [(dy, dx) for dy in range(-REACH_Y, REACH_Y + 1) for dx in range(-REACH_X, REACH_X + 1)]


def _continued(programs: Tensor) -> Tensor:
    """Programs with a border of plain cells, as wide as tiles reach."""
    pad = (REACH_X, REACH_X, REACH_Y, REACH_Y)
    wide = torch.nn.functional.pad(programs[:, None].float(), pad, mode="replicate")[:, 0].long()
    plain = torch.where(wide > P, torch.full_like(wide, K), wide)
    plain[:, REACH_Y:-REACH_Y, REACH_X:-REACH_X] = programs
    return plain


@lru_cache(maxsize=64)
def _tiles(yarn: Yarn) -> Tensor:
    """Heights and shades, 256 · height + shade, int16 (15 places, 17 instructions, 16 · 16 pixels).

    A place is what a tile puts into the cell that it reaches from there: first the tile of the cell up and two to the
    left.
    """
    drawn = np.stack([_tile(instruction, yarn) for instruction in range(COUNT)])
    side = CELL * FINE
    high, wide = 2 * REACH_Y + 1, 2 * REACH_X + 1
    cells = drawn.reshape(COUNT, high, side, wide, side).transpose(1, 3, 0, 2, 4)  # (3, 5, 17, 16, 16)
    # The cell at (dy, dx) from the one looked at shows there the part of its tile that lies at (-dy, -dx) of it.
    turned = np.ascontiguousarray(cells[::-1, ::-1]).reshape(high * wide, COUNT, side * side)
    return torch.from_numpy(turned)


def _tile(instruction: int, yarn: Yarn) -> NDArray[np.int16]:
    """One instruction's strokes, (48, 80)."""
    side = CELL * FINE
    y, x = np.meshgrid(
        (np.arange((2 * REACH_Y + 1) * side) + 0.5) / side - REACH_Y,
        (np.arange((2 * REACH_X + 1) * side) + 0.5) / side - REACH_X,
        indexing="ij",
    )
    tile = np.full(x.shape, _GAP, np.int16)
    for stroke in strokes(instruction):
        tile = np.maximum(tile, _thread(x, y, stroke, yarn))
    return tile


def _thread(x: NDArray[np.float64], y: NDArray[np.float64], stroke: Stroke, yarn: Yarn) -> NDArray[np.int16]:
    """256 · height + shade of one stroke, 0 where it is not."""
    line = _smooth(np.array(stroke.points))
    px = line[:, 0] + yarn.lean * (0.5 - line[:, 1]) + yarn.spread * np.sign(line[:, 0] - 0.5)
    apart = (x[..., None] - px) ** 2 + (y[..., None] - line[:, 1]) ** 2
    nearest = apart.argmin(-1)
    radius = yarn.radius * stroke.thick
    offset = np.sqrt(np.take_along_axis(apart, nearest[..., None], -1)[..., 0]) / radius
    inside = offset < 1
    height = line[nearest, 2]
    if stroke.hole:
        shade = np.full(x.shape, float(_HOLE))
    else:
        tangent = np.gradient(np.stack([px, line[:, 1]], 1), axis=0)
        length = np.cumsum(np.hypot(tangent[:, 0], tangent[:, 1]))
        to_x, to_y = x - px[nearest], y - line[nearest, 1]
        across = np.sign(tangent[nearest, 0] * to_y - tangent[nearest, 1] * to_x) * offset
        round_ = np.sqrt(np.clip(1 - offset**2, 0, 1))
        # The light comes from above and a little from one side; what lies deeper is in the shade of the rest.
        facing = 0.45 + 0.55 * round_ - (0.3 * yarn.light * to_x + 0.12 * to_y) / radius
        grooves = 1 - yarn.plies * (1 + np.cos(2 * np.pi * (yarn.twist * length[nearest] + 0.35 * across))) / 2
        shade = yarn.shade * facing * grooves * (0.42 + 0.58 * np.clip(height, 0, 1))
        height = height + 0.06 * round_
    level = np.round(np.clip(height, 0.02, 1.1) / 1.1 * 126).astype(np.int32)
    key = level * 256 + np.clip(shade, 0, 255).astype(np.int32)
    return np.where(inside, key, 0).astype(np.int16)


def _smooth(points: NDArray[np.float64], steps: int = 14) -> NDArray[np.float64]:
    """A Catmull-Rom line through points (n, 3): so many points for each stretch."""
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        parts.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.vstack([*parts, points[-1:]])
