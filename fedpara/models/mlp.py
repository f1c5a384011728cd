"""The multilayer perceptron of McMahan et al."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn


class MLP(nn.Module):
    """The 2NN: hidden layers of 200 and 200 units on a flat input (McMahan et al., 2017, section 3).

    199,210 parameters for 784 features and 10 classes.
    """

    def __init__(self, num_classes: int = 10, in_features: int = 784, hidden: Sequence[int] = (200, 200)) -> None:
        super().__init__()
        widths = (in_features, *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, ...) of in_features numbers each → logits (batch, classes)."""
        return cast(Tensor, self.layers(inputs))
