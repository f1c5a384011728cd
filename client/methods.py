"""The client's half of federated optimisers: what each adds to a local gradient, keeps on the disk and sends back.

A gradient is corrected after it was clipped: clipping bounds what the client's own data say, not the method. Methods
act on the parameters that are shared; what stays with the client is trained as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpara.config import Optimiser, Recipe
from fedpara.errors import ConfigError
from fedpara.extras import own

State = dict[str, Tensor]


class Method:
    """FedAvg: local gradients as they are. Base of the others.

    Args:
        trained: the model's own shared parameters by name, as they were received.
        kept: what `finish` left in ``kept`` when this client last took part; nothing at first.
        control: what the server sent beside the model; nothing in the first round.
        settings: the recipe's [optimiser] table.
    """

    corrects: ClassVar[bool] = False  # whether it changes gradients, by how far the parameters have moved

    def __init__(self, trained: Mapping[str, nn.Parameter], kept: State, control: State, settings: Optimiser) -> None:
        self.settings = settings
        self.trained = dict(trained)
        self.start = {name: own.detach().clone() for name, own in trained.items()} if self.corrects else {}
        self.control = {name: control[name].to(own.device) for name, own in self.start.items() if name in control}
        self.own = {name: kept[name].to(own.device) for name, own in self.start.items() if name in kept}
        self.kept: State = {}
        self.sent: State = {}

    def correct(self) -> None:
        """Change every parameter's gradient in place, before a step."""

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        """After the last step: set ``kept`` and ``sent``."""

    def moved(self, name: str) -> Tensor:
        """How far a parameter is from where the round began."""
        return self.trained[name].detach() - self.start[name]


class FedProx(Method):
    """min F_k(w) + μ/2 ‖w − wᵗ‖² (Li et al., MLSys 2020, Equation 2): the gradient gains μ (w − wᵗ)."""

    corrects = True

    def correct(self) -> None:
        for name, parameter in self.trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(self.moved(name), alpha=self.settings.mu)


class FedDyn(Method):
    """min F_k(θ) − ⟨g_k, θ⟩ + α/2 ‖θ − θᵗ‖² (Acar et al., ICLR 2021, Equation 1).

    The gradient gains α (θ − θᵗ) − g_k; afterwards g_k ← g_k − α (θ_k − θᵗ), which stays with the client.
    """

    corrects = True

    def correct(self) -> None:
        for name, parameter in self.trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(self.moved(name), alpha=self.settings.alpha)
                if name in self.own:
                    parameter.grad.sub_(self.own[name])

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        for name in self.trained:
            step = self.moved(name).mul_(-self.settings.alpha)
            self.kept[name] = step + self.own[name] if name in self.own else step


class Scaffold(Method):
    """Variance reduction by control variates (Karimireddy et al., ICML 2020, Algorithm 1, option II).

    The gradient gains c − c_k; afterwards c_k⁺ = c_k − c + (x − y_k) / (K η). c_k stays with the client; the change
    c_k⁺ − c_k is sent with the weights. K η is for SGD without momentum; with momentum β, the gradient of step i moves
    the weights by η (1 − β^(K−i+1)) / (1 − β) in all, and K is the sum of these shares.
    """

    corrects = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps = dict.fromkeys(self.trained, 0)  # a parameter that is frozen in this round takes none

    def correct(self) -> None:
        for name, parameter in self.trained.items():
            if parameter.grad is not None:
                self.steps[name] += 1
                if name in self.control:
                    parameter.grad.add_(self.control[name])
                if name in self.own:
                    parameter.grad.sub_(self.own[name])

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            raise ConfigError(
                f"strategy = 'scaffold' reads gradients off the steps of SGD, and this task's optimiser is "
                f"{type(optimizer).__name__}: use another strategy"
            )
        groups = {id(own): group for group in optimizer.param_groups for own in group["params"]}
        for name, parameter in self.trained.items():
            own, change = self.own.get(name), torch.zeros_like(self.start[name])
            if self.steps[name] and id(parameter) in groups:
                group = groups[id(parameter)]
                change = self.moved(name).div_(-group["lr"] * effective_steps(self.steps[name], group["momentum"]))
                if name in self.control:
                    change -= self.control[name]
            self.sent[name] = change
            self.kept[name] = change if own is None else change + own


def effective_steps(steps: int, momentum: float) -> float:
    """Σ_{j=1..K} (1 − βʲ) / (1 − β): how many plain steps K steps with momentum β make of equal gradients."""
    if momentum >= 1:
        return steps * (steps + 1) / 2
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


METHODS: dict[str, type[Method]] = {"fedprox": FedProx, "feddyn": FedDyn, "scaffold": Scaffold}


def build_method(recipe: Recipe, trained: Mapping[str, nn.Parameter], kept: State, control: State) -> Method:
    """The client's half of the recipe's strategy; plain local training where it has none.

    One's own strategy names it as the attribute ``method`` of its class.
    """
    kind = getattr(own(recipe.strategy), "method", Method) if ":" in recipe.strategy else METHODS.get(recipe.strategy)
    return (kind or Method)(trained, kept, control, recipe.optimiser)
