"""The table that grows while a federation runs, and the bar under it."""

import io

import pytest
from rich.console import Console

from fedpara.config import read_recipe
from fedpara.live import LiveTable
from fedpara.task import build_task
from tests.conftest import SMALL

FACTS = {"dense_twin_model": 4000, "shared_parameters": 100, "uplink_payload": 400}
ROW = {"accuracy": 0.5, "loss": 1.0, "up": 1, "down": 1, "total": 2, "dense_total": 4, "seconds": 120.0}


def table(terminal, get_time=None):
    out = io.StringIO()
    return LiveTable(Console(file=out, force_terminal=terminal, width=120, get_time=get_time)), out


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
