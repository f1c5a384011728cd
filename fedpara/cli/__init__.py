"""The command line, one module a group of commands. Everything heavy is imported by the command that needs it."""

from .entry import cli, main

__all__ = ["cli", "main"]
