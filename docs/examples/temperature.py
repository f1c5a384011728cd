"""Tomorrow's temperature from the last fortnight: each weather station is a client, and its readings stay with it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import fedpara as fp


@dataclass(frozen=True)
class Options:  # the keys of the recipe's table [temperature], and options of the command line
    hidden: int = 128
    days: int = 14


@fp.register_task("temperature")
class Temperature(fp.Task):
    """Tomorrow's temperature from the last fortnight, in °C."""

    Options = Options
    measure = "error"  # of what evaluate() returns, the figure in the live table
    higher_is_better = False

    def model(self):
        wide = self.options.hidden
        layers = nn.Linear(self.options.days, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 1)
        return nn.Sequential(*layers)

    def population(self, clients):  # a simulation's clients, by name: one CSV file each
        return sorted(file.stem for file in Path(self.data_dir).glob("*.csv"))[:clients]

    def client_data(self, client, clients):  # called on the client's machine alone
        file = Path(self.data_dir) / f"{client}.csv"
        if not file.is_file():
            raise fp.DataError(f"no readings at {file}: expected a temperature in °C a line, a day each")
        windows = torch.tensor([float(line) for line in file.read_text().split()]).unfold(0, self.options.days + 1, 1)
        cut = len(windows) * 4 // 5  # the last fifth is held out: the global model is judged on it
        return fp.ClientData(self.examples(windows[:cut]), self.examples(windows[cut + self.options.days :]))

    def examples(self, windows):
        return fp.TensorExamples((windows[:, :-1] / 10, windows[:, -1:] / 10))

    def loss(self, model, batch):
        days, tomorrow = batch
        return nn.functional.mse_loss(model(days), tomorrow)

    def evaluate(self, model, examples, device):  # means over the examples
        days, tomorrow = (part.to(device) for part in examples.tensors)
        found = model(days)
        error, loss = (found - tomorrow).abs().mean() * 10, nn.functional.mse_loss(found, tomorrow)
        return fp.Metrics(len(days), {"error": float(error), "loss": float(loss)})
