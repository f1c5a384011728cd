"""The benchmark's grids: every method is a recipe that runs, and says where it comes from."""

import pytest

from fedpara.app import find_recipe
from fedpara.codec import codec
from fedpara.compare import read_grid
from fedpara.config import read_recipe
from simulations.benchmarks.bytes_to_accuracy import GRIDS


@pytest.mark.parametrize("name", GRIDS)
def test_every_method_of_a_grid_is_a_recipe(name):
    grid = read_grid(GRIDS[name])
    assert len(grid.seeds) >= 3
    assert grid.baseline in grid.methods
    recipes = {method: read_recipe(find_recipe(grid.recipe), grid.overrides(method, 0)) for method in grid.methods}
    for method, recipe in recipes.items():
        assert grid.methods[method]["source"]
        assert codec(recipe.uplink)
        assert codec(recipe.downlink)
        # What is compared is what is sent: all train alike.
        assert recipe.training == recipes[grid.baseline].training
        assert recipe.cohort == recipes[grid.baseline].cohort
