"""Models of the papers that the benchmarks follow, by name. Any other torch.nn.Module works as well."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..config import nearest
from ..errors import ConfigError
from .cnn import CNN
from .lstm import LSTM
from .mlp import MLP
from .resnet import ResNet18
from .vgg import VGG8, VGG16

__all__ = ["CNN", "LSTM", "MLP", "MODELS", "VGG8", "VGG16", "ResNet18", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": VGG16,
    "vgg8": VGG8,
    "resnet18": ResNet18,
    "cnn": CNN,
    "2nn": MLP,
}


def build_model(
    name: str, *, num_classes: int, in_channels: int, image_size: int | tuple[int, int], **options: Any
) -> nn.Module:
    """The model of this name for images of (in_channels, height, width); `image_size` is one side or (height, width).

    Options are those of the model's class, for example norm="batch" of resnet18. Raises ConfigError.
    """
    model = MODELS.get(name)
    if model is None:
        raise ConfigError(f"model {name!r} is not known{nearest(name, MODELS)}; known are {', '.join(MODELS)}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": (height, width)}
    if min(num_classes, in_channels, height, width) < 1:
        raise ConfigError(f"model {name!r}: {sizes} must all be positive")
    # The 2NN sees a flat image; the deep networks pool whatever size they are given.
    sizes["in_features"] = in_channels * height * width
    known = inspect.signature(model).parameters
    for option in options:
        if option not in known or option in sizes:
            allowed = {key: None for key in known if key not in sizes}
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise ConfigError(f"model {name!r} has no option {option!r}{nearest(option, allowed)}; {takes}")
    return model(**{key: size for key, size in sizes.items() if key in known}, **options)
