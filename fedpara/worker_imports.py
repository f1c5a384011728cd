"""Imported once by the process that workers are forked from, so that each of them starts in milliseconds."""

import gc
from contextlib import suppress

from .app import load

gc.disable()
try:
    with suppress(Exception):  # torch's optimisers import it with their first step, which takes a second
        import torch._dynamo  # noqa: F401
    load("client.app")
    load("simulations.local")
finally:
    gc.freeze()  # what is never looked through is never written to, and stays one copy for all workers
    gc.enable()
