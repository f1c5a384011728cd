"""The global model, judged on the server's own test data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedpara.config import Recipe
from fedpara.device import cores
from fedpara.sharing import load_shared_
from fedpara.task import Metrics, Task, build_model, moved


class Evaluator:
    """Holds the parametrized network and the test data; without test data there is nothing to evaluate."""

    def __init__(self, recipe: Recipe, task: Task, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.model = build_model(recipe, task)
        self.initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        data = task.server_data()
        self.data = None if data is None else moved(data, device)
        self.model.to(device)

    def load(self, state: dict[str, Tensor]) -> nn.Module:
        """The network with this state."""
        load_shared_(self.model, state)
        return self.model

    def __call__(self, state: dict[str, Tensor]) -> Metrics:
        """Metrics of this state on the test data."""
        self.load(state)
        if self.data is None:
            return Metrics(0, {})
        threads = torch.get_num_threads()
        torch.set_num_threads(cores())  # no client trains meanwhile
        try:
            return self.task.judge(self.model, self.data, self.device)
        finally:
            torch.set_num_threads(threads)
