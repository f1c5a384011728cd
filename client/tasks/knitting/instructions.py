"""The seventeen machine instructions: names, colours, what moves where, what lies on what; mirrors and backs.

A program is a grid of class numbers, uint8 or int64 (…, rows, columns). Row 0 is the top of the photograph,
knitted last. The classes are those of Kaspar et al., "Neural Inverse Knitting" (ICML 2019), in their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BEDS = tuple(f"{bed}{side}{n}" for bed in "FB" for side in "RL" for n in (1, 2))
NAMES = ("K", "P", "T", "M", *_BEDS, "XR+", "XR-", "XL+", "XL-", "S")
COUNT = len(NAMES)
K, P, T, M = range(4)
S = 16
MEANINGS = (
    "knit",
    "purl",
    "tuck",
    "miss",
    *(f"{bed}, moved {side} by {n}" for bed in ("knit", "purl") for side in ("right", "left") for n in (1, 2)),
    *(f"cross to the {side}, {place}" for side in ("right", "left") for place in ("above", "below")),
    "stack",
)
# Columns that the loop goes: to the right is positive. Only moves, not crosses.
MOVES = {4: 1, 5: 2, 6: -1, 7: -2, 8: 1, 9: 2, 10: -1, 11: -2}
CROSSES = {12: 15, 13: 14}  # the one to the right, and what must stand to the right of it: the other goes beneath
MIRROR = (0, 1, 2, 3, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 16)
# Seen from behind, without the mirroring: knit and purl, front and back bed, above and below change places.
_BEHIND = (1, 0, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 13, 12, 15, 14, 16)

# sRGB, chosen so that related instructions are related hues: right-hand moves warm, left-hand ones cold.
PALETTE = (
    (236, 232, 223), (120, 126, 138), (124, 179, 66), (38, 42, 51),
    (255, 179, 0), (230, 81, 0), (79, 195, 247), (2, 119, 189),
    (255, 224, 130), (255, 138, 101), (178, 235, 242), (77, 150, 160),
    (216, 27, 96), (244, 143, 177), (94, 53, 177), (179, 157, 219), (0, 200, 130),
)  # fmt: skip


def mirrored(programs: Tensor) -> Tensor:
    """The same fabric in a mirror: columns reversed, right and left exchanged."""
    return torch.tensor(MIRROR, dtype=programs.dtype)[programs.flip(-1).long()]


def from_behind(programs: Tensor) -> Tensor:
    """The program whose front looks like the back of this one: mirrored, knit and purl exchanged.

    With them go the beds, since a moved purl is what a moved knit looks like from behind, and what lies above a cross.
    """
    return torch.tensor(_BEHIND, dtype=programs.dtype)[mirrored(programs).long()]


def modal(programs: Tensor) -> Tensor:
    """The most frequent instruction of each program (n, rows, columns) → (n,); of equals, the first."""
    return counts(programs).argmax(1)


def counts(programs: Tensor) -> Tensor:
    """How often each instruction comes in each program, int64 (n, 17)."""
    flat = programs.flatten(1).long()
    return torch.zeros(len(flat), COUNT, dtype=torch.long, device=flat.device).scatter_add_(
        1, flat, torch.ones_like(flat)
    )
