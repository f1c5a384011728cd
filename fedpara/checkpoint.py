"""A run's state on disk, replaced atomically: a kill at any moment leaves the last complete round behind.

The round before is kept too, for the disk that lost what it had said to have.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError

_LATEST, _BEFORE = "latest.json", "before.json"
log = logging.getLogger("fedpara")


@dataclass(frozen=True)
class Checkpoint:
    """The federation after a round: the shared tensors, the strategy's own tensors, and plain values."""

    round: int
    model: Mapping[str, Tensor]
    strategy: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint. The older one stays valid until the new one is complete on disk.

    The disk is asked three times: for the tensors, for the index, and, before anything old goes, for their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": tensor for name, tensor in checkpoint.model.items()}
    tensors |= {f"strategy/{name}": tensor for name, tensor in checkpoint.strategy.items()}
    file = folder / f"round-{checkpoint.round:06d}.safetensors"
    save_tensors(file, tensors)
    index = {"round": checkpoint.round, "file": file.name, "bytes": file.stat().st_size, "extra": checkpoint.extra}
    before = _index(folder / _LATEST)
    if before and before["file"] != file.name:
        name_again(folder / _LATEST, folder / _BEFORE, sync=True)  # under which it stays when it is replaced
    replace_file(folder / _LATEST, json.dumps(index).encode())
    _sync(folder)
    kept = {file.name, (_index(folder / _BEFORE) or index)["file"]}
    for old in folder.glob("round-*.safetensors"):
        if old.name not in kept:
            old.unlink(missing_ok=True)


def load(folder: Path) -> Checkpoint | None:
    """The last complete checkpoint, or None where no round was finished.

    Where it is damaged, the one before, and a line in the log.

    Raises:
        CheckpointError: the files are there but damaged.
    """
    if not any((folder / name).is_file() for name in (_LATEST, _BEFORE)):
        return None
    try:
        return _load(folder, _LATEST)
    except _DAMAGED as error:
        trouble = str(error)
    try:
        found = _load(folder, _BEFORE)
    except _DAMAGED:
        raise CheckpointError(f"cannot read the checkpoint in {folder} ({trouble}): {_REMEDY}") from None
    log.error("the last checkpoint in %s is damaged (%s): going on after round %d", folder, trouble, found.round)
    return found


def _load(folder: Path, name: str) -> Checkpoint:
    index = json.loads((folder / name).read_text(encoding="utf-8"))
    file = folder / index["file"]
    if file.stat().st_size != index["bytes"]:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, expected {index['bytes']}")
    tensors = load_file(file)
    return Checkpoint(index["round"], part(tensors, "model/"), part(tensors, "strategy/"), index["extra"])


def _index(file: Path) -> dict[str, Any] | None:
    """What an index says, None where it is damaged or not there."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found["file"], str) else None
    except _DAMAGED:
        return None


_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)
_REMEDY = "restore the folder from a copy, or start the run anew in another folder"


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def name_again(file: Path, other: Path, *, sync: bool) -> None:
    """Give a file that is never written to again a second name; without links, or with too many, a copy of it.

    Args:
        sync: wait for the disk where it is a copy.

    Raises:
        CheckpointError: it is not there, or the second name cannot be written.
    """
    with suppress(OSError):
        if os.path.samefile(file, other):  # such a rename would do nothing, and leave the partial name behind
            return
    with _replacing(other, sync=False) as partial:
        try:
            os.link(file, partial)
        except OSError:
            shutil.copyfile(file, partial)
            if sync:
                _sync(partial)


def save_tensors(file: Path, tensors: Mapping[str, Tensor], *, sync: bool = True) -> None:
    """Write a safetensors file so that it is either whole or not there.

    Args:
        sync: wait for the disk. Without, a power cut may leave a damaged file: for what can be done without.

    Raises:
        CheckpointError: it cannot be written; what stood there stands.
    """
    with _replacing(file, sync=sync) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def replace_file(file: Path, content: bytes) -> None:
    """Write a small file so that a reader sees either the old content or the new.

    Raises:
        CheckpointError: it cannot be written; what stood there stands.
    """
    with _replacing(file) as partial:
        partial.write_bytes(content)


@contextmanager
def _replacing(file: Path, *, sync: bool = True) -> Iterator[Path]:
    """A path to write to, which takes the file's place once that is done."""
    partial = file.with_name(file.name + ".partial")
    with writing(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # a kill may have left one, perhaps a second name of another file
            yield partial
            if sync:
                _sync(partial)
            os.replace(partial, file)
        except BaseException:
            with suppress(OSError):  # on a full disk it would take the room that is wanted
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn what a disk refuses into a CheckpointError that names the file, and not where it lies: clients send it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot write {file.parent.name}/{file.name} ({reason}): make room or give the right to, then go on; "
            "what was finished before stands"
        ) from None


def _sync(path: Path) -> None:
    """Ask the disk to keep it: renaming before the data is down could leave an empty file after a power cut."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
