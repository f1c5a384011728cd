"""What each client is known to hold, so that it can be sent the difference to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedpara.checkpoint import save_tensors
from fedpara.wire import fingerprint

State = Mapping[str, Tensor]
log = logging.getLogger("fedpara")


class ClientMemory:
    """The model that each client last took part with, bit for bit. Clients that hold the same one share it.

    Args:
        folder: where `save` writes the models, each once; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._keys: dict[str, str] = {}  # client -> fingerprint
        self._states: dict[str, State] = {}  # fingerprint -> model, of those in memory
        # Fingerprints of the two checkpoints before, which may be gone back to while the newest is being written.
        self._before: list[set[str]] = []

    def hold(self, client: str, state: State) -> None:
        """The client has proved that it holds this model."""
        # A cohort holds one broadcast: it is hashed once, not for every client.
        known = (key for key, own in self._states.items() if own is state)
        key = next(known, None) or fingerprint(state).hex()
        self._keys[client] = key
        self._states.setdefault(key, state)

    def forget(self, client: str) -> None:
        """The client has said that it holds nothing."""
        self._keys.pop(client, None)

    def key(self, client: str) -> str | None:
        """A name for what the client holds, None where that is not known."""
        return self._keys.get(client)

    def find(self, client: str) -> dict[str, State]:
        """What the client holds under its name; nothing where that is not known, or its file was lost."""
        key = self._keys.get(client)
        if key is None:
            return {}
        if key not in self._states:
            try:
                self._states[key] = load_file(self._file(key))
            except (OSError, SafetensorError) as error:
                log.warning("%s is sent all of the model: %s cannot be read (%s)", client, self._file(key), error)
                self.forget(client)
                return {}
        return {key: self._states[key]}

    def save(self) -> dict[str, str]:
        """Write every model that is not on disk yet; client -> its name, for the checkpoint."""
        if self.folder is not None:
            for key in set(self._keys.values()) & self._states.keys():
                if not self._file(key).is_file():
                    save_tensors(self._file(key), self._states[key], sync=False)  # `find` does without
        return dict(self._keys)

    def prune(self) -> None:
        """After `save`: drop what no client holds or held two checkpoints ago, and from memory what is on disk."""
        recent = [set(self._keys.values()), *self._before]
        needed, self._before = set().union(*recent), recent[:2]
        if self.folder is None:
            self._states = {key: state for key, state in self._states.items() if key in needed}
            return
        self._states = {}
        for file in self.folder.glob("*.safetensors"):
            if file.stem not in needed:
                file.unlink(missing_ok=True)

    def load(self, keys: Mapping[str, str]) -> None:
        """Go on from what `save` returned."""
        self._keys = dict(keys)
        there = self.folder.glob("*.safetensors") if self.folder else ()
        self._before = [set(keys.values()), {file.stem for file in there}]  # those too of the checkpoint before

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"
