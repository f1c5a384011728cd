"""The benchmarks' grids: every method is a recipe that can run, and says where it comes from."""

from dataclasses import replace

import pytest

from fedpara.app import find_recipe
from fedpara.codec import codec
from fedpara.compare import read_grid
from fedpara.config import read_recipe
from server.strategies import STRATEGIES
from simulations.benchmarks.tables import FOLDER, by_seed, grids

FILES = {
    f"{folder.name}/{name}": file for folder in sorted(FOLDER.iterdir()) for name, file in grids(folder.name).items()
}


@pytest.mark.parametrize("name", FILES)
def test_every_method_of_a_grid_is_a_recipe(name):
    grid = read_grid(FILES[name])
    assert len(grid.seeds) >= 3
    recipes = {method: read_recipe(find_recipe(grid.recipe), grid.overrides(method, 0)) for method in grid.methods}
    first = next(iter(recipes.values()))
    for method, recipe in recipes.items():
        assert grid.methods[method]["source"]
        assert codec(recipe.uplink)
        assert codec(recipe.downlink)
        assert recipe.strategy in STRATEGIES
        # What is compared is what is sent, or what is made of it: all train alike, but for what a grid is about.
        alike = replace(recipe.training, lr=first.training.lr, personal_lr=1.0)
        assert (replace(alike, muon_lr=0.0) if name.startswith("muon") else alike) == first.training
        assert recipe.cohort == first.cohort


def test_every_benchmark_has_grids():
    assert {name.partition("/")[0] for name in FILES} == {
        "bytes",
        "camera",
        "knitting",
        "motion",
        "muon",
        "optimisers",
        "personalisation",
        "unequal",
    }


def test_the_table_by_seed_divides_each_seeds_own_bytes():
    def row(method, seed, last, sent):
        return {"method": method, "seed": seed, "last": last, "measure": "accuracy", "bytes": sent}

    found = [row("dense", 0, 0.9, 1000), row("dense", 1, 0.8, 500), row("ours", 0, 0.91, 10), row("ours", 1, 0.7, None)]
    assert by_seed(found, "dense").splitlines()[2:] == [
        "| dense | 90.00 %, 1.0× | 80.00 %, 1.0× |",
        "| ours | 91.00 %, 100.0× | 70.00 % |",
    ]
    assert by_seed(found, None).splitlines()[0] == "| method | seed 0 | seed 1 |"
    assert by_seed(found, None).splitlines()[3] == "| ours | 91.00 % | 70.00 % |"
