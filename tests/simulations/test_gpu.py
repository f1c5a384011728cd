"""Every built-in task on a GPU: a round of it comes out as on the CPU."""

import math

import pytest

import fedpara as fp
from fedpara.app import find_recipe
from fedpara.config import read_recipe
from tests.conftest import Silent, needs_cuda

SMALL = {
    "digits": {},
    "motion": {"clients": 2, "samples": 16, "crop": 32},
    "knitting": {"clients": 2, "pairs": 8, "samples": 4},
    "camera": {"clients": 2, "epochs": 1},
    "pendulum": {"clients": 2, "epochs": 1},
}


@needs_cuda
@pytest.mark.parametrize("name", SMALL)
def test_a_round_on_a_gpu_is_that_of_the_cpu(tmp_path, name):
    ends = {}
    for device in ("cpu", "cuda"):
        changes = {"device": device, "rounds": 2, "cohort": 2, "workers": 2, "uplink": "fp32", "downlink": "fp32"}
        recipe = read_recipe(find_recipe(name), changes | SMALL[name])
        run = fp.simulate(recipe, folder=tmp_path / device, observer=Silent())
        assert [row["dropped"] for row in run.rounds] == [[], []]
        ends[device] = [row["train_loss"] for row in run.rounds]
        assert all(map(math.isfinite, ends[device]))
    assert ends["cuda"] == pytest.approx(ends["cpu"], rel=0.1)
