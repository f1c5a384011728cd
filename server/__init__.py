"""The Flower ServerApp: samples, encodes, counts, aggregates, evaluates, checkpoints."""
