"""The tables and figures of the FedPara paper, each from one command: ``python -m simulations.paper TABLE``."""
