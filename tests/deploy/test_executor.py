"""The process that a node's ClientApps are forked from."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from client import executor
from fedpara.deploy.start import install_executor

pytestmark = pytest.mark.deploy


def python(script: str, *arguments: str) -> list[str]:
    """What a script prints, line by line; forking is for processes of one's own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def test_what_is_imported_can_be_forked_and_computes_then():
    threads, gpu, product, other, ended = python(
        """
        import os, threading
        import client.executor
        import numpy, torch
        print(threading.active_count(), torch.cuda.is_initialized(), sep="\\n", flush=True)
        child = os.fork()
        if not child:  # with all the threads of its own
            print(float((numpy.ones((600, 600)) @ numpy.ones((600, 600))).mean()), flush=True)
            print(float(torch.mm(torch.ones(600, 600), torch.ones(600, 600)).mean()), flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert (threads, gpu) == ("1", "False")
    assert (float(product), float(other), ended) == (600.0, 600.0, "0")


def test_each_clientapp_asked_for_is_a_process_of_its_own_with_its_command_line_and_the_servers_fedpara(tmp_path):
    lines = python(
        """
        import io, json, os, sys, time
        import fedpara
        from client import executor

        def seen():
            known = [name for name in sys.modules if name.partition(".")[0] in ("fedpara", "client")]
            with open(f"{sys.argv[2]}/{os.getpid()}.part", "w") as file:
                json.dump([sys.argv, known, open("/proc/self/comm").read().strip()], file)
            os.rename(file.name, file.name.removesuffix(".part"))
            os._exit(0)

        executor.flwr_clientapp = seen
        folder = sys.argv[1]
        asked = [json.dumps({"line": ["flwr-clientapp", str(n), folder], "quiet": n == 2}) for n in range(3)]
        os.chdir(folder)
        executor.fork_each(io.StringIO("\\n".join(asked)))
        while sum(name.isdigit() for name in os.listdir(folder)) < 3:
            time.sleep(0.05)
        print(os.getpid())
        """,
        str(tmp_path),
    )
    found = {int(file.name): json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert len(found) == 3
    assert int(lines[0]) not in found
    assert sorted(facts[0][1] for facts in found.values()) == ["0", "1", "2"]
    assert all(facts[1:] == [[], "flwr-clientapp"] for facts in found.values())


def test_only_clientapps_are_forked(tmp_path):
    wanted = io.StringIO()
    start = executor.launcher(wanted)
    start(["flwr-clientapp", "--token", "a"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start(["flwr-clientapp", "--token", "b"])
    other = start([sys.executable, "-c", "print('other')"], stdout=subprocess.PIPE)
    assert isinstance(other, subprocess.Popen)
    assert other.communicate()[0] == b"other\n"
    assert [json.loads(line) for line in wanted.getvalue().splitlines()] == [
        {"line": ["flwr-clientapp", "--token", "a"], "quiet": True},
        {"line": ["flwr-clientapp", "--token", "b"], "quiet": False},
    ]


def test_once_nothing_forks_any_more_clientapps_are_started_as_ever(tmp_path, monkeypatch):
    program = tmp_path / "flwr-clientapp"
    program.write_text("#!/bin/sh\necho cold $1\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    reading, writing = os.pipe()
    os.close(reading)
    wanted = os.fdopen(writing, "w", buffering=1)
    start = executor.launcher(wanted)
    for word in ("first", "second"):
        started = start(["flwr-clientapp", word], stdout=subprocess.PIPE)
        assert isinstance(started, subprocess.Popen)
        assert started.communicate()[0] == f"cold {word}\n".encode()
    with contextlib.suppress(BrokenPipeError):
        wanted.close()


def test_a_supernode_finds_it_by_its_path_and_it_is_flowers_own_program(tmp_path):
    install_executor(tmp_path / "bin with spaces")
    install_executor(tmp_path / "bin with spaces")  # as at every start
    found = shutil.which("flower-superexec", path=f"{tmp_path / 'bin with spaces'}{os.pathsep}{os.environ['PATH']}")
    assert found == str(tmp_path / "bin with spaces" / "flower-superexec")
    done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Flower version: ")
