"""What stays with the client: tensors on its own disk, by its own name, never sent."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedpara.checkpoint import name_again, save_tensors

KEPT = 4
_NAME = re.compile(r"round-(\d+)\.safetensors")


class ClientState:
    """Local tensors by round. Four are kept, so that a server that resumes finds the state it last saw.

    It may have begun a round while it wrote the checkpoint of the one before, and may have lost one more besides.
    """

    def __init__(self, folder: Path, client: str) -> None:
        # The digest keeps apart names that would become one file name.
        readable = "".join(c if c.isalnum() or c in "-_" else "_" for c in client)[:40]
        self._folder = folder / f"{readable}-{hashlib.blake2b(client.encode(), digest_size=4).hexdigest()}"

    def _files(self) -> dict[int, Path]:
        """Rounds and their files, oldest first."""
        try:
            names = os.listdir(self._folder)  # a glob takes ten times as long, and this is asked thrice a round
        except FileNotFoundError:
            return {}
        found = {int(match[1]): self._folder / match[0] for match in map(_NAME.fullmatch, names) if match}
        return dict(sorted(found.items()))

    def load(self, before_round: int) -> dict[str, Tensor] | None:
        """The newest readable state from before this round, or None for a client never seen."""
        return next(
            self._readable({round: path for round, path in self._files().items() if round < before_round}), None
        )

    def all(self) -> Iterator[dict[str, Tensor]]:
        """Every readable state, the newest first."""
        return self._readable(self._files())

    def _readable(self, files: Mapping[int, Path]) -> Iterator[dict[str, Tensor]]:
        for path in reversed(files.values()):
            try:
                yield load_file(path)
            except (SafetensorError, OSError):  # cut off by a crash of the machine: the one before still stands
                continue

    def save(self, round: int, tensors: Mapping[str, Tensor], *, sync: bool = True) -> Path:
        """Keep what the client holds after this round; without ``sync`` a power cut may take it. Returns the file."""
        file = self._file(round)
        save_tensors(file, tensors, sync=sync)
        self._prune()
        return file

    def share(self, round: int, file: Path) -> None:
        """Keep what another client keeps in this file, under a name of one's own: no byte is written twice.

        Raises:
            CheckpointError: the file is gone, or there is no room for a name.
        """
        name_again(file, self._file(round), sync=False)
        self._prune()

    def _file(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.safetensors"

    def _prune(self) -> None:
        for old in list(self._files().values())[:-KEPT]:
            old.unlink(missing_ok=True)
