"""Ranks: from γ or a number of parameters to the inner rank R of one layer (FedPara, Prop. 2, Cor. 1).

A weight is described by its dense shape, (out, in) or (out, in, k1[, k2, k3]). With K = k1·k2·k3, one factorised pair
X Yᵀ holds R(out + in) numbers as a matrix and R(out + in) + K·R² as a Tucker-2 tensor (Prop. 3). A kernel of a single
element is a matrix: its core T would add R² numbers and no new weights.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from .errors import ConfigError


def split_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(out, in, K) of a dense shape, K being the number of kernel positions. Raises ConfigError on any other shape."""
    try:
        sides = [operator.index(side) for side in shape]
    except TypeError:
        sides = []
    if not 2 <= len(sides) <= 5 or min(sides) < 1:
        raise ConfigError(
            f"shape {shape!r} is not a dense weight's: give positive integers, (out, in) or (out, in, k1[, k2, k3])"
        )
    return sides[0], sides[1], math.prod(sides[2:])


def pair_shapes(shape: Sequence[int], rank: int) -> list[tuple[int, ...]]:
    """Shapes of one pair's factors: X (out, R), Y (in, R) and, for a kernel of several elements, T (R, k..., R)."""
    out_side, in_side, kernel = split_shape(shape)
    shapes: list[tuple[int, ...]] = [(out_side, rank), (in_side, rank)]
    if kernel > 1:
        shapes.append((rank, *shape[2:], rank))
    return shapes


def factor_parameters(shape: Sequence[int], rank: int, pairs: int = 2) -> int:
    """Numbers held by `pairs` pairs of factors: pairs·R(out + in), plus pairs·K·R² for convolutions (Props. 2, 3)."""
    return pairs * sum(math.prod(factor) for factor in pair_shapes(shape, rank))


def largest_rank(shape: Sequence[int], budget: int, pairs: int = 2) -> int:
    """The largest R whose factors hold at most `budget` numbers; 0 where even R = 1 holds more."""
    out_side, in_side, kernel = split_shape(shape)
    sides = out_side + in_side
    per_pair = budget // pairs
    if kernel == 1:
        return per_pair // sides
    # Positive root of K·R² + sides·R = per_pair, in integers: exact for weights of any size.
    return (math.isqrt(sides * sides + 4 * kernel * per_pair) - sides) // (2 * kernel)


def rank_for(shape: Sequence[int], gamma: float = 0.1) -> int:
    """R = round((1−γ)·r_min + γ·r_max), at least 1 (FedPara, Cor. 1 and Table 5).

    r_min = min(⌈√out⌉, ⌈√in⌉) is the least rank that leaves W's own rank unlimited (Cor. 1); r_max is the largest rank
    whose factors hold no more numbers than the dense weight. The paper prints no rounding; this one gives its Table 5.
    `shape` is the dense weight's, (out, in) or (out, in, k1[, k2, k3]). Raises ConfigError.
    """
    check_share("rank_for", "gamma", gamma, zero=True)
    out_side, in_side, kernel = split_shape(shape)
    r_min = math.isqrt(min(out_side, in_side) - 1) + 1
    r_max = largest_rank(shape, out_side * in_side * kernel)
    return max(1, round((1 - gamma) * r_min + gamma * r_max))


def check_share(owner: str, name: str, value: object, *, zero: bool) -> None:
    """Raise ConfigError unless `value` is a number in [0, 1], or in (0, 1] where zero is False."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Comparisons with NaN are false: a NaN is refused as well.
    if not number or not (0 <= value <= 1) or (value == 0 and not zero):  # type: ignore[operator]
        bounds = "[0, 1]" if zero else "(0, 1]"
        raise ConfigError(
            f"{owner}: {name}={value!r} is not allowed; give a number in {bounds}, for example {name}=0.1"
        )
