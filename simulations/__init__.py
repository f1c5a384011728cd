"""Federations on one machine: the in-process runtime, recipes, benchmarks."""
