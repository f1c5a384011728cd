"""Random programs that a machine can knit: ribs, blocks, textures, cables, lace, tucks and misses, in repeats.

Each program is a plain ground, knit or purl, with motifs of one family on it. Over many programs of the default mix the
instructions come as often as in Kaspar et al. (ICML 2019): K 44.4 %, P 47.7, T 0.4, M 1.5, single moves 1.2 to 1.4
each, double moves 0.01 to 0.02, crosses 0.2 each, S 0.1; the ground fills some three quarters of a program.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .instructions import COUNT, K, M, P, S, T
from .knittability import mended

SIDE, LEAST = 20, 12  # stitches a side of a program; what motifs need
PUBLISHED = (44.4, 47.7, 0.41, 1.49, 1.3, 0.015, 1.3, 0.015, 1.3, 0.015, 1.3, 0.015, 0.2, 0.2, 0.2, 0.2, 0.12)  # %
XR_ABOVE, XR_BELOW, XL_ABOVE, XL_BELOW = 12, 13, 14, 15

Grid = list[list[int]]
Family = Callable[[Grid, int, random.Random], None]


@dataclass(frozen=True)
class Mix:
    """How often each family comes, in any unit, and the share of purl grounds."""

    families: Mapping[str, float] = field(default_factory=lambda: dict(USUAL))
    purl: float = 0.54


def random_programs(
    count: int, generator: torch.Generator, mix: Mix | None = None, size: tuple[int, int] = (SIDE, SIDE)
) -> Tensor:
    """Knittable programs, uint8 (count, rows, columns)."""
    mix = mix or Mix()
    source = random.Random(int(torch.randint(2**62, (), generator=generator)))
    drawn = [random_program(source, mix, size) for _ in range(count)]
    return torch.tensor(drawn, dtype=torch.uint8).reshape(count, *size)


def random_program(source: random.Random, mix: Mix, size: tuple[int, int]) -> Grid:
    """One knittable program of (rows, columns), a list of rows: drawn on a square at least as large, and cut out."""
    ground = P if source.random() < mix.purl else K
    side = max(*size, LEAST)
    grid = [[ground] * side for _ in range(side)]
    names = list(mix.families)
    (family,) = source.choices(names, [mix.families[name] for name in names])
    FAMILIES[family](grid, ground, source)
    if source.random() < 0.6 and family != "ribs":
        _border(grid, ground, source)
    return mended([row[: size[1]] for row in grid[: size[0]]], lambda row, column: ground)


def _other(ground: int) -> int:
    return K + P - ground


def _border(grid: Grid, ground: int, source: random.Random) -> None:
    """Edges of the other face at both sides."""
    for row in grid:
        for n in range(source.choice((1, 1, 2))):
            row[n] = row[-1 - n] = _other(ground)


def _repeat(grid: Grid, unit: Grid, source: random.Random, keep: int = -1) -> None:
    """The unit side by side over a window or all of the grid; cells of the unit that are ``keep`` leave the ground."""
    height, width = len(unit), len(unit[0])
    down, across = source.randrange(height), source.randrange(width)
    if source.random() < 0.35:  # a window with whole units
        rows = _span(len(grid), height, source)
        columns = _span(len(grid), width, source)
    else:
        rows = columns = range(len(grid))
    for row in rows:
        line = unit[(row + down) % height]
        for column in columns:
            if (own := line[(column + across) % width]) != keep:
                grid[row][column] = own


def _span(side: int, unit: int, source: random.Random) -> range:
    length = min(side, unit * source.randint(1, max(1, side // unit)))
    length = max(length, min(side, 8))
    start = source.randint(0, side - length)
    return range(start, start + length)


def _blank(height: int, width: int) -> Grid:
    return [[-1] * width for _ in range(height)]


def ribs(grid: Grid, ground: int, source: random.Random) -> None:
    """Columns (now and then rows) of the other face."""
    wide, narrow = source.randint(2, 8), source.randint(1, 3)
    narrow = min(narrow, wide)
    unit = [[ground] * wide + [_other(ground)] * narrow]
    if source.random() < 0.25:
        unit = [[cell] for cell in unit[0]]
    _repeat(grid, unit, source)


def blocks(grid: Grid, ground: int, source: random.Random) -> None:
    """Rectangles, triangles and diamonds of the other face."""
    side, other = len(grid), _other(ground)
    for _ in range(source.randint(2, 5)):
        height, width = source.randint(3, 10), source.randint(3, 10)
        top, left = source.randint(0, side - height), source.randint(0, side - width)
        shape = source.choice(("rectangle", "diamond", "triangle"))
        for row in range(height):
            reach = {
                "rectangle": width,
                "diamond": round(width * (1 - abs(2 * row - height + 1) / height)),
                "triangle": round(width * (row + 1) / height),
            }[shape]
            first = left + (width - reach) // 2
            grid[top + row][first : first + reach] = [other] * reach


def texture(grid: Grid, ground: int, source: random.Random) -> None:
    """Seeds of the other face in a small repeat: moss, basket, sand."""
    height, width = source.randint(2, 6), source.randint(2, 6)
    unit = _blank(height, width)
    for _ in range(max(1, round(source.uniform(0.12, 0.4) * height * width))):
        unit[source.randrange(height)][source.randrange(width)] = _other(ground)
    _repeat(grid, unit, source)


def cables(grid: Grid, ground: int, source: random.Random) -> None:
    """Panels of knit in which neighbours cross: ropes, braids, and lines that travel to a side and back."""
    side = len(grid)
    panels = source.randint(1, 3)
    width = source.choice((2, 4, 4, 6)) if panels > 1 else source.choice((4, 6, 8))
    every = source.choice((2, 2, 3, 4))
    hand = source.random() < 0.5
    travel = source.random() < 0.4
    for panel in range(panels):
        left = min(side - width, round((panel + 0.5) * side / panels - width / 2) + source.randint(-1, 1))
        left = max(0, left)
        for row in grid:
            row[left : left + width] = [K] * width
            if ground == K and left:
                row[left - 1] = P
        phase = source.randrange(every)
        for row in range(side):
            if travel:  # one pair that goes a column further every row
                reach = 2 * (width - 2) or 1
                place = abs((row + phase) % reach - (width - 2))
                right = (row + phase) % reach >= width - 2
                _cross(grid[row], left + place, right)
            elif row % every == phase:
                for column in range(left + (row // every) % 2 * (width > 2), left + width - 1, 2):
                    _cross(grid[row], column, hand)


def _cross(row: list[int], column: int, right: bool) -> None:
    """Two neighbours change places, the one that goes to the right (or left) above."""
    row[column : column + 2] = [XR_ABOVE, XL_BELOW] if right else [XR_BELOW, XL_ABOVE]


def lace(grid: Grid, ground: int, source: random.Random) -> None:
    """Holes in lines: moves that lean to one side, chevrons of both, now and then joined by a stack."""
    right, left = (4, 6) if ground == K else (8, 10)
    height, width = source.randint(2, 6), source.choice((4, 5, 6, 6, 8, 10))
    unit = _blank(height, width)
    style = source.choice(("lines", "chevrons", "columns", "sprinkled"))
    handed = source.random() < 0.5
    rows = range(height) if height < 4 or source.random() < 0.6 else range(0, height, 2)
    for row in rows:
        if style == "lines":
            place = row if handed else -row
            unit[row][place % width] = right if handed else left
        elif style == "chevrons":
            middle = width // 2
            gap = row % max(1, middle)
            unit[row][middle - gap - 1] = right if handed else left
            unit[row][(middle + gap) % width] = left if handed else right
        elif style == "columns":
            unit[row][width // 2 - 1] = right if (row // 2 % 2 == 0) == handed else left
        else:
            unit[row][source.randrange(width)] = source.choice((right, left))
    if source.random() < 0.11:  # the joined loops of a double decrease
        row = source.choice(list(rows))
        middle = width // 2
        unit[row][middle - 1 : middle + 2] = [right, S, left][: max(0, width - middle + 1)]
    _repeat(grid, unit, source)
    if source.random() < 0.08:  # a few moves go two columns
        for row in grid:
            for column, own in enumerate(row):
                if own in (right, left) and source.random() < 0.15:
                    row[column] = own + 1


def held(grid: Grid, ground: int, source: random.Random) -> None:
    """Misses in checks and lines: the loop below is held over a row or two, the yarn floats."""
    _holding(grid, M, source)


def tucked(grid: Grid, ground: int, source: random.Random) -> None:
    """Tucks in checks and lines, as in fisherman's rib and honeycombs."""
    _holding(grid, T, source)


def _holding(grid: Grid, what: int, source: random.Random) -> None:
    height, width = source.choice((2, 3, 4, 4, 6)), source.choice((2, 3, 4, 5))
    unit = _blank(height, width)
    place = source.randrange(width)
    for row in range(0, height, source.choice((1, 2, 2))):
        if row < 3:
            unit[row][place] = what
    if height >= 4 and source.random() < 0.5:
        unit[height - 1][(place + width // 2) % width] = what
    _repeat(grid, unit, source)


FAMILIES: dict[str, Family] = {
    "ribs": ribs,
    "blocks": blocks,
    "texture": texture,
    "cables": cables,
    "lace": lace,
    "held": held,
    "tucked": tucked,
}
USUAL = {"ribs": 18.0, "blocks": 18.0, "texture": 14.0, "cables": 5.5, "lace": 39.0, "held": 9.0, "tucked": 2.5}


def frequencies(programs: Tensor) -> Tensor:
    """The share of each instruction in per cent, (17,)."""
    found = torch.bincount(programs.flatten().long(), minlength=COUNT).double()
    return 100 * found / found.sum()
