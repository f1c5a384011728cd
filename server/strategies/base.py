"""What every federated optimiser's server half has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpara.config import Optimiser
from fedpara.errors import CheckpointError

State = dict[str, Tensor]


@dataclass(frozen=True)
class CohortMean:
    """What a cohort sent back, averaged."""

    model: State
    replies: int
    clients: int  # in the population
    control: State = field(default_factory=dict)  # of what a method sends beside the weights


class Strategy:
    """FedAvg, and the base of the others: w ← Σ_k (n_k / n) w_k (McMahan et al., AISTATS 2017, Algorithm 1).

    Args:
        settings: the recipe's [optimiser] table.
        trained: the shared tensors that are parameters. All others, such as batch norm's statistics, are averaged only.
    """

    uniform = False  # whether clients count alike, and not by their examples
    sends_control = False  # whether replies carry a second record beside the weights
    lr = 1.0  # the server's learning rate where the recipe gives none
    kinds: tuple[str, ...] = ()  # of tensors kept from round to round, one for each trained one, zero at first

    def __init__(self, settings: Optimiser, trained: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.trained = dict(trained)
        if settings.server_lr is not None:
            self.lr = settings.server_lr
        self.state: State = {
            f"{kind}/{name}": torch.zeros_like(own) for kind in self.kinds for name, own in trained.items()
        }

    def broadcast(self) -> State:
        """What goes to the clients beside the model; nothing at first."""
        return {}

    def step(self, model: Mapping[str, Tensor], mean: CohortMean) -> State:
        """The next model, from the current one and what the cohort sent."""
        return mean.model

    def state_dict(self) -> State:
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict`. Raises CheckpointError for one of another method or model."""
        other = sorted(state.keys() ^ self.state.keys())
        if other:
            raise CheckpointError(
                f"the checkpoint is of another strategy or model ({', '.join(other[:3])}): "
                "resume with the recipe it was made with, or start a run in another folder"
            )
        self.state = {name: tensor.clone() for name, tensor in state.items()}
