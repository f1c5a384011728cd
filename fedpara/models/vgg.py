"""VGG with GroupNorm: the 16 layers of FedPara's CIFAR experiments, and 8 for small machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from ..errors import ConfigError

# Widths of the convolutions in the stages, in units of `width`; a pooling ends each.
STAGES16 = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # Simonyan & Zisserman, configuration D
STAGES8 = ((1,), (2,), (4,), (8,), (8,))


class VGG(nn.Module):
    """Convolutions with GroupNorm in stages, and a classifier of three linear layers, 8 · `width` wide, left dense.

    Made for 32 × 32 images; other sizes are pooled to 1 × 1. Widths that `groups` does not divide take 8 groups.
    """

    keep_dense: ClassVar[tuple[str, ...]] = ("classifier.*",)

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: int = 64,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ConfigError(f"VGG: width={width} is not allowed; give a multiple of 8, for example 16 or 64")
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in stages:
            for units in stage:
                wide = units * width
                norm = nn.GroupNorm(groups if wide % groups == 0 else 8, wide)
                layers += [nn.Conv2d(channels, wide, 3, padding=1), norm, nn.ReLU()]
                channels = wide
            # Rounding up, so that a side of 1 stays 1 and images under 32 × 32 work.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, num_classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(nn.Parameter, module.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) → logits (batch, classes)."""
        return cast(Tensor, self.classifier(self.pool(self.features(images)).flatten(1)))


class VGG16(VGG):
    """VGG16 with GroupNorm and a 512-512-C classifier (FedPara, Table 5: 15.25 M for 10 classes)."""

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: int = 64,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(STAGES16, num_classes, in_channels, width=width, groups=groups, dropout=dropout)


class VGG8(VGG):
    """One convolution a stage in place of two or three: 4.44 M parameters at width 64, 280,074 at 16."""

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: int = 64,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(STAGES8, num_classes, in_channels, width=width, groups=groups, dropout=dropout)
