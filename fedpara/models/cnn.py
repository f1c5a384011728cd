"""The two-convolution network of McMahan et al."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ..errors import ConfigError


class CNN(nn.Module):
    """Two 5 × 5 convolutions (32 and 64 wide), 512 hidden units (McMahan et al., 2017, section 3).

    1,663,370 parameters for 28 × 28 grey images and 10 classes. `image_size` is one side or (height, width), at least
    4 each; norm="group" puts a GroupNorm of 8 groups behind each convolution (192 parameters more), with which few
    local steps go further. Raises ConfigError.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int | tuple[int, int] = 28,
        *,
        hidden: int = 512,
        norm: str = "none",
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 4:
            raise ConfigError(f"CNN: image_size={image_size!r} is too small for its two poolings; give 4 or more")
        if norm not in ("none", "group"):
            raise ConfigError(f'CNN: norm={norm!r} is not known; give "none" or "group"')
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.norm1, self.norm2 = (nn.GroupNorm(8, width) if norm == "group" else nn.Identity() for width in (32, 64))
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) → logits (batch, classes)."""
        inner = self.pool(self.relu(self.norm1(self.conv1(images))))
        inner = self.pool(self.relu(self.norm2(self.conv2(inner))))
        return cast(Tensor, self.fc2(self.relu(self.fc1(inner.flatten(1)))))
