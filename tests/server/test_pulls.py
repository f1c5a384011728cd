"""A reply that is stuck on its way holds up no other, and no deadline."""

import threading
import time

import pytest

from server.pulls import Pulls


class Slow:
    """A grid whose replies come when they are let, and which is stuck on some of them."""

    pull_interval = 0.05

    def __init__(self, here=(), stuck=()):
        self.here, self.stuck, self.gate = set(here), set(stuck), threading.Event()
        self.asked = []

    def pull_messages(self, message_ids):
        (message_id,) = message_ids
        self.asked.append(message_id)
        if message_id in self.stuck:
            self.gate.wait(20)
            return [f"late {message_id}"]
        if message_id == "broken":
            raise ConnectionError("gone")
        return [message_id] if message_id in self.here else []


def within(pulls, wanted, count=None):
    """So many replies, or all of them, asked for again and again."""
    found, end = [], time.monotonic() + 60
    while len(found) < (count or len(wanted)) and time.monotonic() < end:
        found += pulls([key for key in wanted if key not in found], 0.05)
    return found


def test_one_stuck_reply_holds_up_no_other():
    grid = Slow(here="abc", stuck="x")
    pulls = Pulls(grid)
    assert sorted(within(pulls, list("axbc"), 3)) == ["a", "b", "c"]
    assert not any(pulls(["x"], 0.05) for _ in range(10))
    assert grid.asked.count("x") == 1  # and is not asked for again meanwhile
    grid.gate.set()
    assert within(pulls, ["x"]) == ["late x"]


def test_a_reply_that_comes_later_is_found():
    grid = Slow()
    pulls = Pulls(grid)
    assert pulls(["a"], 0.05) == []
    grid.here.add("a")
    assert within(pulls, ["a"]) == ["a"]


def test_each_reply_that_comes_does_not_make_the_others_asked_for_again():
    grid = Slow()
    grid.pull_interval = 0.5
    pulls = Pulls(grid)
    wanted, began = [str(number) for number in range(20)], time.monotonic()
    while (elapsed := time.monotonic() - began) < 60 and (elapsed < 3 or max(map(grid.asked.count, wanted)) < 2):
        pulls(wanted, 0.01)
    # 20 replies, 10 questions a second: one each in two seconds, so twice in three.
    assert 2 <= max(map(grid.asked.count, wanted)) <= 1 + elapsed / 2


def test_what_asking_raises_is_raised_where_the_reply_is_wanted():
    pulls = Pulls(Slow())
    with pytest.raises(ConnectionError, match="gone"):
        within(pulls, ["broken"])


def test_what_nobody_waits_for_any_more_is_let_go_of():
    grid = Slow(stuck="x")
    pulls = Pulls(grid)
    pulls(["x", "y"], 0.05)
    pulls.forget_others({"y"})
    assert set(pulls._pulls) <= {"y"}
    grid.gate.set()


def test_a_grid_that_computes_itself_is_asked_at_once_and_here():
    class Here:
        pull_interval = 0.0

        def pull_messages(self, message_ids):
            return [(key, threading.get_ident()) for key in message_ids]

    assert Pulls(Here())(["a", "b"]) == [(key, threading.get_ident()) for key in "ab"]
