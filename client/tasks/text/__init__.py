"""The next character of a client's own text, such as the lines of one speaking role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.checkpoint import replace_file
from fedpara.config import setting
from fedpara.data.text import CLASSES, TextData, encode, load_text, read_plain
from fedpara.errors import DataError
from fedpara.models.lstm import LSTM
from fedpara.task import Batch, ClientData, Examples, Exhibit, Metrics, Task, register_task

from .generate import generate
from .shares import WINDOW, Cuts, Holdings, Share, Shares

EVALUATION_BATCH = 512
HELD_OUT = 64  # windows that a client judges on at most
SAMPLE = "ROMEO:\nBut soft, what light"


@dataclass(frozen=True)
class Options:
    """The recipe's [text] table."""

    dataset: str = setting(
        "shakespeare",
        "shakespeare (a role file or LEAF's JSON in data-dir) or folder (data-dir itself, or its .txt files)",
        choices=("shakespeare", "folder"),
    )
    partition: str = setting(
        "role", "who gets what: one author each, or all text dealt evenly", choices=("role", "iid")
    )
    loss: str = setting(
        "every", "over every character of a window, or the one after it alone", choices=("every", "last")
    )
    stride: int = setting(80, "characters from one window to train on to the next; LEAF's JSON has its own", low=1)
    shortest: int = setting(0, "authors of fewer characters are left out, as are those too short to be cut", low=0)
    longest: int = setting(0, "characters of an author that are used at most; 0: all", low=0)
    holdout: float = setting(0.1, "share of a client's text on which it judges the global model", low=0, high=0.5)
    test: float = setting(
        0.1, "share of each text for the server to judge on, unless there is a test/", low=0, high=0.4
    )
    judged: int = setting(10_000, "windows that the server judges on, evenly spread; 0: all", low=0)
    hidden: int = setting(256, "units of each LSTM layer", low=1)
    embedding: int = setting(8, "numbers that a character is embedded in", low=1)
    layers: int = setting(2, "LSTM layers", low=1)


@dataclass(frozen=True)
class Apply:
    """What fedpara apply takes besides a file that it goes on from, and the file that it writes."""

    prompt: str = setting("", "text to go on from")
    length: int = setting(400, "characters to write", low=1, high=1_000_000)
    temperature: float = setting(0.8, "0: always the likeliest character; 1: as likely as learnt", low=0, high=100)
    seed: int = setting(0, "of the choice among characters", low=0)


@register_task("text")
class Text(Task):
    """The next character of a client's own text, after 80 of them."""

    Options = Options
    Apply = Apply
    options: Options

    @cached_property
    def data(self) -> TextData:
        """The authors' text, read once for each process."""
        folder = Path(self.data_dir).expanduser() if self.data_dir else None
        return load_text(self.options.dataset, folder)

    @cached_property
    def shares(self) -> Shares:
        """Each author's text in its parts."""
        o = self.options
        return Shares.of(self.data, Cuts(o.stride, o.holdout, o.test, o.shortest, o.longest))

    @lru_cache(maxsize=2)  # noqa: B019  a task lives as long as its process
    def split(self, clients: int) -> dict[str, Share]:
        """Who holds which windows, by name."""
        deal = self.shares.dealt if self.options.partition == "iid" else self.shares.chosen
        return {own.name: own for own in deal(clients, self.seed)}

    def model(self) -> nn.Module:
        o = self.options
        return LSTM(CLASSES, embedding=o.embedding, hidden=o.hidden, layers=o.layers)

    def population(self, clients: int) -> Sequence[str]:
        return list(self.split(clients))

    def client_data(self, client: str, clients: int) -> ClientData:
        if self.options.partition == "iid":
            own = self.split(clients).get(client)
        else:  # on a machine of its own there may be this one author's text alone
            own = next((own for own in self.shares.authors if own.name == client), None)
        if own is None:
            raise DataError(f"{self.data.source} has no text, or too little, of the client '{client}'")
        return ClientData(own.train, own.held_out.spread(HELD_OUT) if len(own.held_out) else None)

    def server_data(self) -> Examples | None:
        test = self.shares.test.spread(self.options.judged)
        return test if len(test) else None

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return (batch[0].long(),)

    def example_input(self) -> Batch:
        return (torch.arange(2 * WINDOW).view(2, WINDOW) % CLASSES,)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the next character, over every place of the windows or their last alone."""
        (text,) = batch
        logits, targets = model(text[:, :-1]), text[:, 1:]
        if self.options.loss == "last":
            return F.cross_entropy(logits[:, -1], targets[:, -1])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        """The character after a full window, whatever was trained on."""
        loss = correct = torch.zeros((), device=device, dtype=torch.float64)
        for indices in torch.arange(len(examples)).split(EVALUATION_BATCH):
            text = examples.batch(indices)[0].to(device).long()
            logits, target = model(text[:, :-1])[:, -1], text[:, -1]
            loss = loss + F.cross_entropy(logits, target, reduction="sum")
            correct = correct + (logits.argmax(1) == target).sum()
        count = len(examples)
        return Metrics(count, {"accuracy": float(correct) / count, "loss": float(loss) / count})

    def holdings(self, clients: int) -> Holdings:
        judged = [replace(own, held_out=own.held_out.spread(HELD_OUT)) for own in self.split(clients).values()]
        return Holdings(tuple(judged), self.shares.summary())

    def exhibits(self, model: nn.Module, folder: Path) -> Sequence[Exhibit]:
        written = generate(model, SAMPLE, 400, temperature=0.8, seed=self.seed)
        return [Exhibit(f"what it writes after {SAMPLE!r}, at temperature 0.8", table=SAMPLE + written)]

    def apply(self, model: nn.Module, source: Path | None, output: Path | None, options: Apply) -> Sequence[str]:
        """Goes on from --prompt, or from the text file INPUT; what it writes goes to OUTPUT too where that is named.

        The network sees the last 80 characters; those outside LEAF's alphabet of 80 look all the same to it.
        """
        if source is not None and options.prompt:
            raise DataError(f"given both --prompt and {source}: leave one of them out")
        prompt = options.prompt if source is None else read_plain(source)
        if source is not None and not len(encode(prompt)):
            raise DataError(f"{source} is empty: give a text to go on from")
        written = generate(model, prompt, options.length, temperature=options.temperature, seed=options.seed)
        if output:
            replace_file(output, (prompt + written).encode())
        return [prompt + written, *([f"written: {output}"] if output else [])]
