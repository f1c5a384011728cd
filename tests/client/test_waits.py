"""No step of local training makes the host wait for its device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from client.training import Stepper, batches, placed
from fedpara.config import read_recipe
from fedpara.task import build_model, build_task
from tests.conftest import SMALL


class Waits(TorchDispatchMode):
    """Notes what makes a host wait for its device: copies that it waits for, and values that it asks for.

    The device is torch's own that computes shapes alone, so that this holds on a machine without a GPU.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        there = [part.device.type for part in args if isinstance(part, torch.Tensor)]
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal") and "meta" in there:
            self.found.append(name)
        if name == "_to_copy" and there == ["cpu"] and kwargs.get("device") == META and not kwargs.get("non_blocking"):
            self.found.append(f"{name} of {tuple(args[0].shape)}")
        if name == "copy_" and len(set(there)) > 1 and not (len(args) > 2 and args[2]):
            self.found.append(f"{name} of {tuple(args[0].shape)}")
        return func(*args, **kwargs)


META = torch.device("meta")


@pytest.mark.parametrize("augment", [{"flip": 0.5, "shift": 2}, {"rotate": 10.0, "elastic": 1.0}, {"cutmix": 1.0}])
@pytest.mark.parametrize("parametrization", ["fedpara", "none"])
def test_no_step_waits_for_the_device(augment, parametrization):
    table = {
        **SMALL,
        "parametrization": parametrization,
        "classification": {**SMALL["classification"], "augment": augment},
    }
    recipe = read_recipe(table if parametrization != "none" else {k: v for k, v in table.items() if k != "gamma"})
    task = build_task(recipe)
    model = build_model(recipe, task).to(META)
    data = task.client_data(task.population(4)[0], 4).to(META).train
    stepper = Stepper(
        task, model, task.optimizer(model, recipe.training, 0.1), method=None, training=recipe.training, device=META
    )
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), device=META)
    indices = batches(len(data), 32, generator)

    def step(chosen):
        return stepper(placed(task.prepare(data.batch(chosen), generator), META))

    step(indices[0])  # what is made once for all steps may wait
    with Waits() as waits:
        for chosen in indices[:2]:
            total += step(chosen)
    assert waits.found == []
    with Waits() as waits, pytest.raises(RuntimeError):
        float(total)
    assert waits.found == ["_local_scalar_dense"]
