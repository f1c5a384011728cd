"""ResNet18 for small images."""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor, nn

from ..errors import ConfigError


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(min(32, channels), channels)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut, projected by a 1 × 1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, _norm(norm, channels))

    def forward(self, images: Tensor) -> Tensor:
        inner = self.relu(self.norm1(self.conv1(images)))
        return cast(Tensor, self.relu(self.norm2(self.conv2(inner)) + self.shortcut(images)))


def _stage(channels: int, norm: str) -> nn.Sequential:
    """Two blocks with twice as many channels at half the resolution."""
    return nn.Sequential(BasicBlock(channels, 2 * channels, 2, norm), BasicBlock(2 * channels, 2 * channels, 1, norm))


class ResNet18(nn.Module):
    """ResNet18 (He et al., 2016) with a 3 × 3 stem of stride 1; norm="group" or "batch".

    The stages have `width`, 2, 4 and 8 · `width` channels; 64 is the published one.

    Its first two convolutions and the 1 × 1 convolutions stay dense, as in FedPara's experiments. Raises ConfigError.
    """

    keep_dense: ClassVar[tuple[str, ...]] = ("conv1", "layer1.0.conv1", "layer*.shortcut.0")

    def __init__(self, num_classes: int = 10, in_channels: int = 3, *, norm: str = "group", width: int = 64) -> None:
        super().__init__()
        if width < 8 or width & (width - 1):
            raise ConfigError(f"ResNet18: width={width} is not allowed; give a power of two from 8 on")
        if norm not in ("group", "batch"):
            raise ConfigError(f'ResNet18: norm={norm!r} is not known; give "group" or "batch"')
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm1 = _norm(norm, width)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1, norm), BasicBlock(width, width, 1, norm))
        self.layer2 = _stage(width, norm)
        self.layer3 = _stage(2 * width, norm)
        self.layer4 = _stage(4 * width, norm)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) → logits (batch, classes)."""
        inner = self.relu(self.norm1(self.conv1(images)))
        inner = self.layer4(self.layer3(self.layer2(self.layer1(inner))))
        return cast(Tensor, self.fc(self.pool(inner).flatten(1)))
