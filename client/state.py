"""What stays with the client: tensors on its own disk, by its own name, never sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedpara.checkpoint import save_tensors


class ClientState:
    """Local tensors by round. Three are kept, so that a server that resumes finds the state it last saw.

    It may have begun a round after the one that it resumes from, and may have lost the checkpoint of that one too.
    """

    def __init__(self, folder: Path, client: str) -> None:
        # The digest keeps apart names that would become one file name.
        readable = "".join(c if c.isalnum() or c in "-_" else "_" for c in client)[:40]
        self._folder = folder / f"{readable}-{hashlib.blake2b(client.encode(), digest_size=4).hexdigest()}"

    def _files(self) -> dict[int, Path]:
        """Rounds and their files, oldest first."""
        files = {int(path.stem.removeprefix("round-")): path for path in self._folder.glob("round-*.safetensors")}
        return dict(sorted(files.items()))

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

    def save(self, round: int, tensors: Mapping[str, Tensor], *, sync: bool = True) -> None:
        """Keep what the client holds after this round; without ``sync`` a power cut may take it."""
        save_tensors(self._folder / f"round-{round:06d}.safetensors", tensors, sync=sync)
        for old in list(self._files().values())[:-3]:
            old.unlink(missing_ok=True)
