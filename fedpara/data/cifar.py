"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the official binary or python files."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .download import Remote
from .files import Layout, damaged, locate
from .images import ImageData, Split

_PIXELS = 3 * 32 * 32
_ADDRESS = "https://www.cs.toronto.edu/~kriz/"
_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # pixels (N, 3072) and labels (N,)


@dataclass(frozen=True)
class _Kind:
    binary: Layout  # training files in order, the test file last
    python: Layout
    remote: Remote
    label_bytes: int  # before the pixels of a binary record; the last is the label
    label_key: bytes
    equal_files: bool  # every file holds as many images: a file cut between two records is noticed
    classes: tuple[str, ...]


_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BATCHES_BIN = tuple(f"{name}.bin" for name in _BATCHES)

_NAMES100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip

_CIFAR10 = _Kind(
    Layout(("cifar-10-batches-bin", ""), _BATCHES_BIN),
    Layout(("cifar-10-batches-py", ""), _BATCHES),
    Remote(
        (f"{_ADDRESS}cifar-10-binary.tar.gz",),
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        _BATCHES_BIN,
    ),
    label_bytes=1,
    label_key=b"labels",
    equal_files=True,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
_CIFAR100 = _Kind(
    Layout(("cifar-100-binary", ""), ("train.bin", "test.bin")),
    Layout(("cifar-100-python", ""), ("train", "test")),
    Remote(
        (f"{_ADDRESS}cifar-100-binary.tar.gz",),
        "md5:03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        ("train.bin", "test.bin"),
    ),
    label_bytes=2,
    label_key=b"fine_labels",
    equal_files=False,
    classes=_NAMES100,
)


def load_cifar(name: str, roots: Sequence[Path], *, download: bool) -> ImageData:
    """CIFAR-10 or CIFAR-100 (fine labels): images (N, 3, 32, 32). Raises DataError."""
    kind = _CIFAR100 if name == "cifar100" else _CIFAR10
    # Binary first: reading it needs no unpickling, and it is what is downloaded.
    layout, found = locate(name, (kind.binary, kind.python), (kind.remote,), roots, download=download)
    read = _read_binary if layout is kind.binary else _read_python
    paths = [found[file] for file in layout.files]
    parts = [read(path, kind) for path in paths]
    for path, (_, labels) in zip(paths, parts, strict=True):
        if labels.max() >= len(kind.classes) or labels.min() < 0:
            wrong = labels.max() if labels.max() >= len(kind.classes) else labels.min()
            raise damaged(path, f"holds the label {wrong}, expected 0 to {len(kind.classes) - 1}")
        if kind.equal_files and len(labels) != len(parts[0][1]):
            raise damaged(path, f"holds {len(labels):,} images, expected {len(parts[0][1]):,} as {paths[0].name} has")
    return ImageData(_join(parts[:-1]), _join(parts[-1:]), kind.classes, name)


def _join(parts: Sequence[_Arrays]) -> Split:
    pixels = np.concatenate([pixels for pixels, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return Split(torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(labels))


def _read_binary(path: Path, kind: _Kind) -> _Arrays:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise damaged(path, f"cannot be read ({error})") from error
    record = kind.label_bytes + _PIXELS
    if len(data) == 0 or len(data) % record:
        raise damaged(path, f"has {len(data):,} bytes, expected a multiple of {record:,}, one record for each image")
    rows = data.reshape(-1, record)
    return rows[:, kind.label_bytes :], rows[:, kind.label_bytes - 1].astype(np.int64)


def _read_python(path: Path, kind: _Kind) -> _Arrays:
    batch = _unpickle(path)
    if not isinstance(batch, dict) or b"data" not in batch or kind.label_key not in batch:
        keys = f"b'data' and {kind.label_key!r}"
        raise damaged(path, f"is not a CIFAR batch: expected a dictionary with {keys}")
    pixels = _array(path, batch[b"data"])
    labels = batch[kind.label_key]
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 1 << 31 for label in labels):
        raise damaged(path, f"{kind.label_key!r} is not a list of whole numbers")
    if len(labels) != len(pixels):
        raise damaged(path, f"holds {len(labels):,} labels, expected {len(pixels):,}, one for each image")
    return pixels, np.array(labels, np.int64)


class _Record:
    """A call that a pickle asked for, kept as data and never made; or the array or dtype that it would have built."""

    def __init__(self, name: str, state: object = None) -> None:
        self.name = name
        self.state = state

    def __call__(self, *args: Any) -> object:
        if self.name == "encode" and len(args) == 2 and isinstance(args[0], str):
            return args[0].encode("latin1")  # how protocol 2 of Python 3 spells bytes
        return _Record(self.name, args)

    def __setstate__(self, state: object) -> None:
        if self.name == "_reconstruct":  # a dtype's state (byte order, alignment) says nothing for single bytes
            self.state = state


class _Unpickler(pickle.Unpickler):
    """Builds lists, dictionaries, numbers, strings and `_Record`s: no code named in a file is ever looked up."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> _Record:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return _Record(name)


def _unpickle(path: Path) -> object:
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise almost anything
        raise damaged(path, f"cannot be unpickled ({error or type(error).__name__})") from error


def _array(path: Path, record: object) -> NDArray[np.uint8]:
    """The pixels (N, 3072) out of the state of a pickled array: version, shape, dtype, Fortran order, bytes."""
    wrong = damaged(path, f"b'data' is not an array of bytes (N, {_PIXELS})")
    state = record.state if isinstance(record, _Record) and record.name == "_reconstruct" else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise wrong
    _, shape, dtype, fortran, data = state
    kind = dtype.state[0] if isinstance(dtype, _Record) and isinstance(dtype.state, tuple) and dtype.state else None
    if kind not in (b"u1", "u1") or fortran or not isinstance(data, bytes) or not isinstance(shape, tuple):
        raise wrong
    if not data or shape != (len(data) // _PIXELS, _PIXELS) or len(data) % _PIXELS:
        raise wrong
    return np.frombuffer(data, np.uint8).reshape(-1, _PIXELS)
