"""Composing a dense weight from its factors: the equations of FedPara (Hyeon-Woo, Ye-Bin, Oh, ICLR 2022).

X is (out, R), Y is (in, R). A convolution's core T is stored (R, k..., R): the composed weight then lies in memory as
(out, k..., in), which is the channels_last layout, and no permuted copy is made. Nothing is written in place: the
functions work under vmap, functional_call and double backward.
"""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank(x: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """W = X Yᵀ, (out, in); with a core W = T ×₁ X ×₂ Y, (out, in, k...) (FedPara, Prop. 3; Tucker-2)."""
    if t is None:
        return x @ y.mT
    inner = t @ y.mT
    return (x @ inner.flatten(1)).reshape(x.shape[0], *inner.shape[1:]).movedim(-1, 1)


def fedpara(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, *cores: Tensor, activation: str | None = None) -> Tensor:
    """W = W1 ⊙ W2, W1 = X1 Y1ᵀ, W2 = X2 Y2ᵀ, (out, in) (Prop. 1); with cores T1, T2 the Tucker form (Prop. 3).

    With activation="tanh", W = tanh(W1) ⊙ tanh(W2) (supplement).
    """
    w1, w2 = _pairs(x1, y1, x2, y2, cores)
    if activation == "tanh":
        w1, w2 = torch.tanh(w1), torch.tanh(w2)
    return w1 * w2


def pfedpara(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, *cores: Tensor) -> Tensor:
    """W = W1 ⊙ (W2 + 1), (out, in): W1 is everybody's, W2 the client's own (FedPara, the pFedPara extension)."""
    w1, w2 = _pairs(x1, y1, x2, y2, cores)
    return w1 * (w2 + 1)


def _pairs(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, cores: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    t1, t2 = cores or (None, None)
    return low_rank(x1, y1, t1), low_rank(x2, y2, t2)
