"""Personal models: `python -m simulations.benchmarks.personalisation`.

In the manner of Figure 5 of the FedPara paper: accuracy on the clients' own held-out examples after the last round,
and what was sent for it. The grids are in grids/personalisation/.
"""

from .tables import main

if __name__ == "__main__":
    main("personalisation", __doc__)
