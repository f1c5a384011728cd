"""The table that grows while a federation runs, and the bar under it."""

import io
import re

import pytest
from rich.console import Console

from fedpara.config import read_recipe
from fedpara.live import LiveTable, summary_table
from fedpara.task import build_task
from tests.conftest import SMALL

FACTS = {"dense_twin_model": 4000, "shared_parameters": 100, "uplink_payload": 400}
ROW = {"accuracy": 0.5, "loss": 1.0, "up": 1, "down": 1, "total": 2, "dense_total": 4, "seconds": 120.0}


def table(terminal, get_time=None):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, get_time=get_time, _environ={"TERM": "xterm"})
    return LiveTable(console), out


def test_the_time_left_is_known_within_the_first_round_and_after_rounds_of_minutes():
    now = [0.0]
    live, _ = table(True, lambda: now[0])
    recipe = read_recipe(SMALL, {"rounds": 3})
    live.started(recipe, build_task(recipe), FACTS, [])
    found = []
    for round in (1, 2):
        for share in (0.25, 0.5, 0.75, 1.0):
            now[0] += 30
            live.progressed(share)
            found.append(live._progress.tasks[0].time_remaining)
        live.finished_round({"round": round, **ROW, "dropped": [], "replies": 2})
    live.close()
    assert found[1:] == [pytest.approx(left, abs=1) for left in (300, 270, 240, 210, 180, 150, 120)]


def test_a_pipe_gets_lines_and_no_bar():
    live, out = table(False)
    recipe = read_recipe(SMALL, {"rounds": 3})
    live.started(recipe, build_task(recipe), FACTS, [])
    live.progressed(0.5)
    live.finished_round({"round": 1, **ROW, "dropped": [{"client": "a", "reason": "gone"}], "replies": 0})
    live.close()
    assert "\x1b" not in out.getvalue()
    assert "dropped a: gone" in out.getvalue()
    assert "50.00 %" in out.getvalue()


def shown(width, monkeypatch=None, measure="accuracy", **environment):
    """What the table prints at a width on a terminal, line by line."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, _environ={"TERM": "xterm", **environment})
    live = LiveTable(console)
    live.head(measure)
    live.finished_round({"round": 1, **ROW, "dropped": [], "replies": 2})
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 160])
@pytest.mark.parametrize("measure", ["accuracy", "characters_right"])
def test_a_line_fits_into_the_terminal(width, measure):
    lines = shown(max(width, len(measure) + 7), measure=measure)
    assert len(lines) == 2, lines  # nothing was folded
    assert all(len(line) <= max(width, len(measure) + 7) for line in lines)
    assert measure in lines[0]
    assert (("seconds" in lines[0]), ("down" in lines[0])) == (width > 40, width >= 80 + 7 * (measure != "accuracy"))


def test_another_width_brings_the_header_again():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    live = LiveTable(console)
    live.head("accuracy")
    for width in (100, 40, 40, 100):
        console.width = width
        live.finished_round({"round": 1, **ROW, "dropped": [], "replies": 2})
    assert out.getvalue().count("accuracy") == 3


def test_a_dumb_terminal_gets_no_bar_and_no_control_characters():
    out = io.StringIO()
    live = LiveTable(Console(file=out, force_terminal=True, width=80, _environ={"TERM": "dumb"}))
    recipe = read_recipe(SMALL, {"rounds": 3})
    live.started(recipe, build_task(recipe), FACTS, [])
    live.progressed(0.5)
    live.finished_round({"round": 1, **ROW, "dropped": [], "replies": 2})
    live.close()
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_no_color_is_heeded():
    out = io.StringIO()
    live = LiveTable(Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm", "NO_COLOR": "1"}))
    live.finished_round({"round": 1, **ROW, "dropped": [{"client": "a", "reason": "gone"}], "replies": 0})
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", out.getvalue())


def test_long_lines_are_not_folded_in_a_pipe():
    live, out = table(False)
    live.console.width = 40
    live.head("accuracy")
    live.finished_round({"round": 1, **ROW, "dropped": [{"client": "a", "reason": "gone " * 40}], "replies": 1})
    assert len(out.getvalue().splitlines()) == 3


def test_words_from_elsewhere_cannot_take_over_the_terminal():
    live, out = table(False)
    reason = "[/bold] :smile: \x1b[2J\nround 99"
    live.head("accuracy")
    live.finished_round({"round": 1, **ROW, "dropped": [{"client": "[red]x", "reason": reason}], "replies": 1})
    last = out.getvalue().splitlines()[-1]
    assert last.strip() == "dropped [red]x: [/bold] :smile:  [2J round 99"


def test_the_summary_fits_into_forty_columns():
    summary = {"payload_up": 10**7, "payload_down": 10**7, "uplink_payload": 10**5, "dense_payload": 10**9}
    summary |= {"dense_twin_model": 10**6}
    out = io.StringIO()
    Console(file=out, width=40).print(summary_table(summary, 40))
    assert any(line.split()[:1] == ["dense"] and "1×" in line for line in out.getvalue().splitlines())
    assert "…" not in out.getvalue()
