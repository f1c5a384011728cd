"""Runs one of Flower's programs so that it ends when it is done: ``python -m fedpara.deploy.program PROGRAM …``."""

from __future__ import annotations

import os
import runpy
import sys
import threading

PATIENCE = 5.0  # seconds that threads have to end after the program itself


def main() -> None:
    """Run the script at the first argument with those that follow.

    A SuperNode whose connection breaks off in the middle of a handshake gives up, and then waits for ever for a thread
    of its own: to a supervisor it looks alive, to the server it is gone.
    """
    sys.argv = sys.argv[1:]
    code: object = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code
        raise
    finally:
        leave = threading.Timer(PATIENCE, os._exit, (code if isinstance(code, int) else int(code is not None),))
        leave.daemon = True
        leave.start()


if __name__ == "__main__":
    main()
