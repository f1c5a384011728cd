"""Where the seconds went: every second of the rounds is somewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpara.profile import profile, table
from tests.fedpara.test_apply import call

seconds = st.floats(0, 100)


@given(
    st.lists(st.tuples(seconds, seconds, seconds, seconds, seconds, seconds), min_size=1, max_size=5), st.integers(1, 4)
)
def test_the_parts_are_the_whole(rounds, processes):
    rows = [
        {
            "seconds": send + aggregate + evaluate + (train + encode) / processes + idle,
            "phases": {"send": send, "train": 99.0, "wait": 99.0, "aggregate": aggregate, "evaluate": evaluate},
            "client_seconds": {"train": train, "encode": encode},
        }
        for send, aggregate, evaluate, train, encode, idle in rounds
    ]
    (first, whole, share), *parts = profile(rows, processes)
    assert first == "rounds"
    assert share == (1.0 if whole else 0.0)
    assert sum(part[1] for part in parts) == pytest.approx(whole, abs=1e-9)
    assert len(table(rows, processes).splitlines()) == 2 + len(parts)


def test_the_command_shows_and_keeps_it(tmp_path, capsys, monkeypatch):
    words = ["simulate", "digits", "--rounds", "2", "--workers", "1", "--folder", tmp_path / "run", "--profile"]
    code, out, _ = call(capsys, monkeypatch, *words)
    assert code == 0
    assert "clients: train" in out
    assert (tmp_path / "run" / "profile.txt").read_text() in out
