"""Threads of one process that compute in turns."""

import threading

import pytest
import torch

from client.turns import Turns, own_stream


def together(turns, *works):
    """Run each in a thread with a turn of its own; the first has its turn when the others have asked for theirs."""
    errors = []

    def serve(work):
        try:
            with turns.turn():
                work()
        except Exception as error:
            errors.append(error)

    with turns.turn():
        threads = []
        for work in works:
            threads.append(threading.Thread(target=serve, args=(work,)))
            threads[-1].start()
            while len(turns._waiting) < len(threads):
                pass
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return errors


def test_each_goes_on_until_it_hands_over_and_then_waits_for_all_others():
    turns, seen = Turns(), []

    def steps(name, count):
        def work():
            for step in range(count):
                seen.append(f"{name}{step}")
                seen.append(f"{name}{step}")
                turns.pass_on()

        return work

    assert not together(turns, steps("a", 3), steps("b", 1), steps("c", 2))
    assert seen == ["a0", "a0", "b0", "b0", "c0", "c0", "a1", "a1", "c1", "c1", "a2", "a2"]


def test_who_waits_for_its_device_lets_others_compute():
    turns, seen, ready = Turns(), [], threading.Event()

    def waits():
        with turns.away():
            assert ready.wait(60)
            seen.append("waited")
        seen.append("again")

    def computes():
        seen.append("beside")
        ready.set()

    assert not together(turns, waits, computes)
    assert sorted(seen[:2]) == ["beside", "waited"]
    assert seen[2] == "again"


def test_random_numbers_are_each_threads_own_and_nobody_elses():
    def draw(seed, count, turns):
        drawn = []

        def work():
            torch.manual_seed(seed)
            for _ in range(count):
                drawn.append(torch.rand(()).item())
                turns.pass_on()

        return drawn, work

    torch.manual_seed(7)
    expected = torch.rand(3).tolist()
    torch.manual_seed(7)
    before = torch.rand(()).item()
    turns = Turns()
    found = [draw(1, 5, turns), draw(2, 3, turns), draw(1, 5, turns)]
    assert not together(turns, *(work for _, work in found))
    alone = []
    for seed, count in ((1, 5), (2, 3), (1, 5)):
        drawn, work = draw(seed, count, Turns())
        with torch.random.fork_rng():
            work()
        alone.append(drawn)
    assert [drawn for drawn, _ in found] == alone
    assert [before, torch.rand(()).item(), torch.rand(()).item()] == expected


def test_a_mistake_hands_over_too():
    turns, seen = Turns(), []

    def fails():
        raise ValueError("on purpose")

    errors = together(turns, fails, lambda: seen.append(1))
    assert [str(error) for error in errors] == ["on purpose"]
    assert seen == [1]


def test_without_a_turn_nothing_is_handed_over():
    turns = Turns()
    turns.pass_on()
    with turns.away(), turns.turn(), pytest.raises(ZeroDivisionError), turns.away():
        raise ZeroDivisionError
    assert turns._holder is None


def test_a_stream_has_one_owner_at_a_time(monkeypatch):
    class Stream:
        dealt = 0

        def __init__(self, device):
            self.cuda_stream = 1000 + Stream.dealt % 4  # torch has some dozens
            Stream.dealt += 1

    class Owner: ...

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    device, owners = torch.device("cuda"), [Owner() for _ in range(4)]
    dealt = [own_stream(device, owner).cuda_stream for owner in owners]
    assert len(set(dealt)) == 4
    with pytest.raises(RuntimeError, match="fewer clients"):
        own_stream(device, Owner())
    del owners[2]
    assert own_stream(device, owners[0]).cuda_stream == dealt[2]
