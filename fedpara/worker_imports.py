"""Imported once by the process that workers are forked from, so that each of them starts in milliseconds."""

import torch._dynamo  # noqa: F401  torch's optimisers import it with their first step, which takes a second

from .app import load

load("client.app")
load("simulations.local")
