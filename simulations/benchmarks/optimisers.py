"""Federated optimisers on FedPara's factors, and ways to average them: `python -m simulations.benchmarks.optimisers`.

In the manner of Table 3 of the FedPara paper: accuracy at the end, rounds and bytes to what FedAvg has there, less half
a point, seed by seed. The grids are in grids/optimisers/.
"""

from .tables import main

if __name__ == "__main__":
    main("optimisers", __doc__)
