"""Imported once by the process that workers are forked from, so that each of them starts in milliseconds."""

from .app import load

load("client.app")
load("simulations.local")
