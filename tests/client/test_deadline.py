"""A message whose reply nobody waits for any more is not worked on for ever."""

import signal
import subprocess
import sys

import pytest

CODE = """
import sys, time
from flwr.app import Context, Message, RecordDict
import client.codec_mod as mod
from simulations.workers import identify
identify()
mod._answer = lambda *args: time.sleep(float(sys.argv[2]))
message = Message(RecordDict(), 2, "train", ttl=mod.LATE + 1)
mod.codec_mod(message, Context(1, 2, {mod.OWN_PROCESS: int(sys.argv[1])}, RecordDict(), {}), None)
time.sleep(1.5)
"""


@pytest.mark.parametrize(
    ("own", "seconds", "code"),
    [(1, 60, -signal.SIGALRM), (1, 0.1, 0), (0, 1.5, 0)],  # hangs, is done in time, is one of many in this process
)
def test_a_process_that_hangs_ends_with_its_rounds_deadline(own, seconds, code):
    command = [sys.executable, "-c", CODE, str(own), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
