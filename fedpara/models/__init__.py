"""Models of the papers that the benchmarks follow, by name. Any other torch.nn.Module works as well."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..config import nearest
from ..errors import ConfigError, whereabouts
from ..extras import named, optional, own
from .cnn import CNN
from .lstm import LSTM
from .mlp import MLP
from .resnet import ResNet18
from .vgg import VGG8, VGG16

__all__ = ["CNN", "LSTM", "MLP", "MODELS", "VGG8", "VGG16", "ResNet18", "build_model", "own_model"]

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

    "timm:resnet18" is timm's model of that name, without trained weights; "net.py:make" or "package.module:make" is
    what that function or class makes (`own_model`). Options are those of the model's class, for example norm="batch"
    of resnet18. Raises ConfigError.
    """
    if ":" not in name and name not in MODELS:
        raise ConfigError(
            f"model {name!r} is not known{nearest(name, MODELS)}; known are {', '.join(MODELS)}, timm:NAME and "
            "FILE.py:FUNCTION"
        )
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": (height, width)}
    if min(num_classes, in_channels, height, width) < 1:
        raise ConfigError(f"model {name!r}: {sizes} must all be positive")
    if name not in MODELS:
        if options:
            raise ConfigError(f"model {name!r} has no option {next(iter(options))!r}: leave it out")
        if name.startswith("timm:"):
            return _timm(name, sizes)
        return own_model(name, **sizes)
    model = MODELS[name]
    # The 2NN sees a flat image; the deep networks pool whatever size they are given.
    sizes["in_features"] = in_channels * height * width
    known = inspect.signature(model).parameters
    for option in options:
        if option not in known or option in sizes:
            allowed = {key: None for key in known if key not in sizes}
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise ConfigError(f"model {name!r} has no option {option!r}{nearest(option, allowed)}; {takes}")
    return model(**{key: size for key, size in sizes.items() if key in known}, **options)


def _timm(name: str, sizes: dict[str, Any]) -> nn.Module:
    """A model of timm, with as many classes and channels as are asked for, and of that image size if it has one."""
    library = optional("timm", "timm", name)
    kind, arguments = named(name.removeprefix("timm:"))
    if not library.is_model(kind):
        raise ConfigError(f"timm has no model '{kind}'{nearest(kind, library.list_models())}")
    arguments = {"num_classes": sizes["num_classes"], "in_chans": sizes["in_channels"]} | arguments
    try:
        try:
            model = library.create_model(kind, img_size=sizes["image_size"], **arguments)
        except TypeError:  # it takes images of any size
            model = library.create_model(kind, **arguments)
    except Exception as error:  # of many kinds, for arguments that do not go together
        raise ConfigError(f"model '{name}': {' '.join(str(error).split())}") from error
    assert isinstance(model, nn.Module)
    return model


def own_model(source: str, **sizes: Any) -> nn.Module:
    """The model that ``net.py:make`` or ``package.module:make`` gives: a function or class, or a module itself.

    It is called with those of ``sizes`` (num_classes, in_channels, image_size as (height, width)) that it takes.

    Raises:
        ConfigError: there is no such thing, it fails, or what it gives is no torch.nn.Module.
    """
    made = own(source)
    try:
        if callable(made) and not isinstance(made, nn.Module):
            takes = inspect.signature(made).parameters
            made = made(**{key: size for key, size in sizes.items() if key in takes})
    except Exception as error:  # the user's own code
        raise ConfigError(f"no model from {source}: {type(error).__name__}: {error} ({whereabouts(error)})") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{source} gives a {type(made).__name__}, expected a torch.nn.Module")
    return made
