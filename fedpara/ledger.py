"""Every byte of a federation, each way, by round, client and purpose."""

from __future__ import annotations

import json
import operator
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from .cost import paper_cost
from .errors import CheckpointError, ConfigError

Direction = Literal["up", "down"]
Unit = Literal["payload", "message"]
Row = dict[str, Any]

KEYS, UNITS = ("round", "client", "direction", "purpose"), ("payload", "message")
_LARGEST = 2**63 - 1


class Ledger:
    """Records what was sent. Three figures, never mixed:

    - *payload*: bytes of what a codec produced, with all that a method sends (scales, control variates, seeds, the
      first broadcast, evaluation);
    - *message*: bytes of the message that carried it, with names, metadata and framing;
    - *paper*: 2 × participants × parameter bytes × rounds in GiB (`paper`), computed, not recorded.

    Sums are exact integers. A row takes 33 bytes of memory.
    """

    def __init__(self) -> None:
        self._numbers = {name: array("q") for name in ("round", *UNITS)}
        self._names = {name: _Names() for name in ("client", "direction", "purpose")}
        self._file: Path | None = None
        self._written, self._offset = 0, 0  # rows of this ledger, and bytes, that _file is known to hold

    def record(
        self, *, round: int, client: int | str, direction: Direction, purpose: str, payload: int, message: int
    ) -> None:
        """Add one transfer.

        Args:
            round: 0 before training, then from 1.
            client: its name or number.
            direction: "up" to the server, "down" to the client.
            purpose: "weights", "seed", "state", "metrics", "evaluation", "control", "retry" or any other word.
            payload: bytes of the coded tensors.
            message: bytes of the message around them.

        Raises:
            ConfigError: a value that is none of these; nothing is recorded.
        """
        numbers = {
            "round": _natural("round", round),
            "payload": _natural("payload", payload),
            "message": _natural("message", message),
        }
        _check_direction(direction)
        if not (isinstance(purpose, str) and purpose.strip()):
            raise ConfigError(f"a transfer's purpose is a word such as 'weights', given {purpose!r}")
        who = client if isinstance(client, str) and client else _natural("client", client)
        for name, number in numbers.items():
            self._numbers[name].append(number)
        self._names["client"].append(who)
        self._names["direction"].append(direction)
        self._names["purpose"].append(purpose)

    def __len__(self) -> int:
        return len(self._numbers["round"])

    def total(self, direction: Direction | None = None, unit: Unit = "payload") -> int:
        """Bytes sent in one direction, or in both.

        Raises:
            ConfigError: an unknown direction or unit.
        """
        if direction is not None:
            _check_direction(direction)
        sums = self.by("direction", unit=unit)
        return sums.get(direction, 0) if direction else sum(sums.values())

    def by(self, *keys: str, unit: Unit = "payload") -> dict[Any, int]:
        """Bytes for each value of a key ("round", "client", "direction", "purpose"), or each tuple for several keys.

        Raises:
            ConfigError: an unknown key or unit.
        """
        if unit not in UNITS:
            raise ConfigError(f"a ledger counts {' or '.join(UNITS)} bytes, given {unit!r}")
        if not keys or not set(keys) <= set(KEYS):
            raise ConfigError(f"a ledger sums by {', '.join(KEYS)}, given {keys}")
        groups = self._column(keys[0]) if len(keys) == 1 else zip(*map(self._column, keys), strict=True)
        sums: defaultdict[Any, int] = defaultdict(int)
        for group, count in zip(groups, self._column(unit), strict=True):
            sums[group] += count
        return dict(sums)

    @staticmethod
    def paper(parameter_bytes: int, participants: int, rounds: int) -> float:
        """The paper's figure in GiB, from `fedpara.cost.paper_cost`. It does not depend on what was recorded."""
        return paper_cost(parameter_bytes, participants, rounds)

    def to_rows(self, start: int = 0) -> list[Row]:
        """One dict a transfer, in the order of recording, from row number ``start``."""
        names = (*KEYS, *UNITS)
        columns = [self._column(name, start) for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def arrange(self, start: int) -> None:
        """Put the rows from number ``start`` in an order that does not depend on who was faster."""
        keys = list(zip(*(self._column(name, start) for name in ("round", "direction")), strict=True))
        clients = [str(client) for client in self._column("client", start)]
        order = sorted(range(len(keys)), key=lambda place: (keys[place], clients[place]))
        for column in (*self._numbers.values(), *(names.column for names in self._names.values())):
            part = column[start:]
            column[start:] = array(column.typecode, [part[place] for place in order])

    def merge(self, other: Ledger) -> None:
        """Add the rows of another ledger after one's own."""
        self._extend(other.to_rows())

    def state_dict(self) -> dict[str, Any]:
        """Every row, column by column; goes through JSON unchanged."""
        return {name: list(self._column(name)) for name in (*KEYS, *UNITS)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace every row by those of a `state_dict`.

        Raises:
            CheckpointError: not such a state; the ledger stays as it was.
        """
        new = Ledger()
        try:
            columns = [state[name] for name in (*KEYS, *UNITS)]
            new._extend(dict(zip((*KEYS, *UNITS), values, strict=True)) for values in zip(*columns, strict=True))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not the state of a ledger ({error}): give what state_dict() returned") from None
        self.__dict__.update(new.__dict__)

    def append_to(self, path: str | Path) -> None:
        """Write the rows that the file does not hold yet, each as a line of JSON.

        The first call for a path appends every row to what is there. After it, and after `load`, the ledger knows which
        part of the file is its own: it cuts off what follows (rounds that are done again, a line torn by a crash) and
        appends only new rows. A file that was removed is written anew.
        """
        path = Path(path).absolute()
        size = path.stat().st_size if path.exists() else 0
        if path != self._file:
            self._file, self._written, self._offset = path, 0, size
        elif size < self._offset:
            self._written, self._offset = 0, 0
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(self._offset)
            file.seek(self._offset)
            for row in self.to_rows(self._written):
                file.write(json.dumps(row).encode() + b"\n")
            file.flush()  # a full disk shows here, before the rows count as written
            self._written, self._offset = len(self), file.tell()

    @classmethod
    def load(cls, path: str | Path, until_round: int | None = None) -> Ledger:
        """Read a file of `append_to`. The file stays as it is; the next `append_to` cuts off what was not kept.

        Args:
            path: a file of JSON lines. A last line that a crash tore is left out.
            until_round: the last round to keep, that of the checkpoint to go on from; None keeps every round.

        Raises:
            CheckpointError: no such file, or a line that is not a ledger's.
        """
        path = Path(path).absolute()
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise CheckpointError(f"no ledger to read: {error}") from None
        ledger = cls()
        ledger._file = path
        gap = False  # a row before this one was not kept
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            kept = ledger._read(line, f"{path}, line {number}", until_round)
            gap = gap or not kept
            if not gap:
                ledger._written, ledger._offset = len(ledger), ledger._offset + len(line)
        return ledger

    def _read(self, line: bytes, place: str, until_round: int | None) -> bool:
        try:
            row = json.loads(line)
            if until_round is not None and row["round"] > until_round:
                return False
            self.record(**row)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{place} is not a ledger's row ({error}): remove it, or restore the file") from None
        return True

    def _extend(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.record(**row)

    def _column(self, name: str, start: int = 0) -> Iterable[Any]:
        return self._numbers[name][start:] if name in self._numbers else self._names[name].values(start)


class _Names:
    """A column of few different values, kept as four-byte places in a list of them."""

    def __init__(self) -> None:
        self._places: dict[int | str, int] = {}
        self.column = array("I")

    def append(self, value: int | str) -> None:
        self.column.append(self._places.setdefault(value, len(self._places)))

    def values(self, start: int) -> Iterable[int | str]:
        return map(list(self._places).__getitem__, self.column[start:])


def _natural(name: str, value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= _LARGEST:
        expected = "a name or a whole number" if name == "client" else "a whole number"
        raise ConfigError(f"a transfer's {name} is {expected} from 0 to 2⁶³ − 1, given {value!r}")
    return number


def _check_direction(direction: str) -> None:
    if direction not in ("up", "down"):
        raise ConfigError(f"a transfer goes 'up' to the server or 'down' to the client, given {direction!r}")
