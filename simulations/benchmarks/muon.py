"""Orthogonalised local steps against SGD's, of factors and of kernels: `python -m simulations.benchmarks.muon`.

Accuracy at the end, and rounds and bytes to what FedPara has with SGD. The grids are in grids/muon/.
"""

from .tables import main

if __name__ == "__main__":
    main("muon", __doc__)
