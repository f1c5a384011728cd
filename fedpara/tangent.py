"""How a factorised weight moves with its factors, and which move of theirs comes nearest to a wanted one.

For one or two pairs P_i = X_i B_i, B_i = Y_iᵀ or T_i ×₂ Y_i, the weight W(P_1, P_2) moves with its factors by

    J Δ = Σ_i S_i ⊙ (ΔX_i B_i + X_i ΔB_i),    S_i = ∂W/∂P_i

with S_1 = W2, S_2 = W1 of W = W1 ⊙ W2, and (1 − tanh² P_1) ⊙ tanh P_2 and its mirror image of the form with tanh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .parametrize import Config

Move = list[Tensor]  # ΔX (pairs, out, R), ΔY (pairs, in, R), of kernels ΔT (pairs, R, K, R)


class Tangent:
    """The factors of one weight, in their order X1, Y1, X2, Y2, T1, T2, as stacks of pairs; they can be moved.

    Weights and changes of weights are (out, K, in) in here, K being the number of a kernel's positions.
    """

    def __init__(self, config: Config, shape: tuple[int, ...], factors: Sequence[Tensor]) -> None:
        pairs = config.pairs
        self._config, self._shape, self._seen = config, shape, config.seen(shape)
        self._cores = [own.shape for own in factors[2 * pairs :]]
        self._held = [torch.stack(list(factors[: 2 * pairs : 2])), torch.stack(list(factors[1 : 2 * pairs : 2]))]
        if self._cores:
            self._held.append(torch.stack([own.reshape(len(own), -1, len(own)) for own in factors[2 * pairs :]]))
        self._look()

    def factors(self) -> list[Tensor]:
        """X1, Y1, X2, Y2, T1, T2 as they are now, as many as there are."""
        x, y, *core = self._held
        cores = [own.view(shape) for part in core for own, shape in zip(part, self._cores, strict=True)]
        return [part for pair in zip(x, y, strict=True) for part in pair] + cores

    def weight(self) -> Tensor:
        """W of the factors as they are now, in its own shape, without a residual's base."""
        return self._weight.movedim(1, -1).reshape(self._shape)

    def rows(self, weight: Tensor) -> Tensor:
        """A weight, or a change of one, in its own shape → (out, K, in)."""
        return weight.reshape(*self._seen[:2], -1).movedim(-1, 1)

    def forward(self, move: Move) -> Tensor:
        """J Δ, (out, K, in)."""
        x = self._held[0]
        moved = x @ self._seen_moved(move).flatten(2) + move[0] @ self._right.flatten(2)
        return (moved.view_as(self._slopes) * self._slopes).sum(0)

    def adjoint(self, change: Tensor) -> Move:
        """Jᵀ of a change of the weight, (out, K, in)."""
        x, y, *core = self._held
        through = (self._slopes * change).flatten(2)
        at_x, behind = through @ self._right.flatten(2).mT, x.mT @ through
        if not core:
            return [at_x, behind.mT]
        rows = behind.reshape(len(x), -1, y.shape[1])  # (pairs, R·K, in)
        return [at_x, rows.mT @ core[0].view(len(x), rows.shape[1], -1), (rows @ y).view_as(core[0])]

    def nearest(self, change: Tensor, iterations: int) -> Move:
        """The Δ of so many conjugate gradients' iterations from 0 at min ‖J Δ − change‖² (Hestenes, Stiefel 1952).

        Ended early, they leave out what factors could only do by moving far.
        """
        left = self.adjoint(change)
        found, ahead, size = [torch.zeros_like(own) for own in left], left, _inner(left, left)
        kind = torch.finfo(change.dtype)
        least = kind.eps * size  # what is under it is rounding: W may not depend on it at all
        for _ in range(iterations):
            seen = self.forward(ahead)
            length = torch.where(size > least, size / seen.square().sum().clamp_min(kind.tiny), 0.0)
            back = self.adjoint(seen)
            found = [own + length * step for own, step in zip(found, ahead, strict=True)]
            left = [own - length * step for own, step in zip(left, back, strict=True)]
            before, size = size, _inner(left, left)
            share = size / before.clamp_min(kind.tiny)
            ahead = [own + share * step for own, step in zip(left, ahead, strict=True)]
        return found

    def move_(self, move: Move) -> None:
        """Add a move to the factors, in place."""
        self._held = [own + step for own, step in zip(self._held, move, strict=True)]
        self._look()

    def _look(self) -> None:
        """W and its slopes where the factors are."""
        x, y, *core = self._held
        self._right = self._behind(y, *core)
        halves = (x @ self._right.flatten(2)).view(len(x), x.shape[1], *self._right.shape[2:])
        slopes = torch.ones_like(halves)
        if getattr(self._config, "activation", None) == "tanh":
            halves = torch.tanh(halves)
            slopes = 1 - halves.square()
        if self._config.kind == "pfedpara":
            halves = torch.stack([halves[0], halves[1] + 1])
        if len(halves) == 2:
            slopes = slopes * halves.flip(0)
        self._slopes, self._weight = slopes, halves.prod(0)

    @staticmethod
    def _behind(y: Tensor, core: Tensor | None = None) -> Tensor:
        """B of every pair, (pairs, R, K, in)."""
        if core is None:
            return y.mT.unsqueeze(2)
        return (core.flatten(1, 2) @ y.mT).view(*core.shape[:3], y.shape[1])

    def _seen_moved(self, move: Move) -> Tensor:
        """ΔB of every pair."""
        if len(move) == 2:
            return self._behind(move[1])
        return self._behind(move[1], self._held[2]) + self._behind(self._held[1], move[2])


def _inner(one: Move, other: Move) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
