"""Image data sets of two libraries, where they are installed: Hugging Face `datasets` and torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import nearest
from ..errors import ConfigError, DataError
from ..extras import named, optional
from .digits import stratified_split
from .folder import as_pixels
from .images import ImageData, Split

_TESTS = ("test", "validation", "valid", "val")  # the first with labels is judged on
_Size = tuple[int, int] | None


def load_hf(spec: str, roots: Sequence[Path], size: _Size = None, columns: Sequence[str] = ()) -> ImageData:
    """A data set of the Hugging Face Hub, or one that `datasets` wrote to disk (`save_to_disk`) or reads from a folder.

    Args:
        spec: its name or folder; ``NAME:name="subset"`` hands arguments to `datasets.load_dataset`.
        roots: where a folder is looked for, before the current one and the Hub.
        size: (height, width) that images are scaled to.
        columns: image, label and, where there is one, owner; by default the only image and the only class label.

    The split ``train`` is trained on and ``test`` (else ``validation``) judged on; else 20 % of each class.

    Raises:
        ConfigError: `datasets` is not installed, or columns are missing or not told.
        DataError: the data set cannot be had or read.
    """
    library = optional("datasets", "hf", f"hf:{spec}")
    name, arguments = named(spec)
    place = next((root / name for root in (*roots, Path()) if (root / name).is_dir()), None)
    try:
        if place and any((place / file).is_file() for file in ("dataset_dict.json", "state.json")):
            found = library.load_from_disk(str(place))
        else:
            found = library.load_dataset(str(place or name), **arguments)
    except Exception as error:  # the library raises many kinds, for the network and for damaged files
        raise DataError(
            f"data set 'hf:{name}' cannot be loaded ({type(error).__name__}: {_line(error)}): check its name and the "
            "network, or name a folder written by its save_to_disk"
        ) from error
    splits = {"train": found} if isinstance(found, library.Dataset) else dict(found)
    if "train" not in splits:
        raise DataError(f"data set 'hf:{name}' has the splits {', '.join(splits)}; expected one called train")
    image, label, *owner = columns or _columns(splits["train"].features, library, name)
    for column in (image, label, *owner):
        if column not in splits["train"].features:
            known = splits["train"].column_names
            raise ConfigError(
                f"'hf:{name}' has no column '{column}'{nearest(column, known)}; it has {', '.join(known)}"
            )
    feature = splits["train"].features[label]
    values = splits["train"][label]
    classes = list(feature.names) if isinstance(feature, library.ClassLabel) else sorted(set(values))
    number = {value: place for place, value in enumerate(range(len(classes)) if hasattr(feature, "names") else classes)}

    def read(split: Any) -> Split:
        labels = [number.get(value, -1) for value in split[label]]
        images = _stack((row[image] for row in split.select_columns([image])), size, f"hf:{name}")
        owners = torch.from_numpy(np.unique(split[owner[0]], return_inverse=True)[1]) if owner else None
        return Split(images, torch.tensor(labels, dtype=torch.int64), owners)

    if any(value not in number for value in values):
        raise DataError(f"'hf:{name}' has examples without a label in its train split")
    judged = [splits[key] for key in _TESTS if key in splits and all(v in number for v in splits[key][label])]
    train = read(splits["train"])
    return _whole(train, read(judged[0]) if judged else None, tuple(map(str, classes)), f"hf:{name}")


def _columns(features: Any, library: Any, name: str) -> tuple[str, str]:
    """The one column of images and the one of labels."""
    images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
    labels = labels or [key for key in ("label", "labels") if key in features]
    if len(images) != 1 or len(labels) != 1:
        raise ConfigError(
            f"'hf:{name}' has the columns {', '.join(features)}, of which {len(images)} hold images and {len(labels)} "
            'labels: say which to take, as columns = ["image", "label"]'
        )
    return images[0], labels[0]


def load_torchvision(spec: str, roots: Sequence[Path], size: _Size = None) -> ImageData:
    """A classification data set of torchvision, downloaded into the first root where that lacks it.

    Args:
        spec: the class's name; ``EMNIST:split="letters"`` hands it arguments.
        roots: folders of data; torchvision's own layout below the first one is read.
        size: (height, width) that images are scaled to.

    Raises:
        ConfigError: torchvision is not installed, or has no such data set.
        DataError: it cannot be had or read.
    """
    library = optional("torchvision.datasets", "vision", f"torchvision:{spec}")
    name, arguments = named(spec)
    kind = getattr(library, name, None) if name in library.__all__ else None
    if kind is None:
        raise ConfigError(f"torchvision has no data set '{name}'{nearest(name, library.__all__)}")
    takes = _parameters(kind)
    defaults = {"download": True, "root": str(roots[0])}
    arguments = {key: value for key, value in defaults.items() if key in takes} | arguments
    try:
        if "train" in takes:
            parts = [kind(train=train, **arguments) for train in (True, False)]
        elif "split" in takes and "split" not in arguments:
            first = "trainval" if "trainval" in str(takes["split"].annotation) else "train"
            parts = [kind(split=split, **arguments) for split in (first, "test")]
        else:
            parts = [kind(**arguments)]
        read = [_pairs(part, size, f"torchvision:{name}") for part in parts]
    except DataError:
        raise
    except Exception as error:  # of many kinds: the network, files, arguments
        raise DataError(
            f"data set 'torchvision:{name}' cannot be loaded ({type(error).__name__}: {_line(error)}): check its "
            f"arguments and the network, or lay its files into {roots[0]}"
        ) from error
    classes = tuple(getattr(parts[0], "classes", range(int(read[0].labels.max()) + 1)))
    return _whole(read[0], read[1] if len(read) > 1 else None, tuple(map(str, classes)), f"torchvision:{name}")


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """What a class takes, with what it hands on to those that it is made from."""
    found: dict[str, inspect.Parameter] = {}
    for cls in kind.__mro__[:-1]:
        own = inspect.signature(cls).parameters
        found = {**own, **found}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return found


def _pairs(examples: Any, size: _Size, name: str) -> Split:
    labels: list[int] = []

    def images() -> Iterable[Any]:
        for place in range(len(examples)):
            image, label = examples[place]
            labels.append(int(label))
            yield image

    return Split(_stack(images(), size, name), torch.tensor(labels, dtype=torch.int64))


def _stack(images: Iterable[Any], size: _Size, name: str) -> Tensor:
    """Pictures of Pillow as uint8 (N, C, H, W): C is 1 where all are grey, else 3."""
    tensors: list[Tensor] = []
    for place, image in enumerate(images):
        if not hasattr(image, "convert"):
            raise DataError(f"'{name}': example {place} is a {type(image).__name__}, expected an image")
        tensors.append(as_pixels(image, None, size))
        if tensors[-1].shape[1:] != tensors[0].shape[1:]:
            have, want = (f"{tensor.shape[2]}x{tensor.shape[1]}" for tensor in (tensors[-1], tensors[0]))
            raise DataError(
                f"'{name}': image {place} is {have} pixels, the first one {want}. Set image_size to make them one size"
            )
    if not tensors:
        raise DataError(f"'{name}' has a split without examples")
    channels = max(len(tensor) for tensor in tensors)
    return torch.stack([tensor.expand(channels, -1, -1) for tensor in tensors])


def _whole(train: Split, test: Split | None, classes: tuple[str, ...], name: str) -> ImageData:
    """The data set; without a test split, a fifth of each class is kept from training."""
    if test is None:
        labels: NDArray[np.int64] = train.labels.numpy()
        parts = stratified_split(labels)
        train, test = (train.subset(part) for part in parts)
    channels = max(train.images.shape[1], test.images.shape[1])
    train, test = (Split(part.images.expand(-1, channels, -1, -1), part.labels, part.owners) for part in (train, test))
    if train.images.shape[2:] != test.images.shape[2:]:
        raise DataError(f"'{name}' has images of another size in its test split. Set image_size to bring all to one")
    return ImageData(train, test, classes, name)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
