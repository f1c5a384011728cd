"""The errors that a user can meet. Each says what was given, what was expected and what to do."""

from __future__ import annotations

import traceback
from pathlib import Path


class FedparaError(Exception):
    """Base of every error raised on purpose by this package. The command line prints it on one line, exit code 1."""


class ConfigError(FedparaError, ValueError):
    """A recipe, an option or an argument holds a value that is not allowed. Exit code 2 of the command line."""


class DataError(FedparaError):
    """A data set is missing, incomplete or not in its official layout."""


class DeviceError(FedparaError):
    """The device asked for is not on this machine."""


class CodecError(FedparaError, ValueError):
    """Bytes that are not a valid payload for the expected tensors."""


class UpdateError(FedparaError):
    """A client's update that must not touch the model (shape, type, non-finite values, weight)."""


class CheckpointError(FedparaError):
    """A run's folder from which no state can be restored."""


class FederationError(FedparaError):
    """A federation that cannot go on (no clients, none that answered)."""


class InterruptedRunError(KeyboardInterrupt):
    """A federation that was stopped with Ctrl-C: after a round, or at once. Its folder can be resumed.

    Args:
        message: what was stopped where, and how it goes on.
        where: the first part of it alone.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where or message


def whereabouts(error: BaseException) -> str:
    """Where an exception was raised, as "file.py:12": the innermost line that is no installed package's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename[:1] != "<"]
    return next((f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(own or frames)), "nowhere")
