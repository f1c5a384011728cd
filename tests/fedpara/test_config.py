"""Recipes: what is read, what is refused, and with which words."""

import dataclasses
import json

import pytest

from fedpara.app import find_recipe, recipes
from fedpara.config import Recipe, client_settings, read_recipe, to_table
from fedpara.errors import ConfigError

DIGITS = {"name": "t", "gamma": 0.1, "classification": {"dataset": "digits"}}


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_builtin_recipe_is_read_and_written_back_the_same(name):
    recipe = read_recipe(find_recipe(name))
    assert recipe.name == name
    assert recipe.description
    assert read_recipe(to_table(recipe)) == recipe


@pytest.mark.parametrize("name", sorted(recipes()))
def test_clients_are_told_what_they_need_and_no_more(name):
    recipe = read_recipe(find_recipe(name))
    settings = client_settings(recipe)
    seen = read_recipe(json.loads(settings) | {"cohort": 1})
    for key in (
        "task",
        "seed",
        "clients",
        "parametrization",
        "gamma",
        "ratio",
        "activation",
        "uplink",
        "training",
        "options",
    ):
        assert getattr(seen, key) == getattr(recipe, key), key
    assert "description" not in settings
    assert "data_dir" not in settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"rouns": 3}, ["rouns", "did you mean 'rounds'"]),
        ({"training.epoch": 3}, ["training.epoch", "did you mean 'epochs'"]),
        ({"classification.datset": "x"}, ["classification.datset", "dataset"]),
        ({"rounds": 0}, ["rounds = 0", ">= 1"]),
        ({"clients": 0, "cohort": 1}, ["clients = 0", ">= 1"]),
        ({"rounds": "many"}, ["rounds", "'many'", "whole number"]),
        ({"rounds": 1.5}, ["rounds = 1.5", "whole number"]),
        ({"gamma": 1.5}, ["gamma = 1.5", "<= 1"]),
        ({"gamma": float("nan")}, ["gamma", "nan"]),
        ({"gamma": -0.1}, ["gamma = -0.1", ">= 0"]),
        ({"lr": 0}, ["training.lr", "> 0"]),
        ({"parametrization": "fedprara"}, ["fedprara", "did you mean 'fedpara'"]),
        ({"cohort": 11}, ["cohort = 11", "clients = 10"]),
        ({"task": "clasification"}, ["clasification", "did you mean 'classification'"]),
        ({"classification": 3}, ["classification"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(override, words):
    with pytest.raises(ConfigError) as error:
        read_recipe(DIGITS, override)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_is_found_by_key_path_and_leaf():
    recipe = read_recipe(DIGITS, {"rounds": "7", "training.lr": 0.5, "alpha": "0.25", "shift": 2, "data-dir": "x"})
    assert (recipe.rounds, recipe.training.lr, recipe.data_dir) == (7, 0.5, "x")
    assert recipe.options["alpha"] == 0.25
    assert recipe.options["augment"]["shift"] == 2


def test_ratio_given_over_a_recipe_with_gamma_replaces_it():
    recipe = read_recipe(DIGITS, {"ratio": 0.2})
    assert (recipe.gamma, recipe.ratio) == (None, 0.2)
    with pytest.raises(ConfigError, match="not both"):
        read_recipe(DIGITS | {"ratio": 0.2})


def test_a_recipe_that_is_no_toml_and_one_that_is_not_there(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("rounds = = 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_recipe(bad)
    with pytest.raises(ConfigError, match="no recipe at"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        find_recipe("digit")


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_recipe(DIGITS).rounds = 3
    assert Recipe().first_broadcast == "seed"


def test_a_python_file_named_in_an_override_gets_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("")
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe({"rounds": 1}, {"model": "own.py:make", "dataset": "other.py:read"})
    assert recipe.options["model"] == f"{tmp_path / 'own.py'}:make"
    assert recipe.options["dataset"] == "other.py:read"  # no such file: the error names what was given
