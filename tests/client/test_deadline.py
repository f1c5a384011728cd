"""A message whose reply nobody waits for any more is not worked on for ever."""

import signal
import subprocess
import sys

import pytest

CODE = """
import signal, sys, time
from flwr.app import Context, Message, RecordDict
import client.codec_mod as mod
from simulations.workers import identify
identify()
mod._answer = lambda *args: time.sleep(float(sys.argv[2]))
message = Message(RecordDict(), 2, "train", ttl=mod.LATE + float(sys.argv[3]))
mod.codec_mod(message, Context(1, 2, {mod.OWN_PROCESS: int(sys.argv[1])}, RecordDict(), {}), None)
assert signal.alarm(0) == 0  # none is left
"""


@pytest.mark.parametrize(
    ("own", "seconds", "deadline", "code"),
    [(1, 60, 1, -signal.SIGALRM), (1, 0.1, 60, 0), (0, 1.5, 1, 0)],  # hangs, is done in time, is one of many here
)
def test_a_process_that_hangs_ends_with_its_rounds_deadline(own, seconds, deadline, code):
    command = [sys.executable, "-c", CODE, str(own), str(seconds), str(deadline)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
