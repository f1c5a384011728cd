"""Text by author: the Shakespeare task's role files, LEAF's own JSON, and folders of text files."""

from __future__ import annotations

import gzip
import json
import string
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .files import data_roots

WINDOW = 80  # characters that a prediction is made from (LEAF, Caldas et al. 2018)
# LEAF's alphabet of 80 characters, in its order. One more class stands for every other character.
ALPHABET = "\n !\"&'(),-." + string.digits + ":;>?" + string.ascii_uppercase + "[]" + string.ascii_lowercase + "}"
UNKNOWN = len(ALPHABET)
CLASSES = UNKNOWN + 1

_FOLDERS = ("shakespeare/data", "shakespeare", "")  # of a data root
_JSON = (".json", ".json.gz")
_KINDS = {"user_text": (str, "a text"), "user_data": (dict, "a table of x and y")}


@dataclass(frozen=True, eq=False)
class Author:
    """What one author, such as a speaking role, wrote.

    symbols: places in `ALPHABET`, uint8 (characters,), `UNKNOWN` for others. starts: where a window of 81 characters,
    80 and the next one, may begin, int64; None: anywhere.
    """

    name: str
    symbols: NDArray[np.uint8]
    starts: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class TextData:
    """Authors in the order of their files, and text of its own to judge on where the data set has it."""

    authors: tuple[Author, ...]
    test: tuple[Author, ...]
    source: Path


def encode(text: str) -> NDArray[np.uint8]:
    """Each character's place in `ALPHABET`, else `UNKNOWN`, uint8."""
    table = np.full(129, UNKNOWN, np.uint8)
    table[[ord(letter) for letter in ALPHABET]] = np.arange(UNKNOWN)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return table[np.minimum(codes, 128)]


def decode(symbols: Iterable[int]) -> str:
    """Characters of these places; � for `UNKNOWN`."""
    return "".join((ALPHABET + "�")[symbol] for symbol in symbols)


def load_text(name: str, folder: Path | None) -> TextData:
    """Text by its name: "shakespeare" from the data roots, or "folder", what `folder` holds, see `read_text`.

    Raises DataError for text that is missing or damaged.
    """
    if name == "folder":
        if folder is None:
            raise DataError('dataset = "folder" needs data-dir: the folder of text files, or of LEAF\'s train and test')
        return read_text(folder)
    roots = data_roots(folder)
    for root in roots:
        for place in _FOLDERS:
            own = _json_files(root / place / "train") or _json_files(root / place)
            # Other files may lie in the root itself.
            if any(place or path.parent.name == "train" or "shakespeare" in path.name for path in own):
                return read_text(root / place)
    raise DataError(
        f"shakespeare: its text is not on this machine. Looked in {', '.join(map(str, roots))} for "
        "shakespeare/*.json or *.json.gz (users and user_text: the text of each role), or LEAF's "
        "shakespeare/data/train and test. Name their root with data-dir, or read files of your own: dataset = folder"
    )


def read_text(path: Path) -> TextData:
    """Text in one of three layouts.

    - a JSON file, gzipped or not, of a role file (`users`, `user_text`) or of LEAF (`users`, `num_samples`,
      `user_data`), or a folder of them;
    - a folder with `train/` and perhaps `test/`, each of such files: LEAF's own;
    - a folder of .txt files (UTF-8), an author each, and perhaps `test/` with more.

    Raises DataError, one line that names the file.
    """
    if path.is_file():
        return TextData(_authors([path]), (), path)
    if not path.is_dir():
        raise DataError(f"nothing is at {path}: name a folder of .txt or .json files, or one .json file")
    train, test = path / "train", path / "test"
    own = train if train.is_dir() else path
    found = _json_files(own) or _text_files(own)
    apart = [*_json_files(test), *_text_files(test)]
    if not found and not apart:  # a server may hold text to judge on alone
        raise DataError(f"{own} holds neither .json, .json.gz nor .txt files")
    return TextData(_authors(found), _authors(apart), path)


