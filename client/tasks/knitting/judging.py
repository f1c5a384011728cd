"""How well programs are read: of all cells, of the foreground, and how many break a rule of knitting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .instructions import COUNT, modal
from .knittability import broken
from .losses import SHIFTS


@dataclass(frozen=True)
class Score:
    """Of each program, shares of cells, (n,): ``weight`` cells of it are foreground."""

    full: Tensor
    foreground: Tensor
    weight: Tensor
    violations: Tensor

    def values(self) -> dict[str, float]:
        """Means: of the foreground over its cells, of the rest over programs."""
        counted = self.weight.sum().clamp(min=1)
        return {
            "accuracy": float(self.full.mean()),
            "foreground": float((self.foreground * self.weight).sum() / counted),
            "violations": float(self.violations.mean()),
        }


def score(read: Tensor, programs: Tensor) -> Score:
    """Programs as read against the true ones, (n, rows, columns) each.

    Full: the share of all cells that are right. Foreground: of the cells that are not the program's most frequent
    instruction, as Kaspar et al.; of equally frequent ones the first is the ground. Violations: the share of cells, as
    read, that break a rule of knitting.
    """
    right = read == programs
    front = programs != modal(programs).view(-1, 1, 1)
    weight = front.sum((1, 2))
    foreground = (right & front).sum((1, 2)) / weight.clamp(min=1)
    return Score(right.float().mean((1, 2)), foreground, weight, broken(read).float().mean((1, 2)))


def aligned(read: Tensor, programs: Tensor) -> Score:
    """The same at whichever of nine whole-map shifts fits best, border excluded: photographs may lie a cell aside."""
    rows, columns = programs.shape[1:]
    best: Score | None = None
    for dy, dx in SHIFTS:
        found = score(read[:, 1:-1, 1:-1], programs[:, 1 + dy : rows - 1 + dy, 1 + dx : columns - 1 + dx])
        if best is None:
            best = found
            continue
        better = found.full > best.full
        names = ("full", "foreground", "weight", "violations")
        best = Score(*(torch.where(better, getattr(found, name), getattr(best, name)) for name in names))
    assert best is not None
    return best


def confusion(read: Tensor, programs: Tensor) -> Tensor:
    """How often each true instruction (rows) was read as which (columns), int64 (17, 17)."""
    pairs = programs.flatten().long() * COUNT + read.flatten().long()
    return torch.bincount(pairs, minlength=COUNT**2).view(COUNT, COUNT)


def by_instruction(table: Tensor, names: tuple[str, ...]) -> list[list[str]]:
    """Recall and precision of every instruction that came; the first line names the columns."""
    lines = [["instruction", "cells", "found", "right", "most often taken for"]]
    for number, name in enumerate(names):
        true, said = int(table[number].sum()), int(table[:, number].sum())
        if not true:
            continue
        wrong = table[number].clone()
        wrong[number] = 0
        taken = names[int(wrong.argmax())] if wrong.any() else "–"
        hits = int(table[number, number])
        right = f"{100 * hits / said:.1f} %" if said else "–"
        lines.append([name, f"{true:,}", f"{100 * hits / true:.1f} %", right, taken])
    return lines
