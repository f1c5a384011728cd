"""A deployment on loopback for a test, ended with it."""

import pytest

from simulations.benchmarks.loopback import NAMES, Loopback


@pytest.fixture
def deploy(tmp_path):
    """Makes deployments, and ends what they started."""
    made: list[Loopback] = []

    def make(proxy: str = "none", names: tuple[str, ...] = NAMES, **changes) -> Loopback:
        made.append(Loopback(tmp_path, names, proxy=proxy, changes=changes))
        return made[-1]

    yield make
    for deployment in made:
        deployment.close()
