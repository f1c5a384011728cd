"""Finds the official files of a data set on this machine, or has them downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .download import Remote, fetch

DATA_VARIABLE = "FEDPARA_DATA"


@dataclass(frozen=True)
class Layout:
    """One official arrangement: the folders (relative to a data root) that may hold all of `files`.

    A file may carry any of `suffixes`; the first that exists is taken.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)

    def look_in(self, folder: Path) -> dict[str, Path]:
        """The files of this layout that `folder` holds, by name."""
        found = {}
        for name in self.files:
            paths = (folder / (name + suffix) for suffix in self.suffixes)
            path = next((path for path in paths if path.is_file()), None)
            if path is not None:
                found[name] = path
        return found


def data_roots(folder: Path | None) -> list[Path]:
    """Where data is looked for, in order: `folder`, $FEDPARA_DATA, the cache. Downloads go to the first.

    Raises DataError for a folder that a user named and that is not there: a slip must not become a new folder.
    """
    for source, root in (("data-dir", folder), (f"${DATA_VARIABLE}", os.environ.get(DATA_VARIABLE))):
        if root and not Path(root).expanduser().is_dir():
            raise DataError(
                f"{source} = {root} is no folder: name the one that holds the data sets, or create it first"
            )
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fedpara")
    roots = (folder, os.environ.get(DATA_VARIABLE), cache)
    return [Path(os.path.expanduser(root)) for root in roots if root]


def locate(
    name: str, layouts: Sequence[Layout], remotes: Sequence[Remote], roots: Sequence[Path], *, download: bool
) -> tuple[Layout, dict[str, Path]]:
    """The first layout found whole, and its files by name; downloads what no root holds. Raises DataError."""
    found = _find(layouts, roots)
    reason = "downloading is switched off"
    if found is None and download:
        try:
            for remote in remotes:
                fetch(remote, roots[0])
            found = _find(layouts, roots)
        except DataError as error:
            reason = f"the download failed: {error}"
    if found is None:
        raise DataError(_how_to_get(name, layouts, remotes, roots, reason))
    return found


def _find(layouts: Sequence[Layout], roots: Sequence[Path]) -> tuple[Layout, dict[str, Path]] | None:
    for root in roots:
        for layout in layouts:
            for folder in layout.folders:
                found = layout.look_in(root / folder)
                if len(found) == len(layout.files):
                    return layout, found
    return None


def _how_to_get(
    name: str, layouts: Sequence[Layout], remotes: Sequence[Remote], roots: Sequence[Path], reason: str
) -> str:
    root, main = roots[0], layouts[0]
    lines = [f"{name}: its files are not on this machine ({reason}).", *_partial(layouts, roots)]
    lines.append(f"Looked in {', '.join(map(str, roots))}. Expected in {root / main.folders[0]}:")
    lines += [f"  {' or '.join(file + suffix for suffix in main.suffixes)}" for file in main.files]
    unpack = " (unpack it there)" if any(remote.members for remote in remotes) else ""
    lines.append(f"Get them{unpack} from:")
    lines += [f"  {remote.urls[0]}  {remote.checksum}" for remote in remotes]
    lines.append(
        f"Files kept elsewhere: set data-dir, or the environment variable {DATA_VARIABLE}, to their root folder."
    )
    return "\n".join(lines)


def _partial(layouts: Sequence[Layout], roots: Sequence[Path]) -> list[str]:
    lines = []
    for root in roots:
        for layout in layouts:
            for folder in layout.folders:
                missing = [file for file in layout.files if file not in layout.look_in(root / folder)]
                if 0 < len(missing) < len(layout.files):
                    lines.append(f"{root / folder} is incomplete: it lacks {', '.join(missing)}.")
    return lines


def damaged(path: Path, problem: str) -> DataError:
    """The error for a file that is there but not what it should be."""
    return DataError(
        f"{path}: {problem}. Replace it with the official file, or delete it so that it is downloaded again"
    )