def _json_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json*") if path.is_file() and path.name.endswith(_JSON))


def _text_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.txt") if path.is_file())


def _authors(paths: Sequence[Path]) -> tuple[Author, ...]:
    found: dict[str, Path] = {}
    authors = []
    for path in paths:
        for author in _read(path):
            if author.name in found:
                raise DataError(
                    f"{path}: '{author.name}' is in {found[author.name].name} already; give it one name each"
                )
            found[author.name] = path
            authors.append(author)
    return tuple(authors)


def _read(path: Path) -> list[Author]:
    if path.suffix == ".txt":
        return [Author(path.stem, encode(read_plain(path)))]
    try:
        table = json.loads(read_plain(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{path} is not valid JSON: it is nested too deeply") from None
    if not isinstance(table, dict):
        raise DataError(f"{path} holds no table: expected users with user_text, or LEAF's users with user_data")
    users = table.get("users")
    if not isinstance(users, list) or not users or not all(isinstance(user, str) and user for user in users):
        raise DataError(f"{path}: users must be a list of names, given {_short(users)}")
    if "user_text" in table:
        return [Author(user, encode(_own(path, table, "user_text", user))) for user in users]
    if "user_data" in table:
        counts = _counts(path, table, users)
        return [
            _leaf(path, user, _own(path, table, "user_data", user), count)
            for user, count in zip(users, counts, strict=True)
        ]
    raise DataError(f"{path} has neither user_text (a role file) nor user_data (LEAF); its keys: {', '.join(table)}")


def read_plain(path: Path) -> str:
    """A file's text, UTF-8 and gzipped where its name says so, its lines ended by a line feed. Raises DataError."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from None
    return text.replace("\r\n", "\n")


def _own(path: Path, table: Mapping[str, Any], key: str, user: str) -> Any:
    """What the file holds of one user."""
    every, (kind, what) = table[key], _KINDS[key]
    if not isinstance(every, dict):
        raise DataError(f"{path}: {key} must be a table of users, given {_short(every)}")
    if not isinstance(every.get(user), kind):
        raise DataError(f"{path}: {key} of '{user}' must be {what}, given {_short(every.get(user))}")
    return every[user]


def _counts(path: Path, table: Mapping[str, Any], users: Sequence[str]) -> list[int | None]:
    counts = table.get("num_samples")
    if counts is None:
        return [None] * len(users)
    if not isinstance(counts, list) or len(counts) != len(users):
        raise DataError(
            f"{path}: num_samples must be a list of {len(users)} numbers, one a user, given {_short(counts)}"
        )
    return counts


def _leaf(path: Path, user: str, data: Mapping[str, Any], count: int | None) -> Author:
    """LEAF's windows of one user, joined to the text that they were cut from where they overlap."""
    x, y = data.get("x"), data.get("y")
    if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
        raise DataError(f"{path}: x and y of '{user}' must be lists of one length")
    if count is not None and count != len(x):
        raise DataError(f"{path}: '{user}' has {len(x)} windows, and num_samples says {_short(count)}")
    for place, (before, after) in enumerate(zip(x, y, strict=True)):
        if not isinstance(before, str) or len(before) != WINDOW:
            given = f"{len(before)} characters" if isinstance(before, str) else _short(before)
            raise DataError(f"{path}: x[{place}] of '{user}' must be a text of {WINDOW} characters, given {given}")
        if not isinstance(after, str) or len(after) != 1:
            raise DataError(f"{path}: y[{place}] of '{user}' must be one character, given {_short(after)}")
    parts: list[str] = []
    starts, length, last = [], 0, ""
    for before, after in zip(x, y, strict=True):
        follows = last[1:] == before  # of the window before, 81 characters
        parts.append(after if follows else before + after)
        length += len(parts[-1])
        starts.append(length - WINDOW - 1)
        last = before + after
    return Author(user, encode("".join(parts)), np.array(starts, np.int64))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
