"""Fetches official files: checked against their published checksums, put in place atomically."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import DataError

TIMEOUT = 30.0  # seconds without a byte from the server
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """One official file: addresses in the order to try, "md5:…" or "sha256:…", its folder and name under the root.

    An archive lists the `members` that are unpacked into `folder`; the archive itself is not kept.
    """

    urls: tuple[str, ...]
    checksum: str
    folder: str
    name: str
    members: tuple[str, ...] = ()


def fetch(remote: Remote, root: Path) -> None:
    """Puts a file, or the members of an archive, under root / remote.folder. Raises DataError."""
    folder = root / remote.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder, remote.name) as (path, file):
            _download(remote, file)
            file.close()
            if remote.members:
                _unpack(path, remote, folder)
            else:
                _place(path, folder / remote.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error})") from error


@contextmanager
def _temporary(folder: Path, name: str) -> Iterator[tuple[Path, IO[bytes]]]:
    # In the target's own folder, because a replace is atomic only within one file system.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", suffix=".part", delete=False) as file:
        path = Path(file.name)
        try:
            yield path, file.file
        finally:
            path.unlink(missing_ok=True)


def _place(temporary: Path, target: Path) -> None:
    temporary.chmod(0o644)  # temporary files are private; data is shared between users of a machine
    os.replace(temporary, target)


def _download(remote: Remote, file: IO[bytes]) -> None:
    reasons = []
    for url in remote.urls:
        file.seek(0)
        file.truncate()
        _log.info("downloading %s", url)
        reason = _try(url, remote.checksum, file)
        if reason is None:
            return
        reasons.append(f"{url}: {reason}")
    raise DataError("; ".join(reasons))


def _try(url: str, checksum: str, file: IO[bytes]) -> str | None:
    """Copies one address into `file`; the reason why not, or None."""
    kind, _, expected = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "fedpara"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    if digest.hexdigest() != expected:
        return f"the file that came has {kind} {digest.hexdigest()}, expected {expected}"
    return None


def _unpack(archive: Path, remote: Remote, folder: Path) -> None:
    """Only plain files with an expected base name leave the archive, so that no member can choose its own path."""
    wanted = set(remote.members)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                source = tar.extractfile(member) if member.isfile() and name in wanted else None
                if source is None:
                    continue
                with _temporary(folder, name) as (path, file):
                    shutil.copyfileobj(source, file)
                    file.close()
                    _place(path, folder / name)
                wanted.remove(name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{remote.name} cannot be unpacked ({error})") from error
    if wanted:
        raise DataError(f"{remote.name} holds no {', '.join(sorted(wanted))}")
