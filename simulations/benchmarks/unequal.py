"""Clients with few labels, and clients of unequal means: `python -m simulations.benchmarks.unequal`.

Pseudo-labels against the labels alone, and half of the clients at a quarter of the rank against leaving them out. The
grids are in grids/unequal/.
"""

from .tables import main

if __name__ == "__main__":
    main("unequal", __doc__)
