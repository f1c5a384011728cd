"""A strategy of one's own: FedAvg that moves no tensor far in a round, with clients held near what they received."""

import torch

from client.methods import Method
from server.strategies import Strategy


class Pull(Method):
    """The client's half: every gradient gains 0.01 (w − wᵗ), wᵗ the model received."""

    corrects = True

    def correct(self):
        for name, parameter in self.trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(self.moved(name), alpha=0.01)


class Careful(Strategy):
    """The server's half: w ← w + η Δ, where a tensor's mean change Δ is first cut to 5 % of the tensor's norm."""

    method = Pull

    def step(self, model, mean):
        after = dict(mean.model)
        for name in self.trained:
            change = mean.model[name] - model[name]
            bound = 0.05 * torch.linalg.vector_norm(model[name])
            shorter = (bound / torch.linalg.vector_norm(change)).clamp(max=1) if change.any() and bound > 0 else 1
            after[name] = model[name] + self.lr * shorter * change
        return after
