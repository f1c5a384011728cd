"""Imported once by the process that workers are forked from, so that each of them starts in milliseconds."""

import gc

gc.disable()

import torch._dynamo  # noqa: E402, F401  torch's optimisers import it with their first step, which takes a second

from .app import load  # noqa: E402

load("client.app")
load("simulations.local")
gc.freeze()  # what is never looked through is never written to, and stays one copy for all workers
gc.enable()
