"""Imported once by the process that workers are forked from, so that each of them starts in milliseconds."""

import gc

from .app import load

gc.disable()
try:
    load("client.app")
    load("simulations.local")
finally:
    gc.freeze()  # what is never looked through is never written to, and stays one copy for all workers
    gc.enable()
