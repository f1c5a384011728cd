"""Every byte is counted once, and the file survives crashes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpara.errors import CheckpointError, ConfigError
from fedpara.ledger import Ledger

Row = dict[str, Any]

rows_of = st.lists(
    st.fixed_dictionaries(
        {
            "round": st.integers(0, 5),
            "client": st.one_of(st.integers(0, 2**63 - 1), st.text(min_size=1)),
            "direction": st.sampled_from(["up", "down"]),
            "purpose": st.sampled_from(["weights", "seed", "state", "metrics", "evaluation", "control", "retry"]),
            "payload": st.integers(0, 2**62),
            "message": st.integers(0, 2**62),
        }
    ),
    max_size=20,
)


def row(round: int = 1, client: int | str = 0, direction: str = "up", payload: int = 10, **more: Any) -> Row:
    fields = {"round": round, "client": client, "direction": direction, "payload": payload}
    return {"purpose": "weights", "message": payload + 5, **fields, **more}


def ledger_of(rows: list[Row]) -> Ledger:
    ledger = Ledger()
    for one in rows:
        ledger.record(**one)
    return ledger


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@given(rows_of)
def test_totals_are_exact(rows: list[Row]) -> None:
    ledger = ledger_of(rows)
    assert ledger.to_rows() == rows
    assert len(ledger) == len(rows)
    for unit in ("payload", "message"):
        assert ledger.total(unit=unit) == sum(one[unit] for one in rows)
        for direction in ("up", "down"):
            assert ledger.total(direction, unit) == sum(one[unit] for one in rows if one["direction"] == direction)
        for keys in (("round",), ("client", "purpose"), ("direction", "round", "purpose", "client")):
            expected: Counter[Any] = Counter()
            for one in rows:
                expected[one[keys[0]] if len(keys) == 1 else tuple(one[key] for key in keys)] += one[unit]
            assert ledger.by(*keys, unit=unit) == dict(expected)


@given(rows_of, rows_of)
def test_state_and_merge(rows: list[Row], others: list[Row]) -> None:
    ledger = ledger_of(others)
    ledger.load_state_dict(json.loads(json.dumps(ledger_of(rows).state_dict())))
    assert ledger.to_rows() == rows
    ledger.merge(ledger_of(others))
    assert ledger.to_rows() == rows + others
    ledger.merge(ledger)
    assert ledger.to_rows() == 2 * (rows + others)
    assert ledger.to_rows(len(rows)) == others + rows + others


def test_the_three_figures_are_apart() -> None:
    ledger = ledger_of([row(payload=7, message=9), row(direction="down", payload=20, message=30)])
    assert (ledger.total("up"), ledger.total("down"), ledger.total()) == (7, 20, 27)
    assert (ledger.total("up", "message"), ledger.total("down", "message"), ledger.total(unit="message")) == (9, 30, 39)
    assert ledger.paper(parameter_bytes=2**30, participants=1, rounds=3) == 6.0
    assert ledger.by("direction", "purpose") == {("up", "weights"): 7, ("down", "weights"): 20}


def test_numbers_of_other_types_count_as_integers() -> None:
    ledger = ledger_of([row(round=np.int64(2), client=np.uint32(4), payload=np.int32(3), message=2**62)] * 4)
    assert ledger.by("client", unit="message") == {4: 2**64}
    assert json.loads(json.dumps(ledger.to_rows()))[0] == row(2, 4, payload=3, message=2**62)


@pytest.mark.parametrize(
    "change",
    [
        {"round": -1},
        {"payload": -1},
        {"message": 1.0},
        {"payload": None},
        {"payload": True},
        {"message": 2**63},
        {"client": -1},
        {"client": ""},
        {"client": 1.5},
        {"direction": "sideways"},
        {"direction": None},
        {"purpose": ""},
        {"purpose": " "},
        {"purpose": None},
    ],
)
def test_a_wrong_row_is_refused_whole(change: Row) -> None:
    ledger = ledger_of([row()])
    with pytest.raises(ConfigError, match=r"a transfer.*given"):
        ledger.record(**{**row(), **change})
    assert ledger.to_rows() == [row()]


def test_wrong_questions_are_refused() -> None:
    ledger = ledger_of([row()])
    for ask in (lambda: ledger.total("sideways"), lambda: ledger.total(unit="bits"), ledger.by):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="given"):
            ask()
    for keys in (("payload",), ("round", "colour")):
        with pytest.raises(ConfigError, match="round, client, direction, purpose"):
            ledger.by(*keys)


@pytest.mark.parametrize(
    "state", [None, {}, {"round": [1]}, {**Ledger().state_dict(), "round": [1]}, ledger_of([row()]).to_rows()]
)
def test_a_wrong_state_is_refused_whole(state: Any) -> None:
    ledger = ledger_of([row()])
    with pytest.raises(CheckpointError, match="not the state of a ledger"):
        ledger.load_state_dict(state)
    broken = ledger.state_dict() | {"payload": [-1]}
    with pytest.raises(CheckpointError):
        ledger.load_state_dict(broken)
    assert ledger.to_rows() == [row()]


def test_rows_are_appended_once(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger()
    ledger.append_to(file)
    assert file.read_bytes() == b""
    for number in range(3):
        ledger.record(**row(round=number))
        ledger.append_to(file)
        ledger.append_to(str(file))
    assert lines(file) == ledger.to_rows()
    assert Ledger.load(file).to_rows() == ledger.to_rows()
    copy = tmp_path / "copy.jsonl"
    ledger.append_to(copy)
    assert copy.read_bytes() == file.read_bytes()


def test_a_new_ledger_appends_to_an_old_file(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger_of([row(1)]).append_to(file)
    ledger_of([row(2)]).append_to(file)
    assert lines(file) == [row(1), row(2)]


def test_resuming_drops_the_rounds_that_are_done_again(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger_of([row(round) for round in (1, 1, 2, 3, 3)]).append_to(file)
    before = file.read_bytes()
    ledger = Ledger.load(file, until_round=2)
    assert file.read_bytes() == before
    assert ledger.to_rows() == [row(1), row(1), row(2)]
    ledger.record(**row(3, client="again"))
    ledger.append_to(file)
    assert lines(file) == ledger.to_rows() == [row(1), row(1), row(2), row(3, client="again")]


def test_rows_kept_behind_rows_dropped_are_written_again(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger_of([row(1), row(5), row(2)]).append_to(file)
    ledger = Ledger.load(file, until_round=2)
    ledger.record(**row(3))
    ledger.append_to(file)
    assert lines(file) == [row(1), row(2), row(3)]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger_of([row(1), row(2)]).append_to(file)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        ledger = Ledger.load(file)
        assert ledger.to_rows() == [row(1), row(2)][: whole[:length].count(b"\n")]
        ledger.record(**row(3))
        ledger.append_to(file)
        assert lines(file) == ledger.to_rows()


def test_a_file_that_vanished_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger_of([row(1), row(2)]).append_to(file)
    ledger = Ledger.load(file, until_round=1)
    file.unlink()
    ledger.append_to(file)
    assert lines(file) == [row(1)]
    file.write_bytes(b"")
    ledger.record(**row(2))
    ledger.append_to(file)
    assert lines(file) == [row(1), row(2)]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "1", "null", "not json", "", '{"round": "one"}', json.dumps(row(payload=-1))]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "ledger.jsonl"
    file.write_text(f"{json.dumps(row())}\n{line}\n{json.dumps(row())}\n")
    for until_round in (None, 5):
        with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line 2"):
            Ledger.load(file, until_round)
    with pytest.raises(CheckpointError, match="no ledger to read"):
        Ledger.load(tmp_path / "none.jsonl")


@given(st.permutations(range(6)), st.integers(0, 3))
def test_rows_are_arranged_alike_whoever_was_faster(order, start):
    before = [row(9, client="first")] * start
    transfers = [
        row(round, client, direction=direction, purpose=purpose)
        for round, client, direction, purpose in (
            (1, "late", "up", "weights"),
            (2, "a", "down", "weights"),
            (2, "b", "down", "weights"),
            (2, 10, "up", "scales"),
            (2, "a", "up", "weights"),
            (2, "b", "up", "weights"),
        )
    ]
    ledger = ledger_of(before + [transfers[place] for place in order])
    ledger.arrange(start)
    assert ledger.to_rows() == before + transfers
