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
        _leave_later(code if isinstance(code, int) else int(code is not None))


def _end_with(parent: int) -> None:
    """Ask this process to end once its supervisor is gone: killed, it could not do so itself.

    A SuperNode that stayed would keep its port and its place at the server from the one that is started next.
    """
    while os.getppid() == parent:
        time.sleep(LOOK)
    _leave_later(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_later(code: int) -> None:
    """End the process, whatever its threads are at, once they had their time."""
    leave = threading.Timer(PATIENCE, os._exit, (code,))
    leave.daemon = True
    leave.start()


if __name__ == "__main__":
    main()
