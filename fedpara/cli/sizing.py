"""What a model costs to send, before anything is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from .completion import complete_model
from .options import RecipeCommand, figures, given, json_option


class ModelCommand(RecipeCommand):
    """Lists the keys that a model's size depends on."""

    listed = (
        *("task", "parametrization", "gamma", "ratio", "activation", "local", "rank_shares"),
        *("uplink", "clients", "data_dir"),
    )


@click.command(
    cls=ModelCommand,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="""\b
Examples:
  fedpara size digits
  fedpara size vgg16 --gamma 0.1 --codec int8
  fedpara size resnet18 --classes 100 --ratio 0.05
  fedpara size net.py:make --gamma 0.3          make() or a module's function, mymodels:make
  fedpara size digits --json | jq .payload_bytes""",
)
@click.argument("recipe", shell_complete=complete_model)
@click.option("--codec", "spec", help="Codec of the payload [default: the recipe's uplink].")
@click.option(
    "--classes",
    type=click.IntRange(1, 10**6),
    default=10,
    show_default=True,
    help="Classes, where RECIPE is a model's name.",
)
@json_option(
    "codec, parameters, dense_parameters, payload_bytes, dense_payload_bytes, and layers, a row each: name, kind, "
    "shape, rank, parameters, dense_parameters, payload_bytes, dense_payload_bytes, share"
)
def size(recipe: str, spec: str | None, classes: int, as_json: bool, **keys: Any) -> None:
    """Show what a model costs to send, layer by layer.

    RECIPE is a recipe, or a built-in model's name (vgg16, resnet18, cnn, 2nn), or one's own:
    net.py:function or module:function that returns a model.
    """
    overrides = given(keys)
    with figures(as_json) as show:
        from ..cost import size as size_of

        model, uplink = _model(recipe, classes, overrides)
        found = size_of(model, codec=spec or uplink)
        totals = ("codec", "parameters", "dense_parameters", "payload_bytes", "dense_payload_bytes")
        layers = [dataclasses.asdict(layer) for layer in found.layers]
        show({**{name: getattr(found, name) for name in totals}, "layers": layers}, str(found))


def _model(source: str, classes: int, overrides: dict[str, Any]) -> tuple[Any, str]:
    """A parametrized model and the codec it is sent with, from what a user names."""
    from ..app import find_recipe
    from ..config import read_recipe
    from ..models import MODELS, build_model, own_model
    from ..task import build_model as recipe_model
    from ..task import build_task, parametrize_as

    if source not in MODELS and ":" not in source:
        recipe = read_recipe(find_recipe(source), overrides)
        return recipe_model(recipe, build_task(recipe)), recipe.uplink
    recipe = read_recipe({"gamma": 0.1} if "ratio" not in overrides else {}, overrides)
    if source in MODELS:
        model = build_model(source, num_classes=classes, in_channels=3, image_size=32)
    else:
        model = own_model(source, num_classes=classes, in_channels=3, image_size=(32, 32))
    return parametrize_as(model, recipe), recipe.uplink
