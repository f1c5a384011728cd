"""Knittability: which rules a program breaks, and where.

The rules are of one row each, as a machine with two beds of needles knits it:

- instruction: every cell is one of the seventeen.
- cross: loops change places in pairs. XR+ has XL- to its right, XR- has XL+; so has every XL its XR to its left.
- move: a moved loop lands on a needle, inside the fabric.
- stack: S joins loops, so a move of its row reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedpara.errors import DataError

from .instructions import COUNT, CROSSES, MOVES, NAMES, S


class Violation(NamedTuple):
    """A broken rule and where, counted from 0; row 0 is the top."""

    rule: str
    row: int
    column: int
    text: str


def violations(program: Tensor) -> list[Violation]:
    """Every broken rule of one program (rows, columns), by row and column.

    Raises:
        DataError: the program is no grid.
    """
    if program.dim() != 2 or program.is_floating_point():
        raise DataError(f"a program of {tuple(program.shape)}, {program.dtype}: expected a grid of whole numbers")
    rows = program.tolist()
    found = [_at(row, line, column) for row, line in enumerate(rows) for column in range(len(line))]
    return [violation for violation in found if violation]


def _at(row: int, line: list[int], column: int) -> Violation | None:
    own = line[column]
    if not 0 <= own < COUNT:
        return Violation("instruction", row, column, f"{own} is no instruction: they are 0 to {COUNT - 1}")
    right = line[column + 1] if column + 1 < len(line) else None
    left = line[column - 1] if column else None
    if own in CROSSES and right != CROSSES[own]:
        wanted = f"{NAMES[own]} needs {NAMES[CROSSES[own]]} to its right"
        return Violation("cross", row, column, f"{wanted}, found {_name(right)}")
    for first, second in CROSSES.items():
        if own == second and left != first:
            wanted = f"{NAMES[own]} needs {NAMES[first]} to its left"
            return Violation("cross", row, column, f"{wanted}, found {_name(left)}")
    if own in MOVES and not 0 <= column + MOVES[own] < len(line):
        return Violation("move", row, column, f"{NAMES[own]} moves a loop off the edge of the fabric")
    near = range(max(0, column - 2), min(len(line), column + 3))
    if own == S and not any(MOVES.get(line[source]) == column - source for source in near):
        return Violation("stack", row, column, "S joins loops, and no move of its row reaches it")
    return None


def _name(instruction: int | None) -> str:
    if instruction is None:
        return "the edge"
    return NAMES[instruction] if 0 <= instruction < COUNT else str(instruction)


def violated(shares: Tensor) -> Tensor:
    """How far each cell breaks a rule, (n, rows, columns), of probabilities of instructions (n, 17, rows, columns).

    Of a cross: P(XR) · (1 − P(its XL to the right)), and so for XL; of a move: P of those that end outside; of a stack:
    P(S) · Π (1 − P(a move that reaches it)). Of certain programs this is 1 where `violations` finds one, else 0.
    """
    found = torch.zeros_like(shares[:, 0])
    for right, left in CROSSES.items():
        found = found + shares[:, right] * (1 - _beside(shares[:, left], 1))
        found = found + shares[:, left] * (1 - _beside(shares[:, right], -1))
    untouched = torch.ones_like(found)
    columns = torch.arange(shares.shape[3], device=shares.device)
    for move, step in MOVES.items():
        outside = ((columns + step < 0) | (columns + step >= len(columns))).to(shares.dtype)
        found = found + shares[:, move] * outside
        untouched = untouched * (1 - _beside(shares[:, move], -step))
    return found + shares[:, S] * untouched


def _beside(shares: Tensor, step: int) -> Tensor:
    """Of each cell, the value so many columns to its right; 0 beyond the edge."""
    moved = shares.roll(-step, -1)
    columns = torch.arange(shares.shape[-1], device=shares.device) + step
    return moved * ((columns >= 0) & (columns < shares.shape[-1])).to(shares.dtype)


def certain(programs: Tensor) -> Tensor:
    """Programs (n, rows, columns) as probabilities, (n, 17, rows, columns)."""
    return torch.nn.functional.one_hot(programs.long(), COUNT).movedim(-1, 1).float()


def broken(programs: Tensor) -> Tensor:
    """Where programs (n, rows, columns) of known instructions break a rule, bool of the same shape."""
    return violated(certain(programs)) > 0.5


def mended(program: list[list[int]], plain: Callable[[int, int], int]) -> list[list[int]]:
    """A program without violations: cells that break a rule become ``plain(row, column)``, until none does."""
    for row, line in enumerate(program):
        if max(line) < min(MOVES):  # knit, purl, tuck, miss: nothing to ask of their neighbours
            continue
        while wrong := [column for column in range(len(line)) if _at(row, line, column)]:
            for column in wrong:
                line[column] = plain(row, column)
    return program
