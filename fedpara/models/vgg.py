"""VGG16 with GroupNorm, the model of FedPara's CIFAR experiments."""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor, nn

# Widths of the convolutions in the five stages; a pooling ends each (Simonyan & Zisserman, configuration D).
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG16 with GroupNorm after each convolution and a 512-512-C classifier (FedPara, Table 5: 15.25 M, C = 10).

    Made for 32 × 32 images; other sizes are pooled to 1 × 1. The classifier stays dense, as in the paper.
    """

    keep_dense: ClassVar[tuple[str, ...]] = ("classifier.*",)

    def __init__(self, num_classes: int = 10, in_channels: int = 3, *, groups: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(groups, width), nn.ReLU()]
                channels = width
            # Rounding up, so that a side of 1 stays 1 and images under 32 × 32 work.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(nn.Parameter, module.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) → logits (batch, classes)."""
        return cast(Tensor, self.classifier(self.pool(self.features(images)).flatten(1)))
