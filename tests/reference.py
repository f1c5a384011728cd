"""The paper's equations, written literally: the yardstick for the fast code, which it shares nothing with.

FedPara: Hyeon-Woo, Ye-Bin, Oh, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
ICLR 2022. X is (out, R), Y (in, R); here a core T is (R, R, k...), as the paper writes it, not as the library does.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor


def matrix_product(x: Tensor, y: Tensor) -> Tensor:
    """W = X Yᵀ, the sum of R outer products: W[i, j] = Σ_r X[i, r] Y[j, r]."""
    weight = torch.zeros(x.shape[0], y.shape[0], dtype=x.dtype)
    for r in range(x.shape[1]):
        weight = weight + x[:, r, None] * y[None, :, r]
    return weight


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """The tensor with `matrix` (n, R) multiplied into its dimension `mode`: M_(mode) = matrix · T_(mode), unfolded."""
    moved = tensor.movedim(mode, 0)
    unfolded = moved.reshape(moved.shape[0], -1)
    return (matrix @ unfolded).reshape(matrix.shape[0], *moved.shape[1:]).movedim(0, mode)


def tucker2(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """W = T ×₁ X ×₂ Y (Prop. 3, one half)."""
    return mode_product(mode_product(t, x, 0), y, 1)


def low_rank(x: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """The baseline: X Yᵀ, or Tucker-2."""
    return matrix_product(x, y) if t is None else tucker2(x, y, t)


def fedpara(first: tuple[Tensor, ...], second: tuple[Tensor, ...], activation: str | None = None) -> Tensor:
    """W = W1 ⊙ W2 (Props. 1 and 3); tanh(W1) ⊙ tanh(W2) (supplement)."""
    w1, w2 = low_rank(*first), low_rank(*second)
    return torch.tanh(w1) * torch.tanh(w2) if activation == "tanh" else w1 * w2


def pfedpara(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Tensor:
    """W = W1 ⊙ W2 + W1: the personal part and the global part (pFedPara)."""
    w1, w2 = low_rank(*first), low_rank(*second)
    return w1 * w2 + w1


def pair_parameters(shape: tuple[int, ...], rank: int) -> int:
    """R(O + I) numbers, and R²·K for the core of a kernel of more than one element (Props. 2 and 3, one half)."""
    kernel = math.prod(shape[2:])
    return rank * (shape[0] + shape[1]) + (rank * rank * kernel if kernel > 1 else 0)


def count_up(shape: tuple[int, ...], budget: float, pairs: int) -> int:
    """The largest rank within a budget, by trying 1, 2, 3, ..."""
    rank = 0
    while pairs * pair_parameters(shape, rank + 1) <= budget:
        rank += 1
    return rank


def rank_rule(shape: tuple[int, ...], gamma: float) -> int:
    """r = (1−γ) r_min + γ r_max, r_min = min(⌈√O⌉, ⌈√I⌉), r_max the largest rank no dearer than the dense weight."""
    r_min = min(math.ceil(math.sqrt(shape[0])), math.ceil(math.sqrt(shape[1])))
    r_max = count_up(shape, math.prod(shape), 2)
    return max(1, round((1 - gamma) * r_min + gamma * r_max))


# ----------------------------------------------------------------------------------------------- federated optimisers
# Each takes the model and a problem: the number of clients n, each round's cohort, the gradient of client k at w, the
# local steps K and the local learning rate η. All clients hold as many examples.


def descend(y, gradient, K, eta):
    """K gradient steps."""
    for _ in range(K):
        y = y - eta * gradient(y)
    return y


def fedavg(w, problem):
    """McMahan et al. 2017, Algorithm 1."""
    _, cohorts, grad, K, eta = problem
    for S in cohorts:
        ends = [descend(w, partial(grad, k), K, eta) for k in S]
        w = sum(ends) / len(S)
    return w


def fedprox(w, problem, mu):
    """Li et al. 2020, Algorithm 2, each local problem solved by K gradient steps."""
    n, cohorts, grad, K, eta = problem
    for S in cohorts:
        anchor = w
        w = fedavg(w, (n, [S], lambda k, y, anchor=anchor: grad(k, y) + mu * (y - anchor), K, eta))
    return w


def scaffold(x, problem, eta_g=1.0):
    """Karimireddy et al. 2020, Algorithm 1, option II."""
    n, cohorts, grad, K, eta = problem
    c, c_of = 0 * x, dict.fromkeys(range(n), 0 * x)
    for S in cohorts:
        dy, dc = [], []
        for k in S:
            y = x
            for _ in range(K):
                y = y - eta * (grad(k, y) - c_of[k] + c)
            c_plus = c_of[k] - c + (x - y) / (K * eta)
            dy.append(y - x)
            dc.append(c_plus - c_of[k])
            c_of[k] = c_plus
        x = x + eta_g / len(S) * sum(dy)
        c = c + len(S) / n * (sum(dc) / len(S))
    return x


def feddyn(theta, problem, alpha):
    """Acar et al. 2021, Algorithm 1, each local problem solved by K gradient steps."""
    n, cohorts, grad, K, eta = problem
    h, g_of = 0 * theta, dict.fromkeys(range(n), 0 * theta)
    for P in cohorts:
        ends = []
        for k in P:
            y = theta
            for _ in range(K):
                y = y - eta * (grad(k, y) - g_of[k] + alpha * (y - theta))
            g_of[k] = g_of[k] - alpha * (y - theta)
            ends.append(y)
        h = h - alpha / n * sum(y - theta for y in ends)
        theta = sum(ends) / len(P) - h / alpha
    return theta


def fedavgm(w, problem, beta, eta_s=1.0):
    """Hsu et al. 2019, Section 4.3."""
    n, cohorts, grad, K, eta = problem
    v = 0 * w
    for S in cohorts:
        delta = fedavg(w, (n, [S], grad, K, eta)) - w
        v = beta * v + delta
        w = w + eta_s * v
    return w


def adaptive(x, problem, *, kind, eta_s, beta1, beta2, tau):
    """Reddi et al. 2021, Algorithm 2."""
    n, cohorts, grad, K, eta = problem
    m, v = 0 * x, 0 * x + tau**2
    for S in cohorts:
        delta = fedavg(x, (n, [S], grad, K, eta)) - x
        m = beta1 * m + (1 - beta1) * delta
        if kind == "fedadagrad":
            v = v + delta**2
        if kind == "fedyogi":
            v = v - (1 - beta2) * delta**2 * (v - delta**2).sign()
        if kind == "fedadam":
            v = beta2 * v + (1 - beta2) * delta**2
        x = x + eta_s * m / (v.sqrt() + tau)
    return x
