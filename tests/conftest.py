"""Shared by all tests: no telemetry, no update check, one thread, and a way to find real data."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
torch.set_num_threads(1)
# No test may fail because the machine is busy.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

SMALL = {
    "name": "small",
    "rounds": 3,
    "clients": 4,
    "cohort": 2,
    "gamma": 0.1,
    "uplink": "int8",
    "downlink": "fp16",
    "workers": 1,
    "training": {"epochs": 1, "batch_size": 32, "lr": 0.1},
    "classification": {"dataset": "digits", "model": "2nn", "partition": "dirichlet", "augment": {"shift": 1}},
}


PROGRAMS = "programs"  # the group of tests that start servers and nodes


class Silent:
    """An observer that remembers instead of printing."""

    def __init__(self):
        self.rows, self.shares = [], []
        self.summary = None

    def started(self, recipe, task, facts, rows):
        self.facts = facts

    def progressed(self, share):
        self.shares.append(share)

    def finished_round(self, row):
        self.rows.append(row)

    def finished(self, summary, folder):
        self.summary = summary

    def close(self):
        pass


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(items):
    """For `pytest -n 2 --dist loadgroup`: servers and nodes are started in one process, one after the other.

    Of the rest a file's tests stay together, with what they share.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(PROGRAMS if item.get_closest_marker("deploy") else item.path.stem))


@pytest.fixture
def silent():
    return Silent()


@pytest.fixture
def real_data():
    """The root of real data sets in their official layouts, from $FEDPARA_DATA."""
    root = os.environ.get("FEDPARA_DATA")
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip("FEDPARA_DATA does not name a folder that holds MNIST")
    return Path(root)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
