"""Whose text is whose: what each client trains on and holds out, and what the server judges on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpara import chart
from fedpara.data.holdings import aligned
from fedpara.data.text import WINDOW, Author, TextData
from fedpara.errors import ConfigError
from fedpara.seeds import generator_for
from fedpara.task import Batch

MOST_BARS = 50  # clients with a bar each
LENGTH = WINDOW + 1  # a window and the character after it


@dataclass(frozen=True)
class Windows:
    """Windows of one text: a batch is cut out when it is asked for, (batch, 81) places in the alphabet, uint8."""

    text: Tensor  # uint8 (characters,)
    starts: Tensor  # int64 (windows,)

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Tensor) -> Batch:
        starts = self.starts[indices.to(self.starts.device, non_blocking=True)]
        return (self.text[starts[:, None] + torch.arange(LENGTH, device=starts.device)],)

    def to(self, device: torch.device) -> Windows:
        """The same on a device."""
        return Windows(self.text.to(device), self.starts.to(device))

    def spread(self, most: int) -> Windows:
        """At most so many of them, evenly spread; 0: all."""
        if not most or len(self) <= most:
            return self
        return replace(self, starts=self.starts[torch.arange(most) * len(self) // most])


@dataclass(frozen=True)
class Cuts:
    """How a text is cut: the last `test` of it is the server's, `holdout` before that the client's own to judge on.

    Of a text longer than `longest` characters the first so many are used (0: all); one shorter than `shortest`, or that
    leaves a part without a window, is left out. Windows to train on begin every `stride` characters.
    """

    stride: int
    holdout: float
    test: float
    shortest: int
    longest: int


@dataclass(frozen=True)
class Share:
    """One author's windows. No character is in two of the three."""

    name: str
    characters: int
    train: Windows
    held_out: Windows
    test: Windows


def share(author: Author, cuts: Cuts) -> Share | None:
    """An author's text in its parts; None where it is too short."""
    text = author.symbols[: cuts.longest or None]
    count = len(text)
    judged_from = count - round(cuts.test * count)
    held_from = judged_from - round(cuts.holdout * count)
    every, trained = author.starts, author.starts
    if every is None or trained is None:
        every = np.arange(max(0, count - WINDOW))
        trained = every[:: cuts.stride]
    whole = torch.from_numpy(text)
    parts = [
        Windows(whole, torch.from_numpy(starts[(starts >= begin) & (starts + LENGTH <= end)]))
        for starts, begin, end in (
            (trained, 0, held_from),
            (every, held_from, judged_from),
            (every, judged_from, count),
        )
    ]
    wanted = (True, cuts.holdout > 0, cuts.test > 0)
    if count < cuts.shortest or any(need and not len(part) for need, part in zip(wanted, parts, strict=True)):
        return None
    return Share(author.name, count, *parts)


@dataclass(frozen=True)
class Shares:
    """Every author's share, and how many authors were too short for one."""

    authors: tuple[Share, ...]
    left_out: int
    test: Windows
    source: Path

    @staticmethod
    def of(data: TextData, cuts: Cuts) -> Shares:
        """Cut all authors' text; where the data set has text to judge on of its own, all else is the clients'."""
        cuts = replace(cuts, test=0.0) if data.test else cuts
        found = [share(author, cuts) for author in data.authors]
        kept = tuple(own for own in found if own is not None)
        whole = Cuts(1, 0.0, 0.0, 0, 0)
        apart = [own.train for author in data.test if (own := share(author, whole))]
        return Shares(kept, len(found) - len(kept), joined([*apart, *(own.test for own in kept)]), data.source)

    def summary(self) -> str:
        """How many authors there are, and how many were left out."""
        return f"{len(self.authors):,} authors with text enough; {self.left_out:,} too short were left out"

    def chosen(self, clients: int, seed: int) -> tuple[Share, ...]:
        """So many authors, drawn from the seed, in their files' order.

        Raises:
            ConfigError: there are not so many.
        """
        if not 1 <= clients <= len(self.authors):
            raise ConfigError(
                f"clients = {clients}: {self.source} has {self.summary()}; lower clients, shortest, holdout or test"
            )
        order = torch.randperm(len(self.authors), generator=generator_for(seed, "authors"))[:clients]
        return tuple(self.authors[place] for place in order.sort().values.tolist())

    def dealt(self, clients: int, seed: int) -> tuple[Share, ...]:
        """All authors' windows dealt out evenly: client-0000, client-0001, …

        Raises:
            ConfigError: there are not enough.
        """
        train, held_out = joined([own.train for own in self.authors]), joined([own.held_out for own in self.authors])
        enough = min(len(train), len(held_out) if any(len(own.held_out) for own in self.authors) else len(train))
        if not 1 <= clients <= enough:
            raise ConfigError(
                f"clients = {clients} cannot share the {enough:,} windows of {self.source}: lower clients"
            )
        hands = [
            [
                replace(part, starts=part.starts[own.sort().values])
                for own in torch.randperm(len(part), generator=generator_for(seed, "deal", kind)).tensor_split(clients)
            ]
            for kind, part in (("train", train), ("held out", held_out))
        ]
        none = Windows(train.text, train.starts[:0])
        return tuple(
            Share(f"client-{place:04d}", LENGTH * (len(own) + len(held)), own, held, none)
            for place, (own, held) in enumerate(zip(*hands, strict=True))
        )


def joined(parts: Sequence[Windows]) -> Windows:
    """Windows of several texts as those of one; a text that several parts lie in is taken once for each."""
    if not parts:
        return Windows(torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    sizes = torch.tensor([0, *(len(part.text) for part in parts)]).cumsum(0).tolist()
    starts = [part.starts + begin for part, begin in zip(parts, sizes, strict=False)]
    return Windows(torch.cat([part.text for part in parts]), torch.cat(starts))


@dataclass(frozen=True)
class Holdings:
    """Who holds how much text."""

    clients: tuple[Share, ...]
    note: str

    def summary(self) -> str:
        """One line: clients, and authors that are none."""
        return f"{self.note}; {len(self.clients):,} clients"

    def rows(self, limit: int) -> tuple[list[str], list[list[str]]]:
        """Names of the columns, and a row of cells for each of the first `limit` clients."""
        header = ["client", "characters", "windows", "held out"]
        return header, [
            [own.name, f"{own.characters:,}", f"{len(own.train):,}", f"{len(own.held_out):,}"]
            for own in self.clients[:limit]
        ]

    def charts(self) -> str:
        """Windows by client where these are few, else how many clients hold how many."""
        sizes = [len(own.train) for own in self.clients]
        if len(sizes) <= MOST_BARS:
            names = [own.name for own in self.clients]
            return chart.bars(names, {"windows": sizes}, "windows to train on", "Windows to train on, by client")
        return chart.panel(chart.histogram(sizes, "windows to train on", "clients"))

    def table(self, limit: int = 20) -> str:
        """A summary, then a row for each of the first `limit` clients."""
        header, found = self.rows(limit)
        return aligned(f"{self.summary()}:", header, found, len(self.clients) - limit)

    def plot(self, path: Path) -> None:
        """How many windows the clients train on, the most first."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        sizes = sorted((len(own.train) for own in self.clients), reverse=True)
        axes.bar(range(1, len(sizes) + 1), sizes, width=1.0, color="#33628d")
        axes.set_xlabel("clients, the one with the most text first")
        axes.set_ylabel("windows to train on")
        axes.set_title(self.note, fontsize=10, loc="left")
        figure.savefig(path)
