"""A program that is done ends, whatever threads it left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STUCK = "import threading, time; threading.Thread(target=time.sleep, args=(300,)).start()\n"


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("raise SystemExit", 0),
        ("raise SystemExit('it said why')", 1),
        ("pass", 0),
        ("raise ConnectionError('gone')", 1),
    ],
)
@pytest.mark.parametrize("stuck", ["", STUCK])
def test_it_ends_with_its_own_code(tmp_path, stuck, ending, code):
    script = tmp_path / "program"
    script.write_text(f"import sys\n{stuck}assert sys.argv[1:] == ['--port', '1'], sys.argv\n{ending}\n")
    command = [sys.executable, "-m", "fedpara.deploy.program", str(os.getpid()), str(script), "--port", "1"]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    if "why" in ending:
        assert "it said why" in ended.stderr


SUPERVISOR = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "fedpara.deploy.program", str(os.getpid()), sys.argv[1]],
                         start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@pytest.mark.parametrize("deaf", ["", DEAF])
def test_it_ends_with_a_supervisor_that_was_killed(tmp_path, deaf):
    script = tmp_path / "program"
    script.write_text(f"{deaf}import time\ntime.sleep(300)\n")
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(script)], stdout=subprocess.PIPE) as supervisor:
        child = int(supervisor.stdout.readline())
        assert running(child)
        supervisor.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while running(child):
        assert time.monotonic() < end, "it stayed"
        time.sleep(0.1)


def test_what_it_started_ends_with_a_supervisor_that_was_killed(tmp_path):
    script, told = tmp_path / "program", tmp_path / "told"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        "app = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"pathlib.Path({str(told)!r}).write_text(str(app.pid))\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(script)], stdout=subprocess.PIPE) as supervisor:
        child = int(supervisor.stdout.readline())
        end = time.monotonic() + 60
        while not told.is_file() or not told.read_text():
            assert time.monotonic() < end, "it was not started"
            time.sleep(0.1)
        supervisor.send_signal(signal.SIGKILL)
    while running(child) or running(int(told.read_text())):
        assert time.monotonic() < end, "it stayed"
        time.sleep(0.1)


def running(pid):
    """Whether it has not ended. One that has keeps its number until asked how: in some containers nobody asks."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it has ended since; or this system has no such files
        return not Path("/proc/self/stat").exists()
