"""Runs one of Flower's programs so that it ends with its supervisor, and when it is done.

``python -m fedpara.deploy.program PARENT PROGRAM …``, where PARENT is the supervisor's process id.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable

PATIENCE = 5.0  # seconds that threads have to end after the program itself
LOOK = 0.5  # seconds between two looks for the supervisor


def main() -> None:
    """Run the script at the second argument with those that follow, for as long as the process at the first lives.

    A SuperNode whose connection breaks off in the middle of a handshake gives up, and then waits for ever for a thread
    of its own: to a supervisor it looks alive, to the server it is gone.
    """
    parent, *sys.argv = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    code: object = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code
        raise
    finally:
        _later(os._exit, code if isinstance(code, int) else int(code is not None))


def _end_with(parent: int) -> None:
    """Ask this process and what it started to end once its supervisor is gone: killed, it could not do so itself.

    A SuperNode that stayed would keep its port and its place at the server from the one that is started next; a
    ClientApp would go on looking for its SuperNode, and complain.
    """
    while os.getppid() == parent:
        time.sleep(LOOK)
    _later(_end_group, signal.SIGKILL)
    _end_group(signal.SIGTERM)


def _end_group(number: int) -> None:
    """Signal the group that a supervisor starts this process in; where there is none, this process."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), number)
    else:
        os.kill(os.getpid(), number)


def _later(act: Callable[[int], object], argument: int) -> None:
    """Do it once the process's threads had their time to end."""
    waiting = threading.Timer(PATIENCE, act, (argument,))
    waiting.daemon = True
    waiting.start()


if __name__ == "__main__":
    main()
