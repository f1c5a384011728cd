"""The benchmarks' grids: every method is a recipe that can run, and says where it comes from."""

from dataclasses import replace

import pytest

from fedpara.app import find_recipe
from fedpara.codec import codec
from fedpara.compare import read_grid
from fedpara.config import read_recipe
from server.strategies import STRATEGIES
from simulations.benchmarks.tables import FOLDER, grids

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
        # What is compared is what is sent, or what is made of it: all train alike.
        assert replace(recipe.training, lr=first.training.lr, personal_lr=1.0) == first.training
        assert recipe.cohort == first.cohort


def test_every_benchmark_has_grids():
    assert {name.partition("/")[0] for name in FILES} == {"bytes", "optimisers", "personalisation", "unequal"}
