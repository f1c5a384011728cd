"""Ctrl-C as a terminal sends it: to every process of the group that stands in front."""

import multiprocessing.forkserver
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import tomli_w

import fedpara as fp
from fedpara import forkserver
from fedpara.errors import InterruptedRunError
from simulations.interrupt import stoppable
from simulations.workers import ProcessWorker
from tests.conftest import SMALL, Silent

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a terminal's process groups are POSIX's")
LONG = SMALL | {"rounds": 500, "workers": 2}


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C raises KeyboardInterrupt, as it does unless whoever started these tests had it ignored (nohup, &)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Terminal:
    """A program in front of a pseudo terminal of its own."""

    def __init__(self, arguments, cwd):
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "TERM": "xterm", "COLUMNS": "80"}
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a shell would have it, whoever runs these tests
            os.chdir(cwd)
            os.execve(sys.executable, [sys.executable, "-m", "fedpara.cli", *arguments], environment)
        self.text, self.code = "", None

    def read_until(self, done, seconds=120):
        """Collect what it shows until a condition holds, or it has ended."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.text
            if select.select([self.handle], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self.handle, 65536).decode(errors="replace")
                except OSError:  # it has ended
                    break

    def interrupt(self):
        os.write(self.handle, b"\x03")  # the terminal makes SIGINT of it, for the whole group

    def end(self):
        self.read_until(lambda: False)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


@pytest.fixture
def in_terminal(tmp_path):
    """Start a command in a terminal; what is still running after the test is ended."""
    started = []

    def start(*arguments):
        started.append(Terminal(arguments, tmp_path))
        return started[-1]

    yield start
    for left in started:
        if left.code is None:
            os.kill(left.pid, signal.SIGKILL)
            os.waitpid(left.pid, 0)


def rounds_in(folder):
    log = folder / "rounds.jsonl"
    return len(log.read_bytes().splitlines()) if log.is_file() else 0


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(LONG))
    return file


def test_the_first_finishes_the_round_and_the_run_goes_on_as_it_says(recipe, tmp_path, in_terminal):
    folder = tmp_path / "run"
    terminal = in_terminal("simulate", str(recipe), "--folder", "run")
    terminal.read_until(lambda: rounds_in(folder) >= 2)
    terminal.interrupt()
    code = terminal.end()
    assert code == 130, terminal.text
    assert "Traceback" not in terminal.text
    assert "stopping after this round" in terminal.text
    told = re.search(r"stopped after round (\d+) of 500; go on with: fedpara (simulate run --resume)", terminal.text)
    assert told, terminal.text
    assert rounds_in(folder) == int(told[1])
    assert not (folder / "summary.json").exists()
    again = [sys.executable, "-m", "fedpara.cli", *told[2].split(), "--rounds", str(int(told[1]) + 1)]
    subprocess.run(again, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, check=True, capture_output=True)
    assert fp.Run(folder).summary["rounds"] == int(told[1]) + 1


def test_the_second_stops_at_once(recipe, tmp_path, in_terminal):
    recipe.write_text(tomli_w.dumps(LONG | {"training": {"epochs": 100000}}))  # a round that never ends
    folder = tmp_path / "run"
    terminal = in_terminal("simulate", str(recipe), "--folder", "run")
    terminal.read_until(lambda: "rounds" in terminal.text and "0/500" in terminal.text)
    terminal.interrupt()
    terminal.read_until(lambda: "stopping after this round" in terminal.text)
    terminal.interrupt()
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert "go on with: fedpara simulate run --resume" in terminal.text
    assert rounds_in(folder) == 0


def test_a_grid_says_how_it_goes_on(recipe, tmp_path, in_terminal):
    grid = {"recipe": str(recipe), "seeds": [0], "methods": {"a b": {}, "c": {"uplink": "int4"}}}
    (tmp_path / "grid.toml").write_text(tomli_w.dumps(grid))
    terminal = in_terminal("compare", "grid.toml", "--output", "out put")
    terminal.read_until(lambda: rounds_in(tmp_path / "out put" / "a-b-seed0") >= 1)
    terminal.interrupt()
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    shown = " ".join(terminal.text.split())
    assert "go on with: fedpara compare grid.toml --output 'out put'" in shown
    assert not (tmp_path / "out put" / "c-seed0").exists(), "the methods after it were not begun"


class Asked(Silent):
    """Presses Ctrl-C in the first round."""

    def progressed(self, share):
        if not self.shares:
            os.kill(os.getpid(), signal.SIGINT)
        super().progressed(share)


def test_from_python_it_is_a_keyboard_interrupt_and_the_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError, match="after round 1 of 3") as caught:
        fp.simulate(fp.Recipe(gamma=0.1, rounds=3, clients=2, cohort=2, workers=1), folder=tmp_path, observer=Asked())
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert rounds_in(tmp_path) == 1


def test_the_last_round_is_simply_the_end(tmp_path):
    done = fp.simulate(
        fp.Recipe(gamma=0.1, rounds=1, clients=2, cohort=2, workers=1), folder=tmp_path, observer=Asked()
    )
    assert done.summary["rounds"] == 1


def test_a_callers_own_handler_stays(monkeypatch, tmp_path):
    own = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        chosen = signal.getsignal(signal.SIGINT)
        with stoppable(Silent(), tmp_path):
            assert signal.getsignal(signal.SIGINT) is chosen
    finally:
        signal.signal(signal.SIGINT, own)


def test_one_that_comes_while_processes_are_started_is_not_lost(monkeypatch):
    heard, inherited, ensure = [], [], multiprocessing.forkserver.ensure_running
    own = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))

    def meanwhile():
        os.kill(os.getpid(), signal.SIGINT)
        inherited.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        ensure()

    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", meanwhile)
    try:
        forkserver.start()
        assert inherited == [True], "what is started now would hear of it too"
        end = time.monotonic() + 10
        while not heard and time.monotonic() < end:  # another thread of this process may be the one that is told
            time.sleep(0.01)
        assert heard == [signal.SIGINT]
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, own)


def test_a_process_that_is_being_started_is_started(monkeypatch):
    connect, done = multiprocessing.forkserver.connect_to_new_process, []

    def interrupted(handles):
        signal.raise_signal(signal.SIGINT)
        done.append(connect(handles))
        return done[-1]

    forkserver.start()
    monkeypatch.setattr(multiprocessing.forkserver, "connect_to_new_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ProcessWorker("classification")
    assert len(done) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
