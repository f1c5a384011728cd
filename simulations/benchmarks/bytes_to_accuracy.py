"""Bytes to a target accuracy, this project and its peers: `python -m simulations.benchmarks.bytes_to_accuracy --help`.

Each grid in grids/bytes/ names its methods with their sources. All run in one harness, on the same data with the same
seeds; the target is what dense float32 FedAvg has at the end, less half a point, seed by seed. Bytes are payload, up
and down, of all clients until a method's test accuracy first reaches the target.
"""

from .tables import main

if __name__ == "__main__":
    main("bytes", __doc__)
