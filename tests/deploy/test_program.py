"""A program that is done ends, whatever threads it left behind."""

import subprocess
import sys

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
    command = [sys.executable, "-m", "fedpara.deploy.program", str(script), "--port", "1"]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    if "why" in ending:
        assert "it said why" in ended.stderr
